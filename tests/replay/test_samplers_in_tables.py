import random

import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import UpdatePriorities
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Sequence, Transition

from .builders import CUT, END, Episodes, F, M, a_table, drawn, sample
from .samplers.chi_square import assert_drawn_as

FIFO, LIFO = SamplerSpec(kind="fifo"), SamplerSpec(kind="lifo")
PRIORITIZED = SamplerSpec(kind="prioritized", priority_exponent=1.0)


def set_priorities(table, priorities):
    """Set priorities {key: value}, and return how many were applied and how many ignored."""
    request = UpdatePriorities(
        table="t", key=np.array(list(priorities), np.int64), priority=np.array(list(priorities.values()))
    )
    reply = table.update_priorities(request)
    return reply.applied, reply.ignored


def probabilities(table, unit=None):
    """Return {start: with which probability it is drawn}, of those that are drawn."""
    return {key: row["probability"] for key, row in drawn(table, unit or Transition(), draws=4000).items()}


# in order ------------------------------------------------------------------------------------------


def completed_by(rows, n_step):
    """Return the starts of transitions in the order in which rows (key, lane, kind) complete them."""
    open_rows, completed = {}, []
    for key, lane, kind in rows:
        if kind == "leave":
            completed += open_rows.pop(lane, [None])[:-1]
            continue
        if kind == F:
            open_rows[lane] = []
        elif len(open_rows[lane]) == n_step:
            completed.append(open_rows[lane].pop(0))
        open_rows[lane].append(key)
        if kind in (END, CUT):
            completed += open_rows.pop(lane)[:-1]
    return completed


@pytest.mark.parametrize("n_step", [1, 4])
def test_fifo_hands_out_each_completed_start_once_in_order_of_completion(n_step):
    rng = random.Random(n_step)
    table = a_table(capacity=600, sampler=FIFO)
    writer = Episodes(table, lanes=4)
    unit = Transition(n_step=n_step)
    written, handed_out, is_open = [], [], [False] * 4
    for _ in range(700):
        lanes = rng.sample(range(4), rng.randint(1, 4))
        leave = [lane for lane in range(4) if rng.random() < 0.04]
        rows = []
        for lane in lanes:
            kind = F if not is_open[lane] or lane in leave else rng.choice([M, M, M, M, END, CUT])
            rows.append((lane, kind, 1))
        for lane in sorted(leave, key=lambda lane: max([-1, *(r[0] for r in written if r[1] == lane)])):
            written.append((-1, lane, "leave"))
            is_open[lane] = False
        head = table.memory.ring.head
        writer.write(*rows, leave=np.array(leave, np.int32))
        for at, (lane, kind, _) in enumerate(rows):
            written.append((head + at, lane, kind))
            is_open[lane] = kind in (F, M)
        while (there := len(table.starts(unit))) > 30 * rng.random():
            batch = table.sample(sample(rng.randint(1, there), unit=unit))
            handed_out += batch.key.tolist()
            assert (batch.probability == 1).all()
    assert table.memory.ring.tail > 0
    there = len(table.starts(unit))
    handed_out += table.sample(sample(there, unit=unit)).key.tolist() if there else []
    assert handed_out == completed_by(written, n_step)
    assert len(handed_out) > 1000


def test_what_fifo_was_too_slow_to_hand_out_is_passed_over():
    table = a_table(capacity=8, n_frames=1, sampler=FIFO)
    writer = Episodes(table)
    table.starts(Transition())
    writer.steps(F, *[M] * 11)
    assert table.sample(sample(7)).key.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert table.sample(sample(1)) is None
    why = table.why_no_sample(sample(1))
    assert "none of the 8 steps can be started from yet" in why
    assert "and is drawn 1 times at most; more steps open it" in why


def test_lifo_hands_out_the_newest_first_and_keeps_it():
    table = a_table(sampler=LIFO)
    writer = Episodes(table, lanes=2)
    writer.write((0, F, 0), (1, F, 10))
    writer.write((0, M, 1), (1, M, 11))
    writer.write((1, M, 12))
    assert table.sample(sample(2)).key.tolist() == [3, 1]
    assert table.sample(sample(3)).key.tolist() == [3, 1, 0]
    writer.write((0, END, 2))
    assert table.sample(sample(2)).key.tolist() == [2, 3]
    assert table.sample(sample(5)) is None
    assert "there are 4 starts, and a batch takes 5 different ones; 1 more" in table.why_no_sample(
        sample(5)
    )


