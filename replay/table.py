"""One table: a ring of steps with one signature, its writers, its starts and its limiter.

Storing, stacking, drawing and limiting are things of their own (`ring`, `stacking`, `starts`,
`limiter`); the table keeps them in step with each other.
"""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import (
    EvictedError,
    FencedError,
    InvalidRequestError,
    SequenceError,
    UnknownWriterError,
)
from fornix.common.messages import FIRST, LAST, Array, Batch, Observe, Sample, Stacks, TableSpec
from fornix.replay.checks import check_batch, check_stacks, check_steps
from fornix.replay.lanes import Writer, waves
from fornix.replay.limiter import Limiter
from fornix.replay.ring import NONE, Numbers, Ring
from fornix.replay.stacking import Stacker
from fornix.replay.starts import StartIndex
from fornix.replay.storage import EXTRA_PREFIX, Columns
from fornix.replay.transitions import assemble

_EPISODES_KEPT = 100
_INDEXES_KEPT = 4
_MAX_WRITERS = 1024


class Table:
    """Steps of many lanes; see `docs/replay.md` for what each word means."""

    def __init__(self, spec: TableSpec, columns: Columns, rng: np.random.Generator) -> None:
        self.spec = spec
        self.limiter = Limiter.create(spec.limiter, spec.capacity_steps)
        self.ring = Ring(columns)
        self._stacker = Stacker(self.ring, spec.signature.n_frames)
        self._starts: dict[int, StartIndex] = {}
        self._rng = rng
        self.writers: dict[str, Writer] = {}
        #: Version of the weights that chose the newest step's action.
        self.newest_policy_version = 0
        self.episodes = 0
        self.returns: deque[float] = deque(maxlen=_EPISODES_KEPT)
        self.lengths: deque[int] = deque(maxlen=_EPISODES_KEPT)

    def open_writer(self, name: str, incarnation: int, lanes: int, now: float = 0.0) -> int:
        """Take the place of writer `name`, and return the next sequence number.

        Opening the same incarnation again changes nothing. A newer one fences the older and closes
        its open episodes as truncated. Where there are too many writers, the one that has been idle
        longest is forgotten, as if a newer incarnation had taken its place.

        Raises:
            FencedError: if a newer incarnation has been opened.
            InvalidRequestError: if the lanes differ from those of the same incarnation, or if the
                table can't hold a stack of each.
        """
        known = self.writers.get(name)
        if known is not None and known.incarnation >= incarnation:
            if known.incarnation > incarnation:
                raise fenced(name, incarnation, known.incarnation)
            if known.lanes != lanes:
                raise InvalidRequestError(
                    f"writer {name!r} was opened with {known.lanes} lanes, not {lanes}; give the same "
                    f"number, or a new incarnation"
                )
            return known.sequence + 1
        needed = lanes * (self.spec.signature.n_frames + 1)
        if needed > self.spec.capacity_steps:
            raise InvalidRequestError(
                f"{lanes} lanes need at least {needed} steps to hold a stack of each, and the table "
                f"has {self.spec.capacity_steps}; raise capacity_steps or open fewer lanes"
            )
        if known is None and len(self.writers) >= _MAX_WRITERS:
            known = min(self.writers.values(), key=lambda writer: writer.last_seen)
        if known is not None:
            self._close_episodes(known)
            del self.writers[known.name]
        self.writers[name] = Writer.open(name, incarnation, lanes, now)
        return 1

    def is_repeated(self, request: Observe) -> bool:
        """Whether `request` was applied before, so that it must only be answered again.

        Raises:
            UnknownWriterError, FencedError, SequenceError: if it may not be applied either.
        """
        writer = self._writer(request)
        if request.sequence == writer.sequence + 1:
            return False
        if request.sequence > writer.sequence:
            raise SequenceError(
                f"writer {writer.name!r} sent request {request.sequence}, and {writer.sequence + 1} "
                f"is expected; send the missing ones first"
            )
        return True

    def check(self, request: Observe) -> Writer:
        """Return the writer of `request`, if every array fits the signature and the writer's lanes.

        Raises:
            UnknownWriterError, FencedError: as the writer may not write.
            InvalidRequestError: naming the array, what it is, and what it must be.
        """
        writer = self._writer(request)
        check_steps(self.spec, writer, request)
        return writer

    def observe(self, request: Observe, now: float) -> Stacks:
        """Append the steps of `request`, and answer with the stacks of its lanes.

        All is checked first: a request that is refused has changed nothing.
        """
        writer = self.check(request)
        ring, lanes = self.ring, request.lane
        parts = waves(lanes, request.step_type, writer.newest.copy())
        tail = ring.tail_after(len(lanes))
        predecessors = np.where(request.step_type == FIRST, NONE, writer.newest[lanes])
        self._require_stacks(request, predecessors, tail)

        doomed = ring.doomed(len(lanes))
        for starts in self._starts.values():
            starts.evict(doomed)
        numbers = ring.append(self._rows(request), predecessors)
        ended = request.step_type == LAST
        ring.end(numbers[ended])
        arrived = numbers[request.step_type != FIRST]
        for starts in self._starts.values():
            starts.arrive(arrived)
        for rows in parts:
            writer.newest[lanes[rows]] = np.where(ended[rows], NONE, numbers[rows])
            self._count_returns(writer, request, rows)
        self.limiter.inserts += len(arrived)
        self.newest_policy_version = request.policy_version
        writer.sequence = request.sequence
        writer.last_seen = now
        answer = self._newest_rows(lanes, numbers, parts)
        writer.answers.append((request.sequence, answer))
        return self._answer(answer, request.stacks)

    def answer_again(self, request: Observe) -> Stacks:
        """Return the same answer as when `request` was applied.

        Raises:
            SequenceError: if it was applied too long ago to be known, or its stacks have been
                overwritten since.
        """
        writer = self._writer(request)
        for sequence, rows in writer.answers:
            if sequence == request.sequence:
                try:
                    return self._answer(rows, request.stacks)
                except EvictedError as error:
                    raise SequenceError(
                        f"request {sequence} of writer {writer.name!r} was applied, and {error}"
                    ) from None
        raise SequenceError(
            f"request {request.sequence} of writer {writer.name!r} is not among the last "
            f"{len(writer.answers)}, which alone can be answered again; the next number is "
            f"{writer.sequence + 1}"
        )

    def stacks(self, keys: Numbers) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError for what is not there."""
        return self._answer(keys, stacks=True)

    def sample(self, request: Sample) -> Batch | None:
        """Return a batch, or None while the limiter is closed or no start is sampleable."""
        if not self.limiter.may_sample():
            return None
        starts = self._starts_for(request.n_step)
        drawn = starts.draw(request.batch_size, self._rng)
        if drawn is None:
            return None
        self.limiter.samples += request.batch_size
        return assemble(
            self.ring, self._stacker, drawn, 1.0 / starts.count, request.n_step, request.discount
        )

    def check_sample(self, request: Sample) -> None:
        """Raise InvalidRequestError if the batch could not be sent."""
        check_batch(self.spec, request)

    def starts(self, n_step: int) -> Numbers:
        """Return the keys that a transition of `n_step` may start from now, oldest first."""
        return self._starts_for(n_step).numbers()

    def why_no_sample(self, request: Sample) -> str:
        """Return what `request` waits for, and what would open it."""
        if not self.limiter.may_sample():
            return self.limiter.why_no_sample()
        return (
            f"none of the {len(self.ring)} steps can be started from yet: a start needs its whole "
            f"stack and the {request.n_step} steps after it, or its episode's end; more steps open it"
        )

    def _writer(self, request: Observe) -> Writer:
        writer = self.writers.get(request.writer)
        if writer is None:
            raise UnknownWriterError(
                f"writer {request.writer!r} is not open in table {request.table!r}; open it first"
            )
        if request.incarnation > writer.incarnation:
            raise UnknownWriterError(
                f"writer {request.writer!r} is open as incarnation {writer.incarnation}, not "
                f"{request.incarnation}; open the new one first"
            )
        if request.incarnation < writer.incarnation:
            raise fenced(writer.name, request.incarnation, writer.incarnation)
        return writer

    def _require_stacks(self, request: Observe, predecessors: Numbers, tail: int) -> None:
        """Raise EvictedError if a new step's stack would reach below `tail`."""
        if tail == 0:
            return
        gone = ~self._stacker.may_follow(predecessors, tail)
        if gone.any():
            raise EvictedError(
                f"the stack of lane {request.lane[gone][0]} reaches back to a step that has been "
                f"overwritten: {self.spec.capacity_steps} steps are too few for so many lanes, or the "
                f"lane has slept too long; raise capacity_steps, or open the writer anew, under a higher "
                f"incarnation"
            )

    def _rows(self, request: Observe) -> dict[str, NDArray[Any]]:
        first = request.step_type == FIRST
        action, reward = request.action, request.reward
        if first.any():
            action, reward = action.copy(), reward.copy()
            action[first], reward[first] = 0, 0
        count = len(request.lane)
        return {
            "terminated": request.terminated,
            "policy_version": np.full(count, min(request.policy_version, 2**32 - 1), np.uint32),
            "frame": request.frame,
            "action": action,
            "reward": reward,
            **{EXTRA_PREFIX + name: array for name, array in request.extras.items()},
        }

    def _newest_rows(self, lanes: Array, numbers: Numbers, parts: list[NDArray[np.int64]]) -> Numbers:
        """Return the newest row of each lane in the request, in order of the lanes' appearance."""
        newest = numbers[parts[0]].copy()
        if len(parts) > 1:
            place = {int(lane): at for at, lane in enumerate(lanes[parts[0]])}
            for row in parts[1]:
                newest[place[int(lanes[row])]] = numbers[row]
        return newest

    def _answer(self, keys: Numbers, stacks: bool) -> Stacks:
        if not stacks:
            empty = np.empty((0, self._stacker.n_frames, *self.spec.signature.frame.shape))
            return Stacks(key=keys.copy(), stack=empty.astype(self.spec.signature.frame.dtype))
        check_stacks(self.spec.signature, len(keys))
        there = (keys >= self.ring.tail) & (keys < self.ring.head)
        rows, whole = self._stacker.rows(np.where(there, keys, NONE))
        if not (there & whole).all():
            at = int(np.argmin(there & whole))
            raise EvictedError(
                f"the stack of step {keys[at]} is not there: the table holds the steps "
                f"{self.ring.tail} to {self.ring.head - 1}, and a stack must be whole"
            )
        return Stacks(key=keys.copy(), stack=self._stacker.gather(rows))

    def _starts_for(self, n_step: int) -> StartIndex:
        starts = self._starts.pop(n_step, None)
        if starts is None:
            if len(self._starts) == _INDEXES_KEPT:
                del self._starts[next(iter(self._starts))]  # the one that was used longest ago
            starts = StartIndex(self.ring, self._stacker, n_step)
        self._starts[n_step] = starts
        return starts

    def _count_returns(self, writer: Writer, request: Observe, rows: NDArray[np.int64]) -> None:
        acted = rows[request.step_type[rows] != FIRST]
        lanes = request.lane[acted]
        writer.returns[lanes] += request.reward[acted]
        writer.lengths[lanes] += 1
        ended = request.lane[rows[request.step_type[rows] == LAST]]
        self.returns.extend(writer.returns[ended].tolist())
        self.lengths.extend(writer.lengths[ended].tolist())
        self.episodes += len(ended)
        writer.returns[ended] = 0
        writer.lengths[ended] = 0

    def _close_episodes(self, writer: Writer) -> None:
        """Mark the last row of each open episode as its end: truncated, since it isn't terminated."""
        left = writer.newest[writer.newest >= self.ring.tail]
        self.ring.end(left)
        for starts in self._starts.values():
            starts.arrive(left)


def fenced(writer: str, incarnation: int, newer: int) -> FencedError:
    """Return the error for a writer whose place a newer incarnation has taken."""
    return FencedError(
        f"incarnation {incarnation} of writer {writer!r} has been replaced by {newer}; end this process, "
        f"or give it a writer name of its own"
    )
