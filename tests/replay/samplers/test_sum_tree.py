import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fornix.replay.samplers import sum_tree
from fornix.replay.samplers.sum_tree import SumTree, padded_column

#: Of many magnitudes, so that a sum swallows some of them whole.
magnitudes = st.sampled_from([0.0, 0.0, 5e-324, 2.3e-308, 1e-17, 0.1, 1 / 3, 1.0, 3.0, 1e16, 1e290])


@pytest.fixture(autouse=True, params=[1, 4096], ids=["many levels", "few levels"])
def _top_nodes(monkeypatch, request):
    monkeypatch.setattr(sum_tree, "_TOP_NODES", request.param)


def a_tree(values):
    column = padded_column(len(values))
    column[: len(values)] = values
    tree = SumTree(column)
    tree.add(np.arange(len(values)))
    return tree, column


def whole(values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("slots", [1, 15, 16, 17, 256, 257, 5000])
def test_with_whole_numbers_each_slot_is_found_exactly_as_often_as_its_leaf_says(slots):
    values = np.random.default_rng(slots).integers(0, 9, slots)
    values[-1] = 2
    tree, _ = a_tree(values)
    assert tree.total == values.sum()
    prefixes = np.arange(values.sum())
    wanted = np.repeat(np.arange(slots), values)
    assert np.array_equal(tree.find(prefixes.astype(float)), wanted)
    assert np.array_equal(tree.find(np.nextafter(prefixes + 1.0, 0)), wanted)


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(magnitudes, min_size=1, max_size=70), place=st.integers(0, 300), seed=st.integers(0, 9)
)
@example(values=[0.1] * 10 + [0.0] * 60, place=0, seed=0)
@example(values=[1e16] + [1.0] * 15 + [0.0], place=0, seed=0)
def test_a_leaf_of_zero_is_never_found_however_the_sums_are_rounded(values, place, seed):
    values = [0.0] * place + values
    tree, _ = a_tree(values)
    positive = np.flatnonzero(values)
    assert (tree.total > 0) == (len(positive) > 0)
    if not len(positive):
        return
    edges = np.cumsum(values)
    shares = np.random.default_rng(seed).random(50) * tree.total
    end = np.nextafter(tree.total, [0, 0, np.inf])
    prefixes = np.concatenate([edges, np.nextafter(edges, 0), shares, end, [0.0, tree.total, 5e-324]])
    found = tree.find(prefixes)
    assert np.isin(found, positive).all()
    assert (tree[found] > 0).all()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "set"]),
            st.lists(st.tuples(st.integers(0, 299), magnitudes), max_size=40),
        ),
        max_size=20,
    )
)
def test_a_tree_is_the_column_where_a_slot_was_added_and_zero_elsewhere(steps):
    column = padded_column(300)
    tree, inside = SumTree(column), set()
    for step, entries in steps:
        slots = whole([slot for slot, _ in entries])
        if step == "add":
            tree.add(slots)
            inside |= set(slots.tolist())
        elif step == "remove":
            tree.remove(slots)
            inside -= set(slots.tolist())
        else:
            column[slots] = [value for _, value in entries]
            tree.update(slots)
        leaves = [column[slot] if slot in inside else 0.0 for slot in range(300)]
        assert tree[np.arange(300)].tolist() == leaves
        assert set(np.flatnonzero(tree.contains(np.arange(300)))) == inside
        assert tree.total == pytest.approx(math.fsum(leaves), rel=1e-14)
        assert (tree.total > 0) == any(leaves)
        assert tree.positive(300).tolist() == np.flatnonzero(leaves).tolist()
        assert tree.positive(7).tolist() == np.flatnonzero(leaves)[:7].tolist()
        # nothing remains of what was there before
        assert tree.total == a_tree(leaves)[0].total


def test_sums_do_not_drift():
    rng = np.random.default_rng(0)
    tree, column = a_tree(np.zeros(1000))
    for exponent in rng.integers(-300, 290, 2000):
        slots = rng.integers(0, 1000, 20)
        column[slots] = rng.random(20) * 10.0**exponent
        tree.update(slots)
    column[:] = 0.0
    column[7] = 0.1
    tree.update(np.arange(1000))
    assert tree.total == 0.1
    column[:1000] = rng.random(1000)
    tree.update(rng.permutation(1000))
    assert tree.total == a_tree(column)[0].total


def test_two_trees_stand_on_one_column():
    one, column = a_tree(np.arange(40.0))
    other = SumTree(column)
    other.add(whole([3, 4]))
    column[4] = 10.0
    for tree in (one, other):
        tree.update(whole([4]))
    assert (one.total, other.total) == (780.0 - 4 + 10, 13.0)


def test_a_tree_takes_less_than_two_bytes_a_slot_besides_its_column():
    tree, _ = a_tree(np.zeros(1_000_000))
    arrays = [tree._inside, *tree._levels]
    assert sum(one.nbytes for one in arrays) < 1.6 * 1_000_000
