import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers import (
    EpochSampler,
    FifoSampler,
    LifoSampler,
    Priorities,
    PrioritizedSampler,
    UniformSampler,
    make_sampler,
)
from fornix.replay.samplers.indexed_set import IndexedSet

from .model import KINDS, array


def test_each_kind_has_its_sampler():
    made = [type(make_sampler(kind, 10, Priorities(10, 0.6))) for kind in KINDS]
    assert made == [UniformSampler, PrioritizedSampler, FifoSampler, LifoSampler, EpochSampler]


def test_a_kind_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InvalidRequestError, match=r"no sampler 'rank'.* epoch, fifo, lifo, prior"):
        make_sampler("rank", 10, None)
    with pytest.raises(InvalidRequestError, match="needs a table with priorities"):
        make_sampler("prioritized", 10, None)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_put_in_or_taken_out_changes_nothing(kind):
    priorities = Priorities(10, 1.0)
    priorities.begin(np.arange(3))
    sampler = make_sampler(kind, 10, priorities)
    for numbers in (array([]), array([0, 1]), array([])):
        sampler.add(numbers)
    sampler.remove(array([]))
    sampler.update(array([]))
    assert sorted(sampler.drawable(9)) == [0, 1]
    assert sampler.contains(array([])).tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same(kind):
    def drawn(seed):
        priorities = Priorities(100, 1.0)
        priorities.begin(np.arange(100))
        sampler = make_sampler(kind, 100, priorities)
        sampler.add(np.arange(100))
        return sampler.draw(20, np.random.default_rng(seed)).numbers.tolist()

    assert drawn(3) == drawn(3)
    assert (drawn(3) == drawn(4)) == (kind in ("fifo", "lifo"))


def test_an_indexed_set_takes_twelve_bytes_a_slot():
    made = IndexedSet(1000)
    assert made._members.nbytes + made._places.nbytes == 12_000
