"""The ring of immutable rows, and the links between the rows of a lane.

Rows of different lanes interleave in order of arrival. Row number r lies in slot r mod capacity, and
the live rows are those in [tail, head). Every method takes and returns row numbers, int64 arrays of
any shape; -1 stands for "no such row" and stays -1 wherever it is passed on.

The tail moves in blocks, and ahead of what is overwritten: so the derived state that hangs on it is
brought up to date for many rows at once, and who reads frames from the mapped memory has time for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.replay.stacking import NONE, Numbers
from fornix.replay.storage import Columns

#: In `forward`: the episode ends with this row.
ENDS = np.uint32(2**32 - 1)
_BLOCKS = 256  # in a ring; of a smaller one the tail moves row by row
_MAX_BLOCK = 4096


class Ring:
    """Rows in columns, appended at the head, overwritten at the tail."""

    def __init__(self, columns: Columns, first: int = 0) -> None:
        """Begin without rows.

        Args:
            columns: that no ring was on before.
            first: the number of the first row.
        """
        self.capacity = columns.capacity
        self.columns = columns
        self._arrays = columns.arrays
        self._back = columns.arrays["back"]
        self._forward = columns.arrays["forward"]
        self.head = self.tail = first
        columns.raise_floor(first)

    def __len__(self) -> int:
        return self.head - self.tail

    def column(self, name: str) -> NDArray[Any]:
        """Return a whole column, in slot order; read it only through `slots`."""
        return self._arrays[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self._arrays)

    def slots(self, numbers: Numbers) -> Numbers:
        """Return where rows lie. The slot of NONE is the last: mask it, or don't pass it."""
        return numbers % self.capacity

    def read(self, name: str, numbers: Numbers) -> NDArray[Any]:
        """Return a copy of one column's values for live rows."""
        return self._arrays[name][numbers % self.capacity]

    def tail_after(self, rows: int, tail: int | None = None, capacity: int | None = None) -> int:
        """Return what the tail will be once `rows` more have been appended.

        Args:
            rows: at most half of the ring.
            tail: from where it moves; the ring's own if not given.
            capacity: of a part of the ring that has a tail of its own; the ring's if not given.
        """
        tail = self.tail if tail is None else tail
        capacity = self.capacity if capacity is None else capacity
        block = _block(capacity)
        # a function of the head alone: who finds the rows again in a file finds the same tail
        needed = self.head + rows - (capacity - block)
        return max(tail, needed + -needed % max(1, block))

    def append(self, rows: Mapping[str, NDArray[Any]], predecessors: Numbers, tail: int) -> Numbers:
        """Write rows at the head and link them to their predecessors.

        Args:
            rows: a value of [K, ...] for every payload and header column but the links.
            predecessors: int64 [K]; the row of the same lane and episode before each, which may be new
                too; of an episode's first row itself.
            tail: what `tail_after` said; nobody may need the rows below it any more.

        Returns:
            int64 [K]: the numbers of the new rows.
        """
        count = len(predecessors)
        self.tail = tail
        self.columns.raise_floor(self.head + count - self.capacity)
        numbers = np.arange(self.head, self.head + count, dtype=np.int64)
        # a distance that the column can't hold is as good as any other beyond the ring
        back = np.minimum(numbers - predecessors, ENDS)
        for slots, part in self._spans(count):
            for name, values in rows.items():
                self.columns.write(name, slots, values[part])
            self._back[slots] = back[part]
            self._forward[slots] = 0
        self.head += count
        self.columns.raise_head(self.head)
        known = predecessors >= tail
        if known.all():
            self._forward[predecessors % self.capacity] = back
        else:
            self._forward[predecessors[known] % self.capacity] = back[known]
        return numbers

    def end(self, numbers: Numbers) -> None:
        """Mark live rows as the last of their episodes."""
        self._forward[numbers % self.capacity] = ENDS

    def before(self, numbers: Numbers, tail: int) -> Numbers:
        """Return each row's predecessor, or NONE at an episode's first row and where it is below `tail`.

        Args:
            numbers: int64, live or NONE.
            tail: the oldest row that counts.
        """
        back = self._back[numbers % self.capacity]
        previous: Numbers = numbers - back
        # what is subtracted from NONE stays below every tail
        previous[(back == 0) | (previous < tail)] = NONE
        return previous

    def after(self, numbers: Numbers) -> Numbers:
        """Return each row's successor, or NONE at an episode's end and where none has arrived."""
        forward = self._forward[numbers % self.capacity]
        following: Numbers = numbers + forward
        following[(forward == 0) | (forward == ENDS) | (numbers < 0)] = NONE
        return following

    def is_end(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return where a live row is the last of its episode."""
        ends: NDArray[np.bool_] = self._forward[numbers % self.capacity] == ENDS
        return ends

    def reset(self) -> None:
        """Let go of all rows. Numbers go on: none is given twice."""
        self.columns.raise_floor(self.head)
        self.tail = self.head

    def restore(self, tail: int, head: int) -> None:
        """Take the rows [tail, head), which the columns hold already, as far as a ring would have them."""
        self.tail, self.head = tail, head
        self.tail = self.tail_after(0)

    def cut(self, numbers: Numbers) -> Numbers:
        """Let episodes end before rows that are broken; return the rows that are their last then.

        Args:
            numbers: int64 [K], live rows.
        """
        before = self.ends_before(numbers)
        self.end(before)
        return before

    def ends_before(self, numbers: Numbers) -> Numbers:
        """Return the rows before broken ones, int64 [K]: the last of their episodes, once each."""
        before = np.unique(self.before(numbers, self.tail))
        return before[before >= 0]

    def _spans(self, count: int) -> Iterator[tuple[slice, slice]]:
        """Yield where the next `count` rows lie: one run of slots, or two where the ring wraps."""
        low = self.head % self.capacity
        first = min(count, self.capacity - low)
        yield slice(low, low + first), slice(0, first)
        if first < count:
            yield slice(0, count - first), slice(first, count)


def held_at_least(capacity: int) -> int:
    """Return how many rows a full ring of `capacity` holds at any time: the tail moves ahead, in blocks."""
    return capacity - 2 * _block(capacity)


def _block(capacity: int) -> int:
    return min(capacity // _BLOCKS, _MAX_BLOCK)
