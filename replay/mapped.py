"""The frames of a table in the memory of this process: mapped from the server's, on the same host.

The server then sends slots of rows alone, and the client copies the frames out of the mapping itself,
while the server may be overwriting the oldest rows. So after each copy the client asks `intact` whether
it was made in time.

One number, the floor, does the work of a sequence number on each row. Rows are overwritten in the order
of their numbers, and never changed otherwise; before the server overwrites the rows below `f`, it
raises the floor to `f`. So if the floor, read *after* the copy, is not above a row's number, then no
byte of it had been overwritten when the copy was made. Unlike with a sequence lock, there is nothing
to read before the copy, no row is half written while it can be asked for (the server names a row only
after it has written it), and a reader neither waits nor makes anyone wait.

What is relied upon:

- The floor is one aligned word of eight bytes, which any 64-bit processor stores and loads whole.
- The server's store of the floor becomes visible before its later stores of frames do; and the client
  loads the frames before it loads the floor. Both pass a `Fence` in between: x86 would do without for
  ordinary loads and stores, ARM would not. Interpreter and compiler move nothing across it, since each
  step is a call into numpy of its own.
- A server's answer orders what came before it: rows named in it can be read once it has been received.

If the server dies, the mapping stays, with its rows as they were.
"""

import mmap
import os
import re
import select
import stat
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import FornixError
from fornix.common.messages import Column, TableMap
from fornix.common.signature import ArraySpec, Signature, frame_name
from fornix.replay.stacking import Stacker
from fornix.replay.storage import (
    GET_SEALS,
    HEADER_NBYTES,
    MAGIC,
    SEAL_SHRINK,
    TOKEN_AT,
    Fence,
    marks_of,
    shared_columns,
)

if sys.platform == "linux":
    import fcntl

_PATH = re.compile(r"/proc/[0-9]{1,10}/fd/[0-9]{1,10}")
_LARGEST = 2**63 - 1


class UnmappableError(FornixError):
    """The server's memory can't be mapped here, or isn't what it should be. Frames can still be sent."""

    code = "UNMAPPABLE"


