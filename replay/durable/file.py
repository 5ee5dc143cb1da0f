"""The file of a memory: its rows, its writers, and how far the disk has them.

    byte 0     as of a shared memory file (`fornix.replay.storage`): magic, token, floor and head
    byte 512   a watermark: checksum (u4), count (u8), head (u8); all little-endian
    byte 1024  another; they are written in turn
    byte 2048  the state cell, 4 x 256 bytes
    byte 4096  what the memory is: checksum (u4), length (u4), JSON
    then       the writers' cells, 1024 x 4 x 256 bytes
    then       `back`, u4 [slots], for clients that map the file; what counts is in the records
    then       the records, 64 bytes [slots]
    then       the payload: frames [slots + 1, *obs], action, reward and extras [slots, ...]

Each begins on a page. A row is its record and its payload, closed by `crc`, the CRC-32C over the fields of
the record and then the payload columns in the order of `payload_columns`. That is checked before a row
is first used. All records are checked when the file is opened, without their payload, by `check`, a hash
over the fields and `crc` that takes numpy a tenth of the time. The slot of row r is r mod slots. Numbers in
the file count from `base`, a multiple of slots in the state cell, and are at least `slots`: so 0 is none.
"""

import json
import mmap
import secrets
import struct
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from fornix.common.errors import StorageError
from fornix.common.signature import Signature
from fornix.common.specs import Frozen
from fornix.replay.durable.cells import OVERHEAD, Cell
from fornix.replay.durable.disk import Disk, File, array_of
from fornix.replay.durable.records import RECORD, RowPacker
from fornix.replay.storage import FLOOR_AT, MAGIC, TOKEN_AT, payload_columns, payload_rows

FORMAT = 1

MAX_WRITERS = 1024
#: Of each copy in a cell.
CELL_NBYTES = 256
_WATERMARKS_AT = (512, 1024)
_STATE_AT = 2048
_META_AT = 4096
_WATERMARK = struct.Struct("<IQQ")
_META = struct.Struct("<II")
_STATE = struct.Struct("<QQQQIIB36s")
_WRITER = struct.Struct("<IBIQQB")
_MAX_META = 1 << 20
_CHUNK = 4096  # rows


class OtherFormatError(StorageError):
    """A file of another version of fornix."""


class Meta(Frozen):
    """What a memory is."""

    format: int
    signature: Signature
    steps: int = Field(ge=1, lt=2**31)
    slots: int = Field(ge=2, lt=2**32)


class State(NamedTuple):
    """What changes seldom in a memory."""

    base: int
    """What is added to the numbers in the file."""
    first: int
    """The first row that there ever was, from base."""
    forgotten: int
    """Rows below it were forgotten by a reset; from base."""
    identity: int
    """Part of the memory's number."""
    starts: int
    """How often a server has begun with it."""
    episodes: int
    clean: bool
    """Whether its server has closed it."""
    boot: str
    """The running of the machine that it was last used in."""

    def packed(self) -> bytes:
        """Return it as a record."""
        return _STATE.pack(*self[:-1], self.boot.encode()[:36])

    @classmethod
    def of(cls, record: bytes) -> "State":
        """Return what `packed` made."""
        *numbers, clean, boot = _STATE.unpack(record)
        return cls._make([*numbers, bool(clean), boot.rstrip(b"\0").decode()])


class WriterRecord(NamedTuple):
    """A writer, as of some head."""

    opening: int
    is_open: bool
    lanes: int
    incarnation: int
    sequence: int
    name: str

    def packed(self) -> bytes:
        """Return it as a record."""
        name = self.name.encode()
        return _WRITER.pack(*self[:-1], len(name)) + name

    @classmethod
    def of(cls, record: bytes) -> "WriterRecord":
        """Return what `packed` made."""
        opening, is_open, lanes, incarnation, sequence, length = _WRITER.unpack(record[: _WRITER.size])
        name = record[_WRITER.size : _WRITER.size + length].decode()
        return cls(opening, bool(is_open), lanes, incarnation, sequence, name)