def test_an_end_completes_the_starts_of_an_episode_in_their_order():
    for kind, wanted in ((FIFO, [0, 1, 2]), (LIFO, [2, 1, 0])):
        table = a_table(sampler=kind)
        Episodes(table).steps(F, M, M, END)
        assert table.sample(sample(3, n_step=3)).key.tolist() == wanted


def test_a_lane_that_leaves_completes_its_starts_when_it_leaves():
    table = a_table(sampler=FIFO)
    table.starts(Transition(n_step=2))
    one, two = Episodes(table, "one"), Episodes(table, "two")
    one.steps(F, M)
    two.steps(F, M, M)
    one.write(leave=np.array([0], np.int32))
    assert table.sample(sample(2, n_step=2)).key.tolist() == [2, 0]


def test_sequences_and_episodes_come_in_order_too():
    table = a_table(sampler=FIFO)
    writer = Episodes(table, lanes=2)
    writer.write((0, F, 0), (1, F, 10))
    for at in range(1, 5):
        writer.write((1, M, 10 + at), (0, M, at))
    writer.write((0, END, 5))
    assert table.sample(sample(5, unit=Sequence(length=2))).key.tolist() == [1, 0, 4, 5, 9]
    table = a_table(sampler=FIFO)
    writer = Episodes(table, lanes=2)
    writer.write((0, F, 0), (1, F, 10))
    writer.write((1, END, 11))
    writer.write((0, END, 1))
    assert table.sample(sample(2, unit=Episode())).key.tolist() == [1, 0]


# epochs, and how often -----------------------------------------------------------------------------


def test_an_epoch_has_every_start_once_before_any_comes_again():
    table = a_table(sampler=SamplerSpec(kind="epoch"))
    writer = Episodes(table)
    writer.steps(F, *[M] * 10)
    seen = np.concatenate([table.sample(sample(3)).key for _ in range(3)]).tolist()
    assert len(set(seen)) == 9
    writer.steps(M)  # joins the epoch that is not over yet
    batch = table.sample(sample(2))
    assert sorted([*seen, *batch.key.tolist()]) == list(range(11))
    assert batch.probability.tolist() == [1 / 2, 1]
    assert sorted(table.sample(sample(11)).key.tolist()) == list(range(11))


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "lifo", "epoch", "fifo"])
@pytest.mark.parametrize("limit", [1, 3])
def test_no_step_is_drawn_more_often_than_it_may_be(kind, limit):
    table = a_table(sampler=SamplerSpec(kind=kind, max_times_sampled=limit))
    Episodes(table).steps(F, *[M] * 20)
    counts = np.zeros(20, int)
    for size in (7, 5, 1, 4, 2):
        while (batch := table.sample(sample(size))) is not None:
            np.add.at(counts, batch.key, 1)
            assert counts.max() <= limit
    while (batch := table.sample(sample(1))) is not None:
        np.add.at(counts, batch.key, 1)
    assert counts.tolist() == [limit] * 20
    assert table.starts(Transition()).tolist() == []


def test_how_often_a_step_may_be_drawn_counts_for_all_units_together():
    table = a_table(sampler=SamplerSpec(max_times_sampled=2))
    Episodes(table).steps(F, M, M, END)
    units = (Transition(), Sequence(length=2), Episode())
    assert [table.starts(unit).tolist() for unit in units] == [[0, 1, 2], [0, 2], [0]]
    assert table.sample(sample(2, unit=Episode())).key.tolist() == [0, 0]
    assert [table.starts(unit).tolist() for unit in units] == [[1, 2], [2], []]
    assert table.starts(Transition(n_step=2)).tolist() == [1, 2]
    assert sorted(table.sample(sample(4)).key.tolist()) == [1, 1, 2, 2]
    assert [table.starts(unit).tolist() for unit in units] == [[], [], []]


