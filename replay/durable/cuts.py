"""A beginning of a memory's history: what is to be read of its file, as of one moment.

While a server writes, that is all below the head at a moment when no writer comes or goes. Else it is
what `recovery` finds.
"""

import time
from typing import NamedTuple

import numpy as np

from fornix.common.errors import StorageError
from fornix.replay.durable.cells import Cell, Copy
from fornix.replay.durable.file import CELL_NBYTES, RowsFile, State, WriterRecord
from fornix.replay.durable.records import record_checks
from fornix.replay.durable.recovery import find
from fornix.replay.storage import Fence

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
