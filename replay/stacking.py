"""The one stacking routine: whoever asks for a stack, it is made here.

The stack of step t is the last `n_frames` frames of its lane up to t, oldest first, zeros before its
episode's first frame. docs/replay.md defines it in notation.

Dopamine gave up stacking at sample time, since its buffer had to prove for each draw that the frames
before it were contiguous. Here each row knows its predecessor, so a stack is n_frames - 1 gathers of
four bytes a row, vectorised over the batch: cheap beside copying the frames themselves.

A client on the same host that has the memory mapped makes stacks of it by this routine too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.signature import Signature, frame_name

Numbers = NDArray[np.int64]
Places = NDArray[np.int32]

NONE = -1  # no such row


class Stacker:
    """Walks the predecessors of rows and gathers their frames.

    Args:
        columns: `back`, u4 [capacity], how far before each row its predecessor stands, 0 on an episode's
            first row; and those of the frames, [capacity + 1, *obs], of which the last row is zero.
        signature: that says which arrays make a frame, and how many frames a stack.

    Attributes:
        zeros: the place of the frame of zeros.
        n_frames: in a stack.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], signature: Signature) -> None:
        self._back = columns["back"]
        self._capacity = self.zeros = len(self._back)
        self._frames = {path: columns[frame_name(path)] for path in signature.frames}
        self._place = np.empty(self._capacity, np.int32)  # scratch, of which few pages are ever touched
        self.n_frames = signature.n_frames

    def places(self, numbers: Numbers) -> tuple[Places, Numbers]:
        """Return where the frames of each stack lie, and the oldest row among them.

        A stack whose oldest row lies below the tail is not whole, and its places mean nothing.

        Args:
            numbers: int64 [K], rows in [tail, head).

        Returns:
            int32 [K, n_frames], in the frame columns; the place of the frame of zeros before the
            episode's first row. And int64 [K].
        """
        slots = numbers % self._capacity
        places = np.empty((len(numbers), self.n_frames), np.int32)
        places[:, -1] = slots
        for at in range(self.n_frames - 2, -1, -1):
            # an episode's first row leads to itself; what a row below the tail leads to is lower still
            back = self._back.take(slots)
            numbers = numbers - back
            slots = numbers % self._capacity
            places[:, at] = np.where(back == 0, self._capacity, slots)
        return places, numbers

    def oldest(self, numbers: Numbers) -> Numbers:
        """Return int64 [K]: the oldest row of each stack, as `places` does."""
        return self._back_by(numbers, self.n_frames - 1)

    def may_follow(self, numbers: Numbers, tail: int) -> NDArray[np.bool_]:
        """Return whether a step after each of `numbers` will have a whole stack.

        Args:
            numbers: int64 [K], rows that were live once.
            tail: the oldest row that will be there then.
        """
        if self.n_frames == 1:
            return np.ones(len(numbers), np.bool_)
        whole: NDArray[np.bool_] = self._back_by(numbers, self.n_frames - 2) >= tail
        return whole

    def _back_by(self, numbers: Numbers, steps: int) -> Numbers:
        for _ in range(steps):
            numbers = numbers - self._back.take(numbers % self._capacity)
        return numbers

    def gather(self, slots: Places) -> dict[str, NDArray[Any]]:
        """Return the frames in slots of any shape, `[*slots.shape, *obs]`, by their path."""
        return {path: _take(frames, slots) for path, frames in self._frames.items()}

    def gather_once(self, slots: Places) -> tuple[Places, dict[str, NDArray[Any]]]:
        """Return each of the frames once, and where each slot's is.

        Returns:
            int32 places like `slots`, and the frames by path, [U + 1, *obs]: the last is of zeros.
        """
        flat = slots.ravel()
        there = flat[flat < self._capacity]
        order = np.arange(len(there), dtype=np.int32)
        self._place[there] = order
        once = there[self._place[there] == order]
        self._place[once] = order[: len(once)]
        places = np.full(len(flat), len(once), np.int32)
        places[flat < self._capacity] = self._place[there]
        with_zeros = np.append(once, np.int32(self._capacity))
        return places.reshape(slots.shape), self.gather(with_zeros)


def _take(frames: NDArray[Any], slots: Places) -> NDArray[Any]:
    out = np.empty((*slots.shape, *frames.shape[1:]), frames.dtype)
    # mode="clip": with "raise", numpy would gather into a buffer of its own first
    np.take(frames, slots, axis=0, out=out, mode="clip")
    return out
