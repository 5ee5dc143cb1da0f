"""One memory: a ring of steps, and the writers that write it.

Tables draw from it (`replay.table`): one that has it as its own, and perhaps others that share its rows.
The memory tells them what comes and what goes.
"""

import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import (
    EvictedError,
    FencedError,
    InvalidRequestError,
    SequenceError,
    UnknownWriterError,
)
from fornix.common.messages import FIRST, LAST, Observe, Stacks
from fornix.common.signature import Signature, frame_name
from fornix.replay.checks import check_leaving, check_stacks, check_steps
from fornix.replay.lanes import Runs, Writer
from fornix.replay.ring import ENDS, Ring
from fornix.replay.stacking import NONE, Numbers, Stacker
from fornix.replay.storage import EXTRA_PREFIX, Columns

if TYPE_CHECKING:
    from fornix.replay.durable.log import MemoryLog
    from fornix.replay.durable.recovery import Found, FoundWriter

_LOG = logging.getLogger(__name__)

_EPISODES_KEPT = 100
_MAX_WRITERS = 1024


class Reader(Protocol):
    """Who draws from a memory's rows."""

    def make_room(self, rows: int) -> None:
        """`rows` more are about to be written: let go of all that will be overwritten."""

    def arrive(self, rows: Numbers, acted: int) -> None:
        """These rows have been written; so many of them are not the first of their episodes."""

    def end(self, rows: Numbers) -> None:
        """These rows, written before, are the last of their episodes now."""

    def lose(self, rows: Numbers, last: Numbers) -> None:
        """These rows are damaged; their episodes end before them, with the rows `last`."""


