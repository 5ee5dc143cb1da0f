"""Requests in flight: making one, waiting for its reply, and turning that into a result or an error."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    ProtocolError,
    UnreachableError,
    WaitTimeoutError,
    error_from_code,
)
from fornix.common.messages import Refused, Reply, Request
from fornix.common.transport import Transport
from fornix.common.validation import first_fault

T = TypeVar("T")
Made = TypeVar("Made")
ReplyT = TypeVar("ReplyT", bound=Reply)
RequestT = TypeVar("RequestT", bound=Request)

#: What a transport raises where a reply won't come any more: no server, or no transport.
_NO_REPLY = (UnreachableError, InvalidRequestError)


class Pending(Generic[T]):
    """A request in flight.

    Args:
        transport: that it is sent through, at once.
        request: to send.
        finish: makes the result of the reply, or raises; called once for each reply, by `result`.
    """

    # for one whose request could not even be sent
    _number = 0
    _reply: Reply | None = None
    _end: FornixError | None = None

    def __init__(self, transport: Transport, request: Request, finish: Callable[[Reply], T]) -> None:
        self._transport = transport
        self._request = request
        self._finish = finish
        self._number = transport.send(request)
        self._result: list[T] = []  # of one, once there is one

    def __del__(self) -> None:
        if self._reply is None and self._end is None:
            # nobody can ask for the reply any more; a collector may say so in any thread
            self._transport.forget(self._number)

    def done(self, timeout_s: float = 0.0) -> bool:
        """Whether the reply is there, or none will come: then `result` doesn't wait for it.

        With a time-out it may wait so long for that.
        """
        if self._reply is None and self._end is None:
            try:
                self._reply = self._transport.poll(self._number, timeout_s)
            except _NO_REPLY as error:
                self._end = error
        return self._reply is not None or self._end is not None

    def failed(self) -> bool:
        """Whether it is known already that the request was refused, or that no server answers."""
        return self.done() and (self._end is not None or isinstance(self._reply, Refused))

    def timed_out(self) -> bool:
        """Whether it is known already that the server waited in vain, and carried out nothing."""
        reply = self._reply if self.done() else None
        return isinstance(reply, Refused) and reply.code == WaitTimeoutError.code

    def result(self) -> T:
        """Wait for the reply and return what it holds, or raise the error that it stands for."""
        if self._end is None and not self._result:
            self._take()
        if self._end is not None:
            raise self._end
        return self._result[0]

    def forget(self) -> None:
        """Let the reply go; it is of no interest."""
        self._transport.forget(self._number)
        self._end = InvalidRequestError("this request was forgotten; send it again to have a reply")

    def then(self, function: Callable[[T], Made]) -> "Pending[Made]":
        """Return this request, whose result is what `function` makes of what it would have been."""
        finish = self._finish
        changed = cast("Pending[Made]", self)
        changed._finish = lambda reply: function(finish(reply))
        return changed

    def send_again(self) -> None:
        """Send the same request again, after an error such as WaitTimeoutError.

        The server applies a write once however often it comes.
        """
        self._transport.forget(self._number)
        self._reply = self._end = None
        self._result = []
        self._number = self._transport.send(self._request)

    def _take(self) -> None:
        """Take the reply, and keep the result or the error: it is the same whenever it is asked for."""
        try:
            if self._reply is None:
                self._reply = self._transport.wait(self._number)
        except _NO_REPLY as error:
            self._end = error
            return
        try:
            self._result = [self._finish(self._reply)]
        except FornixError as error:
            self._end = error


def make(kind: type[RequestT], **fields: Any) -> RequestT:
    """Return a request, or raise InvalidRequestError for a field that can't be right."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise InvalidRequestError(f"{kind.type}: {first_fault(error, kind)}") from None


def expect(kind: type[ReplyT]) -> Callable[[Reply], ReplyT]:
    """Return what admits replies of `kind`, raises what a refusal stands for, and refuses all others."""

    def check(reply: Reply) -> ReplyT:
        if isinstance(reply, Refused):
            raise error_from_code(reply.code, reply.message)
        if not isinstance(reply, kind):
            raise ProtocolError(f"the server answered with {reply.type!r}; {kind.type!r} was due")
        return reply

    return check
