"""The record of a row, and the checksums that close it; see `fornix.replay.durable.file`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from fornix.common.signature import Signature
from fornix.replay.storage import payload_columns

#: Beside FIRST, MID and LAST: a lane that left, whose episode ends with the row before; it has no payload.
LEFT = 3
#: The lane of a request that has no rows and lets no lane leave.
NO_LANE = 2**32 - 1

RECORD = np.dtype(
    [
        ("number", "<u8"),  # from base
        ("sequence", "<u8"),  # of the request
        ("back", "<u4"),
        ("first", "<u4"),
        ("position", "<u4"),
        ("policy_version", "<u4"),
        ("lane", "<u4"),
        ("opening", "<u4"),  # of the writer: each has its own
        ("index", "<u4"),  # in the request
        ("count", "<u4"),  # rows of the request
        ("returned", "<f4"),  # rewards of the episode so far
        ("writer", "<u2"),  # its cell
        ("step_type", "|u1"),
        ("terminated", "|u1"),
        ("crc", "<u4"),
        ("check", "<u4"),
    ]
)
_FIELDS = RECORD.itemsize - 8  # bytes before `crc`
_SCRATCH_NBYTES = 1 << 17
# with both halves far from 0, times any power of 2 below 2^32
_ODDS = np.array([0x9E3779B97F4A7C15 * (2 * at + 1) % 2**64 | 1 for at in range(8)], np.uint64)


def record_checks(records: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the `check` that each record should have, uint32 [K].

    It is the upper half of the sum of its eight-byte words, each times an odd number of its own: whichever
    bit is flipped, the sum changes by more than the lower half can hold.
    """
    words = np.ascontiguousarray(records).view(np.uint64).reshape(len(records), -1)
    mixed = words[:, :-1] @ _ODDS[:-1] + records["crc"] * _ODDS[-1]
    upper: NDArray[np.uint32] = (mixed >> np.uint64(32)).astype(np.uint32)
    return upper


class RowPacker:
    """Packs rows so that each lies in one piece, to be closed by a checksum.

    The memory for that is used again and again, and small enough to stay in the processor's cache.

    Args:
        signature: of the rows.
    """

    def __init__(self, signature: Signature) -> None:
        columns = payload_columns(signature)
        fields = [(name, spec.dtype, spec.shape) for name, spec in columns.items()]
        row = np.dtype([("record", "<u8", (_FIELDS // 8,)), *fields])
        self._rows = np.zeros(max(1, _SCRATCH_NBYTES // row.itemsize), row)
        self._parts = {name: self._rows[name] for name in columns}
        self._records = self._rows["record"]
        self._whole = self._rows.view(f"V{row.itemsize}")

    def crc(self, records: NDArray[Any], payload: Mapping[str, NDArray[Any]]) -> list[int]:
        """Return the `crc` that each of K rows should have.

        Args:
            records: RECORD [K].
            payload: [K, ...] of each payload column, among others perhaps.
        """
        words = records.view(np.uint64).reshape(len(records), -1)[:, : _FIELDS // 8]
        found: list[int] = []
        for low in range(0, len(records), len(self._rows)):
            part = slice(low, low + len(self._rows))
            count = len(words[part])
            self._records[:count] = words[part]
            for name, column in self._parts.items():
                column[:count] = payload[name][part]
            found += map(crc32c, self._whole[:count].tolist())
        return found
