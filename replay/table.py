"""One table: draws from a memory's rows by a sampler, as far as its limiter lets it.

Storing and stacking (`memory`), saying what may be drawn (`starts`, `units`), drawing (`samplers`) and
limiting (`limiter`, `leases`) are things of their own; the table keeps them in step with each other.
"""

from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import Batch, PrioritiesUpdated, Sample, Stacks, UpdatePriorities
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec, Unit
from fornix.replay.checks import check_batch, check_priorities
from fornix.replay.leases import Leases
from fornix.replay.limiter import Counts, Limiter
from fornix.replay.memory import Memory
from fornix.replay.samplers import Draw, Priorities, Sampler, TimesSampled, make_sampler
from fornix.replay.stacking import Numbers, Stacker
from fornix.replay.starts import StartIndex
from fornix.replay.storage import nbytes, row_nbytes
from fornix.replay.units import alike, starts_of, what_follows
from fornix.replay.windows import assemble, walk

if TYPE_CHECKING:
    from fornix.replay.durable.draws import DrawsFile, Kept

_INDEXES_KEPT = 4
_NONE: Set[Unit] = frozenset()
_STATE_BYTES = 5  # of each row: what a StartIndex knows of it, and the Stacker's scratch
_SAMPLER_BYTES = {"uniform": 12, "prioritized": 10, "fifo": 20, "lifo": 20, "epoch": 12}


