"""Which rows are sampleable as starts of one kind of unit, kept exact while rows come and go.

A start is *sampleable* once its whole stack is still there and its unit's last step, or its episode's
end, has arrived. This index is derived state: it is built from the ring by one scan when a unit is
first asked for.
"""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.ring import Ring
from fornix.replay.samplers import Sampler
from fornix.replay.stacking import Numbers, Stacker
from fornix.replay.units import Starts

_SCAN_ROWS = 65_536
_WAITS, _IN, _OUT = 0, 1, 2


class StartIndex:
    """Tells a sampler which starts there are: each is added once, and removed once.

    Args:
        ring: of the rows.
        stacker: whose stacks must be whole.
        starts: of the unit.
        sampler: that is told; it is empty.
        tail: the oldest row that may be a start; the ring's tail, or above it.
    """

    def __init__(self, ring: Ring, stacker: Stacker, starts: Starts, sampler: Sampler, tail: int) -> None:
        self._ring = ring
        self._n_frames = stacker.n_frames
        self._starts = starts
        self.sampler = sampler
        self.span = starts.span
        self._state: NDArray[np.uint8] = np.zeros(ring.capacity, np.uint8)
        self._state[ring.slots(np.arange(ring.tail, tail))] = _OUT
        for low in range(tail, ring.head, _SCAN_ROWS):
            rows = np.arange(low, min(low + _SCAN_ROWS, ring.head), dtype=np.int64)
            self._state[ring.slots(rows[stacker.oldest(rows) < ring.tail])] = _OUT
            self.arrive(rows)

    def begin(self, numbers: Numbers) -> None:
        """Take notice of rows that have been written, before they arrive."""
        self._state[self._ring.slots(numbers)] = _WAITS

    def evict(self, numbers: Numbers) -> None:
        """Take out, for good, all starts whose stacks lose a row; before it is overwritten."""
        current = numbers
        for _ in range(self._n_frames):
            self.take_out(current)
            current = self._ring.after(current)
            current = current[current >= 0]
            if not len(current):
                return

    def take_out(self, numbers: Numbers) -> None:
        """Take out rows for good, whether they are starts already or not yet."""
        slots = self._ring.slots(numbers)
        gone = numbers[self._state[slots] == _IN]
        self._state[slots] = _OUT
        if len(gone):
            self.sampler.remove(gone)

    def arrive(self, rows: Numbers) -> None:
        """Put in the starts that are completed by new rows or by newly marked ends."""
        found = self._starts.completed(rows, self._ring.tail)
        slots = self._ring.slots(found)
        new = self._state[slots] == _WAITS
        if not new.all():
            found, slots = found[new], slots[new]
        if len(found):
            self._state[slots] = _IN
            self.sampler.add(found)

    def numbers(self) -> Numbers:
        """Return all sampleable starts, oldest first."""
        slots = np.flatnonzero(self._state == _IN)
        tail = self._ring.tail
        numbers = np.sort(tail + (slots - tail) % self._ring.capacity)
        return numbers[self.sampler.contains(numbers)]
