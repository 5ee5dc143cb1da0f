"""The folder of a server: which tables there are, in which files, and when these are synced.

`tables.json` says what tables there are; it is put down whole. A file that it doesn't name is what is
left of a table that was being made or dropped, and is removed.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable

from google_crc32c import value as crc32c
from pydantic import Field, ValidationError

from fornix.common.errors import StorageError
from fornix.common.signature import TableName
from fornix.common.specs import Frozen, TableSpec
from fornix.replay.durable.columns import DurableColumns
from fornix.replay.durable.disk import Disk, File
from fornix.replay.durable.draws import DrawsFile
from fornix.replay.durable.file import FORMAT, OtherFormatError, RowsFile, State
from fornix.replay.durable.flusher import Flusher
from fornix.replay.durable.log import MemoryLog, guard_of
from fornix.replay.durable.recovery import Found, find, restore
from fornix.replay.memory import Memory

TABLES = "tables.json"
IDENTITIES = 2**40
#: Names of the files of tables.
OURS = re.compile(r"(rows|draws)-\d+")
_LOOK_S = 0.002

_LOG = logging.getLogger(__name__)


class Entry(Frozen):
    """One table of a folder."""

    spec: TableSpec
    """As it was created."""
    limited: TableSpec
    """As it is now, its limits changed perhaps."""
    rows: str = Field("", max_length=64)
    """The file of its rows; none where they are another table's."""
    draws: str = Field(max_length=64)


class Contents(Frozen):
    """All tables of a folder, in the order in which they were made."""

    format: int
    made: int = Field(ge=0)
    tables: dict[TableName, Entry]


def read_contents(disk: Disk) -> Contents:
    """Return what a folder holds.

    Raises:
        StorageError: if it is damaged, or of another format.
    """
    data = disk.read(TABLES)
    if data is None:
        return Contents(format=FORMAT, made=0, tables={})
    text, _, checksum = data.rpartition(b"\n")
    try:
        if int(checksum, 16) != crc32c(text):
            raise ValueError("its checksum is wrong")
        known = json.loads(text)
        if known["format"] != FORMAT:
            raise OtherFormatError(
                f"{TABLES} has format {known['format']}, and this fornix reads {FORMAT}; open the folder "
                f"with the version that wrote it, and export its episodes there"
            )
        return Contents.model_validate_json(text)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{TABLES} is damaged: {reason:.200}; restore the folder from a snapshot"
        ) from None


def write_contents(disk: Disk, contents: Contents) -> None:
    """Put down what a folder holds."""
    text = contents.model_dump_json().encode()
    disk.write_whole(TABLES, text + b"\n%08x" % crc32c(text))


