"""A server's folder, opened to be read alone: while no server has it, or while one serves from it.

What is read of a memory is a `Cut`: a beginning of its history, as `recovery` finds one. While a server
writes, that is all below the head at one moment; the rows are then read from the oldest on, and after
each part the floor says which of them may have been overwritten meanwhile. Nothing is asked of the
server, and nothing is changed.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import StorageError, UnknownTableError
from fornix.common.validation import nearest
from fornix.replay.durable.cells import Cell, Copy
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import (
    CELL_NBYTES,
    RowsFile,
    State,
    WriterRecord,
    record_checks,
)
from fornix.replay.durable.folder import TABLES, Contents, read_contents
from fornix.replay.durable.recovery import find
from fornix.replay.stacking import Numbers
from fornix.replay.storage import GONE, Fence, payload_columns, row_nbytes

#: Bytes of rows that are read at once.
CHUNK_NBYTES = 4 << 20
_STARTING_S = 30.0
_LOOK_S = 0.05
_STEADY_S = 0.002
_TRIES = 500


class Cut(NamedTuple):
    """A beginning of a memory's history; rows are numbered from base."""

    state: State
    tail: int
    """Rows below it are not there, or count no more."""
    head: int
    watermark: int
    cells: dict[int, list[Copy]]
    """Of each writer's cell the copies of that time, newest first."""

    def names(self) -> dict[tuple[int, int], str]:
        """Return the writers' names, as far as they are known, by cell and opening."""
        records = ((at, WriterRecord.of(each.record)) for at, all_ in self.cells.items() for each in all_)
        return {(at, record.opening): record.name for at, record in records}

    def openings(self) -> dict[int, int]:
        """Return by cell the opening of each writer that is open."""
        newest = {at: WriterRecord.of(copies[0].record) for at, copies in self.cells.items()}
        return {at: record.opening for at, record in newest.items() if record.is_open}


class Chunk(NamedTuple):
    """Rows that were read and are whole, and those that are not."""

    numbers: Numbers
    records: NDArray[Any]
    payload: dict[str, NDArray[Any]]
    """[K, ...] each, by column."""
    damaged: Numbers
    overwritten: int
    """Rows that the server may have overwritten while they were read."""


