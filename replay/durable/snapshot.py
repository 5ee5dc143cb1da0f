"""A copy of a server's folder, taken while the server serves from it and is asked nothing.

Of each memory the copy has a beginning of the acknowledged history. First what its tables have drawn is
copied, then the head is read, at a moment when no writer comes or goes; then the rows below it, oldest
first, some megabytes at a time. After each part the floor says which of its rows the server may have
overwritten meanwhile; these, and all before them, are left out. The rest are checked by their checksums.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fornix.common.errors import StorageError
from fornix.replay.durable.building import Builder, Shape
from fornix.replay.durable.disk import Disk
from fornix.replay.durable.draws import COUNTS_AT
from fornix.replay.durable.folder import Entry
from fornix.replay.durable.making import new_disk, publish, remove, require_new
from fornix.replay.durable.reader import CHUNK_NBYTES, MemoryReader
from fornix.replay.durable.source import Source

#: Part of the time that goes by without copying, so that others have the memory and the disk too.
PAUSE = 0.8
_TRIES = 5
_STEADY_TRIES = 20
_LONGEST_S = 1.0


class Copied(NamedTuple):
    """What has been copied of a memory."""

    table: str
    rows: int
    damaged: int
    """Rows whose checksums were wrong; the copy has a gap there, as its server would find it."""


class _ChangedError(Exception):
    """Tables came or went, or were reset, limited otherwise or all overwritten, while they were copied."""


def snapshot(
    folder: Path,
    dest: Path,
    pause: float = PAUSE,
    on_progress: Callable[[str, int, int], None] = lambda table, done, total: None,
) -> list[Copied]:
    """Copy the folder of a server into a new one, which is there whole or not at all.

    Args:
        folder: that a server keeps, now or before.
        dest: must not be there.
        pause: part of the time that goes by without copying, from 0 on and below 1.
        on_progress: told of each table how many rows of all have been copied.

    Raises:
        StorageError: if it can't be read or written, or changes all the time.
    """
    require_new(dest)
    partial = dest.with_name(f"{dest.name}.partial")
    with Source(folder) as source:
        for _ in range(_TRIES):
            disk = new_disk(partial)
            try:
                copied = _copy(source, disk, pause, on_progress)
                publish(disk, partial, dest, source.contents)
                return copied
            except (_ChangedError, StorageError) as error:
                remove(disk, partial)
                changed, source.contents = source.contents, source.read_contents()
                if not isinstance(error, _ChangedError) and source.contents == changed:
                    raise
            except BaseException:
                remove(disk, partial)
                raise
    raise StorageError(
        f"the tables of {folder} have changed {_TRIES} times while they were copied; take the snapshot "
        f"while none is created, dropped, reset, limited otherwise, or written anew within seconds"
    )


def _copy(
    source: Source, disk: Disk, pause: float, on_progress: Callable[[str, int, int], None]
) -> list[Copied]:
    """Copy all files but the list of tables."""
    contents, copied = source.contents, []
    for name, entry in contents.tables.items():
        if not entry.rows:
            continue
        for other in contents.tables.values():
            if other is entry or other.spec.rows_of == name:
                _copy_draws(source.disk, disk, other, pause)
        memory = source.memory(name)
        try:
            with Builder(disk, entry.rows, entry.spec.signature, _shape(memory)) as made:
                copied.append(_copy_rows(name, memory, made, pause, on_progress))
            if memory.is_another():
                raise _ChangedError
        finally:
            memory.close()
    if source.read_contents() != contents:
        raise _ChangedError
    return copied


def _shape(memory: MemoryReader) -> Shape:
    return Shape(memory.file.meta.steps, memory.file.meta.slots)


def _copy_rows(
    table: str,
    memory: MemoryReader,
    made: Builder,
    pause: float,
    on_progress: Callable[[str, int, int], None],
) -> Copied:
    cut = memory.cut
    tail = end = cut.tail
    damaged = 0
    pacer = _Pacer(pause)
    for numbers in memory.ranges():
        chunk = memory.read(numbers)
        low = int(numbers[0]) + chunk.overwritten
        if low > end:  # a gap: what is before it does not belong to the rest
            tail = low
        made.put(chunk)
        damaged += len(chunk.damaged)
        end = int(numbers[-1]) + 1
        on_progress(table, end - cut.tail, cut.head - cut.tail)
        pacer.wait()
    if end < cut.head or (tail == cut.head > cut.tail):
        raise _ChangedError  # a whole ring was written meanwhile, or all rows were forgotten
    made.finish(cut, tail)
    return Copied(table, cut.head - tail - damaged, damaged)


def _copy_draws(here: Disk, there: Disk, entry: Entry, pause: float) -> None:
    """Copy what a table has drawn: how often each row has been, and then what that makes in all.

    Where each start is drawn a number of times at most, both should be of one moment: else some would
    never be drawn.
    """
    source = here.open(entry.draws, writable=False)
    made = there.create(entry.draws, source.nbytes)
    pacer = _Pacer(pause)
    try:
        for _ in range(1 if entry.spec.sampler.uses is None else _STEADY_TRIES):
            before = bytes(source.buffer[COUNTS_AT])
            for low in range(COUNTS_AT.stop, source.nbytes, CHUNK_NBYTES):
                part = slice(low, min(low + CHUNK_NBYTES, source.nbytes))
                made.buffer[part] = source.buffer[part]
            made.buffer[: COUNTS_AT.stop] = source.buffer[: COUNTS_AT.stop]
            if made.buffer[COUNTS_AT] == before:
                break
            pacer.wait()
        made.sync()
    finally:
        source.close()
        made.close()


class _Pacer:
    """Lets time go by after each part of some work."""

    def __init__(self, pause: float) -> None:
        self._ratio = pause / (1.0 - pause)
        self._began = time.perf_counter()

    def wait(self) -> None:
        """The work that began when this was last called, or made, is done."""
        time.sleep(min(_LONGEST_S, (time.perf_counter() - self._began) * self._ratio))
        self._began = time.perf_counter()