def test_a_slot_that_is_used_again_may_be_drawn_again():
    table = a_table(capacity=6, n_frames=1, sampler=SamplerSpec(max_times_sampled=1))
    writer = Episodes(table)
    writer.steps(F, *[M] * 5)
    assert sorted(table.sample(sample(5)).key.tolist()) == [0, 1, 2, 3, 4]
    writer.steps(*[M] * 6)
    assert table.starts(Transition()).tolist() == [6, 7, 8, 9, 10]


def test_who_asks_for_more_draws_than_are_left_is_told_so():
    table = a_table(sampler=SamplerSpec(max_times_sampled=2))
    Episodes(table).steps(F, M, M)
    assert table.sample(sample(3)) is not None
    assert table.sample(sample(2)) is None
    why = table.why_no_sample(sample(2))
    assert "2 times at most (max_times_sampled)" in why
    assert "have 1 draws left, of 2 for a batch; more steps open it" in why


@pytest.mark.parametrize("kind", ["fifo", "lifo"])
def test_a_batch_that_an_ordered_sampler_could_never_fill_is_refused(kind):
    table = a_table(capacity=10, n_frames=1, sampler=SamplerSpec(kind=kind, max_times_sampled=5))
    table.check_sample(sample(10))
    with pytest.raises(
        InvalidRequestError, match=r"batch_size 11 .* 10 steps .* once at most; lower batch"
    ):
        table.check_sample(sample(11))


def test_a_batch_that_a_limit_could_never_fill_is_refused():
    table = a_table(capacity=10, n_frames=1, sampler=SamplerSpec(max_times_sampled=5))
    table.check_sample(sample(50))
    with pytest.raises(InvalidRequestError, match=r"batch_size 51 .* 10 steps .* 5 times at most"):
        table.check_sample(sample(51))
    a_table(capacity=10, n_frames=1).check_sample(sample(5000))


# priorities ----------------------------------------------------------------------------------------


def test_starts_are_drawn_in_proportion_to_their_priorities():
    table = a_table(sampler=SamplerSpec(kind="prioritized", priority_exponent=0.5))
    Episodes(table).steps(F, M, M, M)
    assert probabilities(table) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert set_priorities(table, {0: 4.0, 1: 1.0, 2: 16.0}) == (3, 0)
    assert probabilities(table) == pytest.approx({0: 2 / 7, 1: 1 / 7, 2: 4 / 7})


def test_new_steps_have_the_largest_priority_that_there_was():
    table = a_table(sampler=PRIORITIZED)
    writer = Episodes(table)
    writer.steps(F, M, M)
    set_priorities(table, {0: 8.0, 1: 1.0})
    set_priorities(table, {0: 2.0})
    writer.steps(M)
    assert probabilities(table) == pytest.approx({0: 1 / 2, 1: 1 / 4, 2: 1 / 4})
    writer.steps(M)
    assert probabilities(table) == pytest.approx({0: 1 / 6, 1: 1 / 12, 2: 1 / 12, 3: 2 / 3})


def test_a_step_of_priority_zero_is_not_drawn_until_it_has_another():
    table = a_table(sampler=PRIORITIZED)
    Episodes(table).steps(F, M, M)
    set_priorities(table, {0: 0.0})
    assert probabilities(table) == {1: 1.0}
    assert table.starts(Transition()).tolist() == [0, 1]
    set_priorities(table, {1: 0.0})
    assert table.sample(sample(1)) is None
    assert "the priorities of all 2 starts are zero" in table.why_no_sample(sample(1))
    set_priorities(table, {0: 1e-30})
    assert probabilities(table) == {0: 1.0}


