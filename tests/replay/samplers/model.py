"""What every sampler must do, said as plainly as can be: lists, sets, and one draw after the other."""

import numpy as np
import pytest

from fornix.replay.samplers import Priorities, TimesSampled, make_sampler

KINDS = ("uniform", "prioritized", "fifo", "lifo", "epoch")


def array(numbers):
    return np.array(list(numbers), np.int64)


class Model:
    """A sampler of one kind; with a limit, one whose starts leave as soon as they are used up."""

    def __init__(self, kind, alpha=1.0, limit=None):
        self.kind = kind
        self.alpha = alpha
        self.limit = limit
        self.starts = []
        self.left = set()
        self.epoch = 0
        self.priority = {}
        self.times = {}
        self.largest = 1.0

    def begin(self, number):
        self.priority[number] = self.largest
        self.times[number] = 0

    def add(self, numbers):
        numbers = [number for number in numbers if self.uses(number) > 0]
        self.starts += numbers
        self.left |= set(numbers)

    def remove(self, numbers):
        self.starts = [start for start in self.starts if start not in set(numbers)]
        self.left -= set(numbers)
        self._turn()

    def set(self, number, priority):
        self.priority[number] = priority
        self.largest = max(self.largest, priority)

    def uses(self, number):
        return np.inf if self.limit is None else self.limit - self.times[number]

    def weight(self, start):
        if self.kind == "prioritized":
            return self.priority[start] ** self.alpha if self.priority[start] else 0.0
        return float(start in self.left) if self.kind == "epoch" else 1.0

    def drawable(self):
        return {start for start in self.starts if self.kind == "epoch" or self.weight(start) > 0}

    def can_draw(self, count):
        if self.kind in ("fifo", "lifo"):
            return len(self.starts) >= count
        return sum(map(self.uses, self.drawable())) >= max(1, count)

    def check_draw(self, draw, count):
        """Assert that a sampler could draw this, and do the same."""
        assert draw.numbers.dtype == np.int64
        assert draw.probability.dtype == np.float64
        assert draw.numbers.shape == draw.probability.shape == (count,)
        in_order = {"fifo": self.starts, "lifo": self.starts[::-1]}.get(self.kind)
        if in_order is not None:
            assert draw.numbers.tolist() == in_order[:count]
            assert draw.probability.tolist() == [1.0] * count
        for number, probability in zip(draw.numbers.tolist(), draw.probability.tolist(), strict=True):
            assert number in self.starts
            if in_order is None:
                assert probability == pytest.approx(
                    self.weight(number) / sum(map(self.weight, self.starts))
                )
            self._take(number)

    def _take(self, number):
        self.times[number] += 1
        self.left.discard(number)
        self._turn()  # a start leaves after its draw, so the last draw of all ends an epoch too
        self.remove([number] if self.uses(number) == 0 else [])

    def _turn(self):
        if self.starts and not self.left:
            self.left = set(self.starts)
            self.epoch += 1


class Ring:
    """A sampler and its model over a ring whose rows come and go, always told the same."""

    def __init__(self, kind, slots, alpha=1.0, limit=None):
        self.slots = slots
        self.head = 0
        self.priorities = Priorities(slots, alpha)
        self.times = TimesSampled(slots, limit)
        self.sampler = self.times.wrap(make_sampler(kind, slots, self.priorities))
        self.model = Model(kind, alpha, limit)

    @property
    def live(self):
        return range(max(0, self.head - self.slots), self.head)

    @property
    def waiting(self):
        """The live rows that are not in the sampler."""
        return sorted(set(self.live) - set(self.model.starts))

    def append(self, count):
        tail = max(0, self.head + count - self.slots)
        self.remove([start for start in self.model.starts if start < tail])
        numbers = range(self.head, self.head + count)
        self.head += count
        self.priorities.begin(array(numbers))
        self.times.begin(array(numbers))
        for number in numbers:
            self.model.begin(number)

    def add(self, numbers):
        self.sampler.add(array(numbers))
        self.model.add(numbers)

    def remove(self, numbers):
        self.sampler.remove(array(numbers))
        self.model.remove(numbers)

    def update(self, numbers, values):
        """Set priorities; numbers may be of rows that are gone, and come twice."""
        self.priorities.set(array(numbers), np.array(values))
        self.sampler.update(array(numbers))
        for number, value in zip(numbers, values, strict=True):
            if number in self.live:
                self.model.set(number, value)

    def draw(self, count, rng):
        drawn = self.sampler.draw(count, rng)
        before = set(self.model.starts)
        self.model.check_draw(drawn, count)
        used_up = self.times.used_up.tolist()
        assert sorted(used_up) == sorted(before - set(self.model.starts))
        return drawn

    def turn(self, rng, rounds=50):
        """Let rows come, become starts in any order, leave and get priorities, for many a turn."""
        for _ in range(rounds):
            self.append(int(rng.integers(1, self.slots // 2 + 1)))
            waiting = rng.permutation(self.waiting)
            self.add(waiting[: rng.integers(len(waiting) + 1)].tolist())
            starts = rng.permutation(self.model.starts)
            self.remove(starts[: rng.integers(len(starts) // 3 + 1)].astype(int).tolist())
            updated = rng.integers(self.live[0], self.head, self.slots // 2)
            self.update(updated.tolist(), rng.choice([0.0, 0.5, 1.0, 3.0], len(updated)).tolist())
