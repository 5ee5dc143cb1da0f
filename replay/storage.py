"""Where rows live: named columns of a fixed capacity.

`Columns` is all that the ring asks of its storage, so that a mapped file can take the place of
anonymous memory.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.common.signature import ArraySpec, Signature

#: The columns that every row has beside its payload, with their dtypes.
HEADER_COLUMNS: Mapping[str, str] = {
    "back": "<u4",  # number - predecessor's number; 0 on an episode's first row
    "forward": "<u4",  # derived: successor's number - number; 0 while unknown; ENDS at the end
    "terminated": "|b1",
    "policy_version": "<u4",
}

EXTRA_PREFIX = "extras."


class Columns(Protocol):
    """Preallocated arrays of `capacity` rows each; `frame` has one row more, of zeros."""

    capacity: int
    arrays: Mapping[str, NDArray[Any]]


def payload_columns(signature: Signature) -> dict[str, ArraySpec]:
    """Return the columns that hold what clients send, by name."""
    extras = {EXTRA_PREFIX + name: spec for name, spec in signature.extras.items()}
    return {
        "frame": signature.frame,
        "action": signature.action,
        "reward": signature.reward,
        **extras,
    }


def nbytes(signature: Signature, capacity: int) -> int:
    """Return the bytes that the columns of a table take."""
    header = sum(np.dtype(dtype).itemsize for dtype in HEADER_COLUMNS.values())
    return capacity * (header + signature.step_nbytes) + signature.frame.nbytes


class AnonymousColumns:
    """Columns in the process's own memory; gone with the process."""

    def __init__(self, signature: Signature, capacity: int) -> None:
        self.capacity = capacity
        header = {name: np.zeros(capacity, dtype) for name, dtype in HEADER_COLUMNS.items()}
        payload = {
            name: np.zeros((capacity + (name == "frame"), *spec.shape), spec.dtype)
            for name, spec in payload_columns(signature).items()
        }
        self.arrays: Mapping[str, NDArray[Any]] = header | payload
