import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from fornix.common.errors import InvalidRequestError
from fornix.common.signature import ArraySpec
from fornix.common.specs import Episode, Sequence, Transition
from fornix.replay import starts, units

from .builders import CUT, END, Episodes, F, M, a_stack, a_table, drawn, sample


def long_table(episodes=((0, 6, END),), **changes):
    """Return a table of one lane, with episodes of (begin, steps, end)."""
    table = a_table(**({"n_frames": 2} | changes))
    writer = Episodes(table)
    for begin, steps, end in episodes:
        writer.steps(F, *[M] * (steps - 1), end, begin=begin)
    return table


# sequences -----------------------------------------------------------------------------------------


def test_a_sequence_has_every_step_with_its_own_reward_and_discount():
    table = long_table(((5, 3, CUT),))
    found = drawn(table, Sequence(length=3), discount=0.5)
    assert found.keys() == {0}
    row = found[0]
    assert (row["next_key"], row["steps"], row["probability"], row["weight"]) == (3, 3, 1, 1)
    assert np.array_equal(row["window"], a_stack(None, 5, 6, 7, 8))
    assert row["action"].tolist() == [6, 7, 8]
    assert row["reward"].tolist() == [60, 70, 80]
    assert row["discount"].tolist() == [0.5, 0.5, 0.5]
    assert row["mask"].tolist() == [True, True, True]


def test_sequences_overlap_and_the_last_one_is_shorter():
    table = long_table(((0, 8, END),))
    found = drawn(table, Sequence(length=5, overlap=2), discount=0.5)
    assert found.keys() == {0, 3}
    assert found[3]["steps"] == 5
    table = long_table(((0, 9, END),))
    found = drawn(table, Sequence(length=5, overlap=2), discount=0.5)
    assert found.keys() == {0, 3, 6}
    row = found[6]
    assert (row["next_key"], row["steps"]) == (9, 3)
    assert np.array_equal(row["window"], a_stack(5, 6, 7, 8, 9, None, None))
    assert row["action"].tolist() == [7, 8, 9, 0, 0]
    assert row["reward"].tolist() == [70, 80, 90, 0, 0]
    assert row["discount"].tolist() == [0.5, 0.5, 0, 0, 0]
    assert row["mask"].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (3, 0), (4, 1), (4, 3), (6, 3)])
def test_sequences_cover_every_step_and_none_has_only_what_the_one_before_has(steps, length, overlap):
    table = long_table(((0, steps, CUT),), capacity=30)
    found = drawn(table, Sequence(length=length, overlap=overlap))
    covered = [set(range(key, row["next_key"])) for key, row in sorted(found.items())]
    assert set().union(*covered) == set(range(steps))
    assert sorted(found) == [at * (length - overlap) for at in range(len(found))]
    for one, other in itertools.pairwise(covered):
        assert len(one) == length
        assert len(one & other) == overlap
        assert other - one


@pytest.mark.parametrize(("end", "last"), [(END, 0), (CUT, 0.5), (M, 0.5)])
def test_only_the_step_that_terminated_has_discount_0(end, last):
    table = long_table(((0, 4, end),))
    assert drawn(table, Sequence(length=4))[0]["discount"].tolist() == [0.5, 0.5, 0.5, last]


def test_a_sequence_waits_for_its_last_step():
    table = a_table(n_frames=2)
    unit = Sequence(length=3, overlap=1)
    episodes = Episodes(table)
    wanted = [[], [], [], [0], [0], [0, 2], [0, 2]]
    for value, starts_ in enumerate(wanted):
        episodes.write((0, M if value else F, value))
        assert table.starts(unit).tolist() == starts_
    episodes.write((0, END, 7))
    assert table.starts(unit).tolist() == [0, 2, 4]


def test_an_episode_that_ends_with_a_whole_sequence_has_no_other_after_it():
    table = long_table(((0, 6, END), (10, 3, CUT)))
    assert table.starts(Sequence(length=3)).tolist() == [0, 3, 7]
    assert table.starts(Sequence(length=4, overlap=1)).tolist() == [0, 3, 7]


def test_an_end_that_comes_later_completes_the_last_sequence():
    table = long_table(((0, 5, M),))
    unit = Sequence(length=4)
    assert table.starts(unit).tolist() == [0]
    table.memory.open_writer("w", 2, 1)
    assert table.starts(unit).tolist() == [0, 4]
    assert drawn(table, unit)[4]["discount"].tolist() == [0.5, 0, 0, 0]


