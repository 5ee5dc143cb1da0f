"""How a client's requests reach a server and its replies come back.

Requests are numbered and may be in flight together. `ZmqTransport` speaks DEALER to the server's
ROUTER; a REQ socket whose server died could never send again. The in-process transport is in
`fornix.replay.local`.
"""

import contextlib
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import zmq

from fornix.common.addresses import check_address, is_ipv6
from fornix.common.errors import AddressError, InvalidRequestError, ProtocolError, UnreachableError
from fornix.common.messages import REPLIES, Refused, Reply, Request
from fornix.common.wire import Buffer, UndecodableError, decode, encode


class Transport(Protocol):
    """Carries requests to one server. Arrays in a request must not change until it is answered."""

    def send(self, request: Request) -> int:
        """Send a request on its way, and return its number."""

    def poll(self, number: int, timeout_s: float = 0.0) -> Reply | None:
        """Return the reply if it is there, or perhaps if it comes in time; it is handed out once.

        Raises as `wait` does.
        """

    def wait(self, number: int) -> Reply:
        """Wait for the reply and return it; it is handed out once.

        Raises:
            UnreachableError: if no server answers.
            InvalidRequestError: if the request was forgotten, or the transport is closed.
        """

    def forget(self, number: int) -> None:
        """Drop a request whose reply nobody wants any more."""

    def close(self) -> None:
        """Let go of all resources."""


@dataclass
class _InFlight:
    frames: list[Buffer]
    patience_s: float
    """How long one attempt may take."""
    limit_s: float
    """How long all attempts together may take."""
    left_s: float
    """What of the limit no attempt has been given yet."""
    due: float = 0.0
    """When the present attempt has failed."""
    reply: Reply | None = None


class ZmqTransport:
    """Requests over a DEALER socket.

    A request without an answer is sent again through a new socket, with all others in flight and in
    their order; the server recognises what it has applied. Time in which nobody looks for a reply
    counts as one attempt at most, so that a process that was stopped for a while goes on. For use by
    one thread.

    Args:
        address: of the server, `tcp://` or `ipc://`.
        context: to make sockets in; one of its own if not given.
        retry_after_s: how long the server may be silent, beyond the time that a request lets it wait.
        give_up_after_s: how long it may be silent in all before UnreachableError is raised.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        address: str,
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        retry_after_s: float = 3.0,
        give_up_after_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = check_address(address)
        self._own_context = context is None
        self._context = context or zmq.Context()
        self._retry_after_s = retry_after_s
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._flights: dict[int, _InFlight] = {}
        self._last_number = 0
        self._closed = False
        self.reconnects = 0
        try:
            self._socket = self._connect()
        except AddressError:
            if self._own_context:
                self._context.term()
            raise
        # for one that nobody closes: a context that is collected before its sockets waits for them for ever
        self._open = [self._socket]
        self._let_go = weakref.finalize(
            self, _let_go, self._open, self._context if self._own_context else None
        )
        self._let_go.atexit = False  # a thread may still wait at the socket then

    def send(self, request: Request) -> int:
        """Send a request on its way, and return its number."""
        if self._closed:
            raise InvalidRequestError(
                f"the client of {self._address} is closed; connect another to ask for more"
            )
        self._last_number += 1
        frames = encode(request, self._last_number)
        server_s = getattr(request, "timeout_s", 0.0)
        limit_s = self._give_up_after_s + server_s
        flight = _InFlight(frames, self._retry_after_s + server_s, limit_s, limit_s)
        self._flights[self._last_number] = flight
        self._attempt(flight)
        return self._last_number

    def poll(self, number: int, timeout_s: float = 0.0) -> Reply | None:
        """Return the reply if it is there; it is handed out once.

        With a time-out, wait for the next reply to anything, so long at most.
        """
        return self._look(number, timeout_s)

    def wait(self, number: int) -> Reply:
        """Wait for the reply and return it; it is handed out once."""
        while True:
            reply = self._look(number, math.inf)
            if reply is not None:
                return reply

    def forget(self, number: int) -> None:
        """Drop a request whose reply nobody wants any more."""
        self._flights.pop(number, None)

    def close(self) -> None:
        """Close the socket, and the context if it is this transport's own."""
        self._closed = True
        self._flights.clear()
        self._let_go()

    def _look(self, number: int, timeout_s: float) -> Reply | None:
        """Wait for a reply; begin another attempt, or give up, when the present one has failed."""
        flight = self._flights.get(number)
        if flight is None:
            raise InvalidRequestError(
                f"request {number} was forgotten, or the client of {self._address} closed, before its "
                f"answer was taken; connect another, or send it again"
            )
        if flight.reply is None:
            self._receive(min(timeout_s, flight.due - self._clock()))
        reply: Reply | None = flight.reply
        if reply is not None:
            del self._flights[number]
        elif self._clock() >= flight.due:
            self._attempt_failed(number)
        return reply

    def _attempt_failed(self, number: int) -> None:
        limit_s, left_s = self._flights[number].limit_s, self._flights[number].left_s
        if left_s <= 0:
            del self._flights[number]
        self._send_all_again()
        if left_s <= 0:
            raise UnreachableError(
                f"no replay server answered at {self._address} for {limit_s:g} s; start one with "
                f"'fornix replay --address {self._address}', or correct the address"
            )

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.ipv6 = is_ipv6(self._address)
        try:
            socket.connect(self._address)
        except zmq.ZMQError as error:
            socket.close()
            raise AddressError(
                f"can't connect to {self._address}: {error.strerror}; give the address that the server "
                f"says it answers at"
            ) from None
        return socket

    def _attempt(self, flight: _InFlight) -> None:
        """Send, and give the server a share of the time that is left to answer in."""
        share_s = min(flight.patience_s, flight.left_s)
        flight.left_s -= share_s
        flight.due = self._clock() + share_s
        self._transmit(flight.frames)

    def _transmit(self, frames: list[Buffer]) -> None:
        # a full queue is as good as a loss: the request is sent again when patience runs out
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _receive(self, timeout_s: float) -> None:
        """Put down the next reply, for which it waits; without a time to wait, all that are there."""
        # a socket's own time-out costs no system call, as asking first whether there is anything does
        self._socket.rcvtimeo = max(0, math.ceil(timeout_s * 1000))
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(copy=False)
                self._put_down([frame.buffer for frame in frames])
                if timeout_s > 0:
                    return

    def _put_down(self, frames: list[Buffer]) -> None:
        number: int | None
        reply: Reply
        try:
            number, reply = decode(frames, REPLIES)
        except UndecodableError as error:
            number = error.message_id  # without one it is as good as lost
            text = f"the answer of the server at {self._address} can't be read: {error}"
            reply = Refused(code=ProtocolError.code, message=text)
        flight = None if number is None else self._flights.get(number)
        if flight is not None:
            flight.reply = reply

    def _send_all_again(self) -> None:
        """Send whatever has no reply again, in order, through a new socket."""
        self._socket.close(linger=0)
        self._socket = self._open[0] = self._connect()
        self.reconnects += 1
        for flight in list(self._flights.values()):  # a collector may forget one meanwhile, in any thread
            if flight.reply is None:
                flight.left_s += max(0.0, flight.due - self._clock())
                self._attempt(flight)


def _let_go(sockets: list[zmq.Socket[bytes]], context: zmq.Context[zmq.Socket[bytes]] | None) -> None:
    for socket in sockets:
        socket.close(linger=0)
    if context is not None:
        context.term()
