"""Many rows of a lane in a request, lanes that join, and lanes that leave."""

import numpy as np
import pytest

from fornix.common.errors import EvictedError, InvalidRequestError, SequenceError, UnknownWriterError
from fornix.common.specs import Episode, Transition

from .builders import CUT, END, Episodes, F, M, a_stack, a_table, contents, observe, sample, transitions


def lanes(*numbers):
    return np.array(numbers, np.int32)


# many rows of a lane in one request ----------------------------------------------------------------


def test_a_lane_may_have_many_rows_in_a_request_that_asks_for_no_stacks():
    table = a_table(n_frames=3)
    episodes = Episodes(table, lanes=2)
    rows = [(1, F, 0), (0, F, 10), (1, M, 1), (1, END, 2), (0, M, 11), (1, F, 3), (1, M, 4)]
    answer = episodes.write(*rows, stacks=False)
    assert answer.key.tolist() == [6, 4]  # the newest of lanes 1 and 0
    stacks = table.memory.stacks(np.arange(7)).stack
    wanted = [
        a_stack(None, None, 0),
        a_stack(None, None, 10),
        a_stack(None, 0, 1),
        a_stack(0, 1, 2),
        a_stack(None, 10, 11),
        a_stack(None, None, 3),
        a_stack(None, 3, 4),
    ]
    assert np.array_equal(stacks, wanted)
    assert (table.memory.episodes, list(table.memory.returns), list(table.memory.lengths)) == (1, [30], [2])
    assert table.limiter.inserts == 4
    # and both episodes go on
    answer = episodes.write((0, M, 12), (1, M, 5))
    assert np.array_equal(answer.stack, [a_stack(10, 11, 12), a_stack(3, 4, 5)])
    found = transitions(table, n_step=2)
    assert {key: row["next_key"] for key, row in found.items()} == {0: 3, 2: 3, 1: 7, 5: 8}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, M, 1), (0, F, 2)], "lane 0 got FIRST while its episode is open"),
        ([(0, END, 1), (0, M, 2)], "lane 0 got MID while no episode is open"),
        ([(0, END, 1), (0, F, 2), (0, CUT, 3), (0, CUT, 4)], "lane 0 got LAST while no episode is open"),
        ([(1, F, 1), (0, M, 2), (1, F, 3)], "lane 1 got FIRST while its episode is open"),
        ([(1, F, 1), (0, M, 2), (1, (3, False), 3)], "step_type holds 3"),
    ],
)
def test_rows_of_a_lane_that_do_not_follow_each_other_are_refused_whole(rows, said):
    table = a_table()
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0))
    before = contents(table)
    with pytest.raises(InvalidRequestError, match=said):
        episodes.write(*rows, stacks=False)
    assert contents(table) == before
    assert np.array_equal(episodes.write((0, M, 1)).stack[0], a_stack(None, 0, 1))


def test_where_stacks_are_asked_for_only_an_end_and_a_beginning_share_a_lane():
    episodes = Episodes(a_table())
    episodes.steps(F)
    for rows in ([(0, M, 1), (0, M, 2)], [(0, END, 1), (0, F, 2), (0, M, 3)], [(0, M, 1), (0, END, 2)]):
        with pytest.raises(InvalidRequestError, match=r"lane 0 stands in two rows .* or ask for no stacks"):
            episodes.write(*rows)
    assert len(episodes.table.memory.ring) == 1
    assert episodes.write((0, END, 1), (0, F, 2)).key.tolist() == [2]


def test_a_request_has_at_most_half_the_table():
    episodes = Episodes(a_table(capacity=10))
    episodes.write((0, F, 0), *[(0, M, 1)] * 4, stacks=False)
    with pytest.raises(
        InvalidRequestError, match=r"lane has shape \(6,\); .* K from 1 to 5: half the table"
    ):
        episodes.write(*[(0, M, 1)] * 6, stacks=False)
    with pytest.raises(
        InvalidRequestError, match=r"lane has shape \(6,\); .* K from 0 to 5: half the table"
    ):
        episodes.write((0, F, 0), *[(0, M, 1)] * 5, stacks=False, leave=lanes(0))


def test_keys_that_were_asked_for_alone_can_be_told_again_when_their_rows_are_gone():
    table = a_table(capacity=8, n_frames=2)
    episodes = Episodes(table)
    episodes.steps(F)
    episodes.write((0, M, 1), (0, M, 2), stacks=False)
    request = episodes.request
    Episodes(table, "other").steps(F, *[M] * 8)
    assert table.memory.answer_again(request).key.tolist() == [2]
    with pytest.raises(SequenceError, match="request 1 of writer 'w' was applied, and the stack of step 0"):
        table.memory.answer_again(observe(1, [(0, F, 0)]))


