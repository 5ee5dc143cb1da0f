"""Draws without replacement, epoch after epoch."""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Draw, Numbers, Unprioritized, no_starts
from fornix.replay.samplers.indexed_set import IndexedSet


class EpochSampler(Unprioritized):
    """Every start once, in random order, before any comes again.

    Starts that come during an epoch join it; those that go leave it. An epoch ends at the moment when
    there are starts but none of them is left in it, and the next begins with all of them. So a batch
    that reaches the end goes on with the next epoch, and holds a start twice only if it spans epochs.

    `probability` is 1 / (how many the epoch had left when the row was drawn, that row among them): the
    last of an epoch has 1.
    """

    def __init__(self, slots: int) -> None:
        # the first `left` of them are left in the epoch, the others have been drawn
        self._starts = IndexedSet(slots)
        self._left = 0
        #: How many epochs have ended.
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, numbers: Numbers) -> None:
        """Put starts in, to be drawn in the present epoch."""
        drawn_end = len(self._starts)
        self._starts.add(numbers)
        in_the_way = np.arange(self._left, min(self._left + len(numbers), drawn_end))
        self._starts.move_to_end(in_the_way, len(self._starts))
        self._left += len(numbers)

    def remove(self, numbers: Numbers) -> None:
        """Take starts out, of this epoch and of all later ones."""
        places = self._starts.places(numbers)
        self._take_from_epoch(places[places < self._left])
        self._starts.remove(numbers)
        self._turn()

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        return self._starts.contains(numbers)

    def can_draw(self, count: int) -> bool:
        """Whether there is any start."""
        return len(self._starts) > 0

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return `count` starts, from as many epochs as it takes."""
        parts = []
        while count:
            if count >= len(self) == self._left:
                part = self._whole_epochs(count // len(self), rng)
            else:
                part = self._from_epoch(min(count, self._left), rng)
            parts.append(part)
            count -= len(part.numbers)
        return Draw(*map(np.concatenate, zip(*parts, strict=True)))

    def why_not(self, count: int) -> str:
        """Return what is missing."""
        return no_starts()

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts; those that are left in the epoch come first."""
        return self._starts.numbers()[:at_most].copy()

    def distinct_ahead(self) -> int:
        """Return how many are left in the epoch."""
        return self._left

    def _from_epoch(self, count: int, rng: np.random.Generator) -> Draw:
        places = rng.choice(self._left, count, replace=False)
        numbers = self._starts.numbers()[places]
        probability = 1.0 / np.arange(self._left, self._left - count, -1)
        self._take_from_epoch(places)
        self._turn()
        return Draw(numbers, probability)

    def _whole_epochs(self, epochs: int, rng: np.random.Generator) -> Draw:
        """Return all starts `epochs` times, each time in an order of its own."""
        count = len(self)
        orders = rng.permuted(np.tile(self._starts.numbers(), (epochs, 1)), axis=1)
        self.epoch += epochs
        return Draw(orders.ravel(), np.tile(1.0 / np.arange(count, 0, -1), epochs))

    def _take_from_epoch(self, places: NDArray[np.integer]) -> None:
        self._starts.move_to_end(places, self._left)
        self._left -= len(places)

    def _turn(self) -> None:
        """End the epoch if none is left in it; so, while there are starts, one is left."""
        if self._left == 0 and len(self):
            self._left = len(self)
            self.epoch += 1
