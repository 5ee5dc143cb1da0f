"""What the replay server decides: typed requests in, typed replies out, no socket anywhere.

One thread owns a service and hands it one request at a time, so nothing in it needs a lock. A request
that has to wait is parked; the event that opens it, or its deadline, answers it later. A `ticket`
is whatever the caller knows a request by; it comes back with the reply.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

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
from fornix.replay.info import Reports, Watch, describe
from fornix.replay.storage import AnonymousColumns, nbytes
from fornix.replay.table import Table

_LOG = logging.getLogger(__name__)

#: Who asked, as the caller knows it, and the number of the request.
Ticket = tuple[Any, int]
Answer = tuple[Ticket, Reply]

MAX_TABLES = 1024
MAX_PARKED = 65_536


@dataclass
class _Parked:
    ticket: Ticket
    request: Observe | Sample
    since: float

    @property
    def deadline(self) -> float:
        return self.since + self.request.timeout_s


@dataclass
class _Place:
    """A table with those who wait at it, each queue first come, first served."""

    table: Table
    watch: Watch
    inserts: deque[_Parked] = field(default_factory=deque)
    samples: deque[_Parked] = field(default_factory=deque)

    def may_insert(self) -> bool:
        """Whether the table takes an insert now, seeing who waits for a sample."""
        waiting = self.samples[0].request if self.samples else None
        return self.table.may_insert(waiting if isinstance(waiting, Sample) else None)


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

    def submit(self, ticket: Ticket, request: Request) -> list[Answer]:
        """Take one request; return all replies that are due now, its own among them or later."""
        try:
            reply = self._handle(request, ticket)
        except Exception as error:  # a fault of ours must not end the server
            reply = self.refuse(error)
        answers = [] if reply is None else [(ticket, reply)]
        if isinstance(request, Observe | Sample) and request.table in self._places:
            self._release(self._places[request.table], answers)
        return answers

    def refuse(self, error: Exception) -> Refused:
        """Return the reply that stands for an error, and count it."""
        self._refused += 1
        if not isinstance(error, FornixError):
            _LOG.error("a fault of the server", exc_info=error)
            error = ServerError(f"{type(error).__name__} in the server: {error}")
        return Refused(code=error.code, message=str(error))

    def expire(self) -> list[Answer]:
        """Return the replies to all parked requests whose deadlines have passed."""
        now = self._clock()
        answers: list[Answer] = []
        for place in self._places.values():
            for queue in (place.inserts, place.samples):
                late = [parked for parked in queue if parked.deadline <= now]
                for parked in late:
                    queue.remove(parked)
                    answers.append((parked.ticket, self.refuse(_waited(place, parked))))
            if answers:
                self._release(place, answers)
        return answers

    def patience_s(self) -> float | None:
        """Return in how many seconds `expire` has something to do; None if nothing is parked."""
        deadlines = (
            parked.deadline
            for place in self._places.values()
            for queue in (place.inserts, place.samples)
            for parked in queue
        )
        first = min(deadlines, default=None)
        return None if first is None else max(0.0, first - self._clock())

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
        columns = AnonymousColumns(request.spec.signature, request.spec.capacity_steps)
        # by place, so that a table that is refused here leaves the draws of later ones alone
        seed = np.random.SeedSequence(self._seeds.entropy, spawn_key=(len(self._places),))
        table = Table(request.spec, columns, np.random.default_rng(seed))
        self._places[request.table] = _Place(table, Watch(self._clock))
        return TableCreated(created=True)

    @_handle.register
    def _(self, request: OpenWriter, ticket: Ticket) -> Reply:
        place = self._place(request.table)
        sequence = place.table.open_writer(request.writer, request.incarnation, request.lanes)
        return WriterOpened(sequence=sequence)

    @_handle.register
    def _(self, request: Observe, ticket: Ticket) -> Reply | None:
        place = self._place(request.table)
        if place.table.is_repeated(request):
            return place.table.answer_again(request)
        if not place.inserts and place.may_insert():
            return self._insert(place, request)
        place.table.check(request)
        self._park(place.inserts, ticket, request)
        return None

    @_handle.register
    def _(self, request: StackQuery, ticket: Ticket) -> Reply:
        if request.key.ndim != 1 or request.key.dtype != np.int64:
            raise InvalidRequestError(
                f"key has shape {request.key.shape} and dtype {request.key.dtype.str}; it must be <i8 [K]"
            )
        return self._place(request.table).table.stacks(request.key)

    @_handle.register
    def _(self, request: Sample, ticket: Ticket) -> Reply | None:
        place = self._place(request.table)
        place.table.check_sample(request)
        reply = None if place.samples else self._sample(place, request)
        if reply is None:
            self._park(place.samples, ticket, request)
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

    def _park(self, queue: deque[_Parked], ticket: Ticket, request: Observe | Sample) -> None:
        """Let a request wait. A writer's request that comes again takes its first one's place."""
        if isinstance(request, Observe):
            for parked in queue:
                if isinstance(parked.request, Observe) and _same_write(parked.request, request):
                    parked.ticket = ticket
                    return
        if len(queue) >= MAX_PARKED:
            raise InvalidRequestError(
                f"{len(queue)} requests wait at table {request.table!r} already; that is the limit"
            )
        queue.append(_Parked(ticket, request, self._clock()))

    def _release(self, place: _Place, answers: list[Answer]) -> None:
        """Answer everyone at the head of a queue for whom the way is free now."""
        moved = True
        while moved:
            moved = False
            if place.samples:
                moved |= self._try_first(place, place.samples, self._sample, answers)
            if place.inserts and place.may_insert():
                moved |= self._try_first(place, place.inserts, self._insert, answers)

    def _try_first(
        self,
        place: _Place,
        queue: deque[_Parked],
        action: Callable[..., Stacks | Batch | None],
        answers: list[Answer],
    ) -> bool:
        """Answer the first in a queue, and return whether it could be."""
        parked = queue[0]
        reply: Reply | None
        try:
            done = action(place, parked.request)
            held_s = self._clock() - parked.since
            reply = None if done is None else done.model_copy(update={"held_s": held_s})
        except Exception as error:  # as in submit
            reply = self.refuse(error)
        if reply is None:
            return False
        queue.popleft()
        answers.append((parked.ticket, reply))
        return True

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
            raise InvalidRequestError(f"the server has {MAX_TABLES} tables; that is the limit")
        wanted = nbytes(request.spec.signature, request.spec.capacity_steps)
        left = self._memory_bytes - self._memory_used()
        if wanted > left:
            raise InvalidRequestError(
                f"table {request.table!r} would take {wanted:,} bytes, and {left:,} of "
                f"{self._memory_bytes:,} are left; lower capacity_steps to "
                f"{max(0, left * request.spec.capacity_steps // wanted):,}, or start the server with "
                f"more memory"
            )


def _same_write(one: Observe, other: Observe) -> bool:
    return (one.writer, one.incarnation, one.sequence) == (
        other.writer,
        other.incarnation,
        other.sequence,
    )


def _waited(place: _Place, parked: _Parked) -> WaitTimeoutError:
    if isinstance(parked.request, Observe):
        why = place.table.limiter.why_no_insert()
    else:
        why = place.table.why_no_sample(parked.request)
    return WaitTimeoutError(
        f"{parked.request.type!r} at table {parked.request.table!r} waited "
        f"{parked.request.timeout_s:g} s: {why}"
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
