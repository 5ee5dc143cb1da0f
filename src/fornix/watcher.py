"""Asks a replay server what it holds and does, without ever waiting for the answer."""

import time
from collections.abc import Callable

from fornix.common.errors import FornixError
from fornix.common.messages import Info, InfoQuery
from fornix.common.transport import ZmqTransport

_PERIOD_S = 0.5
_LOST_S = 3.0


class Watcher:
    """The newest info of a server; asks for it twice a second, whether or not a server is there.

    Args:
        address: of the server.
        clock: seconds, monotonic.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = ZmqTransport(address)
        self._clock = clock
        self._number: int | None = None
        self._asked = -_LOST_S
        self.info: Info | None = None

    def poll(self) -> Info | None:
        """Return an info that has just come, else None; ask for the next when it is time."""
        found = self._receive()
        now = self._clock()
        if self._number is not None and now - self._asked >= _LOST_S:
            self._transport.forget(self._number)
            self._number = None
        if self._number is None and now - self._asked >= _PERIOD_S:
            self._number = self._transport.send(InfoQuery())
            self._asked = now
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def _receive(self) -> Info | None:
        if self._number is None:
            return None
        try:
            reply = self._transport.poll(self._number)
        except FornixError:
            return None
        if reply is None:
            return None
        self._number = None
        if isinstance(reply, Info):
            self.info = reply
            return reply
        return None
