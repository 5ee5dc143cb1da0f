"""How a client's requests reach a server and its replies come back.

Requests are numbered and may be in flight together. `ZmqTransport` speaks DEALER to the server's
ROUTER; a REQ socket whose server died could never send again. The in-process transport is in
`fornix.replay.local`.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import zmq

from fornix.common.addresses import check_address
from fornix.common.errors import UnreachableError
from fornix.common.messages import REPLIES, Reply, Request
from fornix.common.wire import Buffer, UndecodableError, decode, encode


class Transport(Protocol):
    """Carries requests to one server. Arrays in a request must not change until it is answered."""

    def send(self, request: Request) -> int:
        """Send a request on its way, and return its number."""

    def poll(self, number: int) -> Reply | None:
        """Return the reply if it is there; it is handed out once."""

    def wait(self, number: int) -> Reply:
        """Wait for the reply and return it; it is handed out once.

        Raises:
            UnreachableError: if no server answers.
        """

    def forget(self, number: int) -> None:
        """Drop a request whose reply nobody wants any more."""

    def close(self) -> None:
        """Let go of all resources."""


@dataclass
class _InFlight:
    frames: list[Buffer]
    patience_s: float
    began: float
    sent: float
    reply: Reply | None = None


class ZmqTransport:
    """Requests over a DEALER socket.

    A request without an answer is sent again through a new socket, with all others in flight and in
    their order; the server recognises what it has applied. For use by one thread.

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
        self.reconnects = 0
        self._socket = self._connect()

    def send(self, request: Request) -> int:
        """Send a request on its way, and return its number."""
        self._last_number += 1
        frames = encode(request, self._last_number)
        now = self._clock()
        patience_s = self._retry_after_s + getattr(request, "timeout_s", 0.0)
        self._flights[self._last_number] = _InFlight(frames, patience_s, now, now)
        self._transmit(frames)
        return self._last_number

    def poll(self, number: int) -> Reply | None:
        """Return the reply if it is there; it is handed out once."""
        self._receive(0)
        return self._take(number)

    def wait(self, number: int) -> Reply:
        """Wait for the reply and return it; it is handed out once."""
        flight = self._flights[number]
        while flight.reply is None:
            left_s = flight.sent + flight.patience_s - self._clock()
            if left_s > 0:
                self._receive(left_s)
            else:
                self._require_hope(flight)
                self._send_all_again()
        del self._flights[number]
        return flight.reply

    def forget(self, number: int) -> None:
        """Drop a request whose reply nobody wants any more."""
        self._flights.pop(number, None)

    def close(self) -> None:
        """Close the socket, and the context if it is this transport's own."""
        self._socket.close(linger=0)
        if self._own_context:
            self._context.term()

    def _take(self, number: int) -> Reply | None:
        reply = self._flights[number].reply
        if reply is not None:
            del self._flights[number]
        return reply

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._address)
        return socket

    def _transmit(self, frames: list[Buffer]) -> None:
        # a full queue is as good as a loss: the request is sent again when patience runs out
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _receive(self, timeout_s: float) -> None:
        """Wait for replies, and put down all that are there."""
        if not self._socket.poll(max(0, int(timeout_s * 1000 + 0.999))):
            return
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                number, reply = decode([frame.buffer for frame in frames], REPLIES)
            except UndecodableError:
                continue  # as good as lost
            flight = self._flights.get(number)
            if flight is not None:
                flight.reply = reply

    def _require_hope(self, flight: _InFlight) -> None:
        silent_s = self._clock() - flight.began
        if silent_s > self._give_up_after_s + flight.patience_s - self._retry_after_s:
            raise UnreachableError(
                f"no replay server answered at {self._address} for {silent_s:.0f} s; start one with "
                f"'fornix replay --address {self._address}', or correct the address"
            )

    def _send_all_again(self) -> None:
        """Send whatever has no reply again, in order, through a new socket."""
        self._socket.close(linger=0)
        self._socket = self._connect()
        self.reconnects += 1
        for flight in self._flights.values():
            if flight.reply is None:
                flight.sent = self._clock()
                self._transmit(flight.frames)
