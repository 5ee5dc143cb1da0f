"""Where rows live: named columns of a fixed capacity.

`Columns` is all that a ring asks of its storage. `AnonymousColumns` are the process's own. Of
`SharedColumns` the frames lie in a memory file, which `fornix.replay.mapped` maps in processes on the
same host. The file is:

    byte 0    "fornix", and the version of this layout (u2, little-endian)
    byte 8    a token: 16 random bytes, told to clients, so that no other file is taken for this one
    byte 64   the floor (u8, of the machine's byte order): rows below it may have been overwritten
    byte 72   the head (u8): rows below it have been written
    then, each from the next page on: `back`, u4 [capacity], and the arrays of a frame, [capacity + 1, *obs]
"""

import ctypes
import errno
import logging
import mmap
import os
import secrets
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import Column, TableMap
from fornix.common.signature import ArraySpec, Signature, frame_name

if sys.platform == "linux":
    import fcntl

_LOG = logging.getLogger(__name__)

#: The columns that every row has beside its payload, with their dtypes.
HEADER_COLUMNS: Mapping[str, str] = {
    "back": "<u4",  # number - predecessor's number; 0 on an episode's first row
    "forward": "<u4",  # derived: successor's number - number; 0 while unknown; ENDS at the end
    "first": "<u4",  # number - number of the episode's first row
    "position": "<u4",  # steps since the episode's first row
    "terminated": "|b1",
    "policy_version": "<u4",
}

EXTRA_PREFIX = "extras."

MAGIC = b"fornix\x02\x00"
TOKEN_AT = slice(8, 24)
FLOOR_AT = 64  # and the head after it
GONE = 2**63 - 1  # the floor of a memory that is no more
HEADER_NBYTES = mmap.PAGESIZE

# Linux's own numbers: a Python that was built against an old glibc lacks the names, and os.memfd_create.
GET_SEALS = 1034
SEAL_SHRINK = 2
_ADD_SEALS = 1033
_SEAL_GROW = 4
_MFD_CLOEXEC = 1
_MFD_ALLOW_SEALING = 2


class Columns(Protocol):
    """Preallocated arrays of `capacity` rows each; those of frames have one row more, of zeros."""

    capacity: int
    arrays: Mapping[str, NDArray[Any]]

    def write(self, name: str, slots: slice, values: NDArray[Any]) -> None:
        """Write values, [K, ...], of a column to slots that follow each other."""

    def raise_floor(self, number: int) -> None:
        """Take note that rows below `number` may be overwritten from now on.

        To be called before the first of them is. A floor that is lower than the last changes nothing.
        """

    def raise_head(self, number: int) -> None:
        """Take note that all rows below `number` have been written."""

    def table_map(self) -> TableMap | None:
        """Return where other processes find the frames; None if they can't be shared."""

    def close(self) -> None:
        """Let go of the arrays. Their memory goes when nobody else holds one."""


def payload_columns(signature: Signature) -> dict[str, ArraySpec]:
    """Return the columns that hold what clients send, by name."""
    frames = {frame_name(path): spec for path, spec in signature.frames.items()}
    extras = {EXTRA_PREFIX + name: spec for name, spec in signature.extras.items()}
    return {**frames, "action": signature.action, "reward": signature.reward, **extras}


def payload_rows(signature: Signature, slots: int) -> dict[str, int]:
    """Return how many rows each payload column has, by name: those of frames one more, of zeros."""
    frames = {frame_name(path) for path in signature.frames}
    return {name: slots + (name in frames) for name in payload_columns(signature)}


def row_nbytes(signature: Signature) -> int:
    """Return the bytes of one row, its header columns among them."""
    header = sum(np.dtype(dtype).itemsize for dtype in HEADER_COLUMNS.values())
    return header + signature.step_nbytes


def nbytes(signature: Signature, capacity: int) -> int:
    """Return the bytes that the columns of a table take, before they are rounded up to pages."""
    return capacity * row_nbytes(signature) + signature.frame_nbytes


