"""The one stacking routine: whoever asks for a stack, it is made here.

The stack of step t is the last `n_frames` frames of its lane up to t, oldest first, zeros before its
episode's first frame. docs/replay.md defines it in notation.

Dopamine gave up stacking at sample time, since its buffer had to prove for each draw that the frames
before it were contiguous. Here each row knows its predecessor, so a stack is n_frames - 1 gathers of
four bytes a row, vectorised over the batch: cheap beside copying the frames themselves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.replay.ring import Numbers, Ring


class Stacker:
    """Walks the predecessors of rows and gathers their frames."""

    def __init__(self, ring: Ring, n_frames: int) -> None:
        self._ring = ring
        self._frames = ring.column("frame")
        self.n_frames = n_frames

    def rows(self, numbers: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
        """Return the rows of each stack, and whether it is whole.

        Args:
            numbers: int64 [K], live rows or NONE; the stack of NONE is all zeros, and whole.

        Returns:
            int64 [K, n_frames], NONE before the episode's first row; and bool [K], false where a row
            of the stack has been overwritten.
        """
        return self._walk(numbers, self.n_frames, self._ring.tail)

    def may_follow(self, numbers: Numbers, tail: int) -> NDArray[np.bool_]:
        """Return whether a step after each of `numbers` will have a whole stack.

        Args:
            numbers: int64 [K], rows that were live once, or NONE before an episode's first step.
            tail: the oldest row that will be there then.
        """
        if self.n_frames == 1:
            return np.ones(len(numbers), np.bool_)
        _, whole = self._walk(numbers, self.n_frames - 1, tail)
        return whole & ((numbers < 0) | (numbers >= tail))

    def _walk(self, numbers: Numbers, depth: int, tail: int) -> tuple[Numbers, NDArray[np.bool_]]:
        rows = np.empty((len(numbers), depth), np.int64)
        rows[:, -1] = numbers
        current = numbers
        for column in range(depth - 2, -1, -1):
            current = self._ring.before(current, tail)
            rows[:, column] = current
        whole: NDArray[np.bool_] = rows[:, 0] >= 0
        if not whole.all():
            found = np.count_nonzero(rows >= 0, axis=1)
            oldest = rows[np.arange(len(rows)), depth - np.maximum(found, 1)]
            whole |= (numbers < 0) | self._ring.is_first(oldest)
        return rows, whole

    def gather(self, rows: Numbers) -> NDArray[Any]:
        """Return the frames of rows of any shape, `[*rows.shape, *obs]`; zeros for NONE."""
        slots = np.where(rows < 0, self._ring.capacity, rows % self._ring.capacity)
        out = np.empty((*rows.shape, *self._frames.shape[1:]), self._frames.dtype)
        # mode="clip": with "raise", numpy would gather into a buffer of its own first
        np.take(self._frames, slots, axis=0, out=out, mode="clip")
        return out