def test_priorities_of_steps_that_are_gone_are_counted_and_never_those_of_their_successors():
    table = a_table(capacity=8, n_frames=1, sampler=PRIORITIZED)
    writer = Episodes(table)
    table.starts(Transition())
    writer.steps(F, *[M] * 9)
    assert table.memory.ring.tail == 2
    before = probabilities(table)
    # rows 8 and 9 lie where 0 and 1 lay
    assert set_priorities(table, {0: 100.0, 1: 0.0, -1: 5.0, 10: 7.0, 2**62: 3.0, -(2**63): 1.0}) == (0, 6)
    assert probabilities(table) == before == pytest.approx(dict.fromkeys(range(2, 9), 1 / 7))
    writer.steps(M)
    assert probabilities(table) == pytest.approx(dict.fromkeys(range(3, 10), 1 / 7))
    assert set_priorities(table, {2: 9.0, 3: 3.0, 10: 3.0}) == (2, 1)
    assert probabilities(table)[3] == pytest.approx(3 / 9)


def test_a_priority_is_taken_before_a_step_is_a_start():
    table = a_table(sampler=PRIORITIZED)
    writer = Episodes(table)
    table.starts(Transition(n_step=2))
    writer.steps(F, M)
    assert set_priorities(table, {0: 3.0, 1: 0.5}) == (2, 0)
    writer.steps(M, M)
    assert probabilities(table, Transition(n_step=2)) == pytest.approx({0: 6 / 7, 1: 1 / 7})
    assert probabilities(table, Transition(n_step=1)) == pytest.approx({0: 6 / 13, 1: 1 / 13, 2: 6 / 13})


def test_where_a_key_stands_twice_the_last_counts():
    table = a_table(sampler=PRIORITIZED)
    Episodes(table).steps(F, M, M)
    request = UpdatePriorities(
        table="t", key=np.array([0, 1, 0]), priority=np.array([9.0, 1.0, 3.0], np.float32)
    )
    assert table.update_priorities(request).applied == 3
    assert probabilities(table) == pytest.approx({0: 3 / 4, 1: 1 / 4})


def test_each_table_begins_a_reset_with_equal_priorities():
    table = a_table(sampler=PRIORITIZED)
    Episodes(table).steps(F, M, M)
    set_priorities(table, {0: 50.0})
    table.memory.reset()
    table.reset()
    Episodes(table).steps(F, M, M)
    assert probabilities(table) == {3: 0.5, 4: 0.5}


@pytest.mark.parametrize(
    ("priority", "said"),
    [
        ([1.0, -1.0], "priority 1 of 2 is -1.0; it must be a finite number from 0"),
        ([np.nan, 1.0], "priority 0 of 2 is nan; it must be a finite number from 0"),
        ([1.0, np.inf], "priority 1 of 2 is inf"),
        ([1.0], r"priority has shape \(1,\) .* must be <f8 or <f4 \(2,\), one for each key"),
        (np.array([1, 1]), "priority has shape .* dtype <i8; it must be <f8 or <f4"),
    ],
)
def test_a_bad_priority_is_refused_and_none_is_set(priority, said):
    table = a_table(sampler=PRIORITIZED)
    Episodes(table).steps(F, M, M)
    with pytest.raises(InvalidRequestError, match=said):
        table.update_priorities(
            UpdatePriorities(table="t", key=np.array([0, 1]), priority=np.asarray(priority))
        )
    assert probabilities(table) == {0: 0.5, 1: 0.5}


def test_priorities_of_a_table_that_has_none_are_refused():
    table = a_table()
    with pytest.raises(
        InvalidRequestError, match=r"draws by 'uniform', which has no priorities; create it"
    ):
        set_priorities(table, {0: 1.0})


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_importance_weights_undo_the_priorities(exponent):
    table = a_table(sampler=PRIORITIZED)
    Episodes(table).steps(F, M, M, M)
    set_priorities(table, {0: 1.0, 1: 2.0, 2: 5.0})
    batch = table.sample(sample(500, importance_exponent=exponent))
    assert {0, 1, 2} == set(batch.key.tolist())
    wanted = np.array([1.0, 1 / 2, 1 / 5])[batch.key] ** exponent
    assert np.allclose(batch.weight, wanted)
    assert batch.weight.dtype == np.float32


# the draw follows the probabilities that are stated ------------------------------------------------

DRAWS_AT_ONCE = 65_536


