"""The priorities of a table's rows, as prioritized experience replay uses them (Schaul et al. 2016)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers.base import Numbers
from fornix.replay.samplers.sum_tree import Floats, padded_column

#: No table has more rows, so no sum over rows is larger than this many times the largest of them.
_MAX_ROWS = 2.0**31


class Priorities:
    """p^alpha of each live row, for all samplers of a table together.

    A new row has the largest priority that was ever applied, 1 at first: it is drawn soon, whatever its
    error may be. A priority of 0 means that the row is not drawn until it gets another one, and only 0
    does: a positive p has a positive p^alpha, which is at least the smallest normal number.
    """

    def __init__(self, slots: int, alpha: float) -> None:
        """Begin without rows.

        Raises:
            InvalidRequestError: if alpha is negative, infinite or NaN.
        """
        if not 0 <= alpha < np.inf:
            raise InvalidRequestError(
                f"the priority exponent alpha is {alpha}; it must be finite and at least 0: 0 draws "
                f"uniformly, 1 in proportion to the priorities"
            )
        self.slots = slots
        self.alpha = alpha
        #: The largest priority that was ever applied to a row.
        self.maximum = 1.0
        #: The newest row that has begun; -1 before the first.
        self.newest = -1
        #: p^alpha in slot order, float64 [>= slots]; samplers stand on it, and only `set` may change it.
        self.column = padded_column(slots)
        #: Told of each change: rows, int64 [K], and their p^alpha, [K] or one for all.
        self.changed: Callable[[Numbers, Floats], None] = _tell_nobody

    def begin(self, numbers: Numbers) -> None:
        """Give new rows the largest priority there was.

        The samplers must have let go of the rows that these overwrite.

        Args:
            numbers: int64 [K], consecutive, after all that have begun.
        """
        if len(numbers):
            power = self.power(np.float64(self.maximum))
            self.column[numbers % self.slots] = power
            self.newest = int(numbers[-1])
            self.changed(numbers, power)

    def check(self, values: NDArray[np.floating]) -> None:
        """Raise InvalidRequestError if one of `values`, [K], can't be a priority."""
        priorities = values.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(priorities) & (priorities >= 0)
            fine &= np.isfinite(priorities**self.alpha * _MAX_ROWS)
        if not fine.all():
            at = int(np.argmin(fine))
            raise InvalidRequestError(
                f"priority {at} of {len(values)} is {values[at]}; it must be a finite number from 0 to "
                f"{self._limit():.6g}; send the size of the error, or 0 for a row that is not to be drawn"
            )

    def set(self, numbers: Numbers, values: NDArray[np.floating]) -> None:
        """Apply priorities one after the other, so that the last one of a row's stays.

        Rows that have been overwritten, or haven't begun, are passed over. Then each sampler has to
        `update`.

        Args:
            numbers: int64 [K].
            values: floats [K] that `check` lets pass.
        """
        live = (numbers > self.newest - self.slots) & (numbers <= self.newest) & (numbers >= 0)
        priorities = values[live].astype(np.float64)
        if len(priorities):
            # numpy assigns in order where a slot is named twice
            powers = self.power(priorities)
            self.column[numbers[live] % self.slots] = powers
            self.changed(numbers[live], powers)
            self.maximum = max(self.maximum, float(priorities.max()))

    def restore(self, numbers: Numbers, powers: Floats) -> None:
        """Put p^alpha of live rows, int64 [K], in place of what they have; no sampler stands on it yet."""
        self.column[numbers % self.slots] = powers

    def numbers_in(self, slots: Numbers) -> Numbers:
        """Return the live rows that lie in slots."""
        return self.newest - (self.newest - slots) % self.slots

    def power(self, priorities: Floats | np.float64) -> Floats:
        """Return p^alpha."""
        powers = np.maximum(priorities**self.alpha, np.finfo(np.float64).tiny)
        return np.where(priorities > 0, powers, 0.0)

    def _limit(self) -> float:
        """Return about the largest priority that `check` lets pass."""
        largest = np.finfo(np.float64).max
        with np.errstate(over="ignore", divide="ignore"):
            root = (largest / _MAX_ROWS) ** (np.float64(1.0) / self.alpha)
        return float(min(root, largest))


def _tell_nobody(numbers: Numbers, powers: Floats) -> None:
    """Do nothing: no file keeps these priorities."""
