"""The one way from places to frames, whether the frames came over a socket or lie in a mapped memory.

A server names the frames of a window by their places in the first axis of `frame`; here they are copied
out, window by window, into arrays that are used again for the next batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import ProtocolError

Array = NDArray[Any]
#: Returns an array of a shape and dtype, whatever is in it.
Allocate = Callable[[tuple[int, ...], "np.dtype[Any]"], Array]


class Buffers:
    """Arrays by name, whose memory is used again each time that one is asked for.

    Args:
        allocate: makes new ones; `np.empty` if not given.
    """

    def __init__(self, allocate: Allocate = np.empty) -> None:
        self._allocate = allocate
        self._flat: dict[str, Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """Return an array with arbitrary contents, C-contiguous; the last of this name is overwritten.

        Memory is allocated only where the last of this name had too few items, or another dtype.
        """
        size = 1
        for length in shape:
            size *= length
        flat = self._flat.get(name)
        if flat is None or len(flat) < size or flat.dtype != dtype:
            flat = self._flat[name] = self._allocate((size,), dtype)
        return flat[:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(flat.nbytes for flat in self._flat.values())


def check_frames(frames: Mapping[str, Array]) -> None:
    """Raise ProtocolError unless a server's arrays `[places, *obs]` have the same number of places."""
    if len({array.shape[:1] for array in frames.values()}) != 1 or () in {a.shape for a in frames.values()}:
        raise ProtocolError(
            f"the server answered with arrays of frames of shapes {[a.shape for a in frames.values()]}; "
            f"[places, *obs] were due, with one number of places"
        )


def check_places(index: Array, rows: int, frames: Mapping[str, Array]) -> None:
    """Raise ProtocolError unless every place in `index` is one of the frames.

    Args:
        index: what a server says; it must be int32 [rows, W], each in [0, places).
        rows: that it must have.
        frames: [places, *obs] by path, the same number of places each.
    """
    if index.dtype != np.int32 or index.ndim != 2 or len(index) != rows:
        raise ProtocolError(
            f"the server answered with an index of shape {index.shape} and dtype {index.dtype.str}; "
            f"({rows}, W) and <i4 were due"
        )
    places = len(next(iter(frames.values())))
    # as unsigned numbers the negative ones are the largest: so one pass finds both ends
    if index.size and index.view(np.uint32).max() >= places:
        raise ProtocolError(
            f"the server answered with places from {index.min()} to {index.max()} among {places} frames"
        )


def check_oldest(oldest: Array | None, rows: int) -> None:
    """Raise ProtocolError unless a server says of each of so many samples which row is the oldest."""
    if oldest is None or oldest.shape != (rows,) or oldest.dtype != np.int64:
        raise ProtocolError(f"the server answered without the oldest row of each of {rows} copies, <i8")


def gather(frames: Mapping[str, Array], index: Array, buffers: Buffers, name: str) -> dict[str, Array]:
    """Return copies of frames, `[*index.shape, *obs]` of every array, in buffers.

    Args:
        frames: [places, *obs] by path.
        index: of integers in [0, places); see `check_places`.
        buffers: that give the arrays, under `name` and the path.
        name: of the purpose.
    """
    made = {}
    for path, array in frames.items():
        out = buffers.get(f"{name} {path}", index.shape + array.shape[1:], array.dtype)
        # mode="clip": with "raise", numpy would gather into a buffer of its own first
        made[path] = np.take(array, index, axis=0, out=out, mode="clip")
    return made
