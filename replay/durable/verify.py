"""Whether a server's folder is what a server writes: every checksum, number and link of it.

A folder whose server was killed is as right as one that was closed: a request that was being applied may
be there in part behind the head. After a power cut copies of small records may be torn too.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c

from fornix.common.errors import StorageError
from fornix.replay.durable.draws import DrawsFile
from fornix.replay.durable.file import OtherFormatError, RowsFile, rows_are_whole
from fornix.replay.durable.findings import Findings
from fornix.replay.durable.folder import TABLES, Contents, Entry
from fornix.replay.durable.links import check_links, check_requests
from fornix.replay.durable.recovery import Found, Scan, find
from fornix.replay.durable.source import Source
from fornix.replay.stacking import Numbers

_CHUNK = 4096


class _Memory(NamedTuple):
    """What is to be known of a memory where draws from it are checked."""

    slots: int
    base: int
    torn: int


def verify(folder: Path, most: int = 100) -> Findings:
    """Read all that a folder holds, and return what is wrong with it.

    Args:
        folder: that no server has.
        most: so many findings are kept in words; all are counted.

    Raises:
        StorageError: if there is no such folder, a server has it, or another version has written it.
    """
    findings = Findings(most)
    with _opened(folder, findings) as source:
        memories: dict[str, _Memory] = {}
        for name, entry in source.contents.tables.items():
            if entry.rows:
                found = _verify_memory(source, name, entry, findings)
                memories |= {} if found is None else {name: found}
            owner = entry.spec.rows_of or name
            if owner not in source.contents.tables:
                findings.add(f"table {name!r}", f"draws from the rows of {owner!r}, which is not there")
            elif owner in memories:
                _verify_draws(source, name, entry, memories[owner], findings)
    return findings


def _opened(folder: Path, findings: Findings) -> Source:
    """Open a folder; of one whose `tables.json` is damaged, an empty one."""

    class Guarded(Source):
        def read_contents(self) -> Contents:
            data = self.disk.read(TABLES)
            fault = None if data is None else _fault_of(data)
            if fault is None:
                return super().read_contents()
            findings.add(TABLES, f"{fault}: which tables there are is not known")
            return Contents(format=0, made=0, tables={})

    return Guarded(folder, live=False)


def _fault_of(data: bytes) -> str | None:
    text, _, checksum = data.rpartition(b"\n")
    try:
        if int(checksum, 16) != crc32c(text):
            return "its checksum is wrong"
        json.loads(text)
    except ValueError:
        return "its checksum can't be read"
    return None


def _verify_memory(source: Source, table: str, entry: Entry, findings: Findings) -> "_Memory | None":
    """Check the rows of a table; return what its draws need, if that can be told."""
    where = f"table {table!r}"
    try:
        file = RowsFile.open(source.disk, entry.rows, writable=False)
    except OtherFormatError:
        raise
    except StorageError as error:
        findings.add(where, str(error))
        return None
    try:
        found, scan = find(file, source.disk.boot)
        _verify_small(file, where, found, findings)
        _verify_rows(file, where, found, scan, findings)
        return _Memory(file.meta.slots, found.state.base, _torn(found))
    except StorageError as error:
        findings.add(where, str(error))
        return None
    finally:
        file.close()


def _verify_small(file: RowsFile, where: str, found: Found, findings: Findings) -> None:
    """Check what a file has beside its rows."""
    torn = _torn(found)
    cells = {"state": file.state} | {f"cell of writer {at}": file.writer(at) for at in file.used_writers()}
    for name, cell in cells.items():
        if cell.broken > torn:
            findings.add(where, f"the {name} has {cell.broken} damaged copies")
    if file.broken_watermarks() > torn:
        findings.add(where, f"{file.broken_watermarks()} watermarks are damaged")
    written = max((copy.head for copy in file.state.copies()[:1]), default=found.head)
    if found.state.clean and written != found.head:
        findings.add(
            where,
            f"its server closed it with the rows below {written + found.state.base}, and those below "
            f"{found.head + found.state.base} are there",
        )
    for name, array in file.arrays.items():
        if name.partition(".")[0] == "frame" and array[file.meta.slots :].view(np.uint8).any():
            findings.add(where, f"the frame of zeros of {name!r} is not zero")


def _torn(found: Found) -> int:
    """Return how many copies of each small record may be damaged: those written after the last sync."""
    return 2 if found.lossy else 0


def _verify_rows(file: RowsFile, where: str, found: Found, scan: Scan, findings: Findings) -> None:
    base = found.state.base
    numbers = np.arange(found.tail, found.head)
    there = scan.there(numbers)
    _verify_missing(file, where, scan, numbers[~there], base, findings)
    kept = numbers[there]
    for low in range(0, len(kept), _CHUNK):
        part = kept[low : low + _CHUNK]
        bad = part[~rows_are_whole(file, part % scan.slots)]
        findings.rows(where, bad + base, "the checksum of its payload is wrong")
    findings.checked += len(numbers)
    misplaced = np.flatnonzero(scan.numbers % scan.slots != np.arange(scan.slots))
    misplaced = misplaced[scan.numbers[misplaced] > 0]
    findings.rows(
        where, scan.numbers[misplaced] + base, "stands in the place of another row: it is there twice"
    )
    records = file.records[kept % scan.slots]
    check_links(records, found.tail, base, where, findings)
    check_requests(records, found.head, base, where, findings)


def _verify_missing(
    file: RowsFile, where: str, scan: Scan, missing: Numbers, base: int, findings: Findings
) -> None:
    """Say of rows that have no whole record whether it is damaged or another's."""
    own = scan.numbers[missing % scan.slots] == missing
    findings.rows(where, missing[own] + base, "the checksum of its record is wrong")
    findings.rows(where, missing[~own] + base, "is missing: the numbers have a gap")


def _verify_draws(source: Source, table: str, entry: Entry, memory: _Memory, findings: Findings) -> None:
    where = f"table {table!r}"
    try:
        file = source.disk.open(entry.draws, writable=False)
        draws = DrawsFile(file, entry.spec.sampler, memory.slots, memory.base)
    except StorageError as error:
        findings.add(where, str(error))
        return
    if draws.broken > memory.torn:
        findings.add(where, f"what its limiter has counted has {draws.broken} damaged copies")
    draws.close()
