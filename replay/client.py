"""The client: what actors, learners and other people's agents use of a replay server."""

import time
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, overload

import numpy as np
import zmq
from numpy.typing import NDArray

from fornix.common.errors import UnknownTableError
from fornix.common.messages import (
    CreateTable,
    Done,
    DropTable,
    Hello,
    Info,
    InfoQuery,
    ListTables,
    OpenWriter,
    PrioritiesUpdated,
    Report,
    Request,
    ResetTable,
    Sample,
    SetLimiter,
    Stacks,
    TableCreated,
    Tables,
    UpdatePriorities,
    Welcome,
    WriterOpened,
)
from fornix.common.signature import Signature
from fornix.common.specs import Episode, LimiterSpec, Sequence, TableSpec, Transition, Unit
from fornix.common.transport import Transport, ZmqTransport
from fornix.common.validation import nearest
from fornix.replay.batches import Sequences, Transitions
from fornix.replay.fetch import Fetch
from fornix.replay.gather import Buffers
from fornix.replay.maps import Maps, MemoryChoice, MemoryPath
from fornix.replay.pending import Pending, ReplyT, expect, make
from fornix.replay.prefetch import Prefetch, PrefetchOptions, session_of
from fornix.replay.writer import Writer

_ONE_STEP = Transition()
_CLOSE_S = 1.0  # how long to wait, at the end, for a server to take back what iterators hold


class DrawOptions(TypedDict, total=False):
    """How units are drawn; `Client.sample` says what these are."""

    discount: float
    importance_exponent: float
    timeout_s: float


class BatchesOptions(DrawOptions, PrefetchOptions, total=False):
    """What `Client.batches` may be told."""


