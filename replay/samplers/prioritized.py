"""Draws in proportion to priorities: prioritized experience replay (Schaul et al. 2016)."""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Draw, Numbers, Sampler, no_starts
from fornix.replay.samplers.priorities import Priorities
from fornix.replay.samplers.sum_tree import SumTree


class PrioritizedSampler(Sampler):
    """Start i with probability p_i^alpha / sum of p_k^alpha over its starts, at each draw.

    Draws are independent. The paper draws one start from each of `count` equal parts of the sum, which
    makes a batch more even, but gives no start its probability at any one place of the batch.

    A start must have begun in `priorities` before it is added.
    """

    def __init__(self, priorities: Priorities) -> None:
        self._priorities = priorities
        self._tree = SumTree(priorities.column)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, numbers: Numbers) -> None:
        """Put starts in, under the priorities that they have."""
        self._tree.add(numbers % self._priorities.slots)
        self._count += len(numbers)

    def remove(self, numbers: Numbers) -> None:
        """Take starts out."""
        self._tree.remove(numbers % self._priorities.slots)
        self._count -= len(numbers)

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        slots = numbers % self._priorities.slots
        live: NDArray[np.bool_] = self._priorities.numbers_in(slots) == numbers
        return live & self._tree.contains(slots)

    def update(self, numbers: Numbers) -> None:
        """Take over the priorities that have been set for `numbers`."""
        # a slot whose row isn't in it, or is another one by now, is computed anew to no effect
        self._tree.update(numbers % self._priorities.slots)

    def can_draw(self, count: int) -> bool:
        """Whether any start has a priority above 0."""
        return self._tree.total > 0

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return `count` independent draws."""
        total = self._tree.total
        slots = self._tree.find(rng.random(count) * total)
        return Draw(self._priorities.numbers_in(slots), self._tree[slots] / total)

    def why_not(self, count: int) -> str:
        """Return what is missing."""
        if not self._count:
            return no_starts()
        return (
            f"the priorities of all {self._count} starts are zero, so that none of them is to be drawn; "
            f"a priority above zero for one of them, or more steps, open it"
        )

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts whose priority is above 0."""
        return self._priorities.numbers_in(self._tree.positive(at_most))

    def distinct_ahead(self) -> int:
        """Return 0: any start may come again."""
        return 0
