"""What the replay server decides: typed requests in, typed replies out, no socket anywhere.

One thread owns a service and hands it one request at a time, so nothing in it needs a lock. A request
that has to wait is parked; the event that opens it, or its deadline, answers it later. A `ticket`
is whatever the caller knows a request by; it comes back with the reply.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from functools import singledispatchmethod

from fornix.common.errors import (
    DiskError,
    EvictedError,
    FornixError,
    InvalidRequestError,
    ServerError,
    UnknownTableError,
    UnknownWriterError,
)
from fornix.common.messages import (
    Consume,
    CreateTable,
    Done,
    DropTable,
    Hello,
    InfoQuery,
    ListTables,
    MapTable,
    Observe,
    OpenWriter,
    Refused,
    Reply,
    Report,
    Request,
    ResetTable,
    Sample,
    SetLimiter,
    StackQuery,
    TableCreated,
    Tables,
    UpdatePriorities,
    Welcome,
    WriterOpened,
)
from fornix.replay.catalog import Catalog
from fornix.replay.checks import check_keys
from fornix.replay.durable.folder import Folder
from fornix.replay.info import Reports, Sessions, describe
from fornix.replay.place import Answer, Place
from fornix.replay.waiting import Parked, Ticket

_LOG = logging.getLogger(__name__)

#: Requests after which those who wait at the table may go ahead, or must go away.
_MOVING = (Observe, Sample, Consume, UpdatePriorities, OpenWriter, SetLimiter, ResetTable, DropTable)


class ReplayService:
    """Tables, and what clients may do with them.

    Args:
        clock: seconds, monotonic.
        seed: of the draws.
        memory_bytes: limit on all tables together; three quarters of the machine's memory if not
            given.
        version: of the server, as its welcome tells it.
        share: whether clients on this host may map the memory.
        lease_s: how long a silent session keeps the batches that it has fetched and not consumed.
        first_key: returns a number above all keys that another server may have given to its clients.
        folder: that keeps the tables, and is the service's from now on; without one they are in memory.

    Raises:
        StorageError: if the folder can't be read.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        seed: int | None = None,
        memory_bytes: int | None = None,
        version: str = "",
        share: bool = False,
        lease_s: float = 30.0,
        first_key: Callable[[], int] = lambda: 0,
        folder: Folder | None = None,
    ) -> None:
        self._clock = clock
        self._refused = 0
        self._failed = False
        self._catalog = Catalog(
            memory_bytes or _three_quarters_of_memory(),
            seed,
            share,
            lease_s,
            clock,
            self.refuse,
            first_key,
            folder,
        )
        self._folder = folder
        self._version = version
        self._reports = Reports()
        self._sessions = Sessions()
        self._began = clock()
        self._count = itertools.count()

    def submit(self, ticket: Ticket, request: Request) -> Iterator[Answer]:
        """Carry out one request; yield all replies that are due now, its own among them or later.

        Each reply is made when it is asked for, so that no two need be held in memory.
        """
        place = self._catalog.get(getattr(request, "table", None))
        try:
            reply = self._handle(request, ticket)
        except DiskError:
            self._failed = True  # nothing more can be promised
            raise
        except Exception as error:  # a fault of ours must not end the server
            reply = self.refuse(error)
        if place is not None and not isinstance(request, Observe | Sample):  # these see to it themselves
            place.table.note()
        if reply is not None:
            yield ticket, reply
        if place is not None and isinstance(request, _MOVING):
            if not isinstance(reply, Refused):
                yield from self._turn_away(place, request)
            yield from place.release()
        yield from self._keep()

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
        for place in self._catalog:
            yield from place.expire(now)
        yield from self._keep()

    def patience_s(self) -> float | None:
        """Return in how many seconds `expire` has something to do; None if there is nothing."""
        deadlines = [due for place in self._catalog if (due := place.next_deadline()) is not None]
        patience = max(0.0, min(deadlines) - self._clock()) if deadlines else None
        if self._folder is None:
            return patience
        due = self._folder.patience_s()
        return patience if due is None else due if patience is None else min(patience, due)

    def close(self, failed: bool = False) -> None:
        """Let go of the memory; if something has `failed`, without saying in the files that all is well."""
        self._catalog.close(failed or self._failed)

    @singledispatchmethod
    def _handle(self, request: Request, ticket: Ticket) -> Reply | None:
        raise InvalidRequestError(f"the server has no answer to {request.type!r}")

    @_handle.register
    def _(self, request: Hello, ticket: Ticket) -> Reply:
        for name, expected in request.expects.items():
            self._catalog[name].table.spec.signature.require_equal(name, expected)
        tables = {name: spec.signature for name, spec in self._catalog.specs().items()}
        return Welcome(server=self._version, tables=tables, lives=self._catalog.lives())

    @_handle.register
    def _(self, request: CreateTable, ticket: Ticket) -> Reply:
        return TableCreated(created=self._catalog.create(request.table, request.spec))

    @_handle.register
    def _(self, request: ListTables, ticket: Ticket) -> Reply:
        return Tables(tables=self._catalog.specs())

    @_handle.register
    def _(self, request: ResetTable, ticket: Ticket) -> Reply:
        self._catalog.reset(request.table)
        return Done()

    @_handle.register
    def _(self, request: DropTable, ticket: Ticket) -> Reply:
        self._catalog.drop(request.table)
        return Done()

    @_handle.register
    def _(self, request: SetLimiter, ticket: Ticket) -> Reply:
        self._catalog.change_limits(request.table, request.limiter)
        return Done()

    @_handle.register
    def _(self, request: MapTable, ticket: Ticket) -> Reply:
        table = self._catalog[request.table].table
        memory = table.memory
        found = memory.ring.columns.table_map()
        if found is None:
            # the answer that many clients expect: no fault of theirs, and not counted as one
            return Refused(
                code=InvalidRequestError.code,
                message=f"the memory of table {request.table!r} can't be mapped: this server shares none; "
                f"use the socket",
            )
        # what is not known to be whole, a client must not read unasked
        own = table.spec.rows_of is None and not memory.may_be_damaged
        return found.model_copy(update={"memory": memory.number, "own": own})

    @_handle.register
    def _(self, request: OpenWriter, ticket: Ticket) -> Reply:
        memory = self._catalog.writable(request.table).table.memory
        sequence = memory.open_writer(request.writer, request.incarnation, request.lanes, self._clock())
        return WriterOpened(sequence=sequence)

    @_handle.register
    def _(self, request: Observe, ticket: Ticket) -> Reply | None:
        place = self._catalog.writable(request.table)
        memory = place.table.memory
        if memory.is_repeated(request):
            return memory.answer_again(request)
        reply = None if place.inserts else place.insert(request)
        if reply is None:
            memory.check(request)
            place.park(place.inserts, Parked(request.writer, ticket, request, self._clock()))
        return reply

    @_handle.register
    def _(self, request: StackQuery, ticket: Ticket) -> Reply:
        check_keys(request.key)
        table = self._catalog[request.table].table
        if request.memory and not table.memory.is_known_as(request.memory):
            raise EvictedError(
                f"the steps are of memory {request.memory}, and table {request.table!r} has memory "
                f"{table.memory.number} now: it was made anew; open the writer again"
            )
        return table.stacks(request.key)

    @_handle.register
    def _(self, request: Sample, ticket: Ticket) -> Reply | None:
        place, now = self._catalog[request.table], self._clock()
        place.table.check_sample(request)
        if request.session:
            self._sessions.put(request.session, request.table, request.mapped, now)
            if request.lease and not request.refill:
                place.table.leases.check(request.session, request.lease)
            place.table.leases.consume(request.session, request.consumed, now)
        reply = place.sample(request)  # who waits already lacks a start, or the limiter is closed to all
        if reply is None:
            # the same lease again, perhaps by another way, takes its own place in the line
            again = request.lease and not request.refill
            key = (request.session, request.lease) if again else next(self._count)
            place.park_sample(Parked(key, ticket, request, now))
        return reply

    @_handle.register
    def _(self, request: Consume, ticket: Ticket) -> Reply:
        place, now = self._catalog[request.table], self._clock()
        place.table.leases.consume(request.session, request.consumed, now)
        if request.release:
            place.forget(request.session)
            self._sessions.forget(request.session)
        return Done()

    @_handle.register
    def _(self, request: UpdatePriorities, ticket: Ticket) -> Reply:
        return self._catalog[request.table].table.update_priorities(request)

    @_handle.register
    def _(self, request: InfoQuery, ticket: Ticket) -> Reply:
        now = self._clock()
        return describe(
            server={
                "version": self._version,
                "pid": os.getpid(),
                "uptime_s": now - self._began,
                "memory_bytes": self._catalog.memory_used(),
                "memory_limit_bytes": self._catalog.memory_bytes,
                "refused_requests": self._refused,
            },
            places=list(self._catalog),
            reports=self._reports.ages(now),
            sessions=self._sessions,
            now=now,
        )

    @_handle.register
    def _(self, request: Report, ticket: Ticket) -> Reply:
        self._reports.put(request, self._clock())
        return Done()

    def _keep(self) -> Iterator[Answer]:
        """See to the files; answer those who waited for the disk.

        Raises:
            DiskError: if the disk doesn't take what was written: the server must end.
        """
        if self._folder is None:
            return
        try:
            done = self._folder.tick()
        except DiskError:
            self._failed = True
            raise
        if done:
            for place in list(self._catalog):
                if place.inserts:
                    yield from place.release()

    def _turn_away(self, place: Place, request: Request) -> Iterator[Answer]:
        """Refuse those who wait for what is not there any more."""
        if isinstance(request, OpenWriter):
            yield from place.turn_away_fenced(request)
        if isinstance(request, ResetTable):
            error = f"table {place.name!r} was reset while this waited; open the writer again"
            yield from place.turn_away(place.inserts, UnknownWriterError(error))
        if isinstance(request, DropTable):
            gone = UnknownTableError(f"table {place.name!r} was dropped; create it first")
            yield from place.turn_away(place.inserts, gone)
            yield from place.turn_away(place.samples, gone)


def _three_quarters_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
