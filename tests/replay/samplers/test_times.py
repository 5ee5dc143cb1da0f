import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers import LimitedSampler, TimesSampled, UniformSampler
from fornix.replay.samplers.times import times_before

from .model import KINDS, Ring, array


@given(st.lists(st.integers(0, 5), max_size=30))
def test_repetitions_are_counted_in_order(numbers):
    seen = collections.Counter()
    wanted = []
    for number in numbers:
        wanted.append(seen[number])
        seen[number] += 1
    assert times_before(array(numbers)).tolist() == wanted


@pytest.mark.parametrize("limit", [1, 3, 255, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_each_start_is_drawn_exactly_as_often_as_it_may_be(kind, limit):
    ring, rng = Ring(kind, slots=12, limit=limit), np.random.default_rng(0)
    ring.append(30)
    ring.add(ring.live)
    ring.update(list(ring.live), np.linspace(0.01, 1, 12).tolist())
    count, drawn = 4, collections.Counter()
    for _ in range(12 * limit // count):
        assert ring.sampler.can_draw(count)
        drawn.update(ring.draw(count, rng).numbers.tolist())
    assert drawn == dict.fromkeys(ring.live, limit)
    assert len(ring.sampler) == 0
    assert not ring.sampler.can_draw(1)


@pytest.mark.parametrize("count", [1, 5, 7, 8, 35])
def test_epochs_are_counted_alike_however_the_draws_are_cut_into_batches(count):
    ring, rng = Ring("epoch", slots=7, limit=5), np.random.default_rng(0)
    ring.append(7)
    ring.add(ring.live)
    drawn = 0
    while drawn < 35:
        drawn += len(ring.draw(min(count, 35 - drawn), rng).numbers)
        assert ring.sampler.inner.epoch == ring.model.epoch == drawn // 7
    assert len(ring.sampler) == 0


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "epoch"])
def test_a_batch_may_take_all_that_is_left_and_not_one_more(kind):
    ring, rng = Ring(kind, slots=5, limit=3), np.random.default_rng(0)
    ring.append(5)
    ring.add(ring.live)
    ring.draw(4, rng)
    assert not ring.sampler.can_draw(12)
    assert ring.sampler.why_not(12) == (
        "each start is drawn 3 times at most (max_times_sampled), and those that are there have 11 draws "
        "left, of 12 for a batch; more steps open it"
    )
    assert ring.sampler.can_draw(11)
    ring.draw(11, rng)
    assert len(ring.sampler) == 0
    assert ring.sampler.why_not(1).startswith("there are no starts")


def test_starts_of_priority_zero_have_no_uses_to_give():
    ring, rng = Ring("prioritized", slots=5, limit=2), np.random.default_rng(0)
    ring.append(5)
    ring.add(ring.live)
    ring.update([0, 1, 2], [0.0, 0.0, 0.0])
    assert ring.sampler.can_draw(4)
    assert not ring.sampler.can_draw(5)
    ring.draw(4, rng)
    assert ring.sampler.why_not(1).startswith("the priorities of all 3 starts are zero")


def test_what_a_start_may_still_give_goes_with_it_and_its_slot_begins_anew():
    ring, rng = Ring("uniform", slots=3, limit=2), np.random.default_rng(0)
    ring.append(3)
    ring.add([0, 1, 2])
    ring.draw(3, rng)
    ring.append(3)
    assert not ring.sampler.can_draw(1)
    ring.add([3])
    assert ring.sampler.can_draw(2)
    assert not ring.sampler.can_draw(3)


def test_samplers_of_one_table_share_the_uses():
    times, rng = TimesSampled(10, 2), np.random.default_rng(0)
    one, other = (times.wrap(UniformSampler(10)) for _ in range(2))
    times.begin(np.arange(4))
    one.add(array([0, 1]))
    other.add(array([0, 2]))
    one.draw(4, rng)
    assert sorted(times.used_up) == [0, 1]
    other.remove(times.used_up)
    other.add(array([1]))  # completed only now, and used up already
    assert other.drawable(9).tolist() == [2]
    assert not other.can_draw(3)
    other.draw(1, rng)
    assert times.used_up.tolist() == []
    other.remove(array([0, 2]))
    assert len(other) == 0


def test_a_start_that_was_used_up_elsewhere_and_not_removed_is_no_endless_search():
    times, rng = TimesSampled(10, 1), np.random.default_rng(0)
    one, other = (times.wrap(UniformSampler(10)) for _ in range(2))
    for sampler in (one, other):
        sampler.add(array([0]))
    one.draw(1, rng)
    with pytest.raises(RuntimeError, match="has used up is still in this one; remove it"):
        other.draw(1, rng)


def test_a_dominant_priority_leaves_the_others_their_exact_probabilities():
    ring, rng = Ring("prioritized", slots=3, limit=1), np.random.default_rng(0)
    ring.append(3)
    ring.add(ring.live)
    ring.update([0, 1, 2], [1e18, 1.0, 3.0])
    drawn = ring.draw(3, rng)
    assert drawn.numbers[0] == 0
    assert drawn.probability[1] == {1: 0.25, 2: 0.75}[int(drawn.numbers[1])]
    assert drawn.probability[2] == 1.0


def test_without_a_limit_nothing_is_wrapped_counted_or_kept():
    times, sampler = TimesSampled(10**9, None), UniformSampler(10)
    times.begin(np.arange(4))
    assert times.wrap(sampler) is sampler
    assert times._times.nbytes == 0
    assert times.used_up.tolist() == []


def test_a_limit_takes_no_more_bytes_than_it_needs():
    sizes = [TimesSampled(100, limit)._times.nbytes for limit in (1, 255, 256, 65_535, 65_536)]
    assert sizes == [100, 100, 200, 200, 400]
    assert isinstance(TimesSampled(9, 1).wrap(UniformSampler(9)), LimitedSampler)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(InvalidRequestError, match=f"max_times_sampled is {limit}; it must be at least 1"):
        TimesSampled(10, limit)
