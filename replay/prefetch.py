"""Batches asked for ahead: the next ones are on their way while one is worked on."""

import logging
import secrets
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, NamedTuple, Self

import numpy as np

from fornix.common.errors import FornixError, InvalidRequestError, UnreachableError
from fornix.common.messages import Consume, Done, Sample
from fornix.replay.batches import DrawnT
from fornix.replay.fetch import Fetch
from fornix.replay.gather import Allocate, Buffers
from fornix.replay.pending import Pending, make

_LOG = logging.getLogger(__name__)


class _Flight(NamedTuple, Generic[DrawnT]):
    lease: int
    pending: Pending[DrawnT]


class Prefetch(Iterator[DrawnT], Generic[DrawnT]):
    """An iterator over batches of one table, made by `Client.batches`; for the client's thread.

    Asking for a batch first sends as many requests as bring those on their way up to `in_flight`, then
    waits for the oldest. Batches come in the order in which they were asked for.

    **Lifetime.** The frames of a batch lie in memory that is used again. A batch stays as it is until
    `keep` more have been asked for, with or without success; so with `keep` 1, until the next is. Its
    `copy()` stays. There are `keep` sets of buffers, which grow as batches need it.

    **Leases.** The limiter charges a batch when its lifetime is over, as the next request says; one that
    the client dies with is given back. `close` says what was used.

    **Errors.** Asking for a batch raises what the server answers, such as WaitTimeoutError or
    UnknownTableError, or UnreachableError; whoever then asks again has the request sent again.

    Args:
        fetch: of the client.
        request: to repeat.
        client: its name; the session's begins with it.
        in_flight: requests on their way while a batch is waited for, at least 1.
        keep: batches that stay as they are, at least 1.
        leased: whether batches are charged when they have been used; if not, when they are drawn.
        allocate: makes the memory of the buffers; `np.empty` if not given.
    """

    def __init__(
        self,
        fetch: Fetch,
        request: Sample,
        client: str,
        *,
        in_flight: int = 2,
        keep: int = 1,
        leased: bool = True,
        allocate: Allocate = np.empty,
    ) -> None:
        if in_flight < 1 or keep < 1:
            raise InvalidRequestError(f"in_flight = {in_flight} and keep = {keep}; each must be at least 1")
        self._fetch = fetch
        session = f"{client:.128}-{secrets.token_hex(8)}" if leased else ""
        self._request = request.model_copy(update={"session": session})
        self._in_flight = in_flight
        self._sets = [Buffers(allocate) for _ in range(keep)]
        self._flights: deque[_Flight[DrawnT]] = deque()
        self._asked = 0
        self._handed = 0
        self._reached = False
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DrawnT:
        """Return the next batch; see the class for its lifetime and the errors."""
        if self._closed:
            raise StopIteration
        self._ask_ahead()
        lease, pending = self._flights[0]
        if pending.failed():  # while nobody looked, or the last time
            pending.forget()
            pending = self._send(lease)
            self._flights[0] = _Flight(lease, pending)
        self._reached = True
        try:
            batch = pending.result()
        except UnreachableError:
            self._reached = False
            raise
        self._flights.popleft()
        self._handed = lease
        return batch

    def ready(self) -> bool:
        """Whether the next batch, or an error in place of it, is there already."""
        if self._closed:
            return False
        self._ask_ahead()
        return self._flights[0].pending.done()

    def close(self, unused: int = 0) -> None:
        """Drop what is on its way, and tell the server what was used; then there are no more batches.

        Args:
            unused: how many of the last batches that were handed out are to be given back.
        """
        if self._closed:
            return
        self._closed = True
        for flight in self._flights:
            flight.pending.forget()
        self._flights.clear()
        if self._request.session and self._reached:
            self._release(self._handed - unused)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask_ahead(self) -> None:
        """Send what is missing of the requests in flight."""
        while len(self._flights) < self._in_flight:
            self._asked += 1
            self._flights.append(_Flight(self._asked, self._send(self._asked)))

    def _send(self, lease: int) -> Pending[DrawnT]:
        """Send a request; it acknowledges all batches whose lifetime is over."""
        buffers = self._sets[lease % len(self._sets)]
        if not self._request.session:
            return self._fetch.sample(self._request, buffers)
        consumed = max(0, self._handed - len(self._sets) + 1)
        return self._fetch.sample(self._request, buffers, lease=lease, consumed=consumed)

    def _release(self, consumed: int) -> None:
        request = make(
            Consume,
            table=self._request.table,
            session=self._request.session,
            consumed=max(0, consumed),
            release=True,
        )
        try:
            self._fetch.sent(request, Done, request.table).result()
        except FornixError as error:
            _LOG.debug("the leases of %r run out by themselves: %s", request.session, error)
