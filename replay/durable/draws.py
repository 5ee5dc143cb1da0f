"""The file of a table: what has been drawn, and what its rows' priorities are.

    byte 0     magic
    byte 2048  a cell with what the limiter has counted
    byte 4096  of a prioritized table: 16 bytes [slots], p^alpha (f8) and what ties it to its row (u8)
    then       where each start is drawn a number of times at most: u8 [slots], the low 32 bits of the
               row's number above the times that it has been drawn

A priority that isn't its row's any more is passed over: the row has the largest then, as a new one would.
"""

import mmap
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import StorageError
from fornix.common.specs import SamplerSpec
from fornix.replay.durable.cells import Cell
from fornix.replay.durable.disk import Disk, File, array_of
from fornix.replay.limiter import Counts
from fornix.replay.stacking import Numbers

_MAGIC = b"fornixd\x01"
_CELL_AT = 2048
_CELL_NBYTES = 256
#: Where the counts are.
COUNTS_AT = slice(_CELL_AT, _CELL_AT + 4 * _CELL_NBYTES)
_COUNTS = struct.Struct("<qqqqqqddq")
_LOW = np.uint64(2**32 - 1)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_ENTRY = np.dtype([("power", "<f8"), ("mark", "<u8")])


class Kept(NamedTuple):
    """What the file of a table holds."""

    counts: Counts | None
    """None if that can't be told any more."""
    maximum: float
    """The largest priority that was ever applied."""
    head: int
    """How far the memory was then."""
    powers: NDArray[np.float64]
    """p^alpha of each row, as far as it is `known`."""
    known: NDArray[np.bool_]
    times: NDArray[np.int64]
    """How often each row has been drawn."""


class DrawsFile:
    """The file of one table.

    Args:
        file: opened.
        sampler: of the table.
        slots: of the memory that it draws from.
        base: of that memory: what is added to the numbers in its file.
    """

    def __init__(self, file: File, sampler: SamplerSpec, slots: int, base: int) -> None:
        if file.nbytes != _nbytes(sampler, slots) or bytes(file.buffer[: len(_MAGIC)]) != _MAGIC:
            raise StorageError("a table's file is not what its memory needs; restore it from a snapshot")
        self.file = file
        self._slots = slots
        self._base = base
        self._cell = Cell(file.buffer, _CELL_AT, _CELL_NBYTES)
        prioritized = slots if sampler.kind == "prioritized" else 0
        limited = slots if sampler.uses is not None else 0
        times_at = mmap.PAGESIZE + prioritized * _ENTRY.itemsize
        self._entries: NDArray[Any] = array_of(file, mmap.PAGESIZE, (prioritized,), _ENTRY)
        self._times: NDArray[np.uint64] = array_of(file, times_at, (limited,), "<u8")
        self._version = 0
        self._synced_version = -1

    @classmethod
    def create(cls, disk: Disk, name: str, sampler: SamplerSpec, slots: int, base: int) -> "DrawsFile":
        """Make the file of a new table, or raise StorageError if there is no room."""
        file = disk.create(name, _nbytes(sampler, slots))
        file.buffer[: len(_MAGIC)] = _MAGIC
        return cls(file, sampler, slots, base)

    def kept(self, rows: Numbers, head: int) -> Kept:
        """Return what is kept of these rows, int64 [K], of a memory; the times of others are forgotten.

        Args:
            rows: that there are.
            head: of the memory.
        """
        counts, maximum, then = None, 1.0, head
        record = self._cell.recover(head - self._base)
        if record is not None:
            *whole, surplus, maximum, relative = _COUNTS.unpack(record)
            counts, then = Counts._make([*whole, surplus]), relative + self._base
        times = self._times_of(rows)
        powers, known = self._powers_of(rows)
        others = np.ones(self._slots, np.bool_)
        others[rows % self._slots] = False  # these stay, should the process die before it puts them down
        for entries in (self._times, self._entries):
            entries[others[: len(entries)]] = np.zeros(1, entries.dtype)
        return Kept(counts, maximum, then, powers, known, times)

    @property
    def broken(self) -> int:
        """How many copies of the counts are neither empty nor whole."""
        return self._cell.broken

    def note(self, counts: Counts, maximum: float, head: int) -> None:
        """Put down what has been counted."""
        self._cell.write(_COUNTS.pack(*counts, maximum, head - self._base), head - self._base)
        self._version += 1

    def put_priorities(self, numbers: Numbers, powers: NDArray[np.float64] | np.float64) -> None:
        """Put down p^alpha of rows, int64 [K]; of a row that is there twice the last counts."""
        entries = np.empty(len(numbers), _ENTRY)
        entries["power"] = powers
        entries["mark"] = _mark(numbers - self._base, entries["power"])
        self._entries[numbers % self._slots] = entries
        self._version += 1

    def put_times(self, numbers: Numbers, times: NDArray[np.unsignedinteger]) -> None:
        """Put down how often rows, int64 [K], have been drawn."""
        low = (numbers - self._base).astype(np.uint64) & _LOW
        self._times[numbers % self._slots] = (low << np.uint64(32)) | times.astype(np.uint64)
        self._version += 1

    @property
    def dirty(self) -> bool:
        """Whether there is anything that the last sync didn't cover."""
        return self._version != self._synced_version

    def sync_begins(self) -> bool:
        """Note what a sync that begins now covers; return whether there is anything new."""
        if not self.dirty:
            return False
        self._synced_version = self._version
        self._cell.sync_begins()
        return True

    def synced(self) -> None:
        """The disk has all that was there when the sync began."""
        self._cell.synced()

    def close(self) -> None:
        """Let go of the file."""
        self._entries = np.empty(0, _ENTRY)
        self._times = np.empty(0, np.uint64)
        self.file.close()

    def _powers_of(self, numbers: Numbers) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        if not len(self._entries):
            return np.empty(0), np.empty(0, np.bool_)
        entries = self._entries[numbers % self._slots]
        powers = entries["power"].copy()
        known: NDArray[np.bool_] = entries["mark"] == _mark(numbers - self._base, powers)
        return powers, known & np.isfinite(powers) & (powers >= 0)

    def _times_of(self, numbers: Numbers) -> NDArray[np.int64]:
        if not len(self._times):
            return np.empty(0, np.int64)
        entries = self._times[numbers % self._slots]
        mine = (entries >> np.uint64(32)) == ((numbers - self._base).astype(np.uint64) & _LOW)
        return np.where(mine, entries & _LOW, 0).astype(np.int64)


def _mark(numbers: Numbers, powers: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return what ties priorities to their rows, uint64 [K]: another one for another row or priority."""
    bits = np.ascontiguousarray(powers).view(np.uint64)
    return (bits ^ (numbers.astype(np.uint64) << np.uint64(20))) * _MIX


def _nbytes(sampler: SamplerSpec, slots: int) -> int:
    prioritized = slots * _ENTRY.itemsize if sampler.kind == "prioritized" else 0
    limited = slots * 8 if sampler.uses is not None else 0
    return mmap.PAGESIZE + prioritized + limited
