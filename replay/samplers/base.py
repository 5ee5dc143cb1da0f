"""What every sampler does.

A sampler knows rows by their numbers alone. Row number r lies in slot r mod slots, and all numbers that
are in a sampler at one time lie in a window of at most `slots` consecutive numbers: no two share a slot.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Draw(NamedTuple):
    """Starts that were drawn, in order."""

    numbers: Numbers
    """int64 [B]"""
    probability: NDArray[np.float64]
    """float64 [B], in (0, 1]: with which each was drawn, given the draws before it."""


class Sampler(Protocol):
    """Holds starts and draws from them."""

    def __len__(self) -> int:
        """Return how many starts are in it."""

    def add(self, numbers: Numbers) -> None:
        """Put starts in, in order of completion: distinct, and none of them in it."""

    def remove(self, numbers: Numbers) -> None:
        """Take starts out: distinct, and all of them in it."""

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it; any numbers from 0 on may be asked for."""

    def update(self, numbers: Numbers) -> None:
        """Take over new priorities; numbers that are not in it are ignored."""

    def can_draw(self, count: int) -> bool:
        """Whether `draw(count)` gives a batch now."""

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return `count` starts; `can_draw(count)` must hold."""

    def why_not(self, count: int) -> str:
        """Return what a batch of `count` lacks, with the numbers, and what would open it."""

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` different starts that may be drawn now, all if there are no more."""

    def distinct_ahead(self) -> int:
        """Return how many draws from now on give different starts; 0 if any start may come again."""


class Unprioritized(Sampler, Protocol):
    """A sampler to which priorities mean nothing."""

    def update(self, numbers: Numbers) -> None:
        """Ignore new priorities."""


def no_starts() -> str:
    """Return why nothing can be drawn from an empty sampler."""
    return "there are no starts to draw from; more steps open it"