def turn(table, steps):
    """Let three lanes play episodes of several lengths until the table has seen `steps` rows."""
    episodes = Episodes(table, lanes=3, incarnation=table.memory.ring.head + 1)
    lengths, places = (4, 7, 11), [0, 0, 0]
    while table.memory.ring.head < steps:
        rows = []
        for lane, length in enumerate(lengths):
            kind = F if places[lane] == 0 else END if places[lane] == length else M
            places[lane] = (places[lane] + 1) % (length + 1)
            rows.append((lane, kind, lane))
        episodes.write(*rows)


def keys_drawn(table, unit, rounds):
    """Return the keys of many batches, without their frames."""
    request = sample(DRAWS_AT_ONCE, unit=unit, mapped=True)
    return np.concatenate([table.sample(request).key for _ in range(rounds)])


TURNS = [(200, 180), (200, 200), (200, 203), (200, 1001), (300, 299), (300, 302), (300, 1600)]


@pytest.mark.parametrize(("capacity", "steps"), TURNS)
def test_every_start_is_drawn_as_often_as_any_other(capacity, steps):
    """Before the ring is full, when it has just turned by a request, and after many turns."""
    table = a_table(capacity=capacity, n_frames=3, seed=7)
    unit = Transition(n_step=3)
    table.starts(unit)
    turn(table, steps)
    keys = keys_drawn(table, unit, rounds=16)
    starts = table.starts(unit).tolist()
    assert len(keys) >= 1_000_000
    assert len(starts) > 100
    assert_drawn_as(keys, dict.fromkeys(starts, 1 / len(starts)))


@pytest.mark.parametrize(("capacity", "steps"), TURNS)
def test_every_start_is_drawn_in_proportion_to_its_priority(capacity, steps):
    table = a_table(
        capacity=capacity,
        n_frames=3,
        seed=8,
        sampler=SamplerSpec(kind="prioritized", priority_exponent=0.7),
    )
    unit = Transition(n_step=3)
    table.starts(unit)
    turn(table, steps // 2)
    rng = np.random.default_rng(9)
    given = dict(zip(range(0, steps // 2, 2), rng.uniform(0.1, 3, steps).tolist(), strict=False))
    set_priorities(table, given)
    turn(table, steps)
    oldest, newest = table.memory.ring.tail, table.memory.ring.head
    now = {key: rng.uniform(0.1, 5) for key in range(oldest - 9, newest + 9, 3)}
    now[newest - 8] = now[newest - 30] = 0.0
    set_priorities(table, now)
    largest = max([1.0, *(value for key, value in given.items() if key < steps // 2)])
    given |= {key: value for key, value in now.items() if oldest <= key < newest}
    # steps came at the largest priority that there was: at 1 first
    default = {key: 1.0 if key < first_after(steps // 2) else largest for key in range(newest)}
    weights = {key: (default | given)[key] ** 0.7 for key in table.starts(unit).tolist()}
    total = sum(weights.values())
    keys = keys_drawn(table, unit, rounds=16)
    assert len(keys) >= 1_000_000
    assert_drawn_as(keys, {key: weight / total for key, weight in weights.items()})


def first_after(steps):
    """Return how many rows `turn` has written when it stops at so many."""
    return -(-steps // 3) * 3


def test_few_starts_among_many_steps_are_drawn_as_often_as_each_other():
    table = a_table(capacity=400, n_frames=2, seed=7)
    turn(table, 401)
    crowd = Episodes(table, "crowd", lanes=30)
    for kind in (F, *[M] * 11):
        crowd.write(*((lane, kind, lane) for lane in range(30)))
    Episodes(table, "finisher").steps(F, *[M] * 15, END)
    unit = Transition(n_step=20)
    keys = keys_drawn(table, unit, rounds=4)
    starts = table.starts(unit).tolist()
    assert 10 < len(starts) < 0.1 * len(table.memory.ring)
    assert_drawn_as(keys, dict.fromkeys(starts, 1 / len(starts)))


def test_a_limiter_counts_a_unit_as_one_sample():
    table = a_table(limiter=LimiterSpec(min_size=2))
    Episodes(table).steps(F, M, M, M)
    table.sample(sample(5, unit=Sequence(length=2)))
    assert (table.limiter.inserts, table.limiter.samples) == (3, 5)