def make_columns(signature: Signature, capacity: int, share: bool) -> Columns:
    """Return columns for a table; shared ones if `share`, where the system has memory files (Linux).

    Raises:
        MemoryError: there is no address space for so many rows.
    """
    if share and sys.platform == "linux":
        try:
            return SharedColumns(signature, capacity)
        except OSError as error:
            _LOG.warning("no other process can map the rows; all are sent copies: %s", error)
    return AnonymousColumns(signature, capacity)


class AnonymousColumns:
    """Columns in the process's own memory; gone with the process."""

    def __init__(self, signature: Signature, capacity: int) -> None:
        self.capacity = capacity
        frames = {
            frame_name(path): np.zeros((capacity + 1, *spec.shape), spec.dtype)
            for path, spec in signature.frames.items()
        }
        self.arrays: Mapping[str, NDArray[Any]] = frames | _private_columns(signature, capacity)

    def write(self, name: str, slots: slice, values: NDArray[Any]) -> None:
        """Write values, [K, ...], of a column to slots that follow each other."""
        self.arrays[name][slots] = values

    def raise_floor(self, number: int) -> None:
        """Do nothing: nobody else reads these rows."""

    def raise_head(self, number: int) -> None:
        """Do nothing."""

    def table_map(self) -> None:
        """Return None: these rows can't be shared."""

    def close(self) -> None:
        """Let go of the arrays."""
        self.arrays = {}


class SharedColumns:
    """Columns whose frames lie in a memory file, which other processes can map.

    The file is no more than memory with a name: it is in no folder, on no disk, and gone with the last
    process that has it open or mapped. `/dev/shm` and its size are not involved.

    Raises:
        OSError: the system has no memory files, or won't give or map one of this size.
    """

    def __init__(self, signature: Signature, capacity: int) -> None:
        self.capacity = capacity
        self._token = secrets.token_bytes(16)
        self._layout, self._nbytes = _layout(signature, capacity)
        self._descriptor = _memory_file()
        try:
            file = _sealed(self._descriptor, self._nbytes)
        except BaseException:
            os.close(self._descriptor)
            raise
        file[: len(MAGIC)] = MAGIC
        file[TOKEN_AT] = self._token
        self._marks = Marks(marks_of(file))
        shared = {
            name: np.ndarray(column.shape, column.dtype, file, column.offset)
            for name, column in self._layout.items()
        }
        self.arrays: Mapping[str, NDArray[Any]] = _private_columns(signature, capacity) | shared

    def write(self, name: str, slots: slice, values: NDArray[Any]) -> None:
        """Write values, [K, ...], of a column to slots that follow each other."""
        self.arrays[name][slots] = values

    def raise_floor(self, number: int) -> None:
        """Tell all who have the file mapped that rows below `number` may be overwritten from now on."""
        self._marks.raise_floor(number)

    def raise_head(self, number: int) -> None:
        """Tell all who have the file mapped that the rows below `number` are there."""
        self._marks.raise_head(number)

    def table_map(self) -> TableMap | None:
        """Return where processes on this host find the frames; None once closed."""
        if self._descriptor < 0:
            return None
        return TableMap(
            path=f"/proc/{os.getpid()}/fd/{self._descriptor}",
            nbytes=self._nbytes,
            token=np.frombuffer(self._token, np.uint8),
            columns=self._layout,
        )

    def close(self) -> None:
        """Let go of the file. It stays mapped where someone holds an array of it, here or elsewhere."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        # mmap.close() would raise BufferError for each view that is left; the last one to go unmaps
        self.arrays = {}
        self._marks.let_go(gone=True)


class Fence:
    """A memory barrier: whatever this thread did before it, others see before what it does after it.

    An x86 processor keeps stores in order, and loads, but for the streaming stores that memcpy makes
    of large arrays; one of ARM's keeps neither. Python has no word for a barrier. But to let a lock go
    releases, and to take it acquires; and no load or store moves past a release with an acquire after
    it, in either direction. So the lock is taken twice. It is never waited for longer than that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def pass_through(self) -> None:
        """Order all loads and stores before this call before all after it."""
        with self._lock:
            pass
        with self._lock:
            pass


