import numpy as np
import pytest

from fornix.replay.samplers import FifoSampler, LifoSampler, queues
from fornix.replay.samplers.queues import Queue

from .model import array

RNG = np.random.default_rng(0)


def test_batches_come_in_order_of_completion_and_stay_until_they_are_removed():
    fifo, lifo = FifoSampler(10), LifoSampler(10)
    for sampler in (fifo, lifo):
        sampler.add(array([13, 11]))
        sampler.add(array([19, 12, 20]))
    for sampler, order in ((fifo, [13, 11, 19, 12, 20]), (lifo, [20, 12, 19, 11, 13])):
        for _ in range(2):
            drawn = sampler.draw(3, RNG)
            assert drawn.numbers.tolist() == order[:3]
            assert drawn.probability.tolist() == [1, 1, 1]
        sampler.remove(drawn.numbers[:2])
        assert sampler.draw(3, RNG).numbers.tolist() == order[2:]


@pytest.mark.parametrize("kind", [FifoSampler, LifoSampler])
def test_a_batch_is_not_made_of_fewer_starts(kind):
    sampler = kind(10)
    sampler.add(array([4, 5, 6]))
    assert sampler.can_draw(3)
    assert not sampler.can_draw(4)
    assert sampler.why_not(8) == (
        "there are 3 starts, and a batch takes 8 different ones; 5 more starts open it"
    )


def test_a_number_that_comes_again_stands_where_it_came_last():
    queue = Queue(10)
    queue.add(array([1, 2, 3]))
    queue.remove(array([1]))
    queue.add(array([1]))
    assert queue.oldest(9).tolist() == [2, 3, 1]
    queue.remove(array([3, 2]))
    queue.add(array([12, 13]))
    assert queue.newest(9).tolist() == [13, 12, 1]
    assert queue.contains(array([2, 3, 12, 13, 1, 11])).tolist() == [False, False, True, True, True, False]


def test_one_may_ask_for_a_number_whose_place_is_there_no_more(monkeypatch):
    monkeypatch.setattr(queues, "_SMALLEST", 2)
    queue = Queue(500)
    for begin in (0, 100):
        queue.add(np.arange(begin, begin + 100))
        queue.remove(np.arange(begin, begin + 99))
    queue.add(array([200]))
    assert len(queue._entries) < 100
    asked = np.arange(201)
    assert asked[queue.contains(asked)].tolist() == [99, 199, 200]


@pytest.mark.parametrize("look", [Queue.oldest, Queue.newest])
def test_each_gap_is_met_once_wherever_it_lies(look, monkeypatch):
    met = []
    whole = queues.present
    monkeypatch.setattr(queues, "present", lambda entries: met.append(len(entries)) or whole(entries))
    queue = Queue(400_000)
    queue.add(np.arange(300_000))
    queue.remove(np.concatenate([np.arange(3, 140_000), np.arange(150_000, 299_990)]))
    for _ in range(300):
        assert len(look(queue, 20)) == 20
    assert sum(met) < 2 * 300_000 + 300 * 3 * 20


def test_room_is_made_in_proportion_to_what_is_in_it(monkeypatch):
    met = []
    whole = queues.present
    monkeypatch.setattr(queues, "present", lambda entries: met.append(len(entries)) or whole(entries))
    queue = Queue(1_000_000)
    for begin in range(0, 1_000_000, 100):
        queue.add(np.arange(begin, begin + 100))
        if begin >= 3000:  # from the middle, from the old end, and from the new
            queue.remove(array([begin - 1500, begin - 1499, begin + 99]))
            queue.remove(queue.oldest(97))
    assert len(queue) == 3000
    assert len(queue._entries) <= 4 * 3100
    assert sum(met) < 8 * 1_000_000
    many = Queue(1_000_000)
    many.add(np.arange(1_000_000))
    assert many._entries.nbytes <= 16 * 1_000_000
