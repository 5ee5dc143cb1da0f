"""Whether draws follow the probabilities that are stated: chi-square tests at fixed seeds."""

import itertools
import math

import numpy as np
import pytest

from fornix.replay.samplers import EpochSampler, sum_tree

from .chi_square import assert_drawn_as, p_value
from .model import Ring, array

DRAWS = 1_000_000
BATCH = 20_000


def draws(sampler, rng, count=DRAWS):
    return np.concatenate([sampler.draw(BATCH, rng).numbers for _ in range(count // BATCH)])


def stated(ring):
    """Return {start: the probability with which the next draw gives it}."""
    weights = {start: ring.model.weight(start) for start in ring.model.starts}
    return {start: weight / sum(weights.values()) for start, weight in weights.items()}


def test_the_p_value_is_that_of_the_chi_square_distribution():
    # df 10: 18.307 and 29.588 are exceeded with 0.05 and 0.001
    for statistic, p in ((18.307, 0.05), (29.588, 0.001), (9.342, 0.5)):
        off = math.sqrt(statistic / 2 * 100)
        assert p_value([100 + off, 100 - off, *[100] * 9], [100] * 11) == pytest.approx(p, rel=0.1)


@pytest.mark.parametrize("rounds", [1, 60], ids=["at first", "after many turns"])
def test_uniform_draws_are_uniform(rounds):
    ring, rng = Ring("uniform", slots=500), np.random.default_rng(7)
    ring.append(500)
    ring.add(range(500))
    ring.turn(rng, rounds)
    assert_drawn_as(draws(ring.sampler, rng), stated(ring))


@pytest.mark.parametrize("top_nodes", [1, 4096])
@pytest.mark.parametrize("rounds", [1, 60], ids=["at first", "after many turns"])
def test_prioritized_draws_are_in_proportion(rounds, top_nodes, monkeypatch):
    monkeypatch.setattr(sum_tree, "_TOP_NODES", top_nodes)
    ring, rng = Ring("prioritized", slots=500, alpha=0.7), np.random.default_rng(8)
    ring.append(500)
    ring.add(range(500))
    ring.turn(rng, rounds)
    ring.update(list(ring.live)[::3], (rng.pareto(1.5, len(ring.live[::3])) + 0.1).tolist())
    assert 0 in stated(ring).values()
    assert_drawn_as(draws(ring.sampler, rng), stated(ring))


def test_a_million_starts_are_drawn_in_proportion():
    ring, rng = Ring("prioritized", slots=1_000_000), np.random.default_rng(9)
    numbers = np.arange(1_000_000)
    ring.priorities.begin(numbers)
    values = rng.random(1_000_000)
    ring.priorities.set(numbers, values)
    ring.sampler.add(numbers)
    groups = np.bincount(numbers % 997, values)
    shares = dict(enumerate((groups / groups.sum()).tolist()))
    assert_drawn_as(draws(ring.sampler, rng, 400_000) % 997, shares)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 240])
def test_each_order_of_an_epoch_is_equally_likely(batch):
    sampler, rng = EpochSampler(7), np.random.default_rng(10)
    sampler.add(array([3, 4, 5, 6, 7]))
    sampler.remove(array([4]))
    epochs = 3000 if batch == 1 else 6000
    drawn = np.concatenate([sampler.draw(batch, rng).numbers for _ in range(4 * epochs // batch)])
    orders = drawn[: len(drawn) // 4 * 4].reshape(-1, 4) @ [1000, 100, 10, 1]
    possible = [int("".join(order)) for order in itertools.permutations("3567")]
    assert_drawn_as(orders, dict.fromkeys(possible, 1 / 24))


@pytest.mark.parametrize(
    ("left", "added"), [(4, 0), (4, 2), (1, 3), (4, 5)], ids=["none", "few", "more than drawn", "many"]
)
def test_starts_that_come_during_an_epoch_are_as_likely_next_as_the_others(left, added):
    rng = np.random.default_rng(11)
    firsts = []
    for _ in range(4000):
        sampler = EpochSampler(20)
        sampler.add(np.arange(6))
        before = sampler.draw(6 - left, rng).numbers
        sampler.add(np.arange(6, 6 + added))
        after = sampler.draw(left + added, rng).numbers
        assert sorted([*before, *after]) == list(range(6 + added))
        firsts.append(after[0])
    # each of the old is left with probability left / 6, each of the new certainly
    one = 1 / (left + added)
    shares = dict.fromkeys(range(6), left / 6 * one) | dict.fromkeys(range(6, 6 + added), one)
    assert_drawn_as(firsts, shares)


def chances(uses, weights, count):
    """Return {sequence: its probability} for `count` draws of starts that leave when used up."""
    if count == 0:
        return {(): 1.0}
    total = sum(weight for weight, left in zip(weights, uses, strict=True) if left)
    found = {}
    for start, weight in enumerate(weights):
        if uses[start] and weight:
            less = [left - (at == start) for at, left in enumerate(uses)]
            for rest, chance in chances(less, weights, count - 1).items():
                found[start, *rest] = weight / total * chance
    return found


@pytest.mark.parametrize(
    ("kind", "weights", "limit", "count"),
    [
        ("uniform", (1, 1, 1), 1, 2),
        ("uniform", (1, 1, 1), 2, 5),
        ("uniform", (1, 1, 1, 1), 1, 4),
        ("prioritized", (2, 3, 5), 2, 4),
        ("prioritized", (1, 2, 0, 5), 1, 3),
        ("prioritized", (20, 1, 1), 1, 3),
        ("prioritized", (3, 7), 3, 5),
    ],
)
def test_with_a_limit_every_sequence_has_the_chance_of_draws_one_by_one(kind, weights, limit, count):
    rng, wanted, drawn = np.random.default_rng(12), chances([limit] * len(weights), weights, count), []
    for _ in range(2500):
        ring = Ring(kind, len(weights), limit=limit)
        ring.append(len(weights))
        ring.priorities.set(np.arange(len(weights)), np.array(weights, float))
        ring.sampler.add(np.arange(len(weights)))
        drawn.append(tuple(ring.sampler.draw(count, rng).numbers.tolist()))
    place = {sequence: at for at, sequence in enumerate(wanted)}
    assert_drawn_as([place[one] for one in drawn], {place[one]: p for one, p in wanted.items()})
