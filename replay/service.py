"""What the replay server decides: typed requests in, typed replies out, no socket anywhere.

One thread owns a service and hands it one request at a time, so nothing in it needs a lock. A request
that has to wait is parked; the event that opens it, or its deadline, answers it later. A `ticket`
is whatever the caller knows a request by; it comes back with the reply.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import singledispatchmethod

import numpy as np

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    ServerError,
    SignatureError,
    UnknownTableError,
    WaitTimeoutError,
)
from fornix.common.messages import (
    MAX_BATCH,
    Batch,
    CreateTable,
    Done,
    Hello,
    InfoQuery,
    Observe,
    OpenWriter,
    Refused,
    Reply,
    Report,
    Request,
    Sample,
    StackQuery,
    Stacks,
    TableCreated,
    TableSpec,
    Welcome,
    WriterOpened,
)
from fornix.common.validation import nearest
from fornix.replay.checks import check_table
from fornix.replay.info import Reports, Watch, describe
from fornix.replay.storage import AnonymousColumns, nbytes
from fornix.replay.table import Table, fenced
from fornix.replay.waiting import Parked, RequestT, Ticket, WaitingLine

_LOG = logging.getLogger(__name__)

Answer = tuple[Ticket, Reply]

MAX_TABLES = 128
MAX_PARKED = 65_536


@dataclass
class _Place:
    """A table with those who wait at it."""

    table: Table
    watch: Watch
    inserts: WaitingLine[Observe] = field(default_factory=WaitingLine)
    samples: WaitingLine[Sample] = field(default_factory=WaitingLine)

    def may_insert(self) -> bool:
        """Whether the table takes an insert now.

        The limiter holds back one side at most. So where it holds back inserts, whoever still waits
        for a sample lacks a start to draw, and only more steps can bring one.
        """
        return self.table.limiter.may_insert() or len(self.samples) > 0

    def may_sample(self) -> bool:
        """Whether a new sample may be tried: who waits lacks a start, or nobody does."""
        return len(self.samples) == 0 or self.table.limiter.may_sample()


class ReplayService:
    """Tables, and what clients may do with them.

    Args:
        clock: seconds, monotonic.
        seed: of the draws.
        memory_bytes: limit on all tables together; three quarters of the machine's memory if not
            given.
        version: of the server, as its welcome tells it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        seed: int | None = None,
        memory_bytes: int | None = None,
        version: str = "",
    ) -> None:
        self._clock = clock
        self._seeds = np.random.SeedSequence(seed)
        self._memory_bytes = memory_bytes or _three_quarters_of_memory()
        self._version = version
        self._places: dict[str, _Place] = {}
        self._reports = Reports()
        self._began = clock()
        self._refused = 0
        self._count = itertools.count()

    def submit(self, ticket: Ticket, request: Request) -> Iterator[Answer]:
        """Carry out one request; yield all replies that are due now, its own among them or later.

        Each reply is made when it is asked for, so that no two need be held in memory.
        """
        try:
            reply = self._handle(request, ticket)
        except Exception as error:  # a fault of ours must not end the server
            reply = self.refuse(error)
        if reply is not None:
            yield ticket, reply
        if isinstance(request, OpenWriter | Observe | Sample) and request.table in self._places:
            place = self._places[request.table]
            if isinstance(request, OpenWriter) and isinstance(reply, WriterOpened):
                yield from self._refuse_fenced(place, request)
            yield from self._release(place)

    def refuse(self, error: Exception) -> Refused:
        """Return the reply that stands for an error, and count it."""
        self._refused += 1
        if not isinstance(error, FornixError):
            _LOG.error("a fault of the server", exc_info=error)
            error = ServerError(f"{type(error).__name__} in the server: {error}")
        return Refused(code=error.code, message=str(error))

    def expire(self) -> Iterator[Answer]:
        """Yield the replies to all parked requests whose deadlines have passed."""
        now = self._clock()
        for place in self._places.values():
            anyone = False
            for line in (place.inserts, place.samples):
                while (parked := line.pop_late(now)) is not None:
                    anyone = True
                    yield parked.ticket, self._refuse_late(place, parked.request)
            if anyone:
                yield from self._release(place)

    def patience_s(self) -> float | None:
        """Return in how many seconds `expire` has something to do; None if nothing is parked."""
        deadlines = [
            deadline
            for place in self._places.values()
            for line in (place.inserts, place.samples)
            if (deadline := line.next_deadline()) is not None
        ]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    @singledispatchmethod
    def _handle(self, request: Request, ticket: Ticket) -> Reply | None:
        raise InvalidRequestError(f"the server has no answer to {request.type!r}")

    @_handle.register
    def _(self, request: Hello, ticket: Ticket) -> Reply:
        for name, expected in request.expects.items():
            self._place(name).table.spec.signature.require_equal(name, expected)
        tables = {name: place.table.spec.signature for name, place in self._places.items()}
        return Welcome(server=self._version, tables=tables)

    @_handle.register
    def _(self, request: CreateTable, ticket: Ticket) -> Reply:
        known = self._places.get(request.table)
        if known is not None:
            _require_same(request.table, known.table.spec, request.spec)
            return TableCreated(created=False)
        self._require_room(request)
        check_table(request.spec)
        columns = AnonymousColumns(request.spec.signature, request.spec.capacity_steps)
        # by place, so that a table that is refused here leaves the draws of later ones alone
        seed = np.random.SeedSequence(self._seeds.entropy, spawn_key=(len(self._places),))
        table = Table(request.spec, columns, np.random.default_rng(seed))
        self._places[request.table] = _Place(table, Watch(self._clock))
        return TableCreated(created=True)

    @_handle.register
    def _(self, request: OpenWriter, ticket: Ticket) -> Reply:
        place = self._place(request.table)
        sequence = place.table.open_writer(
            request.writer, request.incarnation, request.lanes, self._clock()
        )
        return WriterOpened(sequence=sequence)

    @_handle.register
    def _(self, request: Observe, ticket: Ticket) -> Reply | None:
        place = self._place(request.table)
        if place.table.is_repeated(request):
            return place.table.answer_again(request)
        if not place.inserts and place.may_insert():
            return self._insert(place, request)
        place.table.check(request)
        parked = place.inserts.get(request.writer)
        if parked is not None:  # the same write again, perhaps by another way
            parked.ticket = ticket
        else:
            self._park(place.inserts, Parked(request.writer, ticket, request, self._clock()))
        return None

    @_handle.register
    def _(self, request: StackQuery, ticket: Ticket) -> Reply:
        if request.key.ndim != 1 or request.key.dtype != np.int64:
            raise InvalidRequestError(
                f"key has shape {request.key.shape} and dtype {request.key.dtype.str}; it must be <i8 [K]"
            )
        if len(request.key) > MAX_BATCH:
            raise InvalidRequestError(
                f"{len(request.key)} stacks are asked for; the limit is {MAX_BATCH}; ask for fewer at once"
            )
        return self._place(request.table).table.stacks(request.key)

    @_handle.register
    def _(self, request: Sample, ticket: Ticket) -> Reply | None:
        place = self._place(request.table)
        place.table.check_sample(request)
        reply = self._sample(place, request) if place.may_sample() else None
        if reply is None:
            self._park(place.samples, Parked(next(self._count), ticket, request, self._clock()))
        return reply

    @_handle.register
    def _(self, request: InfoQuery, ticket: Ticket) -> Reply:
        waiting = {name: (len(p.inserts), len(p.samples)) for name, p in self._places.items()}
        tables = {name: (place.table, place.watch) for name, place in self._places.items()}
        return describe(
            server={
                "version": self._version,
                "pid": os.getpid(),
                "uptime_s": self._clock() - self._began,
                "memory_bytes": self._memory_used(),
                "memory_limit_bytes": self._memory_bytes,
                "refused_requests": self._refused,
            },
            tables=tables,
            waiting=waiting,
            reports=self._reports.ages(self._clock()),
            now=self._clock(),
        )

    @_handle.register
    def _(self, request: Report, ticket: Ticket) -> Reply:
        self._reports.put(request, self._clock())
        return Done()

    def _insert(self, place: _Place, request: Observe) -> Stacks:
        before = place.table.limiter.inserts
        reply = place.table.observe(request, self._clock())
        place.watch.count(inserts=place.table.limiter.inserts - before)
        return reply

    def _sample(self, place: _Place, request: Sample) -> Batch | None:
        reply = place.table.sample(request)
        if reply is not None:
            place.watch.count(samples=request.batch_size)
        return reply

    def _park(self, line: WaitingLine[RequestT], parked: Parked[RequestT]) -> None:
        if len(line) >= MAX_PARKED:
            raise InvalidRequestError(
                f"{len(line)} requests wait at table {parked.request.table!r} already, and that is the "
                f"limit; ask again later, with fewer requests in flight"
            )
        line.add(parked)

    def _release(self, place: _Place) -> Iterator[Answer]:
        """Answer everyone for whom the way is free now."""
        moved = True
        while moved:
            moved = False
            for parked in place.samples:
                if not place.table.limiter.may_sample():
                    break
                reply = self._try(self._sample, place, parked)
                if reply is not None:
                    moved = True
                    place.samples.remove(parked)
                    yield parked.ticket, reply
            if len(place.inserts) and place.may_insert():
                first = place.inserts.first()
                place.inserts.remove(first)
                reply = self._try(self._insert, place, first)
                moved = True
                if reply is not None:
                    yield first.ticket, reply

    def _try(
        self,
        action: Callable[[_Place, RequestT], Stacks | Batch | None],
        place: _Place,
        parked: Parked[RequestT],
    ) -> Reply | None:
        """Carry out what was parked; None if it must go on waiting."""
        try:
            done = action(place, parked.request)
            held_s = self._clock() - parked.since
            return None if done is None else done.model_copy(update={"held_s": held_s})
        except Exception as error:  # as in submit
            return self.refuse(error)

    def _refuse_fenced(self, place: _Place, request: OpenWriter) -> Iterator[Answer]:
        """Answer the parked write of a writer whose place has been taken."""
        parked = place.inserts.get(request.writer)
        if parked is None or parked.request.incarnation >= request.incarnation:
            return
        place.inserts.remove(parked)
        yield (
            parked.ticket,
            self.refuse(fenced(request.writer, parked.request.incarnation, request.incarnation)),
        )

    def _refuse_late(self, place: _Place, request: Observe | Sample) -> Refused:
        try:
            return self.refuse(_waited(place, request))
        except Exception as error:  # as in submit
            return self.refuse(error)

    def _place(self, table: str) -> _Place:
        try:
            return self._places[table]
        except KeyError:
            known = ", ".join(sorted(self._places)) or "none yet"
            raise UnknownTableError(
                f"there is no table {table!r}{nearest(table, self._places)}; tables: {known}; create "
                f"it first"
            ) from None

    def _memory_used(self) -> int:
        specs = [place.table.spec for place in self._places.values()]
        return sum(nbytes(spec.signature, spec.capacity_steps) for spec in specs)

    def _require_room(self, request: CreateTable) -> None:
        if len(self._places) >= MAX_TABLES:
            raise InvalidRequestError(
                f"the server has {MAX_TABLES} tables, and that is the limit; use one of them, or start "
                f"another server"
            )
        wanted = nbytes(request.spec.signature, request.spec.capacity_steps)
        left = self._memory_bytes - self._memory_used()
        if wanted > left:
            raise InvalidRequestError(
                f"table {request.table!r} would take {wanted:,} bytes, and {left:,} of "
                f"{self._memory_bytes:,} are left; lower capacity_steps to "
                f"{max(0, left * request.spec.capacity_steps // wanted):,}, or start the server with "
                f"more memory"
            )


def _waited(place: _Place, request: Observe | Sample) -> WaitTimeoutError:
    if isinstance(request, Observe):
        why = place.table.limiter.why_no_insert()
    else:
        why = place.table.why_no_sample(request)
    return WaitTimeoutError(
        f"{request.type!r} at table {request.table!r} waited {request.timeout_s:g} s: {why}"
    )


def _require_same(name: str, known: TableSpec, wanted: TableSpec) -> None:
    known.signature.require_equal(name, wanted.signature)
    if known != wanted:
        raise SignatureError(
            f"table {name!r} was created with capacity_steps {known.capacity_steps} and "
            f"{known.limiter!r}; this request asks for {wanted.capacity_steps} and "
            f"{wanted.limiter!r}; ask for the same, or use another table name"
        )


def _three_quarters_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
