"""A set of row numbers that can be indexed, so that a random place is a random member."""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Numbers


class IndexedSet:
    """Members in a dense array, and for each slot the place of its member in that array.

    12 bytes a slot, none of them touched before its first use. (Briggs & Torczon 1993: a place is only
    believed if the member there is the one that was asked for, so nothing needs to be initialised.)
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._members = np.empty(slots, np.int64)
        self._places = np.zeros(slots, np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def numbers(self) -> Numbers:
        """Return the members by their places: a view that the next change makes invalid."""
        return self._members[: self._count]

    def places(self, numbers: Numbers) -> NDArray[np.int32]:
        """Return where members lie."""
        return self._places[numbers % self._slots]

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are members."""
        places = self.places(numbers)
        found: NDArray[np.bool_] = (places < self._count) & (self._members[places] == numbers)
        return found

    def add(self, numbers: Numbers) -> None:
        """Put numbers in at the end: distinct, and none of them a member."""
        begin, self._count = self._count, self._count + len(numbers)
        self._put(numbers, np.arange(begin, self._count))

    def remove(self, numbers: Numbers) -> None:
        """Take members out; the places of the others may change."""
        self.move_to_end(self.places(numbers), self._count)
        self._count -= len(numbers)

    def move_to_end(self, places: NDArray[np.integer], end: int) -> None:
        """Swap members so that those at `places` come to lie just before place `end`, in any order.

        Args:
            places: integers [K], distinct, in [0, end).
            end: nothing moves at this place or after it.
        """
        begin = end - len(places)
        before = places < begin
        outside = places[before]
        if not len(outside):
            return
        staying = np.ones(len(places), np.bool_)
        staying[places[~before] - begin] = False
        inside = begin + np.flatnonzero(staying)
        # as many are outside as there are strangers inside: both are K less the chosen ones inside
        chosen, strangers = self._members[outside], self._members[inside]
        self._put(chosen, inside)
        self._put(strangers, outside)

    def _put(self, numbers: Numbers, places: NDArray[np.integer]) -> None:
        self._members[places] = numbers
        self._places[numbers % self._slots] = places
