import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fornix.common.specs import SamplerSpec

from .both import KINDS, LIKE, UNITS, Both, a_life, a_sampler
from .builders import CUT, END, M

units = st.sampled_from(UNITS)
some = st.integers(0, 2)
plans = st.lists(st.tuples(some, st.sampled_from([M, M, M, M, END, CUT])), min_size=1, max_size=6)


class TablesAgainstModel(RuleBasedStateMachine):
    """Does the same to a memory with its tables and to the model, and compares all that either says."""

    makes = Both
    capacities = range(8, 41)
    most_requests = 12

    @initialize(seed=st.integers(0, 2**32), tables=st.integers(1, 3))
    def begin(self, seed, tables):
        """With any samplers, in use for any units: of a seed, or hypothesis would try few together."""
        rng = random.Random(seed)
        sampler, capacity = a_sampler(rng), rng.choice(self.capacities)
        self.both = self.makes(capacity, rng.randint(1, 4), sampler, rng.choice(LIKE), seed)
        self.both.open_writer("a", 2)
        for _ in range(1, tables):
            self.another_table_draws_from_the_rows(rng.random(), rng.randint(1, 4), rng.getrandbits(32))
        for _, model in self.both.tables:
            for unit in rng.sample(UNITS, rng.randint(0, 2)):
                model.use(unit)

    @rule(name=st.sampled_from("abc"), lanes=st.integers(1, 3))
    def open_writer(self, name, lanes):
        self.both.open_writer(name, lanes)

    @rule(who=some, more=some)
    def open_the_same_again(self, who, more):
        self.both.open_the_same_again(self._writer(who), more)

    @precondition(lambda self: len(self.both.tables) < 3)
    @rule(share=st.floats(0, 1), n_frames=st.integers(1, 4), seed=st.integers(0, 2**32))
    def another_table_draws_from_the_rows(self, share, n_frames, seed):
        self.both.add_table(self.both.share(share), n_frames, a_sampler(random.Random(seed)), seed)

    @precondition(lambda self: len(self.both.tables) > 1)
    @rule()
    def a_table_draws_no_more(self):
        self.both.drop_table()

    @rule()
    def reset(self):
        self.both.reset()
        self.both.open_writer("a", 2)

    @rule(who=some, plan=plans, stacks=st.booleans())
    def step(self, who, plan, stacks):
        self.both.write(self._writer(who), plan, stacks)

    @rule(who=some, plan=plans, times=st.integers(2, 20))
    def step_on_and_on(self, who, plan, times):
        """Turns the ring, and lets other writers' lanes fall asleep."""
        for _ in range(times):
            self.both.write(self._writer(who), plan)

    @rule(
        seed=st.integers(0, 2**32),
        requests=st.integers(1, 12),
        ends=st.sampled_from([0.05, 0.3, 0.8]),
        most=st.sampled_from([0.05, 0.2, 0.5]),
    )
    def play(self, seed, requests, ends, most):
        self.both.play(random.Random(seed), min(requests, self.most_requests), ends, most)

    @rule(who=some, lanes=st.lists(some, max_size=3), plan=plans | st.just([]))
    def lanes_leave(self, who, lanes, plan):
        self.both.write(self._writer(who), plan, leave=lanes)

    @rule(who=some, other=some, plan=plans, early=st.integers(-2, 6), stacks=st.booleans())
    def wake_just_in_time(self, who, other, plan, early, stacks):
        self.both.wake_just_in_time(self._writer(who), self._writer(other), plan, early, stacks)

    @rule(who=some, back=st.integers(1, 9))
    def repeat(self, who, back):
        self.both.repeat(self._writer(who), back)

    @rule(which=some, unit=units)
    def use(self, which, unit):
        """Let a table keep the starts of a unit from now on."""
        self._table(which)[1].use(unit)

    @rule(where=st.floats(-0.1, 1.1))
    def ask(self, where):
        self.both.ask(self.both.model.tail + round(where * self.both.model.capacity))

    @rule(which=some, where=st.lists(st.tuples(st.floats(-0.5, 1.1), st.integers(0, 9)), max_size=20))
    def update_priorities(self, which, where):
        """Of rows that are there, gone, or still to come, some of them twice; some to zero."""
        _, model = self._table(which)
        if model.sampler.kind == "prioritized":
            keys = [model.tail + round(share * model.capacity) for share, _ in where]
            self.both.update_priorities(
                which % len(self.both.tables), keys, [value / 4 for _, value in where]
            )

    @rule(
        unit=units,
        count=st.integers(1, 30),
        discount=st.sampled_from([0.0, 0.5, 1.0]),
        exponent=st.sampled_from([0.0, 0.5]),
        mapped=st.booleans(),
    )
    def draw(self, unit, count, discount, exponent, mapped):
        """Every unit that each table keeps the starts of; and one that it may have to look for."""
        for which, (_, model) in enumerate(self.both.tables):
            for each in dict.fromkeys([*model.units, unit]):
                self.both.draw(which, each, count, discount, exponent, mapped)
                self.both.draw(which, each, 1)

    @rule(which=some, times=st.integers(1, 40))
    def draw_on_and_on(self, which, times):
        """Until what may be drawn so often, or once in an epoch, has been."""
        _, model = self._table(which)
        for unit in list(model.units)[:1]:
            for _ in range(times):
                self.both.draw(which % len(self.both.tables), unit, 3)

    @invariant()
    def all_is_as_the_model_says(self):
        if hasattr(self, "both"):
            self.both.compare()

    def _writer(self, who):
        names = sorted(self.both.model.writers)
        return names[who % len(names)]

    def _table(self, which):
        return self.both.tables[which % len(self.both.tables)]


class WideTablesAgainstModel(TablesAgainstModel):
    """From 256 rows on the tail moves in blocks."""

    capacities = (255, 256, 300, 512, 700)
    most_requests = 4


class TestTables(TablesAgainstModel.TestCase):
    """Tables of few steps do what the model does, whatever comes in whatever order."""

    settings = settings(
        max_examples=100,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class TestWideTables(WideTablesAgainstModel.TestCase):
    """So do tables whose tail moves in blocks."""

    settings = settings(TestTables.settings, max_examples=20)


@pytest.mark.parametrize("capacity", [13, 30, 520])
@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_does_what_the_model_does_through_a_long_life(kind, limit, capacity):
    rng = random.Random(f"{kind} {limit} {capacity}")
    sampler = SamplerSpec(kind=kind, max_times_sampled=limit, priority_exponent=0.7)
    both = Both(capacity, rng.randint(1, 4), sampler, rng.choice(LIKE), seed=1)
    a_life(both, rng, rounds=25, turns=3)
