"""Columns that lie in a memory's file: what was appended is there after any death of the server.

A row is payload and record. The record, which closes the row, is written after its payload; a process
that dies in between leaves a row that nobody was told of, and that `recovery` drops.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import Column, TableMap
from fornix.replay.durable.file import RowsFile, rows_are_whole
from fornix.replay.durable.records import LEFT, NO_LANE, RECORD, record_checks
from fornix.replay.stacking import Numbers
from fornix.replay.storage import (
    HEADER_COLUMNS,
    Marks,
    payload_columns,
    shared_columns,
)

#: From so many bytes on, to ask the kernel to write costs less than to store them: pages that a sync has
#: made clean take a page fault each to be stored to, three times the time that a page's write takes.
_MANY_BYTES = 4096
_AGAIN_ROWS = 4096


class DurableColumns:
    """The columns of a ring, in a file; see `fornix.replay.storage.Columns`.

    Args:
        file: of the memory.
        base: what is added to the numbers in the file.
    """

    def __init__(self, file: RowsFile, base: int) -> None:
        self.file = file
        self.base = base
        self.capacity = file.meta.slots
        self._payload = tuple(payload_columns(file.meta.signature))
        private = {
            name: np.zeros(self.capacity, dtype) for name, dtype in HEADER_COLUMNS.items() if name != "back"
        }
        self.arrays: Mapping[str, NDArray[Any]] = private | file.arrays
        self._marks = Marks(file.marks)
        #: Slots whose payload has not been checked since the file was opened, and how many they are.
        self._unchecked = np.zeros(self.capacity, np.bool_)
        self.unchecked = 0

    def begin_at(self, tail: int, head: int) -> None:
        """Go on with the rows [tail, head), whatever the marks say."""
        self._marks.begin_at(tail, head)

    def raise_floor(self, number: int) -> None:
        """Tell all who have the file mapped that rows below `number` may be overwritten from now on."""
        self._marks.raise_floor(number)

    def raise_head(self, number: int) -> None:
        """Tell all who have the file mapped that the rows below `number` are there."""
        self._marks.raise_head(number)

    def table_map(self) -> TableMap | None:
        """Return where processes on this host find the frames; None once closed."""
        descriptor = self.file.file.descriptor
        if descriptor < 0:
            return None
        places = self.file.places.columns
        due = shared_columns(self.file.meta.signature, self.capacity)
        return TableMap(
            path=f"/proc/{os.getpid()}/fd/{descriptor}",
            nbytes=self.file.file.nbytes,
            token=np.frombuffer(self.file.token, np.uint8),
            columns={
                name: Column(offset=places[name][0], shape=places[name][1], dtype=places[name][2])
                for name in due
            },
        )

    def close(self, gone: bool = False) -> None:
        """Let go of the file, and tell all who have it mapped if the memory is no more.

        It stays mapped where someone holds an array of it, here or elsewhere.
        """
        self.arrays = {}
        self._marks.let_go(gone)
        self._unchecked = np.empty(0, np.bool_)
        self.file.close()

    def write(self, name: str, slots: slice, values: NDArray[Any]) -> None:
        """Write values, [K, ...], of a column to slots that follow each other."""
        if values.nbytes < _MANY_BYTES or name not in self.file.places.columns:
            self.arrays[name][slots] = values
            return
        self._write(name, slots.start, np.ascontiguousarray(values, self.arrays[name].dtype))

    def closed(
        self, numbers: Numbers, fields: Mapping[str, Any], payload: Mapping[str, NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the records that close rows, RECORD [K].

        Args:
            numbers: int64 [K], consecutive.
            fields: the other fields of RECORD, each a value or [K].
            payload: [K, ...] of each payload column, among others perhaps.
        """
        records = np.empty(len(numbers), RECORD)
        records["number"] = numbers - self.base
        for name, values in fields.items():
            records[name] = values
        records["crc"] = self.file.packer.crc(records, payload)
        records["check"] = record_checks(records)
        return records

    def put(self, numbers: Numbers, records: NDArray[Any]) -> None:
        """Close rows, whose payload has been written."""
        slots = numbers % self.capacity
        first = len(records) if slots[-1] >= slots[0] else self.capacity - int(slots[0])
        self._write("records", int(slots[0]), records[:first])
        if first < len(records):
            self._write("records", 0, records[first:])
        if self.unchecked:
            self.unchecked -= int(np.count_nonzero(self._unchecked[slots]))
            self._unchecked[slots] = False

    def write_again(self, low: int, high: int) -> None:
        """Write rows [low, high) again as they are: the disk may have failed to take them, unnoticed."""
        for at in range(low, high, _AGAIN_ROWS):
            numbers = np.arange(at, min(at + _AGAIN_ROWS, high))
            slots = numbers % self.capacity
            runs = np.split(slots, np.flatnonzero(np.diff(slots) < 0) + 1)
            for run in runs:
                part = slice(int(run[0]), int(run[-1]) + 1)
                for name in (*self._payload, "back"):
                    self._write(name, part.start, self.arrays[name][part].copy())
                self._write("records", part.start, self.file.records[part].copy())

    def is_left(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which rows, live or not, say that a lane has left."""
        left: NDArray[np.bool_] = self.file.records["step_type"][numbers % self.capacity] == LEFT
        return left

    def record_left(
        self, numbers: Numbers, lanes: NDArray[np.integer[Any]], fields: Mapping[str, Any]
    ) -> None:
        """Write rows that say which lanes have left; NO_LANE stands for none."""
        slots = numbers % self.capacity
        payload = {}
        for name in self._payload:
            column = self.arrays[name]
            column[slots] = 0
            payload[name] = np.zeros((len(numbers), *column.shape[1:]), column.dtype)
        for name in HEADER_COLUMNS:
            self.arrays[name][slots] = 0
        records = self.closed(
            numbers,
            dict(fields)
            | {
                "back": 0,
                "first": 0,
                "position": 0,
                "policy_version": 0,
                "lane": lanes if len(lanes) else NO_LANE,
                "returned": 0,
                "step_type": LEFT,
                "terminated": 0,
            },
            payload,
        )
        self.put(numbers, records)

    def not_checked(self, slots: Numbers) -> None:
        """Note that the payload in these slots must be checked before it is used."""
        self._unchecked[slots] = True
        self.unchecked = int(np.count_nonzero(self._unchecked))

    def damaged(self, slots: NDArray[np.integer[Any]]) -> Numbers:
        """Check the payload in slots that have not been checked yet; return those that are damaged, once.

        Args:
            slots: of any shape; those beyond the last stand for the frame of zeros.
        """
        if not self.unchecked:
            return np.empty(0, np.int64)
        due = np.unique(slots[slots < self.capacity]).astype(np.int64)
        due = due[self._unchecked[due]]
        self._unchecked[due] = False
        self.unchecked -= len(due)
        return due[~rows_are_whole(self.file, due)]

    def _write(self, name: str, slot: int, values: NDArray[Any]) -> None:
        """Ask the kernel to write values of a column, of its dtype, to slots from `slot` on."""
        offset = self.file.places.columns[name][0]
        self.file.file.write(offset + slot * (values.nbytes // len(values)), values)