class Memory:
    """Steps of many lanes; see `docs/replay.md` for what each word means.

    Args:
        signature: of the steps.
        columns: to keep them in.
        first: the key of the first step.
        log: of the file that the columns are in, if they are in one.
    """

    def __init__(
        self, signature: Signature, columns: Columns, first: int = 0, log: "MemoryLog | None" = None
    ) -> None:
        self.signature = signature
        self.log = log
        self.ring = Ring(columns, first)
        self._first = first
        #: Steps that its own table has; in a file there are more, see `durable.log.guard_of`.
        self.steps = columns.capacity if log is None else log.steps
        self.stacker = Stacker(columns.arrays, signature)
        self.readers: list[Reader] = []
        self.writers: dict[str, Writer] = {}
        #: That a client knows this memory by when it has mapped it.
        self.number = secrets.randbits(53) if log is None else log.number
        #: Damaged rows that nobody may draw.
        self.broken: Numbers = np.empty(0, np.int64)
        #: Version of the weights that chose the newest step's action.
        self.newest_policy_version = 0
        self.episodes = 0
        self.returns: deque[float] = deque(maxlen=_EPISODES_KEPT)
        self.lengths: deque[int] = deque(maxlen=_EPISODES_KEPT)

    @classmethod
    def recovered(cls, signature: Signature, log: "MemoryLog", found: "Found", now: float) -> Self:
        """Return the memory that was found in a file, whose columns have been filled.

        Args:
            signature: of the steps.
            log: of the file.
            found: in it.
            now: seconds.
        """
        base = log.columns.base
        memory = cls(signature, log.columns, found.state.first + base, log)
        memory.ring.restore(found.tail + base, found.head + base)
        memory.newest_policy_version = found.newest_policy_version
        memory.episodes = found.state.episodes
        for each in found.writers:
            memory._take_over(each, base, now)
        memory.broken = found.broken + base
        memory._check_open_episodes()
        return memory

    @property
    def steps_ever(self) -> int:
        """Steps that have been written, and those that a reset forgot."""
        return self.ring.head - self._first

    @property
    def may_be_damaged(self) -> bool:
        """Whether there are rows that are damaged, or have not been looked at since the server's start."""
        return len(self.broken) > 0 or (self.log is not None and self.log.columns.unchecked > 0)

    def is_known_as(self, number: int) -> bool:
        """Whether clients know this memory, or what it was before the server's last start, by a number."""
        return number == self.number if self.log is None else self.log.is_known_as(number)

    def open_writer(self, name: str, incarnation: int, lanes: int, now: float = 0.0) -> int:
        """Take the place of writer `name`, and return the next sequence number.

        Opening the same incarnation again changes nothing, but may add lanes. A newer one fences the
        older and closes its open episodes as truncated. Where there are too many writers, or more lanes
        than steps, those that have been idle longest are forgotten, as if newer incarnations had taken
        their places.

        Raises:
            FencedError: if a newer incarnation has been opened.
            InvalidRequestError: if the same incarnation had more lanes, or if the ring can't hold a
                stack of each.
        """
        known = self.writers.get(name)
        needed = lanes * (self.signature.n_frames + 1)
        if needed > self.steps:
            raise InvalidRequestError(
                f"{lanes} lanes need at least {needed} steps to hold a stack of each, and the table "
                f"has {self.steps}; raise capacity_steps or open fewer lanes"
            )
        if known is not None and known.incarnation >= incarnation:
            return self._open_again(known, incarnation, lanes)
        if known is None and len(self.writers) >= _MAX_WRITERS:
            known = min(self.writers.values(), key=lambda writer: writer.last_seen)
        if known is not None:
            self._forget(known)
        opened = self.writers[name] = Writer.open(name, incarnation, lanes, now)
        if self.log is not None:
            self.log.opened(opened, self.ring.head)
        self._forget_idle(name)
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
        check_steps(self.signature, self.steps, writer, request)
        if self.log is not None and request.leave is not None:
            check_leaving(len(request.lane), len(_leaving(writer, request)), self.log.guard)
        return writer

    def observe(self, request: Observe, now: float) -> Stacks:
        """Append the steps of `request`, and answer with the stacks of its lanes.

        All is checked first: a request that is refused has changed nothing.
        """
        writer = self.check(request)
        runs = Runs.of(request.lane, request.step_type)
        is_open = writer.newest != NONE
        if request.leave is not None:
            is_open[request.leave] = False
        runs.check(is_open, request.stacks)
        self._require_stacks(writer, runs, is_open, self._rows_of_leaving(writer, request))
        left = 0 if request.leave is None else self._let_leave(writer, request)
        answer = self._append(writer, runs, request, left) if len(request.lane) else np.empty(0, np.int64)
        if len(request.lane):
            self.newest_policy_version = request.policy_version
        writer.sequence = request.sequence
        writer.last_seen = now
        writer.mapped = request.mapped
        writer.answers.append((request.sequence, answer))
        return self._answer(writer, answer, request)

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
                    return self._answer(writer, rows, request)
                except EvictedError as error:
                    raise SequenceError(
                        f"request {sequence} of writer {writer.name!r} was applied, and {error}"
                    ) from None
        raise SequenceError(
            f"request {request.sequence} of writer {writer.name!r} is not among the last "
            f"{len(writer.answers)}, which alone can be answered again; the next number is "
            f"{writer.sequence + 1}"
        )

    def stacks(self, keys: Numbers, stacker: Stacker | None = None) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError for what is not there.

        Args:
            keys: int64 [K].
            stacker: of a table that has fewer frames in a stack; the memory's own if not given.
        """
        stacker = stacker or self.stacker
        check_stacks(self.signature, len(keys))
        tail, head = self.ring.tail, self.ring.head
        there = (keys >= tail) & (keys < head)
        places, oldest = stacker.places(np.where(there, keys, tail))
        whole: NDArray[np.bool_] = there & (oldest >= tail) & self._undamaged(places)
        if self.log is not None:
            whole &= ~self.log.columns.is_left(keys)
        if not whole.all():
            held = f"the steps {tail} to {head - 1}" if head > tail else "no steps yet"
            raise EvictedError(
                f"the stack of step {keys[int(np.argmin(whole))]} is not there: the table holds {held}, "
                f"and a stack must be whole"
            )
        return Stacks(key=keys, stack=trees.bare(stacker.gather(places)))

    def reset(self) -> None:
        """Forget all steps and all writers."""
        self.ring.reset()
        if self.log is not None:
            for writer in self.writers.values():
                self.log.forgot(writer, self.ring.head)
            self.log.reset(self.ring.head)
        self.writers.clear()
        self.broken = self.broken[:0]
        self.episodes = 0
        self.returns.clear()
        self.lengths.clear()

    def lose(self, rows: Numbers) -> None:
        """Let nobody draw damaged rows, nor what needs them; their episodes end before them.

        Args:
            rows: int64 [K], live.
        """
        if not len(rows):
            return
        self.broken = np.append(self.broken[self.broken >= self.ring.tail], rows)
        last = self.ring.cut(rows)
        for reader in self.readers:
            reader.lose(rows, last)

    def damaged(self, places: NDArray[np.integer[Any]]) -> bool:
        """Look whether any row in these places, of any shape, is damaged; such rows are lost then."""
        if self.log is None or not self.log.columns.unchecked:
            return False
        slots = self.log.columns.damaged(places)
        if not len(slots):
            return False
        numbers = np.sort(self.ring.tail + (slots - self.ring.tail) % self.ring.capacity)
        numbers = numbers[numbers < self.ring.head]  # what lies there else is gone already
        if not len(numbers):
            return False
        _LOG.error("%d rows are damaged, the first is step %d: they are lost", len(numbers), numbers[0])
        self.lose(numbers)
        return True

    def has_room(self, request: Observe) -> bool:
        """Whether the rows of a request may be written before the disk has more of those there are."""
        rows = len(request.lane) + (0 if request.leave is None else len(request.leave) + 1)
        return self.log is None or self.log.has_room(self.ring.head, rows)

    def _take_over(self, found: "FoundWriter", base: int, now: float) -> None:
        record, newest = found.record, found.newest + base
        writer = Writer.open(record.name, record.incarnation, record.lanes, now)
        writer.at, writer.opening = found.at, record.opening
        writer.sequence = writer.durable = record.sequence
        is_open = found.newest > 0
        rows = newest[is_open]
        writer.newest[is_open] = rows
        writer.first[is_open] = rows - self.ring.read("first", rows)
        writer.position[is_open] = self.ring.read("position", rows)
        writer.returns[is_open] = found.returned[is_open]
        writer.answers.extend((sequence, keys + base) for sequence, keys in found.answers)
        self.writers[record.name] = writer

    def _check_open_episodes(self) -> None:
        """Forget writers whose newest stacks are damaged: their lanes can't go on."""
        for writer in list(self.writers.values()):
            rows = writer.newest[writer.newest != NONE]
            rows = rows[self.stacker.oldest(rows) >= self.ring.tail]
            if len(rows) and self.damaged(self.stacker.places(rows)[0]):
                self._forget(writer)

    def _undamaged(self, places: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return which stacks, by their places [K, n_frames], have no damaged row."""
        self.damaged(places)
        if not len(self.broken):
            return np.ones(len(places), np.bool_)
        hit = np.isin(places, self.broken % self.ring.capacity)
        return np.asarray(~hit.any(axis=1))

    def _forget(self, writer: Writer) -> None:
        self._leave(writer, np.arange(writer.lanes))
        if self.log is not None:
            self.log.forgot(writer, self.ring.head)
        del self.writers[writer.name]

    def _forget_idle(self, name: str) -> None:
        """Forget writers, those idle longest first, until all have no more lanes than there are steps."""
        lanes = sum(writer.lanes for writer in self.writers.values())
        others = sorted((w for w in self.writers.values() if w.name != name), key=lambda w: w.last_seen)
        for writer in others:
            if lanes <= self.steps:
                return
            lanes -= writer.lanes
            self._forget(writer)

    def _open_again(self, known: Writer, incarnation: int, lanes: int) -> int:
        if known.incarnation > incarnation:
            raise fenced(known.name, incarnation, known.incarnation)
        if known.lanes > lanes:
            raise InvalidRequestError(
                f"writer {known.name!r} was opened with {known.lanes} lanes, not {lanes}; give as many or "
                f"more, or a new incarnation"
            )
        known.grow(lanes)
        if self.log is not None:
            self.log.grown(known, self.ring.head)
        self._forget_idle(known.name)
        return known.sequence + 1

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

    def _require_stacks(self, writer: Writer, runs: Runs, is_open: NDArray[np.bool_], before: int) -> None:
        """Raise EvictedError if a new step's stack would reach below what the tail will be.

        Args:
            writer: of the steps.
            runs: the steps.
            is_open: bool [lanes], whether an episode is open.
            before: rows that are written before these.
        """
        tail = self.ring.tail_after(before + len(runs.lane))
        if tail == 0:
            return
        lanes = runs.lane[runs.begins & is_open[runs.lane]]
        # an episode that began above the tail can't have lost a row
        lanes = lanes[writer.first[lanes] < tail]
        if not len(lanes):
            return
        gone = ~self.stacker.may_follow(writer.newest[lanes], tail)
        if gone.any():
            raise EvictedError(
                f"the stack of lane {lanes[gone][0]} reaches back to a step that has been "
                f"overwritten: {self.steps} steps are too few for so many lanes, or the "
                f"lane has slept too long; raise capacity_steps, or open the writer anew, under a higher "
                f"incarnation"
            )

    def _append(self, writer: Writer, runs: Runs, request: Observe, before: int) -> Numbers:
        """Write the rows, and return the newest of each lane, in the order of the lanes' first rows."""
        ring, count = self.ring, len(request.lane)
        follows = runs.follow(writer, ring.head)
        returns = runs.returns(writer, request.reward)
        tail = ring.tail_after(count)
        for reader in self.readers:
            reader.make_room(count)
        predecessor, first, position = (
            _as_it_came(values, runs) for values in (follows.predecessor, follows.first, follows.position)
        )
        numbers = np.arange(ring.head, ring.head + count)
        payload = self._rows(request, runs.kinds[FIRST] > 0)
        placed: dict[str, NDArray[Any]] = {
            # of an episode that began further back than the column can tell, it leads below every tail
            "first": np.minimum(numbers - first, ENDS),
            "position": position,
        }
        records = None
        if self.log is not None:  # made first: whatever fails in that has changed nothing in the file
            back, returned = np.minimum(numbers - predecessor, ENDS), _as_it_came(returns, runs)
            links = placed | {"back": back, "returned": returned}
            records = self.log.records(writer, request, numbers, payload, links, before)
        ring.append(payload | placed, predecessor, tail)
        if self.log is not None and records is not None:
            self.log.wrote(numbers, records)
        if runs.kinds[LAST]:
            ring.end(numbers[request.step_type == LAST])
            self._count_episodes(returns, follows.position, runs)
        for reader in self.readers:
            reader.arrive(numbers, count - runs.kinds[FIRST])
        return self._go_on(writer, runs, numbers, follows.first, follows.position, returns)

    def _go_on(
        self,
        writer: Writer,
        runs: Runs,
        numbers: Numbers,
        first: Numbers,
        position: Numbers,
        returns: NDArray[np.float64],
    ) -> Numbers:
        """Note the newest row of each lane, and return them in the order of the lanes' first rows."""
        newest = numbers[runs.order]
        lane, step_type = runs.lane, runs.step_type
        if not runs.single:
            ends = runs.ends()
            appearance = np.argsort(newest[runs.begins])
            newest, lane, step_type = newest[ends], lane[ends], step_type[ends]
            first, position, returns = first[ends], position[ends], returns[ends]
        writer.newest[lane] = np.where(step_type == LAST, NONE, newest) if runs.kinds[LAST] else newest
        writer.first[lane] = first
        writer.position[lane] = position
        writer.returns[lane] = returns
        return newest if runs.single else newest[appearance]

    def _rows(self, request: Observe, begun: bool) -> dict[str, NDArray[Any]]:
        action, reward = request.action, request.reward
        if begun:
            first = request.step_type == FIRST
            action, reward = action.copy(), reward.copy()
            action[first], reward[first] = 0, 0
        count = len(request.lane)
        frames = trees.leaves(request.frame)
        return {
            "terminated": request.terminated,
            "policy_version": np.full(count, min(request.policy_version, 2**32 - 1), np.uint32),
            "action": action,
            "reward": reward,
            **{frame_name(path): array for path, array in frames.items()},
            **{EXTRA_PREFIX + name: array for name, array in request.extras.items()},
        }

    def _answer(self, writer: Writer, keys: Numbers, request: Observe) -> Stacks:
        durable = None if self.log is None else writer.durable
        if not request.stacks:
            return Stacks(key=keys, durable=durable)
        if request.mapped:
            return Stacks(key=keys, memory=self.number, durable=durable)
        answer = self.stacks(keys)
        return answer if durable is None else answer.model_copy(update={"durable": durable})

    def _count_episodes(self, returns: NDArray[np.float64], lengths: Numbers, runs: Runs) -> None:
        ended = runs.step_type == LAST
        self.returns.extend(returns[ended].tolist())
        self.lengths.extend(lengths[ended].tolist())
        self.episodes += int(np.count_nonzero(ended))

    def _let_leave(self, writer: Writer, request: Observe) -> int:
        """Let lanes leave; return how many rows have been written for that."""
        lanes = _leaving(writer, request)
        count = self._rows_of_leaving(writer, request)
        self._leave(writer, lanes)
        if self.log is None or not count:
            return 0
        ring = self.ring
        tail = ring.tail_after(count)
        for reader in self.readers:
            reader.make_room(count)
        numbers = np.arange(ring.head, ring.head + count)
        self.log.left(writer, request, numbers, lanes, len(request.lane))
        ring.append({}, numbers, tail)
        for reader in self.readers:
            reader.arrive(numbers, 0)
        return count

    def _rows_of_leaving(self, writer: Writer, request: Observe) -> int:
        """Return how many rows a request writes for the lanes that leave: one if it would have none."""
        if self.log is None or request.leave is None:
            return 0
        return max(len(_leaving(writer, request)), 1 - min(1, len(request.lane)))

    def _leave(self, writer: Writer, lanes: NDArray[np.integer[Any]]) -> None:
        """Mark the last row of each open episode as its end: truncated, since it isn't terminated."""
        newest = np.unique(writer.newest[lanes])
        left = newest[newest >= self.ring.tail]
        writer.newest[lanes] = NONE
        self.ring.end(left)
        for reader in self.readers:
            reader.end(left)


def _leaving(writer: Writer, request: Observe) -> Numbers:
    """Return the lanes whose open episodes end with a request, each once."""
    lanes: Numbers = np.unique(np.asarray(() if request.leave is None else request.leave, np.int64))
    is_open: NDArray[np.bool_] = writer.newest[lanes] != NONE
    return lanes[is_open]


def _as_it_came(values: NDArray[Any], runs: Runs) -> NDArray[Any]:
    """Return values of the rows of runs, in the order in which the rows came."""
    if runs.single:
        return values
    came = np.empty_like(values)
    came[runs.order] = values
    return came


def fenced(writer: str, incarnation: int, newer: int) -> FencedError:
    """Return the error for a writer whose place a newer incarnation has taken."""
    return FencedError(
        f"incarnation {incarnation} of writer {writer!r} has been replaced by {newer}; end this process, "
        f"or give it a writer name of its own"
    )
