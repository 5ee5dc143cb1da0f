"""What a table has drawn, carried over to a folder in which its rows have other numbers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fornix.common.specs import SamplerSpec
from fornix.replay.durable.disk import Disk
from fornix.replay.durable.draws import DrawsFile, Kept
from fornix.replay.durable.folder import Entry
from fornix.replay.durable.reader import MemoryReader
from fornix.replay.durable.recounting import recounted, starts_among, table_tail
from fornix.replay.durable.source import Source
from fornix.replay.limiter import Counts
from fornix.replay.stacking import Numbers


class Moved(NamedTuple):
    """The rows of a memory, here and there."""

    memory: MemoryReader
    numbers: Numbers
    """int64 [K] from base, here."""
    slots: int
    shift: int
    base: int


class _InMemory:
    """A file's bytes, which may be changed without changing the file."""

    descriptor = -1

    def __init__(self, data: bytes) -> None:
        self.buffer: Any = bytearray(data)
        self.nbytes = len(data)

    def write(self, offset: int, data: NDArray[Any]) -> None:
        """Write an array's bytes."""
        part = data.tobytes()
        self.buffer[offset : offset + len(part)] = part

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def restore_draws(source: Source, disk: Disk, before: Entry, after: Entry, moved: Moved) -> None:
    """Make the file of what a table has drawn.

    Args:
        source: of the table as it was.
        disk: to make the file on.
        before: what the table was.
        after: what it is from now on.
        moved: its rows.
    """
    cut = moved.memory.cut
    kept = _kept(source, before, moved)
    there = moved.numbers + moved.shift + moved.base
    made = DrawsFile.create(disk, after.draws, after.spec.sampler, moved.slots, moved.base)
    try:
        head = cut.head + moved.shift + moved.base
        if after.spec.sampler.kind == before.spec.sampler.kind == "prioritized":
            powers = _powers(kept, before.spec.sampler, after.spec.sampler)
            made.put_priorities(there[kept.known], powers[kept.known])
        uses = after.spec.sampler.uses
        if uses is not None and before.spec.sampler.uses is not None:
            made.put_times(there, np.minimum(kept.times, uses).astype(np.uint64))
        if kept.counts is not None:
            counts = _recounted(kept, before, after, moved)
            made.note(counts, kept.maximum, head)
        made.file.sync()
    finally:
        made.close()


def _recounted(kept: Kept, before: Entry, after: Entry, moved: Moved) -> Counts:
    """Return what has been counted up to the newest row, for the table that is made."""
    assert kept.counts is not None  # noqa: S101 the caller looked
    cut, numbers = moved.memory.cut, moved.numbers
    records = moved.memory.file.records[numbers % moved.memory.file.meta.slots]
    back = np.where(records["number"] == numbers, records["back"], 0).astype(np.int64)
    since = np.count_nonzero(back[numbers >= kept.head - cut.state.base])
    counts = kept.counts._replace(inserts=kept.counts.inserts + int(since))
    uses, left = after.spec.sampler.uses, 0
    if uses is not None:
        to = moved.shift + moved.base
        low = table_tail(
            cut.head + to, int(numbers[0]) + to if len(numbers) else 0, moved.slots, after.spec.steps
        )
        starts = starts_among(numbers, back, low - to)
        times = np.zeros(len(numbers), np.int64) if before.spec.sampler.uses is None else kept.times
        drawn = times[starts - numbers[0]] if len(starts) else times[:0]
        left = int((uses - np.minimum(drawn, uses)).sum())
    return recounted(counts, before.limited, after.limited, left)


def _kept(source: Source, entry: Entry, moved: Moved) -> Kept:
    """Return what a table has drawn of the rows."""
    opened = source.disk.open(entry.draws, writable=False)
    base = moved.memory.cut.state.base
    try:
        file = _InMemory(bytes(opened.buffer))
        draws = DrawsFile(file, entry.spec.sampler, moved.memory.file.meta.slots, base)
        return draws.kept(moved.numbers + base, moved.memory.cut.head + base)
    finally:
        opened.close()


def _powers(kept: Kept, before: SamplerSpec, after: SamplerSpec) -> NDArray[np.float64]:
    """Return p^alpha under another alpha."""
    if before.priority_exponent == after.priority_exponent:
        return kept.powers
    if before.priority_exponent == 0:  # no priority can be told from p^0
        return np.where(kept.powers > 0, np.float64(kept.maximum) ** after.priority_exponent, 0.0)
    with np.errstate(over="ignore"):
        powers = kept.powers ** (after.priority_exponent / before.priority_exponent)
    return np.where(kept.powers > 0, np.clip(powers, np.finfo(np.float64).tiny, 1e290), 0.0)