class Places(NamedTuple):
    """Where the parts of a file begin."""

    writers: int
    columns: dict[str, tuple[int, tuple[int, ...], str]]
    """Offset, shape and dtype, by name; the records among them, as `records`."""
    nbytes: int


def places_of(meta: Meta) -> Places:
    """Return where the parts of a memory's file are."""
    end = _META_AT + _META.size + len(meta.model_dump_json())
    writers = end = end + -end % mmap.PAGESIZE
    end += MAX_WRITERS * 4 * CELL_NBYTES
    rows = payload_rows(meta.signature, meta.slots)
    due: dict[str, tuple[tuple[int, ...], str, int]] = {
        "back": ((meta.slots,), "<u4", 4),
        "records": ((meta.slots,), "", RECORD.itemsize),
    }
    for name, spec in payload_columns(meta.signature).items():
        due[name] = ((rows[name], *spec.shape), spec.dtype, spec.nbytes)
    columns: dict[str, tuple[int, tuple[int, ...], str]] = {}
    for name, (shape, dtype, each) in due.items():
        columns[name] = (end, shape, dtype)
        end += shape[0] * each
        end += -end % mmap.PAGESIZE
    return Places(writers, columns, end)


class RowsFile:
    """A memory's file, opened; it decides nothing.

    Attributes:
        meta: what the memory is.
        places: where things are.
        records: RECORD [slots].
        arrays: `back` and the payload columns, by name.
        packer: of its rows.
        marks: floor and head, uint64 [2], absolute.
        state: the cell of `State`.
        token: that clients know the file by.
    """

    def __init__(self, file: File, meta: Meta) -> None:
        self.file = file
        self.meta = meta
        self.places = places_of(meta)
        arrays = {
            name: array_of(file, offset, shape, dtype or RECORD)
            for name, (offset, shape, dtype) in self.places.columns.items()
        }
        self.records = arrays.pop("records")
        self.arrays = arrays
        self.packer = RowPacker(meta.signature)
        self.marks: NDArray[np.uint64] = array_of(file, FLOOR_AT, (2,), np.dtype(np.uint64))
        self.state = Cell(file.buffer, _STATE_AT, CELL_NBYTES)
        self._writers: dict[int, Cell] = {}
        self.token = bytes(file.buffer[TOKEN_AT])
        self._count = max((count for count, _ in self._watermarks()), default=0)

    @classmethod
    def create(cls, disk: Disk, name: str, signature: Signature, steps: int, slots: int) -> "RowsFile":
        """Make the file of a new memory, which has no state yet.

        Raises:
            StorageError: if there is no room, or the signature is too large to be kept.
        """
        meta = Meta(format=FORMAT, signature=signature, steps=steps, slots=slots)
        text = meta.model_dump_json().encode()
        if len(text) > _MAX_META:
            raise StorageError(
                f"the signature takes {len(text):,} bytes; the file of a memory keeps {_MAX_META:,} at "
                f"most; make fewer arrays of it"
            )
        file = disk.create(name, places_of(meta).nbytes)
        file.buffer[: len(MAGIC)] = MAGIC
        file.buffer[TOKEN_AT] = secrets.token_bytes(16)
        head = _META.pack(crc32c(text), len(text))
        file.buffer[_META_AT : _META_AT + len(head) + len(text)] = head + text
        return cls(file, meta)

    @classmethod
    def open(cls, disk: Disk, name: str, writable: bool = True) -> "RowsFile":
        """Open the file of a memory.

        Raises:
            StorageError: if it is no such file, of another format, or damaged where it says what it is.
        """
        file = disk.open(name, writable)
        try:
            meta = _meta(file, name)
            if places_of(meta).nbytes != file.nbytes:
                raise StorageError(
                    f"{name} has {file.nbytes:,} bytes, and {places_of(meta).nbytes:,} are due: it was cut "
                    f"or is no memory's file; restore it from a snapshot"
                )
            return cls(file, meta)
        except StorageError:
            file.close()
            raise

    def writer(self, at: int) -> Cell:
        """Return the cell of a writer."""
        if at not in self._writers:
            offset = self.places.writers + at * 4 * CELL_NBYTES
            self._writers[at] = Cell(self.file.buffer, offset, CELL_NBYTES)
        return self._writers[at]

    def used_writers(self) -> list[int]:
        """Return which writers' cells have ever been written."""
        shape = (MAX_WRITERS, 4 * CELL_NBYTES)
        cells = array_of(self.file, self.places.writers, shape, "|u1")
        return [int(at) for at in np.flatnonzero(cells.any(axis=1))]

    def cells_image(self) -> bytes:
        """Return the bytes of the cells: the state's, then the writers'."""
        writers = self.places.writers
        state, end = (
            self.file.buffer[_STATE_AT : _STATE_AT + 4 * CELL_NBYTES],
            4 * CELL_NBYTES * MAX_WRITERS,
        )
        return bytes(state) + bytes(self.file.buffer[writers : writers + end])

    def cells(self) -> list[Cell]:
        """Return all cells that have been used since the file was opened."""
        return [self.state, *self._writers.values()]

    def watermark(self) -> int | None:
        """Return the newest head that the disk is known to have had, from base; None if none is told."""
        return max(self._watermarks(), default=(0, None))[1]

    def publish(self, head: int) -> None:
        """Put down that the disk has all rows below `head`, from base; the older of two places takes it."""
        self._count += 1
        record = _WATERMARK.pack(0, self._count, head)
        whole = struct.pack("<I", crc32c(record[4:])) + record[4:]
        at = _WATERMARKS_AT[self._count % 2]
        self.file.buffer[at : at + len(whole)] = whole

    def broken_watermarks(self) -> int:
        """Return how many of the two are neither empty nor whole."""
        used = sum(any(self.file.buffer[at : at + _WATERMARK.size]) for at in _WATERMARKS_AT)
        return used - len(self._watermarks())

    def close(self) -> None:
        """Let go of the file."""
        self.arrays = {}
        self.records = np.empty(0, RECORD)
        self.marks = np.zeros(2, np.uint64)
        self._writers.clear()
        self.file.close()

    def _watermarks(self) -> list[tuple[int, int]]:
        found = []
        for at in _WATERMARKS_AT:
            record = bytes(self.file.buffer[at : at + _WATERMARK.size])
            checksum, count, head = _WATERMARK.unpack(record)
            if count and crc32c(record[4:]) == checksum:
                found.append((count, head))
        return found