def test_neither_a_lone_first_step_nor_an_episodes_last_one_is_a_start():
    table = a_table(n_frames=2)
    Episodes(table, "a").steps(F)
    Episodes(table, "b").steps(F, END)
    table.memory.open_writer("a", 2, 1)
    for unit in (Sequence(length=1), Sequence(length=3), Episode(), Transition(n_step=2)):
        assert table.starts(unit).tolist() == [1]


def test_extras_and_versions_of_a_sequence_are_those_of_its_steps():
    table = a_table(n_frames=1, extras={"state": ArraySpec.of((2,), np.float32)})
    episodes = Episodes(table)
    for value, kind in enumerate([F, M, M, CUT]):
        extras = {"state": np.full((1, 2), 7 + value, np.float32)}
        episodes.write((0, kind, value), extras=extras, policy_version=20 + value)
    row = drawn(table, Sequence(length=2))[2]
    assert row["extras"]["state"].tolist() == [[9, 9], [0, 0]]
    assert row["policy_version"].tolist() == [23, 0]
    row = drawn(table, Sequence(length=2))[0]
    assert row["extras"]["state"].tolist() == [[7, 7], [8, 8]]
    assert row["policy_version"].tolist() == [21, 22]


def test_a_start_leaves_with_the_first_row_of_its_stack_and_later_ones_stay():
    table = a_table(capacity=10, n_frames=2)
    episodes = Episodes(table)
    episodes.steps(F, *[M] * 9)
    assert table.starts(Sequence(length=3)).tolist() == [0, 3, 6]
    for value, starts_ in ((10, [3, 6]), (11, [3, 6]), (12, [6, 9]), (13, [6, 9])):
        episodes.write((0, M, value))
        assert table.starts(Sequence(length=3)).tolist() == starts_
    row = drawn(table, Sequence(length=3))[9]
    assert np.array_equal(row["window"], a_stack(8, 9, 10, 11, 12))


def test_burn_in_changes_nothing_of_what_is_drawn():
    table = long_table()
    for burn_in in (0, 2):
        found = drawn(table, Sequence(length=4, overlap=1, burn_in=burn_in))
        assert found.keys() == {0, 3}
        assert found[0]["reward"].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("name", ["overlap", "burn_in"])
def test_a_sequence_of_nothing_but_overlap_or_burn_in_is_refused(name):
    with pytest.raises(ValidationError, match=f"{name} 4 is not below length 4; lower it"):
        Sequence(length=4, **{name: 4})


# episodes ------------------------------------------------------------------------------------------


def test_whole_episodes_are_drawn_as_long_as_the_longest_of_them():
    table = long_table(((0, 2, END), (10, 4, CUT), (20, 7, END)))
    found = drawn(table, Episode(max_steps=6), discount=0.5)
    assert found.keys() == {0, 3}
    assert np.array_equal(found[0]["window"], a_stack(None, 0, 1, 2, None, None))
    assert found[0]["reward"].tolist() == [10, 20, 0, 0]
    assert found[0]["discount"].tolist() == [0.5, 0, 0, 0]
    assert found[0]["mask"].tolist() == [True, True, False, False]
    assert np.array_equal(found[3]["window"], a_stack(None, 10, 11, 12, 13, 14))
    assert found[3]["action"].tolist() == [11, 12, 13, 14]
    assert found[3]["discount"].tolist() == [0.5] * 4
    assert (found[3]["next_key"], found[3]["steps"]) == (7, 4)


def test_an_episode_is_drawn_once_it_has_ended_and_while_its_first_step_is_there():
    table = a_table(capacity=8, n_frames=3)
    table.starts(Episode())
    writer = Episodes(table)
    writer.steps(F, M, M)
    assert table.starts(Episode()).tolist() == []
    writer.write((0, END, 3), (0, F, 4))
    assert table.starts(Episode()).tolist() == [0]
    writer.steps(M, CUT, begin=5)
    assert table.starts(Episode()).tolist() == [0, 4]
    writer.steps(F, M)
    assert table.starts(Episode()).tolist() == [4]


def test_a_writer_that_is_replaced_ends_an_episode_too():
    table = a_table()
    Episodes(table).steps(F, M, M)
    table.memory.open_writer("w", 2, 1)
    row = drawn(table, Episode(), discount=0.5)[0]
    assert (row["steps"], row["discount"].tolist()) == (2, [0.5, 0.5])