class Marks:
    """Floor and head of a file, for all who have it mapped.

    Args:
        marks: both, uint64 [2], in the file.
    """

    def __init__(self, marks: NDArray[np.uint64]) -> None:
        self._marks = marks
        self._fence = Fence()
        self._raised_to = 0

    def begin_at(self, floor: int, head: int) -> None:
        """Put down both, whatever they are."""
        self._raised_to = floor
        self._marks[:] = floor, head
        self._fence.pass_through()

    def raise_floor(self, number: int) -> None:
        """Tell everyone that rows below `number` may be overwritten from now on."""
        if number > self._raised_to:
            self._raised_to = number
            self._marks[0] = number
            self._fence.pass_through()  # nobody sees a row overwritten before this

    def raise_head(self, number: int) -> None:
        """Tell everyone that the rows below `number` are there."""
        self._fence.pass_through()  # nobody sees the head before the rows
        self._marks[1] = number

    def let_go(self, gone: bool) -> None:
        """Let go of the file; if the memory is `gone`, whoever has it mapped finds nothing there."""
        if gone:
            self._marks[0] = GONE
        self._marks = np.zeros(2, np.uint64)


def marks_of(file: mmap.mmap) -> NDArray[np.uint64]:
    """Return floor and head of a mapped file, uint64 [2]; aligned: each is read and written whole."""
    return np.ndarray((2,), np.uint64, file, FLOOR_AT)


def _private_columns(signature: Signature, capacity: int) -> dict[str, NDArray[Any]]:
    """Return all columns but the frames."""
    frames = {frame_name(path) for path in signature.frames}
    columns = {name: np.zeros(capacity, dtype) for name, dtype in HEADER_COLUMNS.items()}
    for name, spec in payload_columns(signature).items():
        if name not in frames:
            columns[name] = np.zeros((capacity, *spec.shape), spec.dtype)
    return columns


def shared_columns(signature: Signature, capacity: int) -> dict[str, tuple[int, ArraySpec]]:
    """Return the columns that others may map, by name: their rows, and what a row is."""
    back = ArraySpec(shape=(), dtype=HEADER_COLUMNS["back"])
    frames = {frame_name(path): (capacity + 1, spec) for path, spec in signature.frames.items()}
    return {"back": (capacity, back)} | frames


def _layout(signature: Signature, capacity: int) -> tuple[dict[str, Column], int]:
    """Return where the shared columns lie in the file, by name, and the file's bytes."""
    layout, end = {}, HEADER_NBYTES
    for name, (rows, spec) in shared_columns(signature, capacity).items():
        layout[name] = Column(offset=end, shape=(rows, *spec.shape), dtype=spec.dtype)
        end += rows * spec.nbytes
        end += -end % mmap.PAGESIZE
    return layout, end


def _memory_file() -> int:
    """Return the descriptor of a new memory file, of no bytes yet."""
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fornix", flags)
    try:
        create = ctypes.CDLL(None, use_errno=True).memfd_create
    except (AttributeError, OSError):
        raise OSError(errno.ENOSYS, "the C library has no memfd_create") from None
    descriptor = int(create(b"fornix", flags))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _sealed(descriptor: int, nbytes: int) -> mmap.mmap:
    """Give a memory file its size once and for all, and map it.

    Without room being set aside (posix_fallocate): like np.zeros, it takes memory page by page as rows
    are first written. That is only safe because the file lies in memory and swap, so that running out
    is what it is for all memory, the OOM killer's business. A file with holes on a *disk* would instead
    end the process with SIGBUS, or lose rows, when the disk is full.
    """
    os.ftruncate(descriptor, nbytes)
    # nobody can shrink it: not this process by mistake either, and clients need not fear SIGBUS
    fcntl.fcntl(descriptor, _ADD_SEALS, SEAL_SHRINK | _SEAL_GROW)
    # No MADV_HUGEPAGE: as long as shmem_enabled is `never`, which is Linux's default, it does nothing.
    return mmap.mmap(descriptor, nbytes)
