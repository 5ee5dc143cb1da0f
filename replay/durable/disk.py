"""All that the durable memory asks of a file system: few things, so that a test can stand in for a disk.

Files are created with their full size, all of it set aside: a mapped file with holes would end the
process with SIGBUS when the disk is full. They never grow.
What was written is safe from the death of the process at once, and from a power cut after `sync`; until
then a power cut may keep any of the 512-byte sectors and lose any.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import DiskError, StorageError

_LOCK = "lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class File(Protocol):
    """A file of fixed size, mapped into memory."""

    nbytes: int
    buffer: Any
    """Its bytes, by the buffer protocol; writable if it was opened for that."""
    descriptor: int
    """Of the open file; -1 if it has none."""

    def write(self, offset: int, data: NDArray[Any]) -> None:
        """Write an array's bytes, as to store them in `buffer` would; raise DiskError if that fails."""

    def sync(self) -> None:
        """Return once all that was written before is on the disk, or raise OSError. For any thread."""

    def close(self) -> None:
        """Let go of it. It stays mapped as long as someone holds an array of it."""


class Disk(Protocol):
    """A folder of such files."""

    boot: str
    """Tells one running of the machine from the next: while it is the same, nothing written is lost."""

    def create(self, name: str, nbytes: int) -> File:
        """Return a new file of zeros, or raise StorageError where there is no room for it."""

    def open(self, name: str, writable: bool = True) -> File:
        """Return a file that is there, or raise StorageError."""

    def write_whole(self, name: str, data: bytes) -> None:
        """Put `data` in place of a small file: on the disk, whole, once this returns."""

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file, None if there is none."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def names(self) -> list[str]:
        """Return the names of all files."""

    def close(self) -> None:
        """Let others have the folder."""


class MappedFile:
    """A file on a disk, mapped."""

    def __init__(self, descriptor: int, writable: bool) -> None:
        self.descriptor = descriptor
        self.nbytes = os.fstat(descriptor).st_size
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.buffer: Any = mmap.mmap(descriptor, self.nbytes, access=access)

    def write(self, offset: int, data: NDArray[Any]) -> None:
        """Write an array's bytes."""
        left = data.reshape(-1).view(np.uint8).data
        try:
            while left:
                done = os.pwrite(self.descriptor, left, offset)
                left, offset = left[done:], offset + done
        except OSError as error:
            raise DiskError.of(error) from None

    def sync(self) -> None:
        """Wait until the disk has all that was written before."""
        os.fdatasync(self.descriptor)  # pages that a mapping has made dirty are the file's as well

    def close(self) -> None:
        """Let go of the file; the last array of it to go unmaps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1
        self.buffer = b""


class FolderDisk:
    """A folder of a file system of this machine; one server's at a time.

    Args:
        folder: made if it is not there.
        writable: False to read what a server, which may be running, keeps there.

    Raises:
        StorageError: if it can't be used, or another server uses it.
    """

    def __init__(self, folder: Path, writable: bool = True) -> None:
        self.folder = folder
        self.boot = _boot_id()
        self._lock = -1
        if not writable:
            if not folder.is_dir():
                raise StorageError(f"there is no folder {folder}; name one that a replay server keeps")
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StorageError(
                f"{folder} is kept by another replay server; stop that one, or name another folder"
            ) from None

    def create(self, name: str, nbytes: int) -> File:
        """Return a new file of zeros, with all its room set aside."""
        path = self.folder / name
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(descriptor, 0, nbytes)
            os.fsync(descriptor)
            self.sync()
            return MappedFile(descriptor, writable=True)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    path.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(self._no_room(nbytes)) from None
            raise _failed(path, error) from None

    def open(self, name: str, writable: bool = True) -> File:
        """Return a file that is there."""
        try:
            descriptor = os.open(
                self.folder / name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
            )
        except OSError as error:
            raise _unusable(self.folder / name, error) from None
        try:
            return MappedFile(descriptor, writable)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise _unusable(self.folder / name, error) from None

    def write_whole(self, name: str, data: bytes) -> None:
        """Put `data` in place of a file."""
        partial = self.folder / f"{name}.partial"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            raise _failed(self.folder / name, error) from None
        try:
            self.sync()
        except OSError as error:
            raise DiskError.of(error) from None  # which of the two files the disk has is unknown

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self.folder / name, error) from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.folder / name, error) from None

    def names(self) -> list[str]:
        """Return the names of all files but the lock."""
        return sorted(path.name for path in self.folder.iterdir() if path.name != _LOCK)

    def share(self) -> bool:
        """Keep servers away while the folder is only read; return False where one has it."""
        try:
            lock = os.open(self.folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise _unusable(self.folder / _LOCK, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def sync(self) -> None:
        """Wait until the disk has the names of all files."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _no_room(self, nbytes: int) -> str:
        there = os.statvfs(self.folder)
        return (
            f"{self.folder} has room for {there.f_bavail * there.f_frsize:,} bytes, and {nbytes:,} are to "
            f"be set aside; make room, lower capacity_steps, or name another folder"
        )


def array_of(file: File, offset: int, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> NDArray[Any]:
    """Return an array that lies in a file."""
    return np.ndarray(shape, dtype, file.buffer, offset)


def _unusable(path: Path, error: Exception) -> StorageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StorageError(f"{path} can't be used: {reason}; correct that, or name another folder")


def _failed(path: Path, error: OSError) -> StorageError | DiskError:
    return DiskError.of(error) if error.errno == errno.EIO else _unusable(path, error)


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""
