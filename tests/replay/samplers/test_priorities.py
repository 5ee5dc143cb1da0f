import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers import Priorities, PrioritizedSampler

from .model import array


def powers(priorities, numbers):
    return priorities.column[array(numbers) % priorities.slots].tolist()


def a_table_of(*values, alpha=1.0):
    priorities = Priorities(len(values), alpha)
    numbers = np.arange(len(values))
    priorities.begin(numbers)
    priorities.set(numbers, np.array(values))
    sampler = PrioritizedSampler(priorities)
    sampler.add(numbers)
    return priorities, sampler


def test_new_rows_take_the_largest_priority_that_was_ever_applied():
    priorities = Priorities(5, alpha=0.5)
    priorities.begin(np.arange(3))
    assert powers(priorities, range(3)) == [1, 1, 1]
    priorities.set(array([0, 1]), np.array([0.25, 9.0]))
    priorities.begin(np.arange(3, 7))  # around the end of the slots, over 0 and 1
    assert powers(priorities, range(2, 7)) == [1, 3, 3, 3, 3]
    priorities.set(array([3]), np.array([4.0]))
    assert priorities.maximum == 9.0
    assert priorities.numbers_in(np.arange(5)).tolist() == [5, 6, 2, 3, 4]


def test_of_two_priorities_for_one_row_the_last_one_stays():
    priorities, sampler = a_table_of(1, 1, 1)
    numbers = array([0, 1, 0, 0, 1])
    priorities.set(numbers, np.array([5.0, 6.0, 7.0, 0.0, 2.0]))
    sampler.update(numbers)
    assert powers(priorities, range(3)) == [0, 2, 1]
    assert sampler.drawable(3).tolist() == [1, 2]
    assert priorities.maximum == 7.0  # each was applied


def test_rows_that_are_gone_or_have_not_begun_are_passed_over():
    priorities, sampler = a_table_of(1, 2, 3)
    sampler.remove(array([0]))
    priorities.begin(array([3]))
    sampler.add(array([3]))
    numbers = array([0, 4, 6, -1, 2])
    priorities.set(numbers, np.array([50.0, 50.0, 50.0, 50.0, 5.0]))
    sampler.update(numbers)
    assert powers(priorities, [1, 2, 3]) == [2, 5, 3]
    assert priorities.maximum == 5.0
    young = Priorities(5, 1.0)
    young.begin(array([0]))
    young.set(array([-1, -2, 1]), np.array([50.0, 50.0, 50.0]))
    assert young.maximum == 1.0


def test_a_change_counts_in_every_sampler_once_it_was_told():
    priorities, sampler = a_table_of(1, 2, 3)
    other = PrioritizedSampler(priorities)
    other.add(array([2]))
    priorities.set(array([0, 2]), np.array([4.0, 0.0]))
    for one in (sampler, other):
        one.update(array([0, 2]))
    drawn = sampler.draw(50, np.random.default_rng(0))
    assert set(drawn.numbers) == {0, 1}
    assert drawn.probability.tolist() == [4 / 6 if number == 0 else 2 / 6 for number in drawn.numbers]
    assert not other.can_draw(1)


def test_where_all_priorities_are_zero_nothing_is_drawn_until_one_is_not():
    priorities, sampler = a_table_of(0, 0, 0)
    assert len(sampler) == 3
    assert not sampler.can_draw(1)
    assert sampler.why_not(1).startswith("the priorities of all 3 starts are zero")
    priorities.set(array([1]), np.array([1e-300]))
    sampler.update(array([1]))
    assert sampler.can_draw(1)
    assert set(sampler.draw(20, np.random.default_rng(0)).numbers) == {1}
    sampler.remove(array([0, 1, 2]))
    assert not sampler.can_draw(1)
    assert sampler.why_not(1) == "there are no starts to draw from; more steps open it"


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0, 1000.0])
def test_zero_alone_is_never_drawn(alpha):
    _, sampler = a_table_of(0.0, -0.0, 5e-324, 1e-200, 0.5, alpha=alpha)
    assert sampler.drawable(5).tolist() == [2, 3, 4]
    assert sampler.can_draw(1)


def test_with_alpha_zero_all_others_are_equal():
    _, sampler = a_table_of(1e-300, 1.0, 0.0, 1e300, alpha=0.0)
    drawn = sampler.draw(64, np.random.default_rng(0))
    assert set(drawn.numbers) == {0, 1, 3}
    assert set(drawn.probability) == {1 / 3}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1.0, "priority 1 of 3 is -1.0; it must be a finite number from 0 to "),
        (np.nan, "priority 1 of 3 is nan; "),
        (np.inf, "priority 1 of 3 is inf; "),
        (-np.inf, "priority 1 of 3 is -inf; .*; send the size of the error, or 0 for a row"),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_what_is_no_priority_is_refused(alpha, value, said, dtype):
    with pytest.raises(InvalidRequestError, match=said):
        Priorities(4, alpha).check(np.array([1.0, value, np.nan], dtype))


@pytest.mark.parametrize(
    ("alpha", "limit"),
    [(0.0, "1.79769e+308"), (0.5, "1.79769e+308"), (1.0, "8.37116e+298"), (2.0, "2.8933e+149")],
)
def test_the_limit_is_where_a_sum_over_all_rows_would_overflow(alpha, limit):
    priorities = Priorities(40, alpha)
    with pytest.raises(InvalidRequestError, match=f"from 0 to {limit}".replace("+", r"\+")):
        priorities.check(np.array([np.inf]))
    largest = np.nextafter(float(limit), 0) * (1 - 1e-5)
    priorities.check(np.array([largest, 0.0, -0.0]))
    priorities.check(np.empty(0))
    if alpha >= 1:
        with pytest.raises(InvalidRequestError, match="priority 0 of 1 is"):
            priorities.check(np.array([largest * 1.001]))
    priorities.begin(np.arange(40))
    priorities.set(np.arange(40), np.full(40, largest))
    sampler = PrioritizedSampler(priorities)
    sampler.add(np.arange(40))
    assert sampler.draw(9, np.random.default_rng(0)).probability == pytest.approx([1 / 40] * 9)


@pytest.mark.parametrize("alpha", [-0.1, np.inf, np.nan])
def test_an_exponent_that_makes_no_sense_is_refused(alpha):
    with pytest.raises(InvalidRequestError, match=f"alpha is {alpha}; it must be finite and at least 0"):
        Priorities(4, alpha)