def test_an_episode_of_a_lane_that_slept_a_long_time_has_lost_its_beginning():
    """Its first row is 2**32 rows and more back; what lies in its place is of another lane."""
    table = a_table(capacity=8, n_frames=1)
    table.starts(Episode())
    sleeper, other = Episodes(table, "sleeper"), Episodes(table, "other")
    sleeper.steps(F)
    table.memory.ring.head = table.memory.ring.tail = 2**32
    other.steps(F, M, M)
    sleeper.steps(END)
    assert table.starts(Episode()).tolist() == []
    assert table.starts(Transition()).tolist() == [2**32, 2**32 + 1]


# all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (Transition(n_step=7), "the 7 steps after it, or its episode's end"),
        (Sequence(length=9, overlap=4), "the 9 steps after it, or its episode's end"),
        (Episode(max_steps=11), "its episode's end at most 11 steps after it"),
    ],
)
def test_who_waits_for_a_start_is_told_what_it_lacks(unit, said):
    table = long_table(((0, 4, M),))
    request = sample(unit=unit)
    assert table.sample(request) is None
    why = table.why_no_sample(request)
    assert why.startswith("none of the 5 steps can be started from yet")
    assert f"{said}; more steps open it" in why


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Transition(n_step=65), "n_step\n.*less than or equal to 64"),
        (lambda: Sequence(length=4097), "length\n.*less than or equal to 4096"),
        (lambda: Episode(max_steps=0), "max_steps\n.*greater than or equal to 1"),
    ],
)
def test_a_unit_of_too_many_or_no_steps_is_refused(make, text):
    with pytest.raises(ValidationError, match=text):
        make()


def test_sequences_that_overlap_too_much_are_refused():
    text = "length 4096 with overlap 4095 puts each step into 4096 sequences; the limit is 64; lower one"
    with pytest.raises(ValidationError, match=text):
        Sequence(length=4096, overlap=4095)
    assert Sequence(length=64, overlap=63).period == 1
    assert Sequence(length=4096, overlap=4032).period == 64


def test_a_unit_that_a_table_could_never_hold_is_refused():
    table = a_table(capacity=8, n_frames=4)
    table.check_sample(sample(unit=Transition(n_step=4)))
    with pytest.raises(
        InvalidRequestError, match=r"a transition of 5 steps needs 9 .* holds 8; draw shorter"
    ):
        table.check_sample(sample(unit=Transition(n_step=5)))
    # these may be shorter than they may be long
    table.check_sample(sample(unit=Sequence(length=50)))
    table.check_sample(sample(unit=Episode(max_steps=50)))


def test_five_units_are_told_apart_though_four_are_kept():
    table = long_table(((0, 6, END), (10, 3, CUT)))
    wanted = {
        Transition(n_step=1): [0, 1, 2, 3, 4, 5, 7, 8, 9],
        Sequence(length=3): [0, 3, 7],
        Sequence(length=3, overlap=1): [0, 2, 4, 7],
        Episode(max_steps=3): [7],
        Episode(max_steps=6): [0, 7],
    }
    for _ in range(2):
        assert {unit: table.starts(unit).tolist() for unit in wanted} == wanted


def test_starts_are_found_in_parts_as_in_one_look(monkeypatch):
    monkeypatch.setattr(units, "_CELLS_AT_ONCE", 8)
    monkeypatch.setattr(starts, "_SCAN_ROWS", 5)
    kinds = [Transition(n_step=3), Sequence(length=3, overlap=1), Sequence(length=40), Episode()]
    early = a_table(n_frames=2, capacity=60)
    found = {unit: early.starts(unit).tolist() for unit in kinds}
    late = a_table(n_frames=2, capacity=60)
    for table in (early, late):
        writer = Episodes(table, lanes=3)
        for at in range(9):
            rows = [(lane, F if step == 0 else M, at) for step in range(4) for lane in range(3)]
            writer.write(*rows, *((lane, CUT, at) for lane in range(3)), stacks=False)
    found = {unit: early.starts(unit).tolist() for unit in kinds}
    assert {unit: late.starts(unit).tolist() for unit in kinds} == found
    assert len(found[Transition(n_step=3)]) == 4 * 12
    assert len(found[Episode()]) == 12
