"""Which steps a transition may start from, kept exact while rows come and go.

A step is *sampleable* for n once its whole stack is still in the ring and its n-step end, or its
episode's end, has arrived; an episode's last step never is. This index is derived state: it can be
built from the ring at any time by one scan.
"""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.ring import NONE, Numbers, Ring
from fornix.replay.stacking import Stacker

_SCAN_ROWS = 65_536
_DENSE = 0.1


class StartIndex:
    """The set of sampleable starts for one n, as a flag for each slot and their exact count."""

    def __init__(self, ring: Ring, stacker: Stacker, n_step: int) -> None:
        self._ring = ring
        self._stacker = stacker
        self._n_step = n_step
        self._flags: NDArray[np.bool_] = np.zeros(ring.capacity, np.bool_)
        self.count = 0
        for low in range(ring.tail, ring.head, _SCAN_ROWS):
            self._scan(np.arange(low, min(low + _SCAN_ROWS, ring.head), dtype=np.int64))

    def evict(self, numbers: Numbers) -> None:
        """Take out the starts whose stacks lose a row, before it is overwritten."""
        current = numbers
        for _ in range(self._stacker.n_frames):
            current = current[current >= 0]
            if not len(current):
                return
            slots = self._ring.slots(current)
            self.count -= int(np.count_nonzero(self._flags[slots]))
            self._flags[slots] = False
            current = self._ring.after(current)

    def arrive(self, numbers: Numbers) -> None:
        """Put in the starts that are completed by new rows or by a newly marked end."""
        ends = self._ring.is_end(numbers)
        any_ends = ends.any()
        current = numbers
        for step in range(1, self._n_step + 1):
            current = self._ring.before(current)
            if step == self._n_step:
                self._add(current)
            elif any_ends:
                self._add(current[ends])

    def draw(self, batch_size: int, rng: np.random.Generator) -> Numbers | None:
        """Return int64 [batch_size], each exactly uniform over the starts; None if there are none.

        Rejection keeps the cost independent of the ring's size; where few rows are starts, their list
        is made instead.
        """
        if self.count == 0:
            return None
        if self.count < _DENSE * len(self._ring):
            return self._numbers_of(rng.choice(np.flatnonzero(self._flags), batch_size))
        found = np.empty(0, np.int64)
        while len(found) < batch_size:
            drawn = rng.integers(self._ring.tail, self._ring.head, batch_size)
            found = np.concatenate([found, drawn[self._flags[self._ring.slots(drawn)]]])
        return found[:batch_size]

    def numbers(self) -> Numbers:
        """Return all sampleable starts, oldest first."""
        return np.sort(self._numbers_of(np.flatnonzero(self._flags)))

    def _scan(self, numbers: Numbers) -> None:
        current, arrived = numbers, np.zeros(len(numbers), np.bool_)
        for step in range(1, self._n_step + 1):
            current = self._ring.after(current)
            ended = (current >= 0) & self._ring.is_end(current)
            arrived |= ended if step < self._n_step else current >= 0
        self._add(numbers[arrived])

    def _add(self, numbers: Numbers) -> None:
        numbers = numbers[numbers != NONE]
        _, whole = self._stacker.rows(numbers)
        slots = self._ring.slots(numbers[whole])
        self.count += int(np.count_nonzero(~self._flags[slots]))
        self._flags[slots] = True

    def _numbers_of(self, slots: Numbers) -> Numbers:
        """Return the numbers of the live rows in `slots`."""
        tail = self._ring.tail
        return tail + (slots - tail) % self._ring.capacity
