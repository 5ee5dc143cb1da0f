"""A table with those who wait at it, each until its way opens or its deadline passes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fornix.common.errors import DiskError, FornixError, InvalidRequestError, WaitTimeoutError
from fornix.common.messages import Batch, Observe, OpenWriter, Refused, Reply, Sample, Stacks
from fornix.common.specs import Unit
from fornix.replay.info import Watch
from fornix.replay.memory import fenced
from fornix.replay.table import Table
from fornix.replay.waiting import Parked, RequestT, Ticket, WaitingLine

Answer = tuple[Ticket, Reply]

MAX_PARKED = 4096
MAX_UNITS_WAITED_FOR = 16


class _Kind(NamedTuple):
    """What the samples in line wait for: so many starts of a unit, and the limiter or not."""

    unit: Unit
    batch_size: int
    refill: bool


def _kind(request: Sample) -> _Kind:
    return _Kind(request.unit, request.batch_size, request.refill)


class Place:
    """One table of a server, and its two lines: of inserts, and of samples.

    Args:
        name: of the table.
        table: to write to and to draw from.
        group: the places of all tables that draw from the same rows, first the one that has them; this
            one joins it.
        clock: seconds, monotonic.
        refuse: makes the reply that stands for an error.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        group: list["Place"],
        clock: Callable[[], float],
        refuse: Callable[[Exception], Refused],
    ) -> None:
        self.name = name
        self.table = table
        self.group = group
        self.watch = Watch(clock)
        self.inserts: WaitingLine[Observe] = WaitingLine()
        self.samples: WaitingLine[Sample] = WaitingLine(_kind)
        self._clock = clock
        self._refuse = refuse
        self._asked_at = 0  # how many steps there had been when the last sample was put in line
        group.append(self)

    def lets_insert(self) -> bool:
        """Whether this table lets an insert go ahead now.

        Where its limiter holds inserts back and lets a sample through that still waits, that lacks a start
        to draw, and only more steps can bring one; those of a whole ring at most.
        """
        ring = self.table.memory.ring
        hopeful = ring.head - self._asked_at < ring.capacity
        return self.table.limiter.may_insert() or (hopeful and self._lets_samples())

    def insert(self, request: Observe) -> Stacks | None:
        """Carry out a new write, or return None while it must wait."""
        if not (self.table.memory.has_room(request) and all(p.lets_insert() for p in self.group)):
            return None
        before = [place.table.limiter.inserts for place in self.group]
        reply = self.table.memory.observe(request, self._clock())
        for place, inserts in zip(self.group, before, strict=True):
            place.watch.count(inserts=place.table.limiter.inserts - inserts)
            place.table.note()
        return reply

    def sample(self, request: Sample) -> Batch | None:
        """Carry out a draw, or return None while it must wait."""
        reply = self.table.sample(request, self._clock(), {kind.unit for kind in self.samples.kinds})
        if reply is not None and not request.refill:
            self.watch.count(samples=request.batch_size)
        self.table.note()
        return reply

    def park(self, line: WaitingLine[RequestT], parked: Parked[RequestT]) -> None:
        """Let a request wait in one of the lines; the same one again takes its own place there."""
        before = line.get(parked.key)
        if before is not None:
            before.ticket = parked.ticket
            return
        if len(line) >= MAX_PARKED:
            raise InvalidRequestError(
                f"{len(line)} requests wait at table {self.name!r} already, and that is the "
                f"limit; ask again later, with fewer requests in flight"
            )
        line.add(parked)

    def park_sample(self, parked: Parked[Sample]) -> None:
        """Let a sample wait; the index of its unit is kept until it has been answered."""
        units = {kind.unit for kind in self.samples.kinds}
        if len(units) >= MAX_UNITS_WAITED_FOR and parked.request.unit not in units:
            raise InvalidRequestError(
                f"samples of {len(units)} kinds of unit wait at table {self.name!r} already, and that is "
                f"the limit; ask again later, or for a unit that others draw too"
            )
        self.park(self.samples, parked)
        self._asked_at = self.table.memory.ring.head

    def release(self) -> Iterator[Answer]:
        """Answer everyone in the group for whom the way is free now."""
        moved = True
        while moved and self.group:
            moved = False
            for place in self.group:
                for answer in place._release_samples():
                    moved = True
                    yield answer
            insert = self.group[0]._release_insert()
            if insert is not None:
                moved = True
                yield insert

    def expire(self, now: float) -> Iterator[Answer]:
        """Answer those whose deadlines have passed, and give back what silent sessions had leased."""
        given_back = self._expire_leases(now)
        self.table.note()
        for line in (self.inserts, self.samples):
            while (parked := line.pop_late(now)) is not None:
                yield parked.ticket, self._refuse_late(parked.request)
        if given_back:
            yield from self.release()

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        lines = (self.inserts, self.samples, self.table.leases)
        return min((due for line in lines if (due := line.next_deadline()) is not None), default=None)

    def turn_away(self, line: WaitingLine[Any], error: FornixError) -> Iterator[Answer]:
        """Refuse all who wait in a line."""
        for parked in line:
            line.remove(parked)
            yield parked.ticket, self._refuse(error)

    def turn_away_fenced(self, request: OpenWriter) -> Iterator[Answer]:
        """Refuse the write in line of a writer whose place has been taken."""
        parked = self.inserts.get(request.writer)
        if parked is None or parked.request.incarnation >= request.incarnation:
            return
        self.inserts.remove(parked)
        error = fenced(request.writer, parked.request.incarnation, request.incarnation)
        yield parked.ticket, self._refuse(error)

    def forget(self, session: str) -> None:
        """Give back what a session has leased, and forget what it still asks for: it has ended."""
        self.table.leases.release(session)
        for parked in self.samples:
            if parked.request.session == session:
                self.samples.remove(parked)

    def close(self, with_memory: bool = True) -> None:
        """Leave the group; the memory goes with the last of it, if no folder keeps it."""
        self.group.remove(self)
        self.table.close()
        if with_memory and not self.group:
            self.table.memory.ring.columns.close()

    def _release_samples(self) -> Iterator[Answer]:
        """Answer those for whom there are starts, oldest first, as long as the limiter lets them."""
        lacking: set[_Kind] = set()  # for which there are too few starts
        for parked in self.samples:
            if not self._lets_samples() or len(lacking) == len(self.samples.kinds):
                return
            kind = _kind(parked.request)
            if kind in lacking or not self.table.lets_sample(parked.request):
                continue
            reply = self._try(self.sample, parked)
            if reply is None:
                lacking.add(kind)
            else:
                self.samples.remove(parked)
                yield parked.ticket, reply

    def _lets_samples(self) -> bool:
        """Whether the limiter lets any of the samples in line go ahead."""
        kinds = self.samples.kinds
        return bool(kinds) and (self.table.limiter.may_sample() or any(kind.refill for kind in kinds))

    def _release_insert(self) -> Answer | None:
        if not self.inserts:
            return None
        parked = self.inserts.first()
        reply = self._try(self.insert, parked)
        if reply is None:
            return None
        self.inserts.remove(parked)
        return parked.ticket, reply

    def _try(
        self, action: Callable[[RequestT], Stacks | Batch | None], parked: Parked[RequestT]
    ) -> Reply | None:
        """Carry out what was parked; None if it must go on waiting."""
        try:
            done = action(parked.request)
        except DiskError:
            raise
        except Exception as error:  # whatever it is, the others must not suffer
            return self._refuse(error)
        held_s = self._clock() - parked.since
        return None if done is None else done.model_copy(update={"held_s": held_s})

    def _expire_leases(self, now: float) -> bool:
        leases = self.table.leases
        due = leases.next_deadline()
        if due is None or due > now:
            return False
        for parked in self.samples:  # who waits in line is there
            leases.touch(parked.request.session, now)
        return leases.expire(now)

    def _refuse_late(self, request: Observe | Sample) -> Refused:
        try:
            return self._refuse(
                WaitTimeoutError(
                    f"{request.type!r} at table {request.table!r} waited {request.timeout_s:g} s: "
                    f"{self._why(request)}"
                )
            )
        except Exception as error:  # as in _try
            return self._refuse(error)

    def _why(self, request: Observe | Sample) -> str:
        if isinstance(request, Sample):
            return self.table.why_no_sample(request)
        memory = self.table.memory
        if memory.log is not None and not memory.has_room(request):
            waiting = memory.ring.head - memory.log.durable
            return (
                f"the disk has not taken the last {waiting} steps yet, and more "
                f"would overwrite what a power cut must leave; a faster disk or a larger table opens it"
            )
        closed = next((place for place in self.group if not place.lets_insert()), self)
        why = closed.table.limiter.why_no_insert()
        return why if closed is self else f"table {closed.name!r}, which draws from the same rows: {why}"
