"""Batches asked for ahead: the next ones are on their way while one is worked on."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypedDict

import numpy as np

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    SignatureError,
    UnknownTableError,
    UnreachableError,
)
from fornix.common.messages import Batch, Consume, Done, Sample
from fornix.replay.batches import DrawnT
from fornix.replay.fetch import Answer, Fetch
from fornix.replay.gather import Allocate, Buffers
from fornix.replay.pending import Pending, make

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.01  # how soon the server hears that a batch was consumed while the next is waited for


class _Flight(NamedTuple):
    lease: int
    request: Sample
    pending: Pending[Batch]


class _Part(NamedTuple):
    lease: int
    """That is consumed with it; 0 with all but the last part of an answer."""
    answer: Answer


class PrefetchOptions(TypedDict, total=False):
    """What else `Prefetch` may be told; it says what these are, and has their defaults."""

    in_flight: int
    per_request: int
    keep: int
    leased: bool
    consumed: Callable[[], int] | None
    allocate: Allocate


def session_of(client: str) -> str:
    """Return a name for who samples that nobody else has; it begins with the client's."""
    return f"{client:.128}-{secrets.token_hex(8)}"


class Prefetch(Iterator[DrawnT], Generic[DrawnT]):
    """An iterator over batches of one table, made by `Client.batches`; for the client's thread.

    Asking for a batch first sends as many requests as bring those on their way up to `in_flight`, then
    waits for the oldest. Batches come in the order in which they were asked for.

    **Lifetime.** The frames of a batch lie in memory that is used again. A batch stays as it is until
    `keep` more have been asked for, with or without success; so with `keep` 1, until the next is. Its
    `copy()` stays. There are `keep` sets of buffers, which grow as batches need it.

    **Leases.** The limiter charges a batch when it is consumed: as soon as the next one is asked for, by
    `next` or `ready`, whatever `keep` is; or as `consumed` says. The server hears of it with the next
    request, and while a batch is waited for, at once: so nothing that is consumed already holds anyone
    back. What the client dies with is given back. `close` gives back at once.

    **Errors.** Asking for a batch raises what the server answers, such as WaitTimeoutError or
    UnknownTableError, or UnreachableError; whoever then asks again has the request sent again. One that
    the server let wait in vain goes behind the others that are on their way: were one of these answered
    first, its batch could neither be handed out nor be consumed, and might be what the limiter waits for.

    Args:
        fetch: of the client.
        request: to repeat.
        client: its name; the session's begins with it.
        in_flight: requests on their way while a batch is waited for, at least 1.
        per_request: batches that one request asks for. Each message, and each turn of the server, costs as
            much for many batches as for one; but all are drawn at once, and are one lease.
        keep: batches that stay as they are, at least 1.
        leased: whether batches are charged when they are consumed; if not, when they are drawn.
        consumed: returns how many of the batches have been used up, the first so many; for one who hands
            them on, say to another thread. Called whenever a batch is asked for, and meanwhile.
        allocate: makes the memory of the buffers; `np.empty` if not given.
    """

    def __init__(
        self,
        fetch: Fetch,
        request: Sample,
        client: str,
        *,
        in_flight: int = 2,
        per_request: int = 1,
        keep: int = 1,
        leased: bool = True,
        consumed: Callable[[], int] | None = None,
        allocate: Allocate = np.empty,
    ) -> None:
        if min(in_flight, per_request, keep) < 1:
            raise InvalidRequestError(
                f"in_flight = {in_flight}, per_request = {per_request} and keep = {keep}; each must be at "
                f"least 1"
            )
        self._fetch = fetch
        self._batch_size = request.batch_size
        changes = {"session": session_of(client), "batch_size": request.batch_size * per_request}
        self._request = make(Sample, **request.__dict__ | changes)
        self._leased = leased
        self._per_request = per_request
        self._in_flight = in_flight
        self._sets = [Buffers(allocate) for _ in range(keep)]
        self._flights: deque[_Flight] = deque()
        self._parts: deque[_Part] = deque()  # of the last answer, that are not handed out yet
        self._asked = 0  # the last lease that was asked for
        self._handed = 0  # batches
        self._consumed = consumed or (lambda: self._handed)
        self._held: deque[int] = deque()  # the leases of those that are not consumed yet
        self._up_to = self._told = 0  # the last lease that is consumed, and the last that the server knows
        self._form: dict[str, object] = {}  # of all batches
        # requests whose failure `ready` has told of, and whose failure may have been raised
        self._announced: Pending[Batch] | None = None
        self._raised: Pending[Batch] | None = None
        self._silent = False  # the server, when it was last asked
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DrawnT:
        """Return the next batch; see the class for its lifetime and the errors."""
        if self._closed:
            raise StopIteration
        self._silent = False
        try:
            if not self._parts:
                self._take_answer()
            self._count()
            lease, part = self._parts[0]
            drawn: DrawnT = self._fetch.drawn(part, self._sets[self._handed % len(self._sets)])
        except UnreachableError:
            self._silent = True
            raise
        except UnknownTableError:
            self._parts.clear()  # of the table that is gone
            raise
        self._parts.popleft()
        self._handed += 1
        if self._leased:
            self._held.append(lease)
        return drawn

    def ready(self) -> bool:
        """Whether the next batch, or an error in place of it, is there already."""
        if self._closed:
            return False
        if self._parts:
            return True
        if self._per_request > 1 and not self._fetch.decided(self._request.table):
            return False
        self._ask_ahead()
        pending = self._flights[0].pending
        if pending is self._raised or pending.timed_out():
            self._ask_again()
            pending = self._flights[0].pending
        if pending.failed():
            self._announced = pending
        return pending.done()

    def close(self, wait_s: float = 1.0) -> None:
        """Drop what is on its way, give back what is not consumed; then there are no more batches.

        All that were handed out are consumed, or those that `consumed` says. If the server says nothing
        for `wait_s` seconds, the leases are left to run out.
        """
        if self._closed:
            return
        self._closed = True
        for flight in self._flights:
            flight.pending.forget()
        self._flights.clear()
        self._parts.clear()
        self._count()
        if not self._leased or not self._asked or self._silent:
            return
        try:
            released, deadline = self._acknowledge(release=True), time.monotonic() + wait_s
            while not released.done(left_s := max(0.0, deadline - time.monotonic())) and left_s:
                pass
        except FornixError as error:
            _LOG.debug("the leases of %r run out by themselves: %s", self._request.session, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_answer(self) -> None:
        """Wait for the oldest request's answer, and take it apart into batches."""
        if self._per_request > 1:
            self._fetch.path(self._request.table)  # what may be asked for at once depends on it
        self._ask_ahead()
        if self._flights[0].pending is not self._announced:
            self._ask_again()
        lease, request, pending = self._flights[0]
        while self._held and not pending.done(_LOOK_S):
            self._tell()
        self._raised = pending
        batch = pending.result()
        self._flights.popleft()
        answer = self._fetch.answer(request, batch)
        self._require_form(answer.form)
        self._parts.extend(_Part(0, part) for part in answer.parts(self._batch_size))
        self._parts[-1] = self._parts[-1]._replace(lease=lease)

    def _require_form(self, form: dict[str, object]) -> None:
        """Raise SignatureError unless batches are like the first: whoever takes them counts on it."""
        self._form = self._form or form
        if form != self._form:
            changed = sorted(
                name for name in form.keys() | self._form if form.get(name) != self._form.get(name)
            )
            raise SignatureError(
                f"table {self._request.table!r} was created anew with other {', '.join(changed)}, so its "
                f"batches are not like those before; make a new iterator"
            )

    def _ask_ahead(self) -> None:
        """Send what is missing of the requests in flight, and say what has been consumed."""
        self._count()
        while len(self._flights) < self._in_flight:
            self._flights.append(self._ask_next())
        self._tell()

    def _ask_again(self) -> None:
        """Send again, if the oldest failed while nobody looked, or the last time."""
        for _ in range(self._in_flight):
            lease, _, pending = self._flights[0]
            if not pending.failed():
                return
            self._flights.popleft()
            if not pending.timed_out():
                # it may have been granted: under the same lease, the next grant takes that one's place
                self._flights.appendleft(self._ask(lease))
                return
            self._flights.append(self._ask_next())

    def _ask_next(self) -> _Flight:
        self._asked += 1
        return self._ask(self._asked)

    def _ask(self, lease: int) -> _Flight:
        """Send a request; it acknowledges all batches that have been consumed."""
        leased = {"lease": lease, "consumed": self._up_to} if self._leased else {}
        self._told = self._up_to
        request = self._fetch.request(self._request, **leased)
        return _Flight(lease, request, self._fetch.sent(request, Batch, request.table))

    def _tell(self) -> None:
        """Acknowledge what has been consumed, if no request has said so."""
        self._count()
        if self._up_to > self._told:
            self._told = self._up_to
            self._acknowledge(release=False).forget()  # if it is lost, the next request says the same

    def _count(self) -> None:
        """Take note of what has been consumed."""
        consumed = self._consumed()
        while self._held and self._handed - len(self._held) < consumed:
            self._up_to = max(self._up_to, self._held.popleft())

    def _acknowledge(self, release: bool) -> Pending[Done]:
        request = make(
            Consume,
            table=self._request.table,
            session=self._request.session,
            consumed=self._up_to,
            release=release,
        )
        return self._fetch.sent(request, Done, request.table)
