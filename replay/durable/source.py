"""A server's folder, opened to be read alone: while no server has it, or while one serves from it.

Nothing is asked of the server, and nothing is changed. While no server has the folder, none can begin
until it has been read.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fornix.common.errors import StorageError, UnknownTableError
from fornix.common.validation import nearest
from fornix.replay.durable.cuts import live_cut, offline_cut
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import RowsFile, State
from fornix.replay.durable.folder import TABLES, Contents, read_contents
from fornix.replay.durable.reader import MemoryReader

_STARTING_S = 30.0
_LOOK_S = 0.05


class Source:
    """A folder, opened to be read.

    Args:
        folder: that a replay server keeps, or has kept.
        live: whether a server may have it now.

    Raises:
        StorageError: if it is no such folder, is damaged, or is a server's now and mustn't be.
    """

    def __init__(self, folder: Path, live: bool = True) -> None:
        self.folder = folder
        self.disk = FolderDisk(folder, writable=False)
        try:
            #: Whether a server had it when it was opened.
            self.live = not self.disk.share()
            if self.live and not live:
                raise StorageError(
                    f"{folder} is kept by a replay server; stop it, or take a snapshot and name that"
                )
            self.contents = self.read_contents()
            if self.live:
                self._await_server()
        except BaseException:
            self.disk.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disk.close()

    def read_contents(self) -> Contents:
        """Return what tables there are, or raise StorageError."""
        if TABLES not in self.disk.names():
            raise StorageError(
                f"{self.folder} has no {TABLES}; name a folder that 'fornix replay --data' keeps"
            )
        return read_contents(self.disk)

    def rows_of(self, table: str) -> str:
        """Return the file that has a table's rows, or raise UnknownTableError."""
        known = self.contents.tables
        if table not in known:
            raise UnknownTableError(
                f"{self.folder} has no table {table!r}{nearest(table, known)}; tables: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        source = known[table].spec.rows_of
        return known[table].rows if source is None else known[source].rows

    def memory(self, table: str) -> MemoryReader:
        """Open a table's rows, or raise StorageError or UnknownTableError."""
        file = RowsFile.open(self.disk, self.rows_of(table), writable=False)
        try:
            cut = live_cut(file, table) if self.live else offline_cut(file, self.disk.boot)
        except BaseException:
            file.close()
            raise
        return MemoryReader(file, cut, self.live)

    def _await_server(self) -> None:
        """Wait until the server that has the folder has begun with all its files, or has ended."""
        until = time.monotonic() + _STARTING_S
        files = {entry.rows for entry in self.contents.tables.values() if entry.rows}
        while not all(self._has_begun(name) for name in files):
            if self.disk.share():
                self.live = False
                return
            if time.monotonic() > until:
                raise StorageError(
                    f"the server of {self.folder} has been starting or ending for {_STARTING_S:g} s; try "
                    f"again once it answers"
                )
            time.sleep(_LOOK_S)

    def _has_begun(self, name: str) -> bool:
        file = RowsFile.open(self.disk, name, writable=False)
        try:
            copies = file.state.copies()
            state = State.of(copies[0].record) if copies else None
            return state is not None and not state.clean and state.boot == self.disk.boot
        finally:
            file.close()
