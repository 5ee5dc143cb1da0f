"""An episode as it is exported and imported: the rows of one lane from FIRST on."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import Signature

Array = NDArray[Any]

_WRITER = re.compile(r"[A-Za-z0-9_./:-]{0,128}")


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T actions: T + 1 rows, of which row 0 is FIRST.

    Action and reward of a row led to its frame and arrived with it, as everywhere in fornix.
    """

    writer: str
    """Name of its writer; empty where that is not known."""
    lane: int
    """The writer's lane, from 0."""
    keys: NDArray[np.int64]
    """int64 [T + 1]: the rows' keys in the table that they came from."""
    frame: dict[str, Array]
    """[T + 1, *obs] each, by path; the path of a single array is empty."""
    action: Array
    """[T + 1, *action]: that led to each row; 0 in row 0."""
    reward: Array
    """<f4 or <f8 [T + 1]: that arrived with each row; 0 in row 0."""
    terminated: bool
    """Whether nothing can follow the last row."""
    open: bool
    """Whether the episode was still going on after its last row; one that is neither was truncated."""
    policy_version: NDArray[np.int64]
    """int64 [T + 1]: version of the weights that chose each action."""
    extras: dict[str, Array] = field(default_factory=dict)
    """[T + 1, *extra] each, by name."""

    @property
    def rows(self) -> int:
        """T + 1."""
        return len(self.keys)

    @property
    def truncated(self) -> bool:
        """Whether the last row is the end, though something could have followed it."""
        return not (self.terminated or self.open)

    @property
    def step_type(self) -> NDArray[np.uint8]:
        """uint8 [T + 1]: FIRST, then MID, and LAST at the end; an episode of one row has FIRST alone."""
        kinds = np.full(self.rows, MID, np.uint8)
        if not self.open:
            kinds[-1] = LAST
        kinds[0] = FIRST
        return kinds

    def check(self, signature: Signature) -> None:
        """Raise InvalidRequestError unless every array has T + 1 rows and fits the signature."""
        rows = len(self.keys)
        if rows < 1:
            raise InvalidRequestError("an episode has no rows; it must have one at least, its FIRST")
        self._check_end()
        _check_writer(self.writer, self.lane)
        _check_numbers("keys", self.keys, rows)
        _check_numbers("policy_version", self.policy_version, rows)
        signature.check_frame(self.frame, rows)
        signature.action.check("action", self.action, rows)
        signature.reward.check("reward", self.reward, rows)
        if self.extras.keys() != signature.extras.keys():
            raise InvalidRequestError(
                f"extras are {sorted(self.extras)}; the signature has {sorted(signature.extras)}; give "
                f"just these"
            )
        for name, spec in signature.extras.items():
            spec.check(f"extras.{name}", self.extras[name], rows)

    def _check_end(self) -> None:
        if self.terminated and (self.open or self.rows == 1):
            what = "open" if self.open else "one FIRST row alone"
            raise InvalidRequestError(
                f"an episode is terminated and {what}; only one that has ended with LAST is terminated"
            )


def _check_writer(writer: str, lane: int) -> None:
    if not _WRITER.fullmatch(writer):
        raise InvalidRequestError(
            f"a writer is named {writer!r:.80}; use at most 128 letters, digits and _ . / : -"
        )
    if not 0 <= lane < 2**31:
        raise InvalidRequestError(f"lane is {lane}; it must be from 0 to 2147483647")


def _check_numbers(name: str, array: Array, rows: int) -> None:
    if array.shape != (rows,) or array.dtype.str != "<i8":
        raise InvalidRequestError(
            f"{name} has shape {array.shape} and dtype {array.dtype.str}; it must be {(rows,)} and <i8, "
            f"one for each row"
        )
    if array.min() < 0:
        raise InvalidRequestError(f"{name} holds {array.min()}; it must be 0 or more")
