"""What a request must be like for a table to carry it out; all of it is looked at before any of it is."""

import numpy as np

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.common.messages import LAST, MAX_BATCH, MAX_LANES, Array, Observe, Sample, UpdatePriorities
from fornix.common.signature import Signature
from fornix.common.specs import Sequence, TableSpec, Transition, Unit
from fornix.common.wire import MAX_MESSAGE_BYTES
from fornix.replay.lanes import Writer
from fornix.replay.ring import held_at_least

_MAX_REWARD = 1e30  # of which the sum over any n_step is a finite float32
_KEY_BYTES = 8
_INDEX_BYTES = 4
_STEP_BYTES = 17  # of a step's numbers in a batch, beside its frame and what it holds
_UNIT_BYTES = 48  # of the numbers that there are once for each transition, sequence or episode

MAX_LIMITED_BATCH = 4096


def check_steps(signature: Signature, capacity: int, writer: Writer, request: Observe) -> None:
    """Raise InvalidRequestError unless every array fits the signature and the writer's lanes."""
    rows = _check_rows(capacity, writer, request)
    for name, array, dtype in (
        ("step_type", request.step_type, "|u1"),
        ("terminated", request.terminated, "|b1"),
    ):
        if array.shape != (rows,) or array.dtype.str != dtype:
            raise InvalidRequestError(
                f"{name} has shape {array.shape} and dtype {array.dtype.str}; it must be "
                f"{(rows,)} and {dtype}, one for each lane"
            )
    if request.terminated.any() and np.any(request.terminated & (request.step_type != LAST)):
        raise InvalidRequestError("terminated is true on a step that is not LAST; send LAST with it")
    _check_payload(signature, request, rows)
    if request.stacks:
        check_stacks(signature, rows)


def check_leaving(rows: int, leaving: int, most: int) -> None:
    """Raise InvalidRequestError if rows and lanes that leave are more than may be ahead of the disk."""
    if rows + leaving > most:
        raise InvalidRequestError(
            f"{leaving} lanes leave with {rows} rows; a table that is kept takes {most} of both in one "
            f"request; let the lanes leave in a request of their own"
        )


def check_keys(key: Array) -> None:
    """Raise InvalidRequestError unless these are at most so many keys as one request may name."""
    if key.ndim != 1 or key.dtype != np.int64:
        raise InvalidRequestError(
            f"key has shape {key.shape} and dtype {key.dtype.str}; it must be <i8 [K]"
        )
    if len(key) > MAX_BATCH:
        raise InvalidRequestError(
            f"{len(key)} keys are named; the limit is {MAX_BATCH}; ask for fewer at once"
        )


def check_priorities(request: UpdatePriorities) -> None:
    """Raise InvalidRequestError unless there is a float for each key."""
    check_keys(request.key)
    priority = request.priority
    if priority.shape != request.key.shape or priority.dtype.str not in ("<f4", "<f8"):
        raise InvalidRequestError(
            f"priority has shape {priority.shape} and dtype {priority.dtype.str}; it must be <f8 or <f4 "
            f"{request.key.shape}, one for each key"
        )


def check_stacks(signature: Signature, stacks: int) -> None:
    """Raise InvalidRequestError if so many stacks could not be sent."""
    one = signature.n_frames * signature.frame_nbytes + _KEY_BYTES
    if stacks * one > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"{stacks} stacks take {stacks * one:,} bytes; a message may have "
            f"{MAX_MESSAGE_BYTES:,}; ask for at most {MAX_MESSAGE_BYTES // one} at once"
        )


def check_batch(spec: TableSpec, request: Sample) -> None:
    """Raise InvalidRequestError if the batch could not be sent, or could never be drawn."""
    unit = request.unit
    fewest = fewest_steps(unit) + spec.signature.n_frames
    if fewest > spec.steps:
        raise InvalidRequestError(
            f"a {unit.kind} of {fewest_steps(unit)} steps needs {fewest} with its stack, and the table "
            f"holds {spec.steps}; draw shorter ones or raise capacity_steps"
        )
    # a batch of an ordered sampler holds different starts
    times = 1 if spec.sampler.kind in ("fifo", "lifo") else spec.sampler.uses
    held = held_at_least(spec.steps)
    if times is not None and request.batch_size > held * times:
        often = "once" if times == 1 else f"{times} times"
        raise InvalidRequestError(
            f"batch_size {request.batch_size} is more than the {held} steps of the table allow, each "
            f"of which may be in a batch {often} at most; lower batch_size, or raise capacity_steps"
        )
    row = _unit_nbytes(spec.signature, unit, request.mapped)
    zeros = 0 if request.mapped else spec.signature.frame_nbytes
    if request.batch_size * row + zeros > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"a batch of {request.batch_size} takes {request.batch_size * row + zeros:,} bytes, {row:,} "
            f"for each {unit.kind}; a message may have {MAX_MESSAGE_BYTES:,}; ask for at most "
            f"{(MAX_MESSAGE_BYTES - zeros) // row}"
        )
    _check_rounds(spec, request)
    if request.lease and request.lease <= request.consumed:
        raise InvalidRequestError(
            f"lease {request.lease} is asked for, and all up to {request.consumed} are acknowledged with "
            f"it; number leases upwards, from {request.consumed + 1} on"
        )
    if request.lease and not request.session:
        raise InvalidRequestError(f"lease {request.lease} has no session; name one, or send lease 0")


