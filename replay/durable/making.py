"""A new folder, which is there whole or not at all: made under another name, and named at the end."""

import shutil
from pathlib import Path

from fornix.common.errors import StorageError
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.folder import OURS, TABLES, Contents, write_contents


def require_new(dest: Path) -> None:
    """Raise StorageError if a folder that is to be made is there."""
    if dest.exists() or dest.is_symlink():
        raise StorageError(f"{dest} is there already; name a folder that is not")


def new_disk(partial: Path) -> FolderDisk:
    """Return a new folder; what is left of one that was not finished is removed.

    Raises:
        StorageError: if another is making it, or it holds other files.
    """
    disk = FolderDisk(partial)
    strangers = [name for name in disk.names() if not (OURS.fullmatch(name) or name.startswith(TABLES))]
    if strangers:
        disk.close()
        raise StorageError(f"{partial} holds {strangers[0]!r}, which is no part of a snapshot; remove it")
    for name in disk.names():
        disk.remove(name)
    return disk


def publish(disk: FolderDisk, partial: Path, dest: Path, contents: Contents) -> None:
    """Put down what a folder holds, whose files are on the disk, and give it its name."""
    write_contents(disk, contents)
    require_new(dest)
    try:
        partial.rename(dest)
    except OSError as error:
        raise StorageError(f"{partial} can't be named {dest}: {error.strerror}; name it yourself") from None
    disk.close()
    FolderDisk(dest.parent, writable=False).sync()


def remove(disk: FolderDisk, partial: Path) -> None:
    """Remove a folder that was not finished."""
    shutil.rmtree(partial, ignore_errors=True)
    disk.close()
