import numpy as np
import pytest

from fornix.replay.samplers import EpochSampler

from .model import array


def a_sampler(*numbers):
    sampler = EpochSampler(50)
    sampler.add(array(numbers))
    return sampler, np.random.default_rng(0)


def test_an_epoch_gives_each_start_once():
    sampler, rng = a_sampler(*range(10))
    first = sampler.draw(4, rng)
    assert first.probability.tolist() == [1 / 10, 1 / 9, 1 / 8, 1 / 7]
    assert sampler.epoch == 0
    second = sampler.draw(6, rng)
    assert second.probability[-1] == 1.0
    assert sorted([*first.numbers, *second.numbers]) == list(range(10))
    assert sampler.epoch == 1


@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_batch_goes_on_with_the_next_epochs(before):
    sampler, rng = a_sampler(*range(5))
    earlier = sampler.draw(before, rng).numbers if before else array([])
    drawn = sampler.draw(23, rng)
    stream = [*earlier, *drawn.numbers]
    for epoch in range(4):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert sampler.epoch == (before + 23) // 5
    stated = np.tile(1 / np.arange(5, 0, -1), 6)[before : before + 23]
    assert drawn.probability.tolist() == stated.tolist()


def test_starts_that_come_and_go_change_the_present_epoch():
    sampler, rng = a_sampler(0, 1, 2, 3)
    drawn = sampler.draw(2, rng).numbers
    sampler.add(array([10, 11]))
    sampler.remove(drawn[:1])
    left = [number for number in range(4) if number not in drawn]
    sampler.remove(array(left[:1]))
    assert sorted(sampler.draw(3, rng).numbers) == [left[1], 10, 11]
    assert sampler.epoch == 1
    assert sorted(sampler.draw(4, rng).numbers) == sorted([drawn[1], left[1], 10, 11])
    assert sampler.epoch == 2


def test_an_epoch_ends_when_the_last_that_was_left_goes():
    sampler, rng = a_sampler(0, 1, 2)
    drawn = sampler.draw(2, rng).numbers
    (last,) = {0, 1, 2} - set(drawn)
    sampler.remove(array([last]))
    assert sampler.epoch == 1
    assert sorted(sampler.draw(2, rng).numbers) == sorted(drawn)


def test_without_starts_no_epoch_ends():
    sampler, rng = a_sampler(0, 1)
    sampler.draw(1, rng)
    sampler.remove(array([0, 1]))
    assert (sampler.epoch, len(sampler)) == (0, 0)
    assert not sampler.can_draw(1)
    assert sampler.why_not(3) == "there are no starts to draw from; more steps open it"
    sampler.add(array([7]))
    assert sampler.draw(3, rng).numbers.tolist() == [7, 7, 7]
    assert sampler.epoch == 3
