"""At most so many draws of each row: `max_times_sampled`."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers.base import Draw, Numbers, Sampler

#: Above it a stream of draws is cut and begun anew; see `_accept`.
_MOST_MASS_GONE = 0.5


class TimesSampled:
    """How often each live row has been drawn, for all samplers of a table together.

    With a limit, each sampler has to be wrapped. A start that is used up has left the sampler that drew
    it; others may hold it too, so after each draw the table takes `used_up` out of them.
    """

    def __init__(self, slots: int, limit: int | None) -> None:
        """Begin without rows; without a limit nothing is counted, and no memory taken.

        Raises:
            InvalidRequestError: if the limit is below 1.
        """
        if limit is not None and limit < 1:
            raise InvalidRequestError(
                f"max_times_sampled is {limit}; it must be at least 1, or none for no limit"
            )
        self._slots = slots
        self.limit = limit
        dtype = np.min_scalar_type(limit or 0)
        self._times: NDArray[np.unsignedinteger] = np.zeros(slots if limit else 0, dtype)
        #: The starts that the latest draw used up, int64 [K], distinct.
        self.used_up: Numbers = np.empty(0, np.int64)
        #: Told of rows, int64 [K], that have been drawn, and how often each has been by now.
        self.changed: Callable[[Numbers, NDArray[np.unsignedinteger]], None] = _tell_nobody

    def wrap(self, sampler: Sampler) -> Sampler:
        """Return a sampler that keeps the limit, or `sampler` itself if there is none."""
        return sampler if self.limit is None else LimitedSampler(sampler, self)

    def begin(self, numbers: Numbers) -> None:
        """Let new rows, int64 [K], begin without draws."""
        if self.limit is not None:
            self._times[numbers % self._slots] = 0

    def restore(self, numbers: Numbers, times: NDArray[np.int64]) -> None:
        """Take over how often live rows, int64 [K], have been drawn, or nothing without a limit."""
        if self.limit is not None:
            self._times[numbers % self._slots] = np.minimum(times, self.limit)

    def left(self, numbers: Numbers) -> NDArray[np.int64]:
        """Return how often each of `numbers` may still be drawn; there must be a limit."""
        times: NDArray[np.int64] = self._times[numbers % self._slots].astype(np.int64)
        return (self.limit or 0) - times

    def count(self, numbers: Numbers) -> Numbers:
        """Count draws, a start drawn twice as two, and return those that are used up now, once each."""
        slots = numbers % self._slots
        np.add.at(self._times, slots, 1)
        self.changed(numbers, self._times[slots])
        return np.unique(numbers[self.left(numbers) == 0])


class LimitedSampler(Sampler):
    """A sampler that loses a start at the moment when it is used up.

    A batch is drawn as if one by one: what is drawn, and with what `probability`, is as if each start
    left the inner sampler as soon as it was used up. Starts that are used up are not taken in again, and
    `remove` passes over what has left already.

    No count of the uses that are left is kept, since a sampler can't see what the others draw. None is
    needed: each start in it has one at least, so only where there are fewer starts than a batch has rows
    do their uses need to be counted, and then there are few.
    """

    def __init__(self, inner: Sampler, times: TimesSampled) -> None:
        self.inner = inner
        self._times = times

    def __len__(self) -> int:
        return len(self.inner)

    def add(self, numbers: Numbers) -> None:
        """Put in those starts that have a use left."""
        self.inner.add(numbers[self._times.left(numbers) > 0])

    def remove(self, numbers: Numbers) -> None:
        """Take out those starts that are still in it."""
        self.inner.remove(numbers[self.inner.contains(numbers)])

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which of `numbers` are in it."""
        return self.inner.contains(numbers)

    def update(self, numbers: Numbers) -> None:
        """Take over new priorities."""
        self.inner.update(numbers)

    def can_draw(self, count: int) -> bool:
        """Whether the inner sampler could draw, and its starts have `count` uses left in all."""
        return self.inner.can_draw(count) and self._uses(count) >= count

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Return `count` starts, and take those out that are used up."""
        parts, used_up = [], []
        while count:
            part = self._draw_some(count, rng)
            used_up.append(self._times.count(part.numbers))
            self.inner.remove(used_up[-1])
            parts.append(part)
            count -= len(part.numbers)
        self._times.used_up = np.concatenate(used_up)
        return Draw(*map(np.concatenate, zip(*parts, strict=True)))

    def why_not(self, count: int) -> str:
        """Return what is missing."""
        if not self.inner.can_draw(count):
            return self.inner.why_not(count)
        return (
            f"each start is drawn {self._times.limit} times at most (max_times_sampled), and those that "
            f"are there have {self._uses(count)} draws left, of {count} for a batch; more steps open it"
        )

    def drawable(self, at_most: int) -> Numbers:
        """Return up to `at_most` starts that may be drawn now."""
        return self.inner.drawable(at_most)

    def distinct_ahead(self) -> int:
        """Return how many draws from now on give different starts."""
        return self.inner.distinct_ahead()

    def _uses(self, enough: int) -> int:
        """Return how many draws the starts have left in all, or `enough` if they have no fewer."""
        starts = self.inner.drawable(enough)
        return min(enough, len(starts) if len(starts) == enough else int(self._times.left(starts).sum()))

    def _draw_some(self, at_most: int, rng: np.random.Generator) -> Draw:
        """Return one draw at least, and no more than may be made before starts have to be taken out."""
        ahead = self.inner.distinct_ahead()
        if ahead:
            return self.inner.draw(min(at_most, ahead), rng)
        accepted = self._accept(self.inner.draw(at_most, rng))
        if not len(accepted.numbers):
            # the first draw is only rejected if its start had no use left before
            raise RuntimeError("a start that another sampler has used up is still in this one; remove it")
        return accepted

    def _accept(self, drawn: Draw) -> Draw:
        """Return what is left of draws with replacement once each was rejected whose start was used up.

        Rejection leaves the others their proportions, so it is as if the start had left. The probability
        of what comes after it grows by 1 / (1 - the mass that left). Once more than half has left, the
        rest is given up: that sum could be all rounding error, and most draws would be rejected.
        """
        uses = self._times.left(drawn.numbers) - times_before(drawn.numbers)
        leaving = np.where(uses == 1, drawn.probability, 0.0)
        gone = np.cumsum(leaving)
        gone[1:], gone[:1] = gone[:-1].copy(), 0.0
        accepted = (uses > 0) & (gone <= _MOST_MASS_GONE)
        probability = drawn.probability[accepted] / (1.0 - gone[accepted])
        return Draw(drawn.numbers[accepted], np.minimum(probability, 1.0))


def _tell_nobody(numbers: Numbers, times: NDArray[np.unsignedinteger]) -> None:
    """Do nothing: no file keeps these counts."""


def times_before(numbers: Numbers) -> NDArray[np.int64]:
    """Return for each of `numbers`, [K], how often it has come before in the array."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    places = np.arange(len(numbers))
    is_first = np.ones(len(numbers), np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    before = np.empty_like(places)
    before[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return before