def test_returns_of_one_lane_are_not_spoilt_by_large_rewards_of_another():
    table = a_table()
    episodes = Episodes(table, lanes=2)
    rows = [(0, F, 0), (1, F, 0), (0, M, 1), (1, M, 1), (1, END, 2), (0, M, 2), (0, END, 3)]
    rewards = np.array([0, 0, 1e30, 0.25, 0.5, 1e30, -1e30], np.float32)
    episodes.write(*rows, reward=rewards, stacks=False)
    assert sorted(table.memory.returns) == [0.75, float(rewards[2])]


# lanes that join -----------------------------------------------------------------------------------


def test_lanes_join_a_writer_while_its_episodes_go_on():
    table = a_table(n_frames=2)
    episodes = Episodes(table, lanes=1)
    episodes.write((0, F, 0))
    with pytest.raises(
        InvalidRequestError, match="lane holds 2; writer 'w' has 1 lanes, 0 to 0; open it with"
    ):
        episodes.write((0, M, 1), (2, F, 20))
    assert table.memory.open_writer("w", 1, 3) == 2
    answer = episodes.write((0, M, 1), (2, F, 20))
    assert np.array_equal(answer.stack, [a_stack(0, 1), a_stack(None, 20)])
    with pytest.raises(InvalidRequestError, match="lane 1 got MID while no episode is open"):
        episodes.write((1, M, 10))
    assert np.array_equal(
        episodes.write((2, M, 21), (1, F, 10)).stack, [a_stack(20, 21), a_stack(None, 10)]
    )
    # those that joined end with the others
    Episodes(table, incarnation=2)
    assert table.starts(Transition(n_step=5)).tolist() == [0, 2]


def test_fewer_lanes_or_more_than_fit_are_refused_and_none_is_lost():
    table = a_table(capacity=12, n_frames=2)
    episodes = Episodes(table, lanes=2)
    episodes.write((1, F, 0))
    with pytest.raises(InvalidRequestError, match="was opened with 2 lanes, not 1; give as many or more"):
        table.memory.open_writer("w", 1, 1)
    with pytest.raises(InvalidRequestError, match=r"5 lanes need at least 15 steps .* has 12"):
        table.memory.open_writer("w", 1, 5)
    assert table.memory.writers["w"].lanes == 2
    assert np.array_equal(episodes.write((1, M, 1)).stack[0], a_stack(0, 1))


# lanes that leave ----------------------------------------------------------------------------------


def test_a_lane_that_leaves_ends_its_episode_truncated():
    table = a_table(n_frames=2)
    table.starts(Transition(n_step=3))
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0), (1, F, 10))
    episodes.write((0, M, 1), (1, M, 11))
    answer = episodes.write((1, M, 12), leave=lanes(0))
    assert answer.key.tolist() == [4]
    assert table.starts(Transition(n_step=3)).tolist() == [0]
    row = transitions(table, n_step=3, discount=0.5)[0]
    assert (row["next_key"], row["steps"], row["discount"], row["reward"]) == (2, 1, 0.5, 10)
    with pytest.raises(InvalidRequestError, match="lane 0 got MID while no episode is open"):
        episodes.write((0, M, 2))
    # nobody saw how it would have gone on
    assert (table.memory.episodes, list(table.memory.returns)) == (0, [])


def test_lanes_may_leave_without_any_step():
    table = a_table(n_frames=2)
    table.starts(Transition(n_step=2))
    episodes = Episodes(table, lanes=3)
    episodes.write((0, F, 0), (1, F, 10), policy_version=5)
    episodes.write((0, M, 1), (1, M, 11), policy_version=6)
    for mapped in (False, True):
        answer = episodes.write(leave=lanes(1, 2, 1), policy_version=99, mapped=mapped)
        assert answer.key.tolist() == []
    assert table.memory.answer_again(episodes.request).key.tolist() == []
    assert (table.memory.ring.head, table.limiter.inserts) == (4, 2)
    assert table.memory.newest_policy_version == 6
    assert table.starts(Transition(n_step=2)).tolist() == [1]
    assert np.array_equal(episodes.write((0, M, 2)).stack[0], a_stack(1, 2))
    assert table.memory.is_repeated(episodes.request)


def test_a_lane_may_leave_and_begin_anew_in_one_request():
    table = a_table(n_frames=2)
    episodes = Episodes(table)
    episodes.steps(F, M)
    with pytest.raises(
        InvalidRequestError, match=r"lane 0 got FIRST .*; end that episode with LAST first, let"
    ):
        episodes.write((0, F, 5))
    answer = episodes.write((0, F, 5), leave=lanes(0))
    assert np.array_equal(answer.stack[0], a_stack(None, 5))
    assert table.starts(Transition(n_step=2)).tolist() == [0]
    with pytest.raises(InvalidRequestError, match="lane 0 got MID while no episode is open"):
        episodes.write((0, M, 6), leave=lanes(0))
    assert np.array_equal(episodes.write((0, M, 6)).stack[0], a_stack(5, 6))


