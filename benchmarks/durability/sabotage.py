"""Damages a memory's file while no server has it, to see that a chaos run notices."""

import numpy as np

from durability.contents import N_FRAMES
from durability.shared import TABLE
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import RowsFile, record_checks
from fornix.replay.durable.folder import read_contents
from fornix.replay.storage import payload_columns

KINDS = ("lost", "doubled", "torn")


def damage(data, kind):
    """Take away the newest whole request, write it once more, or change a bit of its last frame.

    Args:
        data: the folder of a server that is dead.
        kind: which of `KINDS`.
    """
    disk = FolderDisk(data)
    file = RowsFile.open(disk, read_contents(disk).tables[TABLE].rows)
    records, slots = file.records, file.meta.slots
    last = records[int(np.argmax(records["number"]))]
    end = int(last["number"]) + 1
    if int(last["index"]) + 1 < int(last["count"]):
        end -= int(last["index"]) + 1
    count = int(records[(end - 1) % slots]["count"])
    at = np.arange(end - count, end) % slots
    if kind == "lost":
        records[np.arange(end - count, int(last["number"]) + 1) % slots] = np.zeros(1, records.dtype)
    elif kind == "torn":
        file.arrays["frame"][at[-1], N_FRAMES] ^= 1 << 17
    else:
        again = records[at]
        again["number"] += count
        again["check"] = record_checks(again)
        records[(at + count) % slots] = again  # its crc isn't right; the audit comes before any server
        for array in (file.arrays[name] for name in payload_columns(file.meta.signature)):
            array[(at + count) % slots] = array[at]
    file.close()
    disk.close()