class MappedFrames:
    """A table's frames, mapped read-only. Made by `MappedFrames.open`.

    Attributes:
        capacity: rows of the table; slot `capacity` holds the frame of zeros.
        frames: [capacity + 1, *obs] of every array of a frame, by path; read-only. Whoever takes
            slots from a server must see to it that they lie in [0, capacity], or gather with
            `mode="clip"`.
    """

    def __init__(
        self, file: mmap.mmap, columns: Mapping[str, Column], signature: Signature, server: int
    ) -> None:
        """Take what `open` has checked, and a descriptor of the server's process, -1 if there is none."""
        arrays: dict[str, NDArray[Any]] = {
            name: np.ndarray(column.shape, column.dtype, file, column.offset)
            for name, column in columns.items()
        }
        self.frames = {path: arrays[frame_name(path)] for path in signature.frames}
        self.capacity = len(arrays["back"])
        self._stacker: Stacker | None = Stacker(arrays, signature)
        self._marks = marks_of(file)
        self._fence = Fence()
        self._death: select.poll | None = None
        if server >= 0:
            self._death = select.poll()
            self._death.register(server, select.POLLIN)
        self._unwatch = weakref.finalize(self, _close, server)

    @classmethod
    def open(cls, table_map: TableMap, signature: Signature) -> "MappedFrames":
        """Map a table's frames.

        The server is not trusted: whatever it says, no byte outside the file is ever read, nothing
        but a regular file in memory is opened, and that only for reading.

        Args:
            table_map: the server's answer to `MapTable`.
            signature: of the table, as this client knows it.

        Raises:
            UnmappableError: the file is out of reach (another host, container or user), is another
                one, or doesn't hold what `signature` says.
        """
        # first: if it leads to the file that is meant, then nobody else had the server's number before
        server = _server_of(table_map.path)
        try:
            return cls(_mapped(table_map, signature), table_map.columns, signature, server)
        except BaseException:
            _close(server)
            raise

    @property
    def floor(self) -> int:
        """The oldest row that hasn't been overwritten and isn't about to be, as of now."""
        self._fence.pass_through()  # the copies that were made before this call are complete
        return min(int(self._marks[0]), _LARGEST)

    @property
    def is_served(self) -> bool:
        """Whether the process that writes here lives; false too where that can't be told."""
        return self._death is not None and not self._death.poll(0)

    def stacks(self, keys: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Return the stacks of steps, made here by the routine that the server makes them by.

        Args:
            keys: int64 [K], of steps that have been written.

        Returns:
            [K, n_frames, *obs] of every array of a frame, by path; and bool [K], false where a stack is
            not whole: a row of it has been overwritten, or is about to be.
        """
        if self._stacker is None:
            raise UnmappableError("the mapping was let go")
        places, oldest = self._stacker.places(keys)
        stacks = self._stacker.gather(places)
        # a row that was overwritten before it was read lies below the floor, and so does what it led to
        return stacks, self.intact(np.minimum(oldest, keys))  # what lies below the lowest integer is no row

    def has(self, keys: NDArray[np.int64]) -> bool:
        """Whether all these steps have been written, and none of them overwritten, as of now."""
        head = int(self._marks[1])
        # the fence before the floor is read keeps all that is read of the rows behind the head too
        return bool(keys.min(initial=_LARGEST) >= self.floor and keys.max(initial=-1) < head)

    def intact(self, oldest: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which copies are whole. To be asked after the frames were copied.

        Args:
            oldest: int64 [B], the lowest row number among those that each copy was made of.

        Returns:
            bool [B]; false where a row may have been overwritten before it was copied, or while. What
            was copied there is to be thrown away.
        """
        whole: NDArray[np.bool_] = oldest >= self.floor
        return whole

    def close(self) -> None:
        """Let go of the mapping; nothing counts as intact any more. Arrays that are held stay valid."""
        # mmap.close() would raise BufferError for each view that is left; the last one to go unmaps
        self.frames = {}
        self._stacker = None
        self._marks = np.full(2, _LARGEST, np.uint64)
        self._death = None
        self._unwatch()


def _open(path: str) -> int:
    """Return a descriptor, for reading, of the memory file at a server's path."""
    if sys.platform != "linux":
        raise UnmappableError("only Linux maps the memory of a replay server")
    if not _PATH.fullmatch(path):
        raise UnmappableError(f"the server names {path!r:.80}, which is no /proc/PID/fd/NUMBER")
    try:
        # The link leads to whatever the server has open there. O_PATH finds out what that is without
        # opening it: to open a device or a pipe could block or do harm. (O_NOFOLLOW would refuse all
        # such links, and O_NONBLOCK only helps with pipes.)
        link = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(link).st_mode):
                raise UnmappableError(f"{path} is no regular file")
            return os.open(f"/proc/self/fd/{link}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(link)
    except OSError as error:
        raise UnmappableError(
            f"{path} can't be opened ({error.strerror}): the server runs on another host, in another "
            f"container, as another user, or no more"
        ) from error


def _server_of(path: str) -> int:
    """Return a descriptor that tells when the process at a server's path has ended, -1 if none can be had.

    Linux before 5.3 has none, nor has a Python that was built against its headers, and some containers
    forbid it.
    """
    if not _PATH.fullmatch(path):
        return -1
    try:
        return os.pidfd_open(int(path.split("/")[2]))
    except (AttributeError, OSError, OverflowError):
        return -1


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _mapped(table_map: TableMap, signature: Signature) -> mmap.mmap:
    """Return a server's file once it is known to be what it should."""
    descriptor = _open(table_map.path)
    try:
        _check_size(descriptor, table_map.nbytes)
        _check_columns(table_map, signature)
        file = mmap.mmap(descriptor, table_map.nbytes, prot=mmap.PROT_READ)
    except (OSError, OverflowError) as error:
        raise UnmappableError(f"{table_map.path} can't be mapped: {error}") from error
    finally:
        os.close(descriptor)
    _check_header(file, table_map)
    return file


def _check_size(descriptor: int, nbytes: int) -> None:
    """Raise UnmappableError unless a file has this size, and nobody else can make it smaller.

    One that shrinks under its mapping ends the process that reads there, with SIGBUS. A file in memory is
    sealed against that. One on a disk can't be, and must be this user's own, who could end the process
    in other ways too.
    """
    status = os.fstat(descriptor)
    try:
        sealed = bool(fcntl.fcntl(descriptor, GET_SEALS) & SEAL_SHRINK)
    except OSError:  # only files in memory have seals
        sealed = False
    in_a_folder = status.st_nlink > 0
    if not sealed and not (in_a_folder and status.st_uid == os.geteuid()):
        raise UnmappableError(
            "the file is not sealed against shrinking, nor this user's own, so no memory of a replay server"
        )
    size = status.st_size
    if size != nbytes or size < HEADER_NBYTES:
        raise UnmappableError(
            f"the file has {size} bytes; the server says {nbytes}, and the header takes {HEADER_NBYTES}"
        )


def _check_columns(table_map: TableMap, signature: Signature) -> None:
    """Raise UnmappableError unless every array is what the signature says, and inside the file."""
    capacity = table_map.columns["back"].shape[0] if "back" in table_map.columns else 0
    due = shared_columns(signature, capacity)
    if table_map.columns.keys() != due.keys() or capacity < 1:
        raise UnmappableError(
            f"the server maps {sorted(table_map.columns)!r:.200} of {capacity} rows; due are {sorted(due)}"
        )
    for name, (rows, spec) in due.items():
        _check_column(name, table_map.columns[name], rows, spec, table_map.nbytes)


def _check_column(name: str, column: Column, rows: int, spec: ArraySpec, nbytes: int) -> None:
    if column.shape != (rows, *spec.shape) or column.dtype != spec.dtype:
        raise UnmappableError(
            f"{name} is mapped as {column.shape!r:.80} {column.dtype!r:.20}; the table holds {rows} rows "
            f"of {spec}"
        )
    end = column.offset + column.shape[0] * spec.nbytes  # Python's integers: no overflow
    if column.offset < HEADER_NBYTES or column.offset % mmap.PAGESIZE or end > nbytes:
        raise UnmappableError(
            f"{name} is said to lie in bytes {column.offset} to {end} of the file; it must begin on a page "
            f"after the first, {HEADER_NBYTES}, and end by {nbytes}"
        )


def _check_header(file: mmap.mmap, table_map: TableMap) -> None:
    """Raise UnmappableError unless a file is a replay server's, of this version, and the one meant."""
    magic = file[: len(MAGIC)]
    if magic != MAGIC:
        raise UnmappableError(f"the file begins with {magic!r}; a replay server of this version: {MAGIC!r}")
    token = table_map.token
    told = token.tobytes() if token.dtype == np.uint8 and token.shape == (16,) else b""
    if file[TOKEN_AT] != told:
        raise UnmappableError(f"{table_map.path} is not the file that the server means: its token differs")
