"""The rows of a memory's file, read from the oldest on while a server may overwrite them."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fornix.replay.durable.cuts import Cut
from fornix.replay.durable.file import RowsFile, State
from fornix.replay.durable.records import record_checks
from fornix.replay.stacking import Numbers
from fornix.replay.storage import GONE, Fence, payload_columns, row_nbytes

#: Bytes of rows that are read at once.
CHUNK_NBYTES = 4 << 20


class Chunk(NamedTuple):
    """Rows that were read and are whole, and those that are not."""

    numbers: Numbers
    records: NDArray[Any]
    payload: dict[str, NDArray[Any]]
    """[K, ...] each, by column."""
    damaged: Numbers
    overwritten: int
    """Rows that the server may have overwritten while they were read."""


class MemoryReader:
    """The rows of a memory's file, which a server may overwrite while they are read.

    Args:
        file: of the memory.
        cut: what is to be read of it.
        live: whether a server may write to it.
    """

    def __init__(self, file: RowsFile, cut: Cut, live: bool) -> None:
        self.file = file
        self.cut = cut
        self._live = live
        self._slots = file.meta.slots
        self._names = tuple(payload_columns(file.meta.signature))
        self._fence = Fence()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def floor(self) -> int:
        """Return below which row what was read until now may be another's, from base."""
        if not self._live:
            return self.cut.tail
        self._fence.pass_through()  # nothing that was read before is read after this
        return max(self.cut.tail, int(self.file.marks[0]) - self.cut.state.base)

    def records(self, numbers: Numbers) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the records of rows, int64 [K] from base, and which of them are whole."""
        records = self.file.records[numbers % self._slots]
        whole: NDArray[np.bool_] = records["number"] == numbers.astype(np.uint64)
        return records, whole & (records["check"] == record_checks(records))

    def payload(
        self, numbers: Numbers, records: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Return the payload of rows by column, and which of them are what their records say."""
        slots = numbers % self._slots
        rows = {name: self.file.arrays[name][slots] for name in self._names}
        return rows, np.array(self.file.packer.crc(records, rows), np.uint32) == records["crc"]

    def ranges(self, nbytes: int = CHUNK_NBYTES, low: int = 0) -> Iterator[Numbers]:
        """Yield the rows from `low` on in order, so many bytes at a time, but for those overwritten."""
        count = max(1, nbytes // row_nbytes(self.file.meta.signature))
        low = max(low, self.cut.tail)
        while low < self.cut.head:
            low = min(max(low, self.floor()), self.cut.head)
            rows = np.arange(low, min(low + count, self.cut.head))
            if len(rows):
                yield rows
            low += len(rows)

    def read(self, numbers: Numbers) -> Chunk:
        """Return rows, int64 [K] from base."""
        records, whole = self.records(numbers)
        payload, right = self.payload(numbers, records)
        there = numbers >= self.floor()
        kept = there & whole & right
        return Chunk(
            numbers[kept],
            records[kept],
            payload if kept.all() else {name: rows[kept] for name, rows in payload.items()},
            numbers[there & ~kept],
            int(np.count_nonzero(~there)),
        )

    def is_another(self) -> bool:
        """Whether the memory has been reset or dropped since it was opened."""
        newest = self.file.state.copies()[:1]
        reset = any(State.of(copy.record).forgotten != self.cut.state.forgotten for copy in newest)
        return self._live and (reset or int(self.file.marks[0]) == GONE)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()
