"""Small records that change in place, and are there whole after any death of the process or the machine.

A cell has four copies of its record, each with a version, the head of the memory at that time, and a
checksum. A write goes neither to the newest copy, so that a process may die at it, nor to the newest
that the disk is known to have, so that the power may fail, nor to the one that it is just being given.
Which sectors a power cut keeps is open, so a copy may be found of a time that is lost: one whose head
lies above that of the rows that were found is passed over.
"""

import struct
from typing import Any, NamedTuple

from google_crc32c import value as crc32c

_HEAD = struct.Struct("<IHQQ")  # checksum of what follows, bytes of the record, version, head
_COPIES = 4

#: Bytes of a copy beside its record.
OVERHEAD = _HEAD.size


class Copy(NamedTuple):
    """One copy of a record."""

    version: int
    head: int
    record: bytes


class Cell:
    """A record at one place of a file.

    Args:
        buffer: the file's.
        offset: of the first copy; the others follow.
        nbytes: of each copy, OVERHEAD and the longest record.
    """

    def __init__(self, buffer: Any, offset: int, nbytes: int) -> None:
        self._view = memoryview(buffer)[offset : offset + _COPIES * nbytes]
        self._nbytes = nbytes
        versions = [self._read(at).version for at in range(_COPIES)]
        self._version = max(versions)
        self._newest = self._durable = self._syncing = versions.index(self._version)

    def copies(self) -> list[Copy]:
        """Return all whole copies, newest first."""
        found = (self._read(at) for at in range(_COPIES))
        return sorted((copy for copy in found if copy.version), reverse=True)

    def recover(self, head: int) -> bytes | None:
        """Return the newest record whose time is not lost, and keep its copy until a later one is synced.

        It is to be written again: copies of a lost time are newer than it. Copies that were torn are
        wiped, so that only damage leaves any.
        """
        found = [self._read(at) for at in range(_COPIES)]
        for at, copy in enumerate(found):
            if not copy.version:
                self._view[at * self._nbytes : (at + 1) * self._nbytes] = bytes(self._nbytes)
        fitting = [copy for copy in found if copy.version and copy.head <= head]
        if not fitting:
            return None
        self._newest = self._durable = self._syncing = found.index(max(fitting))
        return max(fitting).record

    @property
    def broken(self) -> int:
        """How many copies are neither empty nor whole."""
        parts = (self._view[at * self._nbytes : (at + 1) * self._nbytes] for at in range(_COPIES))
        return sum(1 for at, part in enumerate(parts) if not self._read(at).version and any(part))

    def write(self, record: bytes, head: int) -> None:
        """Put a record in place of the one there is."""
        taken = (self._newest, self._durable, self._syncing)
        at = next(at for at in range(_COPIES) if at not in taken)
        self._version += 1
        whole = _HEAD.pack(0, len(record), self._version, head) + record
        begin = at * self._nbytes
        self._view[begin : begin + len(whole)] = struct.pack("<I", crc32c(whole[4:])) + whole[4:]
        self._newest = at

    def sync_begins(self) -> None:
        """The disk is being told to take what has been written so far."""
        self._syncing = self._newest

    def synced(self) -> None:
        """The disk has what had been written when the sync began."""
        self._durable = self._syncing

    def _read(self, at: int) -> Copy:
        begin = at * self._nbytes
        head = bytes(self._view[begin : begin + _HEAD.size])
        checksum, length, version, rows = _HEAD.unpack(head)
        if version == 0 or length > self._nbytes - _HEAD.size:
            return Copy(0, 0, b"")
        record = bytes(self._view[begin + _HEAD.size : begin + _HEAD.size + length])
        if crc32c(head[4:] + record) != checksum:
            return Copy(0, 0, b"")
        return Copy(version, rows, record)
