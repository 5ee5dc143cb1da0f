"""Draws in order of completion: oldest first, or newest first."""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Draw, Numbers, Unprioritized

_GONE = -1
_SMALLEST = 1024


class Queue:
    """Row numbers in the order in which they came; any may leave at any time.

    Who leaves is only marked in the array. A walk from an end closes the gaps that it met, and when the
    array is full, it is made anew, of twice the size that is needed: so each gap is met once, and every
    operation is amortised O(1) a number. 4 bytes a slot, and 16 for each number that was in it when the
    array was made.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        # the numbers lie in [begin, end), in order, with _GONE in the gaps
        self._entries = np.empty(_SMALLEST, np.int64)
        self._begin = self._end = 0
        self._places = np.zeros(slots, np.uint32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, numbers: Numbers) -> None:
        """Put numbers at the end: distinct, and none of them in it."""
        if self._end + len(numbers) > len(self._entries):
            self._make_room(len(numbers))
        self._put(numbers, self._end)
        self._end += len(numbers)
        self._count += len(numbers)

    def remove(self, numbers: Numbers) -> None:
        """Take numbers out, wherever they stand."""
        self._entries[self._places[numbers % self._slots]] = _GONE
        self._count -= len(numbers)
        if self._count == 0:
            self._begin = self._end = 0

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        places = self._places[numbers % self._slots]
        # the array may have become shorter since a place was noted
        entries = self._entries.take(places, mode="clip")
        found: NDArray[np.bool_] = (places >= self._begin) & (places < self._end) & (entries == numbers)
        return found

    def oldest(self, count: int) -> Numbers:
        """Return the first `count`, in order; all if there are no more."""
        width = 0
        there = np.empty(0, np.int64)
        while len(there) < min(count, self._count):
            width = 2 * width or count
            there = present(self._entries[self._begin : min(self._begin + width, self._end)])
        stop = min(self._begin + width, self._end)
        if self._begin < stop - len(there):
            self._begin = stop - len(there)
            self._put(there, self._begin)
        return there[:count]

    def newest(self, count: int) -> Numbers:
        """Return the last `count`, the last one first; all if there are no more."""
        width = 0
        there = np.empty(0, np.int64)
        while len(there) < min(count, self._count):
            width = 2 * width or count
            there = present(self._entries[max(self._end - width, self._begin) : self._end])
        start = max(self._end - width, self._begin)
        if start + len(there) < self._end:
            self._end = start + len(there)
            self._put(there, start)
        return there[::-1][:count].copy()

    def _put(self, numbers: Numbers, begin: int) -> None:
        self._entries[begin : begin + len(numbers)] = numbers
        self._places[numbers % self._slots] = np.arange(begin, begin + len(numbers))

    def _make_room(self, more: int) -> None:
        """Close all gaps, in an array of which `more` numbers leave at least half free for later."""
        numbers = present(self._entries[self._begin : self._end])
        self._entries = np.empty(max(_SMALLEST, 2 * (len(numbers) + more)), np.int64)
        self._begin, self._end = 0, len(numbers)
        self._put(numbers, 0)


def present(entries: Numbers) -> Numbers:
    """Return a copy of a part of a queue's array, without the gaps."""
    numbers: Numbers = entries[entries != _GONE]
    return numbers


class _QueueSampler(Unprioritized):
    """A batch holds different starts; they stay until the caller removes them."""

    def __init__(self, slots: int) -> None:
        self._queue = Queue(slots)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, numbers: Numbers) -> None:
        """Put starts in, newer than all that are in it."""
        self._queue.add(numbers)

    def remove(self, numbers: Numbers) -> None:
        """Take starts out."""
        self._queue.remove(numbers)

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        return self._queue.contains(numbers)

    def can_draw(self, count: int) -> bool:
        """Whether there are `count` different starts."""
        return len(self._queue) >= count

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return the next `count` starts; nothing is left to chance, so each has probability 1."""
        return Draw(self.drawable(count), np.ones(count))

    def why_not(self, count: int) -> str:
        """Return what is missing."""
        return (
            f"there are {len(self)} starts, and a batch takes {count} different ones; "
            f"{count - len(self)} more starts open it"
        )

    def distinct_ahead(self) -> int:
        """Return how many starts there are."""
        return len(self._queue)


class FifoSampler(_QueueSampler):
    """The starts that were completed first, in that order."""

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts, oldest first."""
        return self._queue.oldest(at_most)


class LifoSampler(_QueueSampler):
    """The starts that were completed last, the last one first."""

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts, newest first."""
        return self._queue.newest(at_most)
