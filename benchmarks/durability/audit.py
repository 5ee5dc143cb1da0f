"""Reads a memory's file while no server has it: which rows have come since it was last read.

This is a reading of its own: it takes the form of the file from `fornix.replay.durable.file`, and nothing
from the recovery that it is to check.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from durability.contents import N_FRAMES
from durability.shared import TABLE
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import RowsFile, State
from fornix.replay.durable.folder import read_contents
from fornix.replay.durable.records import LEFT, record_checks

_FRAMES_EVERY = 16  # audits


class Rows(NamedTuple):
    """Rows [first, first + K) of a memory."""

    first: int
    """From base."""
    base: int
    """What is added to the numbers in the file, to make keys of them."""
    records: np.ndarray
    frame: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    who: np.ndarray
    faults: list
    """What was wrong with rows that had been read before, or with the reading."""


class Audit:
    """Reads the file of the table, again and again.

    Args:
        data: the server's folder, in which the table is.
    """

    def __init__(self, data: Path):
        disk = FolderDisk(data, writable=False)
        self._file = RowsFile.open(disk, read_contents(disk).tables[TABLE].rows, writable=False)
        self._slots = self._file.meta.slots
        self._state = State.of(self._file.state.copies()[0].record)
        #: The first row that has not been read yet.
        self.next = self._state.first
        self._audits = 0
        #: Requests of which a kill has left a part, which is to be dropped.
        self.cut_off = 0
        self._records = self._file.records.copy()
        self._frames = self._file.arrays["frame"].copy()

    def new_rows(self):
        """Return the rows of whole requests that have come since the last time."""
        file, slots = self._file, self._slots
        faults = self._changed()
        numbers = np.arange(self.next, self.next + slots)
        records = file.records[numbers % slots]
        if len(records) and records["number"][0] > self.next:
            faults.append(f"row {self.next} was overwritten before it could be audited")
        count = _run(records["number"] == numbers)
        count = _run(records["check"][:count] == record_checks(records[:count])) if count else 0
        if count:
            last = records[count - 1]
            if last["index"] + 1 < last["count"]:
                count -= int(last["index"]) + 1
        self.cut_off += count < slots and self._begun(numbers[count] % slots)
        at = numbers[:count] % slots
        arrays = file.arrays
        rows = Rows(
            self.next,
            self._state.base,
            records[:count],
            *(arrays[name][at] for name in ("frame", "action", "reward", "extras.who")),
            faults,
        )
        self.next += count
        self._records[at] = rows.records
        self._frames[at] = rows.frame
        return rows

    def _begun(self, slot):
        """Whether a row has been begun in a slot since the last audit."""
        frames, records = self._file.arrays["frame"], self._file.records
        return bool((frames[slot] != self._frames[slot]).any() or records[slot] != self._records[slot])

    def _changed(self):
        """Return what is wrong with rows that were read before, and that the table still has.

        Those that are older may be overwritten, perhaps by a request that is to be dropped.
        """
        self._audits += 1
        now, before = self._file.records, self._records
        numbers = before["number"].astype(np.int64)
        known = (numbers > 0) & (numbers < self.next)
        newest = int(now["number"].max()) + 1
        kept = known & (numbers >= max(self.next, newest) - self._file.meta.steps)
        faults = []
        for name, differ in (
            ("record", (_words(now) != _words(before)).any(axis=1) & kept),
            ("frame", self._frames_differ() & kept),
        ):
            if differ.any():
                row = int(before["number"][np.argmax(differ)])
                faults.append(
                    f"the {name} of row {row} and {np.count_nonzero(differ) - 1} more has changed"
                )
        return faults

    def _frames_differ(self):
        if self._audits % _FRAMES_EVERY:
            return np.zeros(self._slots, np.bool_)
        return (self._file.arrays["frame"][: self._slots] != self._frames[: self._slots]).any(axis=1)

    def window(self, steps):
        """Return the keys of rows whose stacks must be there, and who these rows are.

        The tail moves in blocks: so far above the oldest row that may be there, every one must be.

        Args:
            steps: of the table.
        """
        block = max(1, steps // 256)
        tail = max(self._state.first, self.next - steps + 2 * block)
        numbers = np.arange(tail, self.next)
        at = numbers % self._slots
        records = self._file.records[at]
        oldest = numbers.copy()
        for _ in range(N_FRAMES - 1):
            inside = oldest >= tail
            oldest[inside] -= self._file.records["back"][oldest[inside] % self._slots]
        due = (records["step_type"] != LEFT) & (oldest >= tail)
        return numbers[due] + self._state.base, self._file.arrays["extras.who"][at[due]]


def _run(right):
    """Return how many are right from the first on."""
    return len(right) if right.all() else int(np.argmin(right))


def _words(records):
    return records.view(np.uint64).reshape(len(records), -1)