def _check_rounds(spec: TableSpec, request: Sample) -> None:
    """Raise InvalidRequestError for more draws than can be made at once where each may shut others out."""
    sampler = spec.sampler
    one_by_one = sampler.uses is not None and sampler.kind in ("uniform", "prioritized", "epoch")
    if one_by_one and request.batch_size > MAX_LIMITED_BATCH:
        raise InvalidRequestError(
            f"batch_size {request.batch_size} is more than the {MAX_LIMITED_BATCH} that a {sampler.kind} "
            f"sampler with max_times_sampled draws at once; lower batch_size"
        )


def fewest_steps(unit: Unit) -> int:
    """Return how many steps must fit into a table for this unit to be drawn."""
    return unit.n_step if isinstance(unit, Transition) else 1


def check_table(spec: TableSpec) -> None:
    """Raise InvalidRequestError if not even one stack or one transition of the table could be sent."""
    signature = spec.signature
    one = max(_unit_nbytes(signature, Transition(), False), signature.n_frames * signature.frame_nbytes)
    if one > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"one transition takes {one:,} bytes; a message may have {MAX_MESSAGE_BYTES:,}; lower n_frames "
            f"or the size of a frame"
        )
    if signature.n_frames + 1 > spec.steps:
        raise InvalidRequestError(
            f"{spec.steps} steps can't hold a stack of {signature.n_frames} frames and the step after it; "
            f"raise capacity_steps to {signature.n_frames + 1} or more"
        )


def _unit_nbytes(signature: Signature, unit: Unit, mapped: bool) -> int:
    """Return the bytes that one unit takes in a batch, at most."""
    if isinstance(unit, Transition):
        steps, span = 1, unit.n_step
    else:
        steps = span = unit.length if isinstance(unit, Sequence) else unit.max_steps
    frames = (signature.n_frames + span) * (_INDEX_BYTES + (0 if mapped else signature.frame_nbytes))
    step = signature.step_nbytes - signature.frame_nbytes + _STEP_BYTES
    return frames + steps * step + _UNIT_BYTES


def _check_rows(capacity: int, writer: Writer, request: Observe) -> int:
    """Return how many rows the request has."""
    rows = request.lane.shape[0] if request.lane.ndim == 1 else -1
    fewest, most = 1 if request.leave is None else 0, min(capacity // 2, MAX_BATCH)
    if not fewest <= rows <= most:
        raise InvalidRequestError(
            f"lane has shape {request.lane.shape}; it must be [K] with K from {fewest} to {most}: half the "
            f"table, and {MAX_BATCH} at most; send the rows in several requests"
        )
    _check_lanes("lane", request.lane, writer)
    if request.leave is not None:
        if request.leave.size > MAX_LANES:
            raise InvalidRequestError(
                f"leave names {request.leave.size} lanes; a writer has {MAX_LANES} at most; name each once"
            )
        _check_lanes("leave", request.leave, writer)
    return rows


def _check_lanes(name: str, lane: Array, writer: Writer) -> None:
    if lane.ndim != 1 or lane.dtype != np.int32:
        raise InvalidRequestError(
            f"{name} has shape {lane.shape} and dtype {lane.dtype.str}; it must be <i4 [K]"
        )
    low, high = lane.min(initial=0), lane.max(initial=0)
    if low < 0 or high >= writer.lanes:
        raise InvalidRequestError(
            f"{name} holds {low if low < 0 else high}; writer {writer.name!r} has {writer.lanes} "
            f"lanes, 0 to {writer.lanes - 1}; open it with more lanes"
        )


def _check_payload(signature: Signature, request: Observe, rows: int) -> None:
    signature.check_frame(trees.leaves(request.frame), rows)
    signature.action.check("action", request.action, rows)
    signature.reward.check("reward", request.reward, rows)
    usable = np.abs(request.reward) <= _MAX_REWARD
    if not usable.all():
        at = int(np.argmin(usable))
        raise InvalidRequestError(
            f"the reward of lane {request.lane[at]} is {request.reward[at]}; rewards must be finite, "
            f"and within ±{_MAX_REWARD:g}"
        )
    if request.extras.keys() != signature.extras.keys():
        raise InvalidRequestError(
            f"extras are {sorted(request.extras)}; the table takes {sorted(signature.extras)}"
        )
    for name, spec in signature.extras.items():
        spec.check(f"extras.{name}", request.extras[name], rows)
