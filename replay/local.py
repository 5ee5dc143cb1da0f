"""A transport within one process: requests go straight into a service, arrays as they are."""

from fornix.common.errors import WaitTimeoutError
from fornix.common.messages import Reply, Request
from fornix.replay.service import ReplayService


class LocalTransport:
    """One client's way to a service in the same thread.

    A request that the service parks has no reply yet: whoever drives the process lets others act
    until `poll` finds one. `wait` can't let others act, so there a parked request is an error.
    """

    def __init__(self, service: ReplayService) -> None:
        self._service = service
        self._last_number = 0
        self._awaited: set[int] = set()
        self._replies: dict[int, Reply] = {}

    def send(self, request: Request) -> int:
        """Hand a request to the service, and every reply that is due to whoever waits for it."""
        self._last_number += 1
        self._awaited.add(self._last_number)
        for (transport, number), reply in self._service.submit((self, self._last_number), request):
            if number in transport._awaited:
                transport._replies[number] = reply
        return self._last_number

    def poll(self, number: int, timeout_s: float = 0.0) -> Reply | None:
        """Return the reply if it is there, whatever the time-out; it is handed out once."""
        reply = self._replies.pop(number, None)
        if reply is not None:
            self._awaited.discard(number)
        return reply

    def wait(self, number: int) -> Reply:
        """Return the reply, which must be there; it is handed out once."""
        reply = self.poll(number)
        if reply is None:
            raise WaitTimeoutError(
                f"request {number} is parked, and in one thread nobody else can open its way; use poll, "
                f"and let the other side act"
            )
        return reply

    def forget(self, number: int) -> None:
        """Drop a reply that nobody wants any more."""
        self._awaited.discard(number)
        self._replies.pop(number, None)

    def close(self) -> None:
        """Nothing to let go of."""
