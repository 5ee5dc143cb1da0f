"""Damages a memory's file while no server has it, to see that a chaos run notices."""

import numpy as np

from durability.shared import TABLE
from fornix.common.messages import FIRST, LAST
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import RowsFile
from fornix.replay.durable.folder import read_contents
from fornix.replay.durable.records import record_checks
from fornix.replay.storage import payload_columns

KINDS = ("lost", "doubled", "torn")


def damage(data, kind, since):
    """Take a request away that was answered, or write one once more, or change a bit of a frame.

    Args:
        data: the folder of a server that is dead.
        kind: which of `KINDS`.
        since: the number of the first row that nobody has read yet.

    Returns:
        Whether there was anything to damage.
    """
    disk = FolderDisk(data)
    file = RowsFile.open(disk, read_contents(disk).tables[TABLE].rows)
    numbers = np.arange(since, since + file.meta.slots)
    count = int(np.argmin(np.append(file.records["number"][numbers % len(numbers)] == numbers, False)))
    done = count > 0 and _DAMAGES[kind](file, numbers[:count])
    file.close()
    disk.close()
    return done


def _lose(file, numbers):
    """Take the first request away that its writer has gone on after, and all that came later."""
    records = file.records[numbers % file.meta.slots]
    begins = np.flatnonzero(records["index"] == 0)
    openings = records["opening"][begins].tolist()
    answered = [begin for at, begin in enumerate(begins) if openings[at] in openings[at + 1 :]]
    if not answered:
        return False
    file.records[numbers[answered[0] :] % file.meta.slots] = np.zeros(1, records.dtype)
    return True


def _double(file, numbers):
    """Write the last whole request once more, behind itself."""
    slots = file.meta.slots
    records = file.records[numbers % slots]
    ends = np.flatnonzero(records["index"] + 1 == records["count"])
    if not len(ends):
        return False
    end = int(ends[-1]) + 1
    at = numbers[end - int(records["count"][end - 1]) : end]
    again = file.records[at % slots]
    again["number"] += len(at)
    again["check"] = record_checks(again)
    to = (at + len(at)) % slots
    file.records[to] = again  # its crc isn't right; the rows are read before any server looks
    for array in (file.arrays[name] for name in payload_columns(file.meta.signature)):
        array[to] = array[at % slots]
    return True


def _tear(file, numbers):
    """Change a bit of the last frame of a whole request."""
    records = file.records[numbers % file.meta.slots]
    whole = records["index"] + 1 == records["count"]
    rows = np.flatnonzero(whole & (records["step_type"] >= FIRST) & (records["step_type"] <= LAST))
    if not len(rows):
        return False
    file.arrays["frame"][numbers[rows[-1]] % file.meta.slots, -1] ^= 1 << 17
    return True


_DAMAGES = {"lost": _lose, "doubled": _double, "torn": _tear}