def test_a_lane_that_slept_too_long_may_still_leave():
    table = a_table(capacity=8, n_frames=2)
    sleeper, other = Episodes(table, "sleeper", lanes=2), Episodes(table, "other")
    sleeper.write((0, F, 0), (1, F, 10))
    other.steps(F, *[M] * 7)
    with pytest.raises(EvictedError, match="lane 0"):
        sleeper.write((0, M, 1))
    answer = sleeper.write((0, F, 5), leave=lanes(0, 1))
    assert np.array_equal(answer.stack[0], a_stack(None, 5))


BAD_LEAVES = [
    (lanes(2), "leave holds 2; writer 'w' has 2 lanes, 0 to 1; open it with more lanes"),
    (lanes(0, -1), "leave holds -1; writer 'w' has 2 lanes"),
    (np.zeros(1, np.int64), "leave has shape .* dtype <i8; it must be <i4"),
    (np.zeros((1, 1), np.int32), r"leave has shape \(1, 1\)"),
]


@pytest.mark.parametrize(("leave", "said"), BAD_LEAVES)
@pytest.mark.parametrize("rows", [[], [(1, M, 5)]])
def test_a_bad_leave_is_refused_and_no_episode_ends(leave, said, rows):
    table = a_table(n_frames=2)
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0), (1, F, 10))
    before = contents(table)
    with pytest.raises(InvalidRequestError, match=said):
        episodes.write(*rows, leave=leave)
    assert contents(table) == before
    episodes.write((0, M, 1), (1, M, 11))


def test_a_request_whose_rows_are_refused_lets_no_lane_leave():
    table = a_table(n_frames=2)
    table.starts(Transition(n_step=9))
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0))
    episodes.write((0, M, 1))
    before = contents(table)
    for rows in ([(1, M, 5)], [(0, F, 5), (0, F, 6)], [(1, F, 5), (1, M, 6)]):
        with pytest.raises(InvalidRequestError, match="lane"):
            episodes.write(*rows, leave=lanes(0))
        assert contents(table) == before
        assert table.starts(Transition(n_step=9)).tolist() == []
    assert np.array_equal(episodes.write((0, M, 2)).stack[0], a_stack(1, 2))


# wide rings, and numbers far on --------------------------------------------------------------------


def test_from_256_rows_on_the_tail_moves_in_blocks_and_ahead():
    tails = {}
    for capacity in (255, 512):
        table = a_table(capacity=capacity, n_frames=1)
        episodes = Episodes(table)
        episodes.steps(F)
        for _ in range(capacity // 5 + 10):
            episodes.write(*[(0, M, 1)] * 5, stacks=False)
            ring = table.memory.ring
            tails.setdefault(capacity, {})[ring.head] = ring.tail
            assert table.starts(Transition()).tolist() == list(range(ring.tail, ring.head - 1))
    assert all(tail == max(0, head - 255) for head, tail in tails[255].items())
    # to the next multiple of 2
    assert tails[512][506] == 0
    assert tails[512][511] == 2
    assert {head - tail for head, tail in tails[512].items() if tail} <= {509, 510}


@pytest.mark.parametrize("begin", [2**31 - 5, 2**32 - 5, 2**53])
def test_row_numbers_have_room_to_grow(begin):
    table = a_table(capacity=20, n_frames=3)
    table.memory.ring.head = table.memory.ring.tail = begin
    table.reset()
    episodes = Episodes(table)
    keys = episodes.steps(F, *[M] * 30, END)
    assert keys == list(range(begin, begin + 32))
    assert table.starts(Transition(n_step=2)).tolist() == keys[14:-1]
    assert np.array_equal(table.memory.stacks(np.array(keys[-1:])).stack[0], a_stack(29, 30, 31))
    batch = table.sample(sample(200, n_step=3))
    assert set(batch.key.tolist()) == set(keys[14:-1])
    assert (batch.next_key - batch.key == batch.steps).all()


# reset ---------------------------------------------------------------------------------------------


def test_a_reset_forgets_steps_and_writers_and_keys_go_on():
    table = a_table(n_frames=2)
    episodes = Episodes(table)
    episodes.steps(F, M, END)
    table.sample(sample(4))
    table.memory.reset()
    table.reset()
    assert (len(table), table.limiter.inserts, table.limiter.samples) == (0, 0, 0)
    assert table.starts(Transition()).tolist() == []
    with pytest.raises(EvictedError, match="stack of step 2 is not there"):
        table.memory.stacks(np.array([2]))
    with pytest.raises(UnknownWriterError, match="writer 'w' is not open"):
        episodes.write((0, F, 0))
    again = Episodes(table)
    assert (again.sequence, again.steps(F, M)) == (1, [3, 4])
    assert table.starts(Episode()).tolist() == []
    assert table.starts(Transition()).tolist() == [3]
    assert np.array_equal(table.memory.stacks(np.array([4])).stack[0], a_stack(0, 1))
