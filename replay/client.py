"""The client: what actors, learners and other people's agents use of a replay server."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

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
    LimiterSpec,
    ListTables,
    OpenWriter,
    Report,
    Request,
    ResetTable,
    SetLimiter,
    Stacks,
    TableCreated,
    Tables,
    TableSpec,
    Welcome,
    WriterOpened,
)
from fornix.common.signature import Signature
from fornix.common.transport import Transport, ZmqTransport
from fornix.common.validation import nearest
from fornix.replay.drawing import Drawing
from fornix.replay.fetch import Fetch
from fornix.replay.maps import Maps, MemoryChoice, MemoryPath
from fornix.replay.pending import Pending, ReplyT, expect, make
from fornix.replay.writer import Writer


class Client(Drawing):
    """A client of one replay server; for use by one thread.

    How it draws is in `fornix.replay.drawing`.

    Args:
        transport: to the server; `Client.connect` makes one of an address.
        name: that the server may show for this client.
        memory: how frames come; see `Client.connect`.
    """

    def __init__(self, transport: Transport, name: str = "client", memory: MemoryChoice = "socket") -> None:
        self._transport = transport
        self._maps = Maps(transport, memory, name)
        super().__init__(Fetch(transport, self._maps, self.signature), name)

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
        """Let go of the connection, and of memory that is mapped."""
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
        tables = self.hello().tables
        if table not in tables:
            raise UnknownTableError(
                f"there is no table {table!r}{nearest(table, tables)}; tables: "
                f"{', '.join(sorted(tables)) or 'none yet'}; create it first"
            )
        return tables[table]

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
        signature = self.signature(table)
        incarnation = time.time_ns() if incarnation is None else incarnation
        request = make(OpenWriter, table=table, writer=name, incarnation=incarnation, lanes=lanes)
        sequence = self._ask(request, WriterOpened).sequence
        return Writer(self._fetch, table, signature, name, incarnation, lanes, sequence)

    def stacks(self, table: str, keys: NDArray[np.int64]) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError."""
        return self._fetch.query(table, keys)

    def info(self) -> Info:
        """Return what the server holds and does."""
        return self._ask(InfoQuery(), Info)

    def report(self, source: str, doing: str, metrics: Mapping[str, float]) -> Pending[Done]:
        """Tell the server what this process is doing, for whoever watches."""
        request = make(Report, source=source, doing=doing, metrics=dict(metrics))
        return Pending(self._transport, request, expect(Done))

    def _ask(self, request: Request, kind: type[ReplyT]) -> ReplyT:
        return Pending(self._transport, request, expect(kind)).result()
