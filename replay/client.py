"""The client: what actors, learners and other people's agents use of a replay server."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import zmq
from numpy.typing import NDArray
from pydantic import ValidationError

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    ProtocolError,
    ServerError,
    UnknownTableError,
    UnreachableError,
    WaitTimeoutError,
    error_from_code,
)
from fornix.common.messages import (
    Batch,
    CreateTable,
    Done,
    Hello,
    Info,
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
from fornix.common.signature import Signature
from fornix.common.transport import Transport, ZmqTransport
from fornix.common.validation import first_fault, nearest
from fornix.replay.steps import Steps

#: Refusals after which a write may still be applied: it is to be sent again.
_UNDECIDED = (WaitTimeoutError.code, ServerError.code)

T = TypeVar("T")
ReplyT = TypeVar("ReplyT", bound=Reply)
RequestT = TypeVar("RequestT", bound=Request)


@dataclass(frozen=True)
class Transitions:
    """A batch of B transitions, as docs/replay.md defines them.

    `batch` has the arrays that came; `stack` and `next_stack` are made of its windows.
    """

    batch: Batch
    n_step: int

    @property
    def n_frames(self) -> int:
        """Frames in a stack."""
        return int(self.batch.window.shape[1]) - self.n_step

    @property
    def stack(self) -> NDArray[Any]:
        """[B, n_frames, *obs]: the states that the transitions start from; a view."""
        return self.batch.window[:, : self.n_frames]

    @cached_property
    def next_stack(self) -> NDArray[Any]:
        """[B, n_frames, *obs]: the states that they bootstrap from; a view if none is cut short."""
        window, steps = self.batch.window, self.batch.steps
        if (steps == self.n_step).all():
            return window[:, self.n_step :]
        next_stack = window[:, self.n_step :].copy()
        for short in np.unique(steps[steps < self.n_step]):
            rows = steps == short
            next_stack[rows] = window[rows, short : short + self.n_frames]
        return next_stack


class Pending(Generic[T]):
    """A request in flight."""

    def __init__(self, transport: Transport, request: Request, finish: Callable[[Reply], T]) -> None:
        self._transport = transport
        self._request = request
        self._finish = finish
        self._number = transport.send(request)
        self._reply: Reply | None = None
        self._end: FornixError | None = None

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        if self._reply is None and self._end is None:
            try:
                self._reply = self._transport.poll(self._number)
            except UnreachableError as error:
                self._end = error
        return self._reply is not None or self._end is not None

    def result(self) -> T:
        """Wait for the reply and return it, or raise the error that it stands for."""
        if self._end is not None:
            raise self._end
        if self._reply is None:
            try:
                self._reply = self._transport.wait(self._number)
            except UnreachableError as error:
                self._end = error
                raise
        return self._finish(self._reply)

    def forget(self) -> None:
        """Let the reply go; it is of no interest."""
        self._transport.forget(self._number)
        self._end = InvalidRequestError("this request was forgotten; send it again to have a reply")

    def send_again(self) -> None:
        """Send the same request again, after an error such as WaitTimeoutError.

        The server applies a write once however often it comes.
        """
        self._transport.forget(self._number)
        self._reply = self._end = None
        self._number = self._transport.send(self._request)


class Writer:
    """Appends the steps of some lanes to one table, each request exactly once and in order.

    Made by `Client.open_writer`. One request may be in flight at a time.
    """

    def __init__(
        self,
        transport: Transport,
        table: str,
        signature: Signature,
        name: str,
        incarnation: int,
        lanes: int,
        sequence: int,
    ) -> None:
        self._transport = transport
        self._table = table
        self.signature = signature
        self.name = name
        self.incarnation = incarnation
        self.lanes = lanes
        self._next = sequence
        self._unanswered: Observe | None = None

    def observe(
        self,
        steps: Steps,
        *,
        policy_version: int = 0,
        stacks: bool = True,
        timeout_s: float = 10.0,
    ) -> Pending[Stacks]:
        """Append steps, and ask for the stack of each lane in them.

        Steps that the server refuses as invalid have no place in the order: the next ones take it.
        Those that timed out do: send them again. The arrays must not change before the answer has
        come: they are sent, and perhaps sent again, from where they lie.

        Raises:
            InvalidRequestError: if the steps don't fit the table's signature, or those before have no
                answer yet; nothing is sent.
        """
        if self._unanswered is not None:
            raise InvalidRequestError(
                f"request {self._unanswered.sequence} of writer {self.name!r} has no answer yet, and one "
                f"may be in flight; take its result first, or send it again"
            )
        steps.check(self.signature)
        request = _make(
            Observe,
            table=self._table,
            writer=self.name,
            incarnation=self.incarnation,
            sequence=self._next,
            policy_version=policy_version,
            stacks=stacks,
            timeout_s=timeout_s,
            **steps.__dict__,
        )
        pending = Pending(self._transport, request, lambda reply: self._finish(request, reply))
        self._unanswered = request
        return pending

    def _finish(self, request: Observe, reply: Reply) -> Stacks:
        applied = isinstance(reply, Stacks)
        if applied:
            self._next = max(self._next, request.sequence + 1)
        if not (isinstance(reply, Refused) and reply.code in _UNDECIDED):
            self._unanswered = None if self._unanswered is request else self._unanswered
        return _expect(Stacks)(reply)


class Client:
    """A client of one replay server; for use by one thread.

    Args:
        transport: to the server; `Client.connect` makes one of an address.
        name: that the server may show for this client.
    """

    def __init__(self, transport: Transport, name: str = "client") -> None:
        self._transport = transport
        self._name = name

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        name: str = "client",
        give_up_after_s: float = 15.0,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> Self:
        """Return a client of the server at `address`, `tcp://HOST:PORT` or `ipc://PATH`.

        Nothing is sent yet. Every request raises UnreachableError if no server answers it within
        `give_up_after_s`, beyond the time that the request itself lets the server wait.
        """
        return cls(ZmqTransport(address, context=context, give_up_after_s=give_up_after_s), name)

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
        """Let go of the connection."""
        self._transport.close()

    def hello(self, expects: Mapping[str, Signature] | None = None) -> Welcome:
        """Say who asks and what it expects; return the server's version and tables.

        Raises:
            SignatureError: if a table differs from what is expected, with both sides of it.
            UnknownTableError: if an expected table is not there.
        """
        return self._ask(_make(Hello, client=self._name, expects=dict(expects or {})), Welcome)

    def create_table(self, table: str, spec: TableSpec) -> bool:
        """Create a table, and return whether it is new; it may be there with the same spec.

        Raises:
            SignatureError: if it is there with another.
            InvalidRequestError: if it doesn't fit the server's memory, or its limiter can't open.
        """
        return self._ask(_make(CreateTable, table=table, spec=spec), TableCreated).created

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
        request = _make(OpenWriter, table=table, writer=name, incarnation=incarnation, lanes=lanes)
        sequence = self._ask(request, WriterOpened).sequence
        return Writer(self._transport, table, signature, name, incarnation, lanes, sequence)

    def signature(self, table: str) -> Signature:
        """Return a table's signature, or raise UnknownTableError."""
        tables = self.hello().tables
        if table not in tables:
            raise UnknownTableError(
                f"there is no table {table!r}{nearest(table, tables)}; tables: "
                f"{', '.join(sorted(tables)) or 'none yet'}; create it first"
            )
        return tables[table]

    def stacks(self, table: str, keys: NDArray[np.int64]) -> Stacks:
        """Return the stacks of steps by their keys, or raise EvictedError."""
        return self._ask(_make(StackQuery, table=table, key=keys), Stacks)

    def sample(
        self,
        table: str,
        batch_size: int,
        *,
        n_step: int = 1,
        discount: float = 0.99,
        timeout_s: float = 10.0,
    ) -> Pending[Transitions]:
        """Ask for `batch_size` transitions, drawn uniformly with replacement.

        Args:
            table: to draw from.
            batch_size: B.
            n_step: rewards summed before bootstrapping.
            discount: γ.
            timeout_s: how long the server may wait for data before it refuses with WaitTimeoutError.
        """
        request = _make(
            Sample,
            table=table,
            batch_size=batch_size,
            n_step=n_step,
            discount=discount,
            timeout_s=timeout_s,
        )
        unpack = _expect(Batch)
        return Pending(self._transport, request, lambda reply: Transitions(unpack(reply), n_step))

    def info(self) -> Info:
        """Return what the server holds and does."""
        return self._ask(InfoQuery(), Info)

    def report(self, source: str, doing: str, metrics: Mapping[str, float]) -> Pending[Done]:
        """Tell the server what this process is doing, for whoever watches."""
        request = _make(Report, source=source, doing=doing, metrics=dict(metrics))
        return Pending(self._transport, request, _expect(Done))

    def _ask(self, request: Request, kind: type[ReplyT]) -> ReplyT:
        return Pending(self._transport, request, _expect(kind)).result()


def _make(kind: type[RequestT], **fields: Any) -> RequestT:
    """Return a request, or raise InvalidRequestError for a field that can't be right."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise InvalidRequestError(f"{kind.type}: {first_fault(error, kind)}") from None


def _expect(kind: type[ReplyT]) -> Callable[[Reply], ReplyT]:
    def check(reply: Reply) -> ReplyT:
        if isinstance(reply, Refused):
            raise error_from_code(reply.code, reply.message)
        if not isinstance(reply, kind):
            raise ProtocolError(f"the server answered with {reply.type!r}; {kind.type!r} was due")
        return reply

    return check
