"""Requests that wait for their way to open, in order of arrival, each until its deadline."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fornix.common.messages import Observe, Sample

#: Who asked, as the caller knows it, and the number of the request.
Ticket = tuple[Any, int]
RequestT = TypeVar("RequestT", Observe, Sample)


@dataclass(eq=False)
class Parked(Generic[RequestT]):
    """A request that waits."""

    key: Hashable
    ticket: Ticket
    request: RequestT
    since: float

    @property
    def deadline(self) -> float:
        """When it has waited as long as it may."""
        return self.since + self.request.timeout_s


class WaitingLine(Generic[RequestT]):
    """Requests by a key each; no operation looks at more of them than it returns.

    Args:
        kind: of a request; what waits for the same thing is of one kind.
    """

    def __init__(self, kind: Callable[[RequestT], Hashable] = type) -> None:
        self._kind: Callable[[RequestT], Hashable] = kind
        #: How many of each kind wait.
        self.kinds: Counter[Any] = Counter()
        self._parked: dict[Hashable, Parked[RequestT]] = {}
        self._deadlines: list[tuple[float, int, Parked[RequestT]]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._parked)

    def __iter__(self) -> Iterator[Parked[RequestT]]:
        """Go through those who wait, oldest first; they may be removed meanwhile."""
        return iter(list(self._parked.values()))

    def first(self) -> Parked[RequestT]:
        """Return who has waited longest."""
        return next(iter(self._parked.values()))

    def get(self, key: Hashable) -> Parked[RequestT] | None:
        """Return who waits under a key."""
        return self._parked.get(key)

    def add(self, parked: Parked[RequestT]) -> None:
        """Put someone at the end."""
        self._parked[parked.key] = parked
        self.kinds[self._kind(parked.request)] += 1
        heapq.heappush(self._deadlines, (parked.deadline, next(self._count), parked))

    def remove(self, parked: Parked[RequestT]) -> None:
        """Take someone out, who must be in it."""
        self._take_out(parked)
        if len(self._deadlines) > 2 * len(self._parked) + 64:
            self._deadlines = [entry for entry in self._deadlines if self._waits(entry[2])]
            heapq.heapify(self._deadlines)

    def next_deadline(self) -> float | None:
        """Return the first deadline of those who wait."""
        while self._deadlines and not self._waits(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def pop_late(self, now: float) -> Parked[RequestT] | None:
        """Take out someone whose deadline has passed, if there is anyone."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        _, _, parked = heapq.heappop(self._deadlines)
        self._take_out(parked)
        return parked

    def _take_out(self, parked: Parked[RequestT]) -> None:
        del self._parked[parked.key]
        kind = self._kind(parked.request)
        self.kinds[kind] -= 1
        if not self.kinds[kind]:
            del self.kinds[kind]

    def _waits(self, parked: Parked[RequestT]) -> bool:
        return self._parked.get(parked.key) is parked