class Table:
    """What may be drawn of a memory, and what has been; see `docs/replay.md`.

    Args:
        spec: with its capacity in steps.
        memory: whose rows it draws.
        rng: of the draws.
        lease_s: how long a silent session keeps its leases.
        draws: the file that keeps what has been drawn, if there is one.
        recover: what the table is now; then it goes on from what that file says.
    """

    def __init__(
        self,
        spec: TableSpec,
        memory: Memory,
        rng: np.random.Generator,
        lease_s: float = 30.0,
        draws: "DrawsFile | None" = None,
        recover: TableSpec | None = None,
    ) -> None:
        #: As it was created; `spec` has the limits that hold now.
        self.created = self.spec = spec
        self.memory = memory
        self._lease_s = lease_s
        self._rng = rng
        self._ring = memory.ring
        self._tail = self._ring.tail_after(0, capacity=spec.steps)
        self._stacker = memory.stacker
        if spec.signature.n_frames != memory.signature.n_frames:
            self._stacker = Stacker(self._ring.columns.arrays, spec.signature)
        self._draws = draws
        self._noted: tuple[Counts, float] | None = None
        self._noted_at = self._ring.head
        rows = np.arange(self._tail, self._ring.head)
        kept = draws.kept(rows, self._ring.head) if draws is not None and recover is not None else None
        self._begin()
        if kept is not None and recover is not None:
            self.spec = recover
            self._recover(rows, kept)
        self._keep()  # not before: a death in between must leave what the file says
        self.note()
        memory.readers.append(self)

    def _begin(self) -> None:
        """Begin with the rows that there are, and with nothing inserted or drawn yet."""
        sampler, slots = self.spec.sampler, self._ring.capacity
        self.limiter = Limiter.create(self.spec.limiter, self.spec.steps, sampler.uses)
        self.leases = Leases(self.limiter, self._lease_s)
        self._indexes: dict[Unit, StartIndex] = {}
        self._priorities = (
            Priorities(slots, sampler.priority_exponent) if sampler.kind == "prioritized" else None
        )
        self._times = TimesSampled(slots, sampler.uses)
        self._begin_rows(np.arange(self._tail, self._ring.head))
        self.limiter.lose(-self._draws_left(self._tail, self._ring.head))

    def _recover(self, rows: Numbers, kept: "Kept") -> None:
        """Go on from what the file said, and count the rows that came after that."""
        ring = self._ring
        since = ring.tail if kept.counts is None else max(kept.head, ring.tail)
        self.limiter.spec = self.spec.limiter
        if kept.counts is not None:
            self.limiter.restore(kept.counts)
        self.limiter.inserts += int(np.count_nonzero(ring.read("back", np.arange(since, ring.head))))
        if self._priorities is not None:
            self._priorities.maximum = kept.maximum
            powers = np.where(kept.known, kept.powers, self._priorities.power(np.float64(kept.maximum)))
            self._priorities.restore(rows, powers)
        self._times.restore(rows, kept.times)
        uses = self.spec.sampler.uses
        if uses is not None:  # the times are kept by row, and may be ahead of the counts
            counts, left = self.limiter.counts(), self._draws_left(self._tail, ring.head)
            self.limiter.lose(uses * counts.inserts - counts.consumed - counts.lost - left)

    def _keep(self) -> None:
        """Put down each change of priorities and times from now on."""
        if self._draws is None:
            return
        self._times.changed = self._draws.put_times
        if self._priorities is not None:
            self._priorities.changed = self._draws.put_priorities
            rows = np.arange(self._tail, self._ring.head)  # those that were there have theirs by now
            self._draws.put_priorities(rows, self._priorities.column[rows % self._ring.capacity])

    def note(self) -> None:
        """Put down what has been counted, if anything but inserts has: those follow from the rows.

        So it is put down too before the rows are gone that tell of them.
        """
        if self._draws is None:
            return
        counts = self.limiter.counts()
        maximum = 1.0 if self._priorities is None else self._priorities.maximum
        inserts = counts.inserts if self.spec.sampler.uses is not None else 0
        noted = counts._replace(inserts=inserts), maximum
        if noted != self._noted or self._ring.head - self._noted_at > self.memory.steps // 4:
            self._noted, self._noted_at = noted, self._ring.head
            self._draws.note(counts, maximum, self._ring.head)

    def _begin_rows(self, numbers: Numbers) -> None:
        self._times.begin(numbers)
        if self._priorities is not None:
            self._priorities.begin(numbers)

    def __len__(self) -> int:
        return self._ring.head - self._tail

    @property
    def nbytes(self) -> int:
        """Bytes that the table takes, with its rows if they are its own."""
        units = max(1, len(self._indexes))
        return table_nbytes(self.spec, self._ring.capacity, units)

    def make_room(self, rows: int) -> None:
        """`rows` more are about to be written: let go of all that will be gone from this table."""
        ring = self._ring
        lost = ring.tail_after(rows)
        tail = max(lost, ring.tail_after(rows, self._tail, self.spec.steps))
        if lost > ring.tail:
            self._evict(np.arange(ring.tail, lost))
        if tail > self._tail:
            # these are still in the ring: no starts any more, but parts of stacks
            passed = np.arange(max(self._tail, lost), min(tail, ring.head))
            for index in self._indexes.values():
                index.take_out(passed)
            self.limiter.lose(self._draws_left(self._tail, min(tail, ring.head)))
            self._tail = tail

    def _draws_left(self, low: int, high: int) -> int:
        """Return how often the starts among rows [low, high) may still be drawn, if there is a limit."""
        if self.spec.sampler.uses is None:
            return 0
        numbers = np.arange(low, high)
        return int(self._times.left(numbers[self._ring.after(numbers) >= 0]).sum())

    def _evict(self, numbers: Numbers) -> None:
        for index in self._indexes.values():
            index.evict(numbers)

    def arrive(self, rows: Numbers, acted: int) -> None:
        """These rows have been written; so many of them are not the first of their episodes."""
        self._begin_rows(rows)
        for index in self._indexes.values():
            index.begin(rows)
            if rows[0] < self._tail:  # more rows than this table has steps
                index.take_out(rows[rows < self._tail])
            index.arrive(rows)
        self.limiter.inserts += acted
        uses = self.spec.sampler.uses
        if uses is not None:
            back = self._ring.read("back", rows)
            self.limiter.lose(uses * int(np.count_nonzero((back > 0) & (rows - back < self._tail))))

    def end(self, rows: Numbers) -> None:
        """These rows, written before, are the last of their episodes now."""
        for index in self._indexes.values():
            index.arrive(rows)

    def lose(self, rows: Numbers, last: Numbers) -> None:
        """These rows are damaged; their episodes end before them, with the rows `last`."""
        for index in self._indexes.values():
            index.evict(rows)
            index.take_out(last)
            index.arrive(last)

    def reset(self) -> None:
        """Forget everything, as the memory has."""
        self._tail = self._ring.tail
        self._begin()
        self._keep()
        self._noted = None  # what was put down is not true any more

    def close(self) -> None:
        """Draw from the memory no more."""
        self.memory.readers.remove(self)

    def change_limits(self, limiter: LimiterSpec) -> None:
        """Put other limits in place of those there are, or raise InvalidRequestError."""
        self.limiter.change(limiter)
        self.spec = self.spec.model_copy(update={"limiter": limiter})

    def lets_sample(self, request: Sample) -> bool:
        """Whether the limiter lets a sample go ahead now; a refill, which is charged to nobody, always."""
        return request.refill or self.limiter.may_sample()

    def sample(self, request: Sample, now: float = 0.0, waited_for: Set[Unit] = _NONE) -> Batch | None:
        """Return a batch, or None while the limiter is closed or too few starts are sampleable.

        Args:
            request: for the batch.
            now: seconds.
            waited_for: units whose starts are soon looked for again.
        """
        if request.lease and not request.refill:
            self.leases.check(request.session, request.lease)
            # asked for again, it must not be what the limiter waits for
            self.leases.take_back(request.session, request.lease)
        if not self.lets_sample(request):
            return None
        index = self._index(request.unit, waited_for)
        if not index.sampler.can_draw(request.batch_size):
            return None
        batch = self._assemble(index, request)
        if batch is None:
            return None
        self._charge(request, now)
        return batch.model_copy(update={"memory": self.memory.number}) if request.mapped else batch

    def check_sample(self, request: Sample) -> None:
        """Raise InvalidRequestError if the batch could not be sent, or could never be drawn."""
        check_batch(self.spec, request)

    def stacks(self, keys: Numbers) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError for what is not there."""
        return self.memory.stacks(keys, self._stacker)

    def starts(self, unit: Unit) -> Numbers:
        """Return the keys that a unit may start from now, oldest first."""
        return self._index(unit).numbers()

    def update_priorities(self, request: UpdatePriorities) -> PrioritiesUpdated:
        """Set the priorities of the steps that are still there.

        Raises:
            InvalidRequestError: if this table has none, or if one is no priority; none is set then.
        """
        if self._priorities is None:
            raise InvalidRequestError(
                f"table {request.table!r} draws by {self.spec.sampler.kind!r}, which has no priorities; "
                f"create it with the sampler 'prioritized'"
            )
        check_priorities(request)
        self._priorities.check(request.priority)
        there = (request.key >= self._tail) & (request.key < self._ring.head)
        keys = request.key[there]
        self._priorities.set(keys, request.priority[there])
        for index in self._indexes.values():
            index.sampler.update(keys)
        return PrioritiesUpdated(applied=len(keys), ignored=len(there) - len(keys))

    def why_no_sample(self, request: Sample) -> str:
        """Return what `request` waits for, and what would open it."""
        if not self.lets_sample(request):
            return self.limiter.why_no_sample()
        sampler = self._index(request.unit).sampler
        if len(sampler):
            return sampler.why_not(request.batch_size)
        uses = self.spec.sampler.uses
        limit = "" if uses is None else f", and is drawn {uses} times at most"
        return (
            f"none of the {len(self)} steps can be started from yet: a start needs its whole stack and "
            f"{what_follows(request.unit)}{limit}; more steps open it"
        )

    def _assemble(self, index: StartIndex, request: Sample) -> Batch | None:
        """Return a batch of rows that are whole; None if there are too few."""
        while index.sampler.can_draw(request.batch_size):
            members = len(index.sampler)
            draw = self._draw(index, request.batch_size)
            windows = walk(self._ring, self._stacker, draw.numbers, index.span, request)
            if not self.memory.damaged(windows.places):
                return assemble(self._ring, self._stacker, draw, windows, members, request)
        return None

    def _draw(self, index: StartIndex, count: int) -> Draw:
        draw = index.sampler.draw(count, self._rng)
        used_up = self._times.used_up
        if len(used_up):
            for each in self._indexes.values():
                each.take_out(used_up)
        return draw

    def _charge(self, request: Sample, now: float) -> None:
        if request.refill and self.spec.sampler.uses is None:
            return
        # a start that was used up can't be drawn again, even if its lease is given back
        if request.lease and self.spec.sampler.uses is None:
            self.leases.grant(request.session, request.lease, request.batch_size, now)
        else:
            self.limiter.charge(request.batch_size)

    def _index(self, unit: Unit, waited_for: Set[Unit] = _NONE) -> StartIndex:
        unit = alike(unit)
        index = self._indexes.pop(unit, None)
        if index is None:
            self._drop_indexes({alike(each) for each in waited_for})
            index = StartIndex(
                self._ring, self._stacker, starts_of(unit, self._ring), self._sampler(), self._tail
            )
            broken = self.memory.broken[self.memory.broken >= self._ring.tail]
            index.evict(broken)
            index.take_out(self._ring.ends_before(broken))
        self._indexes[unit] = index
        return index

    def _drop_indexes(self, kept: Set[Unit]) -> None:
        """Make room for one more index: those that were used longest ago go, but for the ones kept."""
        idle = [unit for unit in self._indexes if unit not in kept]
        for unit in idle[: max(0, len(self._indexes) - _INDEXES_KEPT + 1)]:
            del self._indexes[unit]

    def _sampler(self) -> Sampler:
        sampler = make_sampler(self.spec.sampler.kind, self._ring.capacity, self._priorities)
        return self._times.wrap(sampler)


def drawing_nbytes(sampler: SamplerSpec) -> int:
    """Return the bytes that drawing takes for each row, for one kind of unit."""
    return _STATE_BYTES + _SAMPLER_BYTES[sampler.kind]


def table_nbytes(spec: TableSpec, slots: int, units: int = 1) -> int:
    """Return the bytes that a table takes: its rows, if they are its own, and what draws from them.

    Args:
        spec: of the table.
        slots: how many rows the ring has, which may be another table's.
        units: how many kinds of unit are drawn from it.
    """
    rows = nbytes(spec.signature, spec.steps) if spec.rows_of is None else 0
    return rows + slots * units * drawing_nbytes(spec.sampler)


def steps_in(spec: TableSpec, available: int) -> int:
    """Return how many steps a table of `available` bytes may have."""
    each = row_nbytes(spec.signature) + drawing_nbytes(spec.sampler)
    return max(0, available - spec.signature.frame_nbytes) // each
