"""What can be drawn, and from which rows it may start: transitions, sequences, whole episodes.

Each kind says which starts a new row completes. All begin with a whole stack; docs/replay.md defines
them in notation. "Position" is the number of steps since the episode's FIRST row, which has position 0.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.common.specs import Episode, Sequence, Transition, Unit
from fornix.replay.ring import Ring
from fornix.replay.stacking import NONE, Numbers

_CELLS_AT_ONCE = 1 << 20  # rows times the steps of a unit, which a look for starts takes memory for


class Starts(Protocol):
    """Which rows are starts of one kind of unit."""

    span: int
    """T: steps that a unit has at most."""

    def completed(self, rows: Numbers, tail: int) -> Numbers:
        """Return the starts that new rows complete, or rows that are their episodes' ends now.

        Args:
            rows: int64 [K], live, in order.
            tail: the oldest row that counts.

        Returns:
            int64: the starts, in the order in which their last rows stand; some may have been
            completed before.
        """


def alike(unit: Unit) -> Unit:
    """Return the unit that stands for all that have the same starts, whatever they warm up with."""
    return unit.model_copy(update={"burn_in": 0}) if isinstance(unit, Sequence) else unit


def starts_of(unit: Unit, ring: Ring) -> Starts:
    """Return which rows of a ring are starts of a unit."""
    if isinstance(unit, Transition):
        return TransitionStarts(ring, unit)
    return SequenceStarts(ring, unit) if isinstance(unit, Sequence) else EpisodeStarts(ring, unit)


def what_follows(unit: Unit) -> str:
    """Return what a start of a unit needs after it, in words."""
    if isinstance(unit, Transition):
        return f"the {unit.n_step} steps after it, or its episode's end"
    if isinstance(unit, Sequence):
        return f"the {unit.length} steps after it, or its episode's end"
    return f"its episode's end at most {unit.max_steps} steps after it"


class TransitionStarts:
    """Every row that n_step rows follow in its episode; or fewer, of which the last is its end."""

    def __init__(self, ring: Ring, unit: Transition) -> None:
        self._ring = ring
        self.span = unit.n_step

    def completed(self, rows: Numbers, tail: int) -> Numbers:
        """See Starts: the row n steps back, and all later ones from an episode's end."""
        if self.span == 1:
            before = self._ring.before(rows, tail)
            return before[before >= 0]
        parts = [self._look(rows[part], tail) for part in _parts(len(rows), self.span)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _look(self, rows: Numbers, tail: int) -> Numbers:
        ends = self._ring.is_end(rows)
        some_end = bool(ends.any())
        found = np.full((self.span, len(rows)), NONE, np.int64)
        current = rows
        for step in range(1, self.span + 1):
            current = self._ring.before(current, tail)
            if step == self.span:
                found[-step] = current
            elif some_end:
                found[-step, ends] = current[ends]
        return _in_order(found)


class SequenceStarts:
    """Every `period`-th row of an episode, until the sequence before reaches the episode's end."""

    def __init__(self, ring: Ring, unit: Sequence) -> None:
        self._ring = ring
        self._position = ring.column("position")
        self._unit = unit
        self.span = unit.length

    def completed(self, rows: Numbers, tail: int) -> Numbers:
        """See Starts: the row `length` steps back; from an episode's end also those later ones."""
        position = self._position[self._ring.slots(rows)].astype(np.int64)
        ends = self._ring.is_end(rows)
        full = (position >= self.span) & ((position - self.span) % self._unit.period == 0)
        looking = np.flatnonzero(full | ends)
        parts = [looking[part] for part in _parts(len(looking), self.span)]
        found = [self._look(rows[at], position[at], ends[at], full[at], tail) for at in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _look(
        self, rows: Numbers, position: Numbers, ends: NDArray[np.bool_], full: NDArray[np.bool_], tail: int
    ) -> Numbers:
        found = np.full((self.span, len(rows)), NONE, np.int64)
        current = rows
        for step in range(1, min(self.span, int(position.max(initial=0))) + 1):
            current = self._ring.before(current, tail)
            wanted = full if step == self.span else ends & self._starts(position - step, position)
            found[-step] = np.where(wanted, current, NONE)
        return _in_order(found)

    def _starts(self, position: Numbers, end: Numbers) -> NDArray[np.bool_]:
        """Return whether a sequence starts at a position, in an episode that ends at `end`."""
        starts: NDArray[np.bool_] = (position >= 0) & (position % self._unit.period == 0)
        starts &= (position == 0) | (position + self._unit.overlap < end)
        return starts


class EpisodeStarts:
    """Every FIRST row whose episode has ended, has a step, and has no more steps than admitted."""

    def __init__(self, ring: Ring, unit: Episode) -> None:
        self._ring = ring
        self.span = unit.max_steps

    def completed(self, rows: Numbers, tail: int) -> Numbers:
        """See Starts: the FIRST rows of the episodes that end with these rows."""
        steps = self._ring.read("position", rows)
        ends = self._ring.is_end(rows) & (steps >= 1) & (steps <= self.span)
        ended = rows[ends]
        first: Numbers = ended - self._ring.read("first", ended)
        return first[first >= tail]


def _parts(rows: int, span: int) -> Iterator[slice]:
    """Yield slices of so many rows, one at least, that a look for starts of `span` steps takes at once."""
    at_once = max(1, _CELLS_AT_ONCE // span)
    for low in range(0, max(1, rows), at_once):
        yield slice(low, low + at_once)


def _in_order(found: Numbers) -> Numbers:
    """Return starts [depth, rows], the deepest first, by their rows; without those that are NONE."""
    starts = found.T.ravel()
    return starts[starts >= 0]