class Folder:
    """The files of a server.

    Args:
        disk: that holds them.
        flusher: that syncs them.
        clock: seconds, monotonic.
        period_s: the longest time between syncs, while anything is written.

    Raises:
        StorageError: if they can't be read.
    """

    def __init__(
        self, disk: Disk, flusher: Flusher, clock: Callable[[], float], period_s: float = 0.1
    ) -> None:
        self.disk = disk
        self._flusher = flusher
        self._clock = clock
        self._period_s = period_s
        self._memories: dict[str, tuple[Memory, MemoryLog]] = {}
        self._draws: dict[str, DrawsFile] = {}
        self._due = self._look = clock() + period_s
        self._busy: list[str] | None = None  # tables in the sync that is under way
        self._news = False
        try:
            self._contents = read_contents(disk)
            self._remove_strangers()
        except StorageError:
            flusher.close()
            disk.close()
            raise

    @property
    def tables(self) -> dict[str, Entry]:
        """All tables, in the order in which they were made."""
        return dict(self._contents.tables)

    def slots(self, steps: int) -> int:
        """Return how many rows a table of so many steps keeps."""
        return steps + guard_of(steps)

    def make_memory(self, name: str, spec: TableSpec, first: int) -> Memory:
        """Return a new memory in a file of its own.

        Args:
            name: of its table.
            spec: of the table.
            first: a multiple of its slots: the key of the first row.

        Raises:
            StorageError: if there is no room for it.
        """
        slots = self.slots(spec.steps)
        file = RowsFile.create(self.disk, self._rows_name(), spec.signature, spec.steps, slots)
        base = first - slots
        columns = DurableColumns(file, base)
        state = State(base, slots, slots, secrets.randbelow(IDENTITIES), 0, 0, False, self.disk.boot)
        log = MemoryLog(columns, state, 1, first)
        log.put_state(first)
        file.publish(slots)
        memory = Memory(spec.signature, columns, first, log)
        self._memories[name] = memory, log
        return memory

    def make_draws(self, name: str, spec: TableSpec, memory: Memory) -> DrawsFile:
        """Return the file of what a new table has drawn, or raise StorageError."""
        base = self._base_of(memory)
        made = DrawsFile.create(self.disk, self._draws_name(), spec.sampler, memory.ring.capacity, base)
        self._draws[name] = made
        return made

    def put(self, name: str, created: TableSpec, limited: TableSpec) -> None:
        """Put down a new table, or what has changed of one; it is on the disk once this returns."""
        known = self._contents.tables.get(name)
        if known is None:
            rows = self._rows_name() if created.rows_of is None else ""
            known = Entry(spec=created, limited=limited, rows=rows, draws=self._draws_name())
        entry = known.model_copy(update={"limited": limited})
        made = self._contents.made + (name not in self._contents.tables)
        self.sync_now()
        self._put(Contents(format=FORMAT, made=made, tables=self._contents.tables | {name: entry}))

    def abandon(self, name: str) -> None:
        """Let go of the files of a table that could not be made."""
        if name not in self._contents.tables:
            self._forget(name, self._rows_name(), self._draws_name())
            self.disk.remove(self._rows_name())  # what was begun, perhaps
            self.disk.remove(self._draws_name())

    def drop(self, name: str) -> None:
        """Remove a table's files; it is gone from the disk once this returns."""
        tables = dict(self._contents.tables)
        entry = tables.pop(name)
        self._await_flusher()
        self._put(self._contents.model_copy(update={"tables": tables}))
        self._forget(name, entry.rows, entry.draws)

    def recover_memory(self, name: str, now: float) -> Memory:
        """Return the memory of a table as its file holds it, or raise StorageError."""
        entry = self._contents.tables[name]
        file = RowsFile.open(self.disk, entry.rows)
        found, scan = find(file, self.disk.boot)
        state = _begun(found, file.meta.slots, self.disk.boot)
        columns = DurableColumns(file, state.base)
        restore(columns, found, scan)
        columns.begin_at(found.tail + state.base, found.head + state.base)
        log = MemoryLog(columns, state, found.opening, found.head + state.base)
        writers = {each.at: each.record for each in found.writers}
        log.resume(found.head, writers)
        if not found.state.clean:
            columns.write_again(found.watermark + state.base, found.head + state.base)
        memory = Memory.recovered(entry.spec.signature, log, found, now)
        self._memories[name] = memory, log
        _tell(name, found)
        return memory

    def recover_draws(self, name: str, spec: TableSpec, memory: Memory) -> DrawsFile:
        """Return the file of what a table has drawn, or raise StorageError."""
        file = self.disk.open(self._contents.tables[name].draws)
        made = DrawsFile(file, spec.sampler, memory.ring.capacity, self._base_of(memory))
        self._draws[name] = made
        return made

    def _base_of(self, memory: Memory) -> int:
        return memory.log.columns.base if memory.log is not None else 0

    def sync_now(self) -> None:
        """Wait until the disk has everything."""
        self._await_flusher()
        self._begin()
        self._await_flusher()

    def tick(self) -> bool:
        """Begin a sync where one is due; return whether one has been done since the last call.

        Raises:
            DiskError: if the disk did not take it.
        """
        if self._busy is not None:
            self._look = self._clock() + _LOOK_S
            if self._flusher.done():
                self._finish()
        else:
            wanted = any(log.wants_sync(memory.ring.head) for memory, log in self._memories.values())
            if wanted or self._clock() >= self._due:
                self._begin()
        news, self._news = self._news, False
        return news

    def patience_s(self) -> float | None:
        """Return in how many seconds `tick` has something to do; None while there is nothing."""
        if self._busy is not None:
            return max(0.0, self._look - self._clock())
        return max(0.0, self._due - self._clock()) if self._dirty() else None

    def abandon_all(self) -> None:
        """Let go of the files as they are: something has failed, and what the disk has is unknown.

        So the next server trusts the disk no more than after a power cut.
        """
        for memory, log in self._memories.values():
            log.put_state(min(memory.ring.head, log.durable), boot="")
        self._let_go()

    def close(self) -> None:
        """Sync everything, say so in the files, and let go of them."""
        try:
            self.sync_now()
            for memory, log in self._memories.values():
                log.put_state(memory.ring.head, clean=True, episodes=memory.episodes)
            self.sync_now()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._flusher.close()
        for draws in self._draws.values():
            draws.close()
        for _, log in self._memories.values():
            log.columns.close()
        self._memories.clear()
        self._draws.clear()
        self.disk.close()

    def _dirty(self) -> bool:
        memories = any(log.dirty for _, log in self._memories.values())
        return memories or any(draws.dirty for draws in self._draws.values())

    def _begin(self) -> None:
        files: list[File] = []
        busy = []
        for name, (memory, log) in self._memories.items():
            if log.sync_begins(memory.ring.head, memory.writers, memory.episodes):
                files.append(log.columns.file.file)
                busy.append(name)
        for name, draws in self._draws.items():
            if draws.sync_begins():
                files.append(draws.file)
                busy.append(name)
        self._due = self._clock() + self._period_s
        if files:
            self._busy = busy
            self._look = self._clock() + _LOOK_S
            self._flusher.begin(files)

    def _finish(self) -> None:
        for name in self._busy or ():
            if name in self._memories:
                memory, log = self._memories[name]
                log.synced(memory.writers)
            if name in self._draws:
                self._draws[name].synced()
        self._busy = None
        self._news = True

    def _await_flusher(self) -> None:
        while self._busy is not None:
            if self._flusher.done():
                self._finish()
            else:
                time.sleep(_LOOK_S)

    def _forget(self, name: str, rows: str, draws: str) -> None:
        known = self._draws.pop(name, None)
        if known is not None:
            known.close()
            self.disk.remove(draws)
        memory = self._memories.pop(name, None)
        if memory is not None:
            memory[1].columns.close(gone=True)
            self.disk.remove(rows)

    def _put(self, contents: Contents) -> None:
        write_contents(self.disk, contents)
        self._contents = contents

    def _rows_name(self) -> str:
        return f"rows-{self._contents.made}"

    def _draws_name(self) -> str:
        return f"draws-{self._contents.made}"

    def _remove_strangers(self) -> None:
        known = {name for entry in self._contents.tables.values() for name in (entry.rows, entry.draws)}
        strangers = [name for name in self.disk.names() if OURS.fullmatch(name) and name not in known]
        if self.disk.read(TABLES) is None:
            if strangers:
                raise StorageError(
                    f"{strangers[0]} is there, and {TABLES}, which says what it is, is not; put that back, "
                    f"restore the folder from a snapshot, or name an empty one"
                )
            write_contents(self.disk, self._contents)
        for name in strangers:
            self.disk.remove(name)


def _begun(found: Found, slots: int, boot: str) -> State:
    """Return the state of a memory that a server begins with.

    Where rows that were acknowledged may be lost, numbers go on far above: whoever holds the key of one
    finds nothing under it, instead of another row. And what lies below the tail is not to be looked at
    any more: the rows that are lost have overwritten some of it.
    """
    begun = found.state._replace(starts=found.state.starts + 1, clean=False, boot=boot)
    if not found.lossy:
        return begun
    return begun._replace(
        base=begun.base + 2 * slots, forgotten=found.tail, identity=secrets.randbelow(IDENTITIES)
    )


def _tell(name: str, found: Found) -> None:
    _LOG.info(
        "table %r is there again: %d rows, %d writers", name, found.head - found.tail, len(found.writers)
    )
    if found.lossy:
        _LOG.warning(
            "the machine went down while table %r was open: what the disk had not got yet is lost, and "
            "writers send it again",
            name,
        )
    if len(found.broken):
        _LOG.error(
            "%d rows of table %r are damaged and lost; its writers must begin anew", len(found.broken), name
        )