class Client:
    """A client of one replay server; for use by one thread.

    Args:
        transport: to the server; `Client.connect` makes one of an address.
        name: that the server may show for this client.
        memory: how frames come; see `Client.connect`.
    """

    def __init__(self, transport: Transport, name: str = "client", memory: MemoryChoice = "socket") -> None:
        self._transport = transport
        self._maps = Maps(transport, memory, name)
        self._fetch = Fetch(transport, self._maps, self.signature, self.hello)
        self._name = name
        self._session = session_of(name)
        self._iterators: weakref.WeakSet[Prefetch[Any]] = weakref.WeakSet()

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        name: str = "client",
        memory: MemoryChoice = "auto",
        give_up_after_s: float = 15.0,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> Self:
        """Return a client of the server at `address`, `tcp://HOST:PORT` or `ipc://PATH`.

        Nothing is sent yet. Every request raises UnreachableError if no server answers it within
        `give_up_after_s`, beyond the time that the request itself lets the server wait.

        Args:
            address: of the server.
            name: that the server may show for this client.
            memory: how frames come. `mapped`: this process copies them out of the server's memory,
                which takes a server on this host that shares it; where that can't be done, what needs
                it raises the reason. `socket`: in the server's answers. `auto`: mapped where that can
                be done; it is found out while the first requests go over the socket.
            give_up_after_s: see above.
            context: to make sockets in; one of its own if not given.
        """
        return cls(ZmqTransport(address, context=context, give_up_after_s=give_up_after_s), name, memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what iterators hold, and let go of the connection and of memory that is mapped."""
        deadline = time.monotonic() + _CLOSE_S
        for iterator in list(self._iterators):
            iterator.close(max(0.0, deadline - time.monotonic()))
        self._maps.close()
        self._transport.close()

    def hello(self, expects: Mapping[str, Signature] | None = None) -> Welcome:
        """Say who asks and what it expects; return the server's version and tables.

        Raises:
            SignatureError: if a table differs from what is expected, with both sides of it.
            UnknownTableError: if an expected table is not there.
        """
        return self._ask(make(Hello, client=self._name, expects=dict(expects or {})), Welcome)

    def create_table(self, table: str, spec: TableSpec) -> bool:
        """Create a table, and return whether it is new; it may be there with the same spec.

        Raises:
            SignatureError: if it is there with another.
            InvalidRequestError: if it doesn't fit the server's memory, or its limiter can't open.
        """
        return self._ask(make(CreateTable, table=table, spec=spec), TableCreated).created

    def list_tables(self) -> dict[str, TableSpec]:
        """Return all tables, and what each is now."""
        return self._ask(ListTables(), Tables).tables

    def reset_table(self, table: str) -> None:
        """Forget all steps of a table, and its writers; its keys go on counting."""
        self._ask(make(ResetTable, table=table), Done)

    def drop_table(self, table: str) -> None:
        """Remove a table, or raise InvalidRequestError while another draws from its rows."""
        self._ask(make(DropTable, table=table), Done)

    def set_limiter(self, table: str, limiter: LimiterSpec) -> None:
        """Change a table's limits while it runs, or raise InvalidRequestError."""
        self._ask(make(SetLimiter, table=table, limiter=limiter), Done)

    def signature(self, table: str) -> Signature:
        """Return a table's signature, or raise UnknownTableError."""
        return _signature_of(table, self.hello())

    def memory_path(self, table: str) -> MemoryPath:
        """Return how a table's frames come to this client; waits until that is decided.

        Raises:
            UnknownTableError, UnreachableError: it can't be decided yet.
            FornixError: the reason why it can't be mapped, if `mapped` was asked for.
        """
        return self._maps.path(table)

    def open_writer(self, table: str, name: str, lanes: int, incarnation: int | None = None) -> Writer:
        """Take writer `name`'s place in a table.

        Args:
            table: to write to.
            name: of the writer; processes with the same name replace each other.
            lanes: that it will write, numbered from 0.
            incarnation: a number above that of every process that had this name before; the time in
                nanoseconds if not given.

        Raises:
            UnknownTableError, FencedError, InvalidRequestError: as the server refuses it.
        """
        welcome = self.hello()
        signature = _signature_of(table, welcome)
        incarnation = time.time_ns() if incarnation is None else incarnation
        request = make(OpenWriter, table=table, writer=name, incarnation=incarnation, lanes=lanes)
        sequence = self._ask(request, WriterOpened).sequence
        life = welcome.lives.get(table, 0)
        return Writer(self._fetch, table, signature, name, incarnation, lanes, sequence, life)

    def stacks(self, table: str, keys: NDArray[np.int64]) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError."""
        return self._fetch.query(table, keys)

    @overload
    def sample(
        self, table: str, batch_size: int, unit: Transition = ..., **options: Unpack[DrawOptions]
    ) -> Pending[Transitions]: ...

    @overload
    def sample(
        self, table: str, batch_size: int, unit: Sequence | Episode, **options: Unpack[DrawOptions]
    ) -> Pending[Sequences]: ...

    def sample(
        self,
        table: str,
        batch_size: int,
        unit: Unit = _ONE_STEP,
        *,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Pending[Transitions] | Pending[Sequences]:
        """Ask for one batch, which stays as it is; it is charged as it is drawn.

        Args:
            table: to draw from, by its sampler.
            batch_size: B.
            unit: what is drawn: `Transition(n_step)`, `Sequence(length, overlap, burn_in)` or
                `Episode(max_steps)`.
            discount: γ.
            importance_exponent: β of the importance weights, 0 for none.
            timeout_s: how long the server may wait for data before it refuses with WaitTimeoutError.
        """
        request = _sample(table, batch_size, unit, discount, importance_exponent, timeout_s)
        pending: Pending[Transitions] = self._fetch.sample(
            request.model_copy(update={"session": self._session}), Buffers()
        )
        return pending

    @overload
    def batches(
        self, table: str, batch_size: int, unit: Transition = ..., **options: Unpack[BatchesOptions]
    ) -> Prefetch[Transitions]: ...

    @overload
    def batches(
        self, table: str, batch_size: int, unit: Sequence | Episode, **options: Unpack[BatchesOptions]
    ) -> Prefetch[Sequences]: ...

    def batches(
        self,
        table: str,
        batch_size: int,
        unit: Unit = _ONE_STEP,
        *,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
        **options: Unpack[PrefetchOptions],
    ) -> Prefetch[Transitions] | Prefetch[Sequences]:
        """Return an iterator over batches that are asked for ahead, in memory that is used again.

        A batch stays as it is until the next is asked for, and counts as consumed then; `Prefetch` says
        this exactly, and which `options` change it. The other arguments are those of `sample`.
        """
        request = _sample(table, batch_size, unit, discount, importance_exponent, timeout_s)
        made: Prefetch[Transitions] = Prefetch(self._fetch, request, self._name, **options)
        self._iterators.add(made)
        return made

    def update_priorities(
        self, table: str, key: NDArray[np.int64], priority: NDArray[np.floating]
    ) -> Pending[PrioritiesUpdated]:
        """Set the priorities of steps that were drawn.

        Args:
            table: with a `prioritized` sampler.
            key: int64 [K], as `batch.key` has them; of a key that is there twice, the last counts.
            priority: float64 or float32 [K], finite and >= 0; what has 0 is not drawn.
        """
        request = make(UpdatePriorities, table=table, key=key, priority=priority)
        return self._fetch.sent(request, PrioritiesUpdated, table)

    def info(self) -> Info:
        """Return what the server holds and does."""
        return self._ask(InfoQuery(), Info)

    def report(self, source: str, doing: str, metrics: Mapping[str, float]) -> Pending[Done]:
        """Tell the server what this process is doing, for whoever watches."""
        request = make(Report, source=source, doing=doing, metrics=dict(metrics))
        return Pending(self._transport, request, expect(Done))

    def _ask(self, request: Request, kind: type[ReplyT]) -> ReplyT:
        return Pending(self._transport, request, expect(kind)).result()


def _signature_of(table: str, welcome: Welcome) -> Signature:
    tables = welcome.tables
    if table not in tables:
        raise UnknownTableError(
            f"there is no table {table!r}{nearest(table, tables)}; tables: "
            f"{', '.join(sorted(tables)) or 'none yet'}; create it first"
        )
    return tables[table]


def _sample(
    table: str,
    batch_size: int,
    unit: Unit,
    discount: float,
    importance_exponent: float,
    timeout_s: float,
) -> Sample:
    return make(
        Sample,
        table=table,
        batch_size=batch_size,
        unit=unit,
        discount=discount,
        importance_exponent=importance_exponent,
        timeout_s=timeout_s,
    )
