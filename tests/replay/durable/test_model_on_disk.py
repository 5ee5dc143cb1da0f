"""A memory on a disk does what the model does, through deaths and ends of its server."""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from fornix.common.specs import SamplerSpec

from .. import both as lives
from ..both import KINDS, LIKE, a_sampler
from ..test_table_stateful import TablesAgainstModel
from .keeping import KeptBoth


class KeptTablesAgainstModel(TablesAgainstModel):
    """Does the same to a memory on a simulated disk and to the model, and lets servers die in between."""

    makes = KeptBoth
    capacities = range(6, 41)

    @rule(way=st.sampled_from(["kill", "kill", "close"]))
    def restart(self, way):
        self.both.restart(way)

    @rule()
    def sync(self):
        self.both.sync()


class TestKeptTables(KeptTablesAgainstModel.TestCase):
    """Tables on a disk do what the model does, and go on exactly where a killed server was."""

    settings = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def a_kept_life(both, rng, rounds):
    """Let all happen that can, servers' deaths too, and compare after each of it."""
    both.open_writer("a", 2)
    for _ in range(rounds):
        lives._happens(both, rng)
        both.compare()
        chance = rng.random()
        if chance < 0.15:
            both.restart(rng.choice(["kill", "close"]))
            both.compare()
        elif chance < 0.25:
            both.sync()


@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_goes_on_exactly_where_a_killed_server_was(kind, limit):
    rng = random.Random(f"{kind} {limit}")
    sampler = SamplerSpec(kind=kind, max_times_sampled=limit, priority_exponent=rng.choice([0.0, 0.7]))
    a_kept_life(KeptBoth(30, rng.randint(1, 4), sampler, rng.choice(LIKE), seed=1), rng, rounds=30)


@pytest.mark.parametrize("capacity", range(4, 9))
def test_so_does_one_of_very_few_steps(capacity):
    for seed in range(6):
        rng = random.Random(seed)
        a_kept_life(
            KeptBoth(capacity, rng.randint(1, 2), a_sampler(rng), rng.choice(LIKE), seed), rng, rounds=15
        )
