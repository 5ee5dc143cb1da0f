"""What a request must be like for a table to carry it out; all of it is looked at before any of it is."""

import numpy as np

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import LAST, Observe, Sample, TableSpec
from fornix.common.signature import Signature
from fornix.common.wire import MAX_MESSAGE_BYTES
from fornix.replay.lanes import Writer

_MAX_REWARD = 1e30  # of which the sum over any n_step is a finite float32
_KEY_BYTES = 8
_BATCH_ROW_BYTES = 48  # of a transition's numbers, beside its frames and what a step holds


def check_steps(spec: TableSpec, writer: Writer, request: Observe) -> None:
    """Raise InvalidRequestError unless every array fits the signature and the writer's lanes."""
    rows = _check_lanes(spec, writer, request)
    for name, array, dtype in (
        ("step_type", request.step_type, "|u1"),
        ("terminated", request.terminated, "|b1"),
    ):
        if array.shape != (rows,) or array.dtype.str != dtype:
            raise InvalidRequestError(
                f"{name} has shape {array.shape} and dtype {array.dtype.str}; it must be "
                f"{(rows,)} and {dtype}, one for each lane"
            )
    if np.any(request.terminated & (request.step_type != LAST)):
        raise InvalidRequestError("terminated is true on a step that is not LAST; send LAST with it")
    _check_payload(spec.signature, request, rows)
    if request.stacks:
        check_stacks(spec.signature, rows)


def check_stacks(signature: Signature, stacks: int) -> None:
    """Raise InvalidRequestError if so many stacks could not be sent."""
    one = signature.n_frames * signature.frame.nbytes + _KEY_BYTES
    if stacks * one > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"{stacks} stacks take {stacks * one:,} bytes; a message may have "
            f"{MAX_MESSAGE_BYTES:,}; ask for at most {MAX_MESSAGE_BYTES // one} at once"
        )


def check_batch(spec: TableSpec, request: Sample) -> None:
    """Raise InvalidRequestError if the batch could not be sent, or could never be drawn."""
    frames = spec.signature.n_frames + request.n_step
    if frames > spec.capacity_steps:
        raise InvalidRequestError(
            f"a transition of n_step {request.n_step} needs {frames} steps with its stack, and the table "
            f"holds {spec.capacity_steps}; lower n_step or raise capacity_steps"
        )
    row = _transition_nbytes(spec.signature, request.n_step)
    if request.batch_size * row > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"a batch of {request.batch_size} takes {request.batch_size * row:,} bytes at {frames} "
            f"frames each; a message may have {MAX_MESSAGE_BYTES:,}; ask for at most "
            f"{MAX_MESSAGE_BYTES // row}"
        )


def check_table(spec: TableSpec) -> None:
    """Raise InvalidRequestError if not even one stack or one transition of the table could be sent."""
    one = max(_transition_nbytes(spec.signature, 1), spec.signature.n_frames * spec.signature.frame.nbytes)
    if one > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"one transition takes {one:,} bytes; a message may have {MAX_MESSAGE_BYTES:,}; lower n_frames "
            f"or the size of a frame"
        )
    if spec.signature.n_frames + 1 > spec.capacity_steps:
        raise InvalidRequestError(
            f"{spec.capacity_steps} steps can't hold a stack of {spec.signature.n_frames} frames and the "
            f"step after it; raise capacity_steps to {spec.signature.n_frames + 1} or more"
        )


def _transition_nbytes(signature: Signature, n_step: int) -> int:
    frames = signature.n_frames + n_step
    return (frames - 1) * signature.frame.nbytes + signature.step_nbytes + _BATCH_ROW_BYTES


def _check_lanes(spec: TableSpec, writer: Writer, request: Observe) -> int:
    """Return how many rows the request has."""
    rows = request.lane.shape[0] if request.lane.ndim == 1 else -1
    if rows < 1 or rows > spec.capacity_steps // 2 or request.lane.dtype != np.int32:
        raise InvalidRequestError(
            f"lane has shape {request.lane.shape} and dtype {request.lane.dtype.str}; it must be "
            f"<i4 [K] with K from 1 to {spec.capacity_steps // 2}, half the table"
        )
    low, high = request.lane.min(), request.lane.max()
    if low < 0 or high >= writer.lanes:
        raise InvalidRequestError(
            f"lane holds {low if low < 0 else high}; writer {writer.name!r} has {writer.lanes} "
            f"lanes, 0 to {writer.lanes - 1}; open it with more lanes"
        )
    return rows


def _check_payload(signature: Signature, request: Observe, rows: int) -> None:
    signature.frame.check("frame", request.frame, rows)
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
