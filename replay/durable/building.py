"""A memory's file made of rows that another file has, as its server would leave it when it is closed.

Whoever knew the other memory must not take this one for it: that one may have gone on, and have given
keys that this one will give again. So this one's keys begin far above, and it has a number of its own, as
after a power cut; writers find their places, and send again what is not there.
"""

import secrets
import time
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from fornix.common.signature import Signature
from fornix.replay.durable.cuts import Cut
from fornix.replay.durable.disk import Disk
from fornix.replay.durable.file import RowsFile
from fornix.replay.durable.folder import IDENTITIES
from fornix.replay.durable.reader import Chunk
from fornix.replay.durable.records import record_checks

_AHEAD = 2**36  # keys: more than a server gives while its folder is copied
_SYNC_NBYTES = 32 << 20


class Shape(NamedTuple):
    """How many steps a memory has, and slots for them."""

    steps: int
    slots: int


class Builder:
    """Puts rows into a new file.

    Args:
        disk: to make it on.
        name: of the file.
        signature: of the rows.
        shape: of the memory.
        shift: what is added to the rows' numbers from base.

    Raises:
        StorageError: if there is no room.
    """

    def __init__(self, disk: Disk, name: str, signature: Signature, shape: Shape, shift: int = 0) -> None:
        self.file = RowsFile.create(disk, name, signature, shape.steps, shape.slots)
        self._slots = shape.slots
        self._shift = shift
        self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    def put(self, chunk: Chunk) -> None:
        """Put rows in their places."""
        numbers, records = chunk.numbers + self._shift, chunk.records
        if self._shift:
            records = records.copy()
            records["number"] = numbers
            records["crc"] = self.file.packer.crc(records, chunk.payload)
            records["check"] = record_checks(records)
        slots = numbers % self._slots
        self.file.arrays["back"][slots] = records["back"]
        for name, rows in chunk.payload.items():
            self.file.arrays[name][slots] = rows
        self.file.records[slots] = records
        self._unsynced += records.nbytes + sum(rows.nbytes for rows in chunk.payload.values())
        if self._unsynced > _SYNC_NBYTES:  # little by little: the disk is another's too
            self.file.file.sync()
            self._unsynced = 0

    def finish(self, cut: Cut, tail: int, clean: bool = True) -> int:
        """Close the memory with the rows [tail, head of `cut`), from the other's base; return its base."""
        file, shift, state = self.file, self._shift, cut.state
        numbers = file.records["number"].astype(np.int64)
        file.records[(numbers > 0) & (numbers < tail + shift)] = np.zeros(1, file.records.dtype)
        for at, copies in cut.cells.items():
            cell = file.writer(at)
            for copy in reversed(copies):
                cell.write(copy.record, max(0, copy.head + shift))
                cell.synced()
                cell.sync_begins()
        head, base = cut.head + shift, base_above(state.base, self._slots)
        state = state._replace(
            base=base,
            first=state.first + shift,
            forgotten=max(state.first, state.forgotten) + shift,
            identity=secrets.randbelow(IDENTITIES),
            clean=clean,
            boot="",
        )
        file.publish(head)
        file.marks[:] = tail + shift + base, head + base
        file.state.write(state.packed(), head)
        file.file.sync()
        return base


def base_above(base: int, slots: int) -> int:
    """Return a base, a multiple of `slots`, from which numbers are above all that another one gives."""
    above = max(base + 2 * slots, time.time_ns() + _AHEAD)
    return above + -above % slots
