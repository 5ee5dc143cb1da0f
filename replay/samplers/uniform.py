"""Uniform draws, with replacement."""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Draw, Numbers, Unprioritized, no_starts
from fornix.replay.samplers.indexed_set import IndexedSet


class UniformSampler(Unprioritized):
    """Each start with the same probability, 1 / len, at each draw."""

    def __init__(self, slots: int) -> None:
        self._starts = IndexedSet(slots)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, numbers: Numbers) -> None:
        """Put starts in."""
        self._starts.add(numbers)

    def remove(self, numbers: Numbers) -> None:
        """Take starts out."""
        self._starts.remove(numbers)

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        return self._starts.contains(numbers)

    def can_draw(self, count: int) -> bool:
        """Whether there is any start."""
        return len(self._starts) > 0

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return `count` independent draws; the cost doesn't depend on how many starts there are."""
        starts = self._starts.numbers()
        drawn = starts[rng.integers(0, len(starts), count)]
        return Draw(drawn, np.full(count, 1.0 / len(starts)))

    def why_not(self, count: int) -> str:
        """Return what is missing."""
        return no_starts()

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts."""
        return self._starts.numbers()[:at_most].copy()

    def distinct_ahead(self) -> int:
        """Return 0: any start may come again."""
        return 0
