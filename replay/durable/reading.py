"""What a server's folder holds, read with everything decoded: a table's rows in order, and its episodes.

A server may serve from the folder meanwhile; then what is read is as of the moment when reading began.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import LAST
from fornix.common.signature import Signature, frame_name
from fornix.common.specs import TableSpec
from fornix.replay.durable.assembling import Assembled, Assembler
from fornix.replay.durable.reader import CHUNK_NBYTES, Chunk, MemoryReader
from fornix.replay.durable.records import LEFT
from fornix.replay.durable.source import Source
from fornix.replay.episodes import Episode
from fornix.replay.stacking import Numbers
from fornix.replay.storage import EXTRA_PREFIX

_LOG = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Consecutive rows of a table, in arrays [K, ...]; rows that are damaged are not among them."""

    key: Numbers
    writer: list[str]
    """Names; empty where a writer was forgotten so long ago that it is not known."""
    lane: NDArray[np.int64]
    step_type: NDArray[np.uint8]
    terminated: NDArray[np.bool_]
    first: Numbers
    """The key of the episode's FIRST row."""
    previous: Numbers
    """The key of the row before in the episode; a FIRST row's own."""
    position: NDArray[np.int64]
    """Steps since FIRST."""
    policy_version: NDArray[np.int64]
    frame: dict[str, NDArray[Any]]
    """By path."""
    action: NDArray[Any]
    reward: NDArray[Any]
    extras: dict[str, NDArray[Any]]


def tables(folder: Path) -> dict[str, TableSpec]:
    """Return what each table of a folder is now, or raise StorageError."""
    with Source(folder) as source:
        return {name: entry.limited for name, entry in source.contents.tables.items()}


def rows(folder: Path, table: str, nbytes: int = CHUNK_NBYTES) -> Iterator[Rows]:
    """Yield the rows of a table in order, about so many bytes at a time.

    Rows that a server overwrites before they are read are passed over, and so are damaged ones.

    Raises:
        StorageError: if the folder can't be read.
        UnknownTableError: if it has no such table.
    """
    with Source(folder) as source, source.memory(table) as memory:
        names = memory.cut.names()
        for numbers in memory.ranges(nbytes):
            yield _decoded(memory, memory.read(numbers), names)


def episodes(folder: Path, table: str) -> tuple[Signature, Iterator[Episode]]:
    """Return a table's signature, and its episodes that are whole from their FIRST step.

    They come in the order in which they ended, then those that are open. One episode is in memory at a
    time. Once all have been taken, the log says how many there were that are not whole.

    Raises:
        StorageError: if the folder can't be read.
        UnknownTableError: if it has no such table.
    """
    with Source(folder) as source:
        source.rows_of(table)
        signature = source.contents.tables[table].spec.signature
    return signature, _episodes(folder, table)


def _episodes(folder: Path, table: str) -> Iterator[Episode]:
    with Source(folder) as source, source.memory(table) as memory:
        assembler = Assembler(memory)
        names = memory.cut.names()
        for found in assembler.episodes():
            rows = memory.read(found.numbers)
            if len(rows.numbers) == len(found.numbers):
                yield _episode(memory, found, rows, names)
            elif rows.overwritten:
                assembler.overwritten += 1
            else:
                assembler.damaged += 1
        _tell(table, assembler)


def _episode(
    memory: MemoryReader, found: Assembled, rows: Chunk, names: dict[tuple[int, int], str]
) -> Episode:
    decoded = _decoded(memory, rows, names)
    return Episode(
        writer=decoded.writer[0],
        lane=int(decoded.lane[0]),
        keys=decoded.key,
        frame=decoded.frame,
        action=decoded.action,
        reward=decoded.reward,
        terminated=bool(decoded.terminated[-1]) and int(decoded.step_type[-1]) == LAST,
        open=found.open,
        policy_version=decoded.policy_version,
        extras=decoded.extras,
    )


def _decoded(memory: MemoryReader, chunk: Chunk, names: dict[tuple[int, int], str]) -> Rows:
    """Return rows with everything decoded, but for those that only say that a lane left."""
    signature, base = memory.file.meta.signature, memory.cut.state.base
    real = chunk.records["step_type"] != LEFT
    records, payload = chunk.records, chunk.payload
    key = chunk.numbers + base
    if not real.all():
        records, key = records[real], key[real]
        payload = {name: values[real] for name, values in payload.items()}
    writers = zip(records["writer"].tolist(), records["opening"].tolist(), strict=True)
    numbers = {name: records[name].astype(np.int64) for name in ("lane", "position", "policy_version")}
    return Rows(
        key=key,
        writer=[names.get(writer, "") for writer in writers],
        step_type=records["step_type"].copy(),
        terminated=records["terminated"].astype(np.bool_),
        first=key - records["first"],
        previous=key - records["back"],
        frame={path: payload[frame_name(path)] for path in signature.frames},
        action=payload["action"],
        reward=payload["reward"],
        extras={name: payload[EXTRA_PREFIX + name] for name in signature.extras},
        **numbers,
    )


def _tell(table: str, assembler: Assembler) -> None:
    if assembler.overwritten:
        _LOG.warning(
            "%d episodes of table %r are left out: their beginning was overwritten",
            assembler.overwritten,
            table,
        )
    if assembler.damaged:
        _LOG.warning("%d episodes of table %r are left out: they are damaged", assembler.damaged, table)
