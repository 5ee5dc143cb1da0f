import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fornix.replay.samplers import queues, sum_tree

from .model import KINDS, Ring, array

shares = st.floats(0, 1)
priorities = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 7.0])


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Let small trees have many levels, and small queues run full."""
    monkeypatch.setattr(sum_tree, "_TOP_NODES", 1)
    monkeypatch.setattr(queues, "_SMALLEST", 2)


class SamplerAgainstModel(RuleBasedStateMachine):
    """Does the same to a sampler and to the model, and compares all that either says."""

    @initialize(
        kind=st.sampled_from(KINDS),
        slots=st.sampled_from([1, 2, 7, 16, 45, 300]),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        limit=st.sampled_from([None, None, 1, 2, 5]),
        seed=st.integers(0, 99),
    )
    def begin(self, kind, slots, alpha, limit, seed):
        self.ring = Ring(kind, slots, alpha, limit)
        self.rng = np.random.default_rng(seed)

    def some(self, numbers, share):
        """Return a part of `numbers`, in random order."""
        return self.rng.permutation(array(numbers))[: round(share * len(numbers))].tolist()

    @rule(share=shares)
    def append(self, share):
        self.ring.append(round(share * self.ring.slots))

    @rule(share=shares)
    def add(self, share):
        self.ring.add(self.some(self.ring.waiting, share))

    @rule(share=shares)
    def remove(self, share):
        self.ring.remove(self.some(self.ring.model.starts, share))

    @rule(share=shares)
    def remove_oldest(self, share):
        starts = self.ring.model.starts
        self.ring.remove(starts[: round(share * len(starts))])

    @rule(share=shares)
    def remove_newest(self, share):
        starts = self.ring.model.starts
        self.ring.remove(starts[::-1][: round(share * len(starts))])

    @rule(share=shares, values=st.lists(priorities, min_size=1, max_size=20))
    def update(self, share, values):
        """Of rows that are live, gone, or still to come, some of them twice."""
        low, high = self.ring.head - 2 * self.ring.slots, self.ring.head + 3
        numbers = self.rng.integers(low, low + 1 + round(share * (high - low)), len(values))
        self.ring.update(np.maximum(0, numbers).tolist(), values)

    @rule(count=st.integers(1, 90))
    def draw(self, count):
        can = self.ring.sampler.can_draw(count)
        assert can == self.ring.model.can_draw(count)
        if can:
            self.ring.draw(count, self.rng)
        else:
            assert self.ring.sampler.why_not(count).endswith("open it")

    @rule(count=st.integers(1, 90))
    def look(self, count):
        drawable = self.ring.sampler.drawable(count).tolist()
        possible = self.ring.model.drawable()
        assert len(set(drawable)) == len(drawable) == min(count, len(possible))
        assert set(drawable) <= possible
        starts = self.ring.model.starts
        ahead = {"uniform": 0, "prioritized": 0, "epoch": len(self.ring.model.left)}
        assert self.ring.sampler.distinct_ahead() == ahead.get(self.ring.model.kind, len(starts))

    @invariant()
    def the_same_starts_are_in_it(self):
        if not hasattr(self, "ring"):
            return
        starts = self.ring.model.starts
        assert len(self.ring.sampler) == len(starts)
        asked = np.arange(max(0, self.ring.head - 3 * self.ring.slots), self.ring.head + 1)
        assert asked[self.ring.sampler.contains(asked)].tolist() == sorted(starts)
        if self.ring.model.kind == "epoch":
            inner = getattr(self.ring.sampler, "inner", self.ring.sampler)
            assert inner.epoch == self.ring.model.epoch


TestSamplerAgainstModel = SamplerAgainstModel.TestCase
TestSamplerAgainstModel.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_stays_exact_while_the_slots_are_used_again_and_again(kind, limit):
    rng = np.random.default_rng(1)
    ring = Ring(kind, slots=300, alpha=0.6, limit=limit)
    for _ in range(60):
        ring.turn(rng, rounds=1)
        assert sorted(ring.sampler.drawable(300).tolist()) == sorted(ring.model.drawable())
        if ring.sampler.can_draw(40):
            ring.draw(40, rng)
    assert ring.head > 10 * ring.slots