class Source:
    """A folder, opened to be read.

    Args:
        folder: that a replay server keeps, or has kept.
        live: whether a server may have it now.

    Raises:
        StorageError: if it is no such folder, is damaged, or is a server's now and mustn't be.
    """

    def __init__(self, folder: Path, live: bool = True) -> None:
        self.folder = folder
        self.disk = FolderDisk(folder, writable=False)
        try:
            #: Whether a server had it when it was opened.
            self.live = not self.disk.share()
            if self.live and not live:
                raise StorageError(
                    f"{folder} is kept by a replay server; stop it, or take a snapshot and name that"
                )
            self.contents = self.read_contents()
            if self.live:
                self._await_server()
        except BaseException:
            self.disk.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disk.close()

    def read_contents(self) -> Contents:
        """Return what tables there are, or raise StorageError."""
        if TABLES not in self.disk.names():
            raise StorageError(
                f"{self.folder} has no {TABLES}; name a folder that 'fornix replay --data' keeps"
            )
        return read_contents(self.disk)

    def rows_of(self, table: str) -> str:
        """Return the file that has a table's rows, or raise UnknownTableError."""
        known = self.contents.tables
        if table not in known:
            raise UnknownTableError(
                f"{self.folder} has no table {table!r}{nearest(table, known)}; tables: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        source = known[table].spec.rows_of
        return known[table].rows if source is None else known[source].rows

    def memory(self, table: str) -> "MemoryReader":
        """Open a table's rows, or raise StorageError or UnknownTableError."""
        file = RowsFile.open(self.disk, self.rows_of(table), writable=False)
        cut = live_cut(file, table) if self.live else offline_cut(file, self.disk.boot)
        return MemoryReader(file, cut, self.live)

    def _await_server(self) -> None:
        """Wait until the server that has the folder has begun with all its files, or has ended."""
        until = time.monotonic() + _STARTING_S
        files = {entry.rows for entry in self.contents.tables.values() if entry.rows}
        while not all(self._has_begun(name) for name in files):
            if self.disk.share():
                self.live = False
                return
            if time.monotonic() > until:
                raise StorageError(
                    f"the server of {self.folder} has been starting or ending for {_STARTING_S:g} s; try "
                    f"again once it answers"
                )
            time.sleep(_LOOK_S)

    def _has_begun(self, name: str) -> bool:
        file = RowsFile.open(self.disk, name, writable=False)
        try:
            copies = file.state.copies()
            state = State.of(copies[0].record) if copies else None
            return state is not None and not state.clean and state.boot == self.disk.boot
        finally:
            file.close()


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

    def ranges(self, nbytes: int = CHUNK_NBYTES) -> Iterator[Numbers]:
        """Yield all rows in order, so many bytes at a time; those that are overwritten are passed over."""
        count = max(1, nbytes // row_nbytes(self.file.meta.signature))
        low = self.cut.tail
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


def offline_cut(file: RowsFile, boot: str) -> Cut:
    """Return what a file that no server has holds, or raise StorageError."""
    found, _ = find(file, boot)
    cells = _of_time({at: file.writer(at).copies() for at in file.used_writers()}, found.head)
    for each in found.writers:  # a copy of a lost time may have told of it
        known = cells.setdefault(each.at, [])
        version = 1 + max((copy.version for copy in known), default=0)
        known.insert(0, Copy(version, found.head, each.record.packed()))
    return Cut(found.state, found.tail, found.head, found.watermark, cells)


def live_cut(file: RowsFile, table: str) -> Cut:
    """Return what a file that a server writes to holds now, or raise StorageError."""
    for _ in range(_TRIES):
        cells = file.cells_image()
        watermark = file.watermark()
        time.sleep(_STEADY_S)  # a change of several cells is soon done
        floor, head = (int(mark) for mark in file.marks)
        Fence().pass_through()
        if file.cells_image() == cells:
            return _cut(file, cells, watermark, floor, head)
    raise StorageError(
        f"the writers of table {table!r} come and go too fast to be copied; try again, with fewer of them"
    )


def _cut(file: RowsFile, cells: bytes, watermark: int | None, floor: int, head: int) -> Cut:
    each = 4 * CELL_NBYTES
    copies = Cell(cells, 0, CELL_NBYTES).copies()
    if not copies:
        raise StorageError("the file of a memory is damaged where it says how its numbers count")
    state = State.of(copies[0].record)
    tail = max(floor - state.base, state.first, state.forgotten, head - state.base - file.meta.slots)
    head = whole_head(file, tail, head - state.base)
    used = np.frombuffer(cells, "|u1", offset=each).reshape(-1, each).any(axis=1)
    writers = {
        int(at): Cell(cells, each + int(at) * each, CELL_NBYTES).copies() for at in np.flatnonzero(used)
    }
    known = head if watermark is None else min(watermark, head)
    return Cut(state, min(tail, head), head, known, _of_time(writers, head))


def whole_head(file: RowsFile, tail: int, head: int) -> int:
    """Return the end of the last request below `head` whose rows are all there.

    The head is raised before the records are written, and for a request in which lanes leave twice.
    """
    for number in range(head - 1, tail - 1, -1):
        record = file.records[[number % file.meta.slots]]
        if int(record["number"][0]) != number or record["check"][0] != record_checks(record)[0]:
            continue
        index, count = int(record["index"][0]), int(record["count"][0])
        return number + 1 if index + 1 == count else max(number - index, tail)
    return tail


def _of_time(cells: dict[int, list[Copy]], head: int) -> dict[int, list[Copy]]:
    of_time = {at: [copy for copy in copies if copy.head <= head] for at, copies in cells.items()}
    return {at: copies for at, copies in of_time.items() if copies}