def rows_are_whole(file: RowsFile, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where the rows in slots, int64 [K], are what closes them."""
    whole = np.empty(len(slots), np.bool_)
    names = tuple(payload_columns(file.meta.signature))
    for low in range(0, len(slots), _CHUNK):
        part = slots[low : low + _CHUNK]
        records = file.records[part]
        checks = file.packer.crc(records, {name: file.arrays[name][part] for name in names})
        whole[low : low + _CHUNK] = np.array(checks, np.uint32) == records["crc"]
    return whole


def _meta(file: File, name: str) -> Meta:
    """Return what a file says that it is, or raise StorageError."""
    if file.nbytes < _META_AT + _META.size or bytes(file.buffer[: len(MAGIC)]) != MAGIC:
        raise StorageError(f"{name} is no memory's file of this version; name a folder that fornix keeps")
    checksum, length = _META.unpack(bytes(file.buffer[_META_AT : _META_AT + _META.size]))
    begin = _META_AT + _META.size
    text = bytes(file.buffer[begin : begin + min(length, _MAX_META)])
    if crc32c(text) != checksum:
        raise StorageError(f"{name} is damaged where it says what it holds; restore it from a snapshot")
    try:
        known = json.loads(text)
        if known["format"] != FORMAT:
            raise OtherFormatError(
                f"{name} has format {known['format']}, and this fornix reads {FORMAT}; open it with the "
                f"version that wrote it, and export its episodes there"
            )
        return Meta.model_validate_json(text)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{name} can't be read: {reason:.200}; restore it from a snapshot") from None


assert OVERHEAD + _WRITER.size + 128 <= CELL_NBYTES  # noqa: S101 a writer's longest name fits
