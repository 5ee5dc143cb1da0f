"""The ring of immutable rows, and the links between the rows of a lane.

Rows of different lanes interleave in order of arrival. Row number r lies in slot r mod capacity, and
the live rows are those in [tail, head). Every method takes and returns row numbers, int64 arrays of
any shape; -1 stands for "no such row" and stays -1 wherever it is passed on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.replay.storage import Columns

Numbers = NDArray[np.int64]

NONE = -1
#: In `forward`: the episode ends with this row.
ENDS = np.uint32(2**32 - 1)


class Ring:
    """Rows in columns, appended at the head, overwritten at the tail."""

    def __init__(self, columns: Columns) -> None:
        self.capacity = columns.capacity
        self._columns = columns.arrays
        self._back = columns.arrays["back"]
        self._forward = columns.arrays["forward"]
        self.head = 0
        self.tail = 0

    def __len__(self) -> int:
        return self.head - self.tail

    def column(self, name: str) -> NDArray[Any]:
        """Return a whole column, in slot order; read it only through `slots`."""
        return self._columns[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self._columns)

    def slots(self, numbers: Numbers) -> Numbers:
        """Return where rows lie. The slot of NONE is the last: mask it, or don't pass it."""
        return numbers % self.capacity

    def read(self, name: str, numbers: Numbers) -> NDArray[Any]:
        """Return a copy of one column's values for live rows."""
        return self._columns[name][self.slots(numbers)]

    def tail_after(self, rows: int) -> int:
        """Return what the tail will be once `rows` more have been appended."""
        return max(self.tail, self.head + rows - self.capacity)

    def doomed(self, rows: int) -> Numbers:
        """Return the rows that appending `rows` more will overwrite, oldest first.

        Until then they can still be read and walked from, so that derived state can let go of them.
        """
        return np.arange(self.tail, self.tail_after(rows), dtype=np.int64)

    def append(self, rows: Mapping[str, NDArray[Any]], predecessors: Numbers) -> Numbers:
        """Write rows at the head and link them to their predecessors.

        Args:
            rows: a value of [K, ...] for every payload and header column but `number` and the links.
            predecessors: int64 [K]; the row of the same lane and episode before each, or NONE.

        Returns:
            int64 [K]: the numbers of the new rows.
        """
        count = len(predecessors)
        self.tail = self.tail_after(count)
        numbers = np.arange(self.head, self.head + count, dtype=np.int64)
        slots = self.slots(numbers)
        for name, values in rows.items():
            self._columns[name][slots] = values
        linked = predecessors >= 0
        # a distance that the column can't hold is as good as any other beyond the ring
        self._back[slots] = np.where(linked, np.minimum(numbers - predecessors, ENDS), 0)
        self._forward[slots] = 0
        self.head += count
        known = predecessors >= self.tail
        known_predecessors = predecessors[known]
        self._forward[self.slots(known_predecessors)] = numbers[known] - known_predecessors
        return numbers

    def end(self, numbers: Numbers) -> None:
        """Mark live rows as the last of their episodes."""
        self._forward[self.slots(numbers)] = ENDS

    def before(self, numbers: Numbers, tail: int | None = None) -> Numbers:
        """Return each row's predecessor, or NONE at an episode's first row and where it is gone.

        A row counts as gone below `tail`; the ring's own if not given.
        """
        back = self._back[self.slots(numbers)]
        previous: Numbers = numbers - back
        # what is subtracted from NONE stays below every tail
        previous[(back == 0) | (previous < (self.tail if tail is None else tail))] = NONE
        return previous

    def after(self, numbers: Numbers) -> Numbers:
        """Return each row's successor, or NONE at an episode's end and where none has arrived."""
        forward = self._forward[self.slots(numbers)]
        following: Numbers = numbers + forward
        following[(forward == 0) | (forward == ENDS) | (numbers < 0)] = NONE
        return following

    def is_first(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return where a live row is the first of its episode."""
        first: NDArray[np.bool_] = self._back[self.slots(numbers)] == 0
        return first

    def is_end(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return where a live row is the last of its episode."""
        ends: NDArray[np.bool_] = self._forward[self.slots(numbers)] == ENDS
        return ends
