"""A folder made anew out of another, with more or fewer steps in a table, another sampler, other limits.

The rows keep their order and distances, and are numbered from the first slot on. Where there are fewer
steps, the newest rows stay. What the tables have counted goes on, and their samplers take over what fits:
priorities where both draw by them, and how often each start was drawn where both limit that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fornix.common.errors import StorageError, UnknownTableError
from fornix.common.validation import nearest
from fornix.replay.durable.building import Builder, Shape
from fornix.replay.durable.changes import Changes
from fornix.replay.durable.cuts import Cut
from fornix.replay.durable.disk import Disk
from fornix.replay.durable.file import FORMAT, WriterRecord
from fornix.replay.durable.folder import Contents
from fornix.replay.durable.log import guard_of
from fornix.replay.durable.making import new_disk, publish, remove, require_new
from fornix.replay.durable.redrawing import Moved, restore_draws
from fornix.replay.durable.source import Source


class Restored(NamedTuple):
    """What has been restored of a memory."""

    table: str
    rows: int
    left_out: int
    """Rows for which there was no more room, oldest first, and damaged ones."""


def restore(
    folder: Path,
    dest: Path,
    changes: Changes,
    table: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda table, done, total: None,
) -> list[Restored]:
    """Make a new folder of one that no server has; it is there whole or not at all.

    Args:
        folder: a snapshot, or what a server has kept.
        dest: must not be there.
        changes: to the tables.
        table: that is changed; all if it is not given.
        on_progress: told of each table how many rows of all have been written.

    Raises:
        StorageError: if it can't be read or written, or the changes don't fit.
        InvalidRequestError: if a table could never be drawn from then.
        UnknownTableError: if there is no such table.
    """
    require_new(dest)
    with Source(folder, live=False) as source:
        contents = _changed(source, changes, table)
        partial = dest.with_name(f"{dest.name}.partial")
        disk = new_disk(partial)
        try:
            restored = []
            for name, entry in contents.tables.items():
                if entry.rows:
                    restored.append(_restore_memory(source, disk, name, contents, on_progress))
            publish(disk, partial, dest, contents)
        except BaseException:
            remove(disk, partial)
            raise
    return restored


def _changed(source: Source, changes: Changes, table: str | None) -> Contents:
    """Return what the new folder will hold, or raise an error for what doesn't fit."""
    known = source.contents.tables
    if table is not None and table not in known:
        raise UnknownTableError(
            f"{source.folder} has no table {table!r}{nearest(table, known)}; tables: "
            f"{', '.join(sorted(known))}"
        )
    tables = {
        name: changes.applied(entry) if table in (None, name) else entry for name, entry in known.items()
    }
    for name, entry in tables.items():
        if entry.spec.rows_of is not None:
            _require_rows(name, entry.spec.steps, entry.spec.rows_of, tables[entry.spec.rows_of].spec.steps)
    return Contents(format=FORMAT, made=source.contents.made, tables=tables)


def _require_rows(table: str, steps: int, owner: str, owned: int) -> None:
    slots = owned + guard_of(owned)
    if steps > slots:
        raise StorageError(
            f"table {table!r} draws {steps} steps of the rows of {owner!r}, which would have {slots}; give "
            f"{owner!r} more, or {table!r} fewer first"
        )


def _restore_memory(
    source: Source,
    disk: Disk,
    table: str,
    contents: Contents,
    on_progress: Callable[[str, int, int], None],
) -> Restored:
    entry = contents.tables[table]
    memory = source.memory(table)
    cut, steps = memory.cut, entry.spec.steps
    _require_lanes(table, cut, steps, entry.spec.signature.n_frames)
    shape = Shape(steps, steps + guard_of(steps))
    shift = shape.slots - cut.state.first
    tail = max(cut.tail, cut.head - shape.slots)
    written = 0
    with Builder(disk, entry.rows, entry.spec.signature, shape, shift) as made:
        for numbers in memory.ranges(low=tail):
            chunk = memory.read(numbers)
            made.put(chunk)
            written += len(chunk.numbers)
            on_progress(table, int(numbers[-1]) + 1 - tail, cut.head - tail)
        base = made.finish(cut, tail)
    moved = Moved(memory, np.arange(tail, cut.head), shape.slots, shift, base)
    for name, other in contents.tables.items():
        if name == table or other.spec.rows_of == table:
            restore_draws(source, disk, source.contents.tables[name], other, moved)
    memory.close()
    return Restored(table, written, cut.head - cut.tail - written)


def _require_lanes(table: str, cut: Cut, steps: int, n_frames: int) -> None:
    """Refuse fewer steps than a writer that is open needs for a stack of each of its lanes."""
    openings = cut.openings()
    for at, copies in cut.cells.items():
        record = WriterRecord.of(copies[0].record)
        needed = record.lanes * (n_frames + 1)
        if at in openings and needed > steps:
            raise StorageError(
                f"writer {record.name!r} of table {table!r} has {record.lanes} lanes, which need {needed} "
                f"steps to hold a stack of each, and there would be {steps}; give {needed} or more"
            )
