import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    FencedError,
    InvalidRequestError,
    SequenceError,
    UnknownWriterError,
)
from fornix.common.messages import MID
from fornix.common.signature import ArraySpec
from fornix.common.specs import Transition
from fornix.common.wire import MAX_MESSAGE_BYTES

from .builders import (
    CUT,
    END,
    Episodes,
    F,
    M,
    a_stack,
    a_table,
    contents,
    frame,
    observe,
    sample,
    transitions,
)

# stacks --------------------------------------------------------------------------------------------


def test_a_stack_is_the_last_frames_with_zeros_before_the_episode():
    table = a_table(n_frames=3)
    episodes = Episodes(table)
    wanted = [a_stack(None, None, 0), a_stack(None, 0, 1), a_stack(0, 1, 2), a_stack(1, 2, 3)]
    for value, kind in enumerate([F, M, M, END]):
        answer = episodes.write((0, kind, value))
        assert answer.key.tolist() == [value]
        assert np.array_equal(answer.stack[0], wanted[value])


def test_a_stack_never_crosses_an_episode():
    episodes = Episodes(a_table(n_frames=3))
    episodes.steps(F, M, M, END)
    assert np.array_equal(episodes.write((0, F, 4)).stack[0], a_stack(None, None, 4))
    assert np.array_equal(episodes.write((0, M, 5)).stack[0], a_stack(None, 4, 5))


def test_an_episode_shorter_than_a_stack_is_padded_to_its_end():
    table = a_table(n_frames=5)
    Episodes(table).steps(F, END)
    assert np.array_equal(
        table.memory.stacks(np.array([0, 1])).stack,
        [a_stack(None, None, None, None, 0), a_stack(None, None, None, 0, 1)],
    )


def test_one_frame_is_a_stack_too():
    episodes = Episodes(a_table(n_frames=1))
    episodes.steps(F, M)
    assert np.array_equal(episodes.write((0, M, 2)).stack, [[frame(2)]])


def test_interleaved_lanes_and_writers_have_stacks_of_their_own():
    table = a_table(n_frames=2)
    one, two = Episodes(table, "one", lanes=2), Episodes(table, "two")
    one.write((0, F, 0), (1, F, 10))
    two.write((0, F, 20))
    one.write((1, M, 11), (0, M, 1))
    answer = two.write((0, M, 21))
    assert np.array_equal(answer.stack[0], a_stack(20, 21))
    answer = one.write((1, M, 12))
    assert np.array_equal(answer.stack[0], a_stack(11, 12))
    answer = one.write((0, M, 2))
    assert np.array_equal(answer.stack[0], a_stack(1, 2))


def test_an_answer_holds_each_lanes_newest_step_in_order_of_appearance():
    episodes = Episodes(a_table(n_frames=2), lanes=3)
    episodes.write((0, F, 0), (1, F, 10), (2, F, 20))
    answer = episodes.write((2, M, 21), (0, END, 1), (1, M, 11), (0, F, 2))
    assert answer.key.tolist() == [3, 6, 5]
    assert np.array_equal(answer.stack, [a_stack(20, 21), a_stack(None, 2), a_stack(10, 11)])


def test_an_episodes_end_and_the_next_ones_beginning_fit_one_request():
    table = a_table(n_frames=3)
    episodes = Episodes(table)
    episodes.steps(F, M)
    answer = episodes.write((0, END, 2), (0, F, 3))
    assert answer.key.tolist() == [3]
    assert np.array_equal(answer.stack[0], a_stack(None, None, 3))
    found = transitions(table)
    assert found.keys() == {0, 1}
    assert np.array_equal(found[1]["next_stack"], a_stack(0, 1, 2))
    assert found[1]["discount"] == 0
    assert table.memory.episodes == 1


@pytest.mark.parametrize("rows", [[(0, F, 0), (0, M, 1)], [(0, F, 0), (0, END, 1)]])
def test_a_step_whose_stack_nobody_would_be_handed_is_refused(rows):
    episodes = Episodes(a_table(n_frames=3))
    with pytest.raises(InvalidRequestError, match=r"lane 0 stands in two rows .* the second is no FIRST"):
        episodes.write(*rows)
    assert len(episodes.table.memory.ring) == 0


def test_keys_alone_may_be_asked_for():
    table = a_table(n_frames=3)
    answer = Episodes(table).write((0, F, 0), stacks=False)
    assert answer.key.tolist() == [0]
    assert answer.stack is None


@pytest.mark.parametrize("key", [-1, 3, 2**62, -(2**63)])
def test_a_stack_of_a_step_that_is_not_there_is_refused(key):
    table = a_table()
    Episodes(table).steps(F, M, M)
    with pytest.raises(EvictedError, match=rf"stack of step {key} is not there.* 0 to 2"):
        table.memory.stacks(np.array([1, key]))


# transitions ---------------------------------------------------------------------------------------


def test_a_transition_carries_what_its_action_led_to():
    table = a_table(n_frames=2)
    Episodes(table).steps(F, M, M, begin=5)
    found = transitions(table, n_step=1, discount=0.5)
    assert found.keys() == {0, 1}
    assert np.array_equal(found[1]["stack"], a_stack(5, 6))
    assert np.array_equal(found[1]["next_stack"], a_stack(6, 7))
    assert (found[1]["action"], found[1]["reward"], found[1]["discount"]) == (7, 70, 0.5)
    assert (found[1]["next_key"], found[1]["steps"], found[1]["probability"]) == (2, 1, 0.5)


def test_rewards_are_summed_with_discount():
    table = a_table(n_frames=1)
    Episodes(table).steps(F, M, M, M)
    found = transitions(table, n_step=3, discount=0.5)
    assert found.keys() == {0}
    assert found[0]["reward"] == 10 + 0.5 * 20 + 0.25 * 30
    assert found[0]["discount"] == 0.125
    assert found[0]["action"] == 1


@pytest.mark.parametrize(("kind", "bootstraps"), [(END, False), (CUT, True)])
def test_the_end_of_an_episode_cuts_a_transition_short(kind, bootstraps):
    table = a_table(n_frames=2)
    Episodes(table).steps(F, M, M, kind)
    found = transitions(table, n_step=3, discount=0.5)
    assert found.keys() == {0, 1, 2}
    for key, steps in ((0, 3), (1, 2), (2, 1)):
        row = found[key]
        assert row["steps"] == steps
        assert row["next_key"] == 3
        assert np.array_equal(row["next_stack"], a_stack(2, 3))
        assert row["discount"] == (0.5**steps if bootstraps else 0)
        assert row["reward"] == sum(0.5**at * 10 * (key + 1 + at) for at in range(steps))
        assert not row["window"][2 + steps :].any()


@pytest.mark.parametrize("kind", [END, CUT])
def test_an_episode_of_one_action_is_one_transition(kind):
    table = a_table(n_frames=3)
    Episodes(table).steps(F, kind)
    found = transitions(table, n_step=5)
    assert found.keys() == {0}
    assert np.array_equal(found[0]["stack"], a_stack(None, None, 0))
    assert np.array_equal(found[0]["next_stack"], a_stack(None, 0, 1))
    assert found[0]["discount"] == (0 if kind == END else 0.5)


def test_a_step_waits_for_its_n_step_end():
    table = a_table()
    episodes = Episodes(table)
    for count, kind in enumerate([F, M, M, M, M]):
        assert table.starts(Transition(n_step=3)).tolist() == list(range(count - 3))
        episodes.write((0, kind, count))
    assert table.starts(Transition(n_step=3)).tolist() == [0, 1]
    episodes.write((0, CUT, 5))
    assert table.starts(Transition(n_step=3)).tolist() == [0, 1, 2, 3, 4]


def test_neither_an_empty_table_nor_a_first_step_can_be_drawn_from():
    table = a_table()
    assert table.sample(sample()) is None
    Episodes(table).steps(F)
    assert table.sample(sample()) is None
    assert table.limiter.samples == 0
    assert "needs 1 before the first sample" in table.why_no_sample(sample())
    Episodes(table, "other").steps(F, M)
    assert table.sample(sample(n_step=2)) is None
    assert "none of the 3 steps can be started from yet" in table.why_no_sample(sample(n_step=2))
    assert "2 steps after it" in table.why_no_sample(sample(n_step=2))


def test_an_index_made_late_holds_the_same_starts():
    table, other = a_table(capacity=20), a_table(capacity=20)
    for made, early in ((table, True), (other, False)):
        if early:
            made.starts(Transition(n_step=2))
        episodes = Episodes(made, lanes=2)
        for _ in range(7):
            episodes.write((0, F, 1), (1, F, 2))
            episodes.write((0, M, 3), (1, CUT, 4))
            episodes.write((0, END, 5), (1, F, 2))
            episodes.write((1, END, 7))
    wanted = table.starts(Transition(n_step=2)).tolist()
    assert other.starts(Transition(n_step=2)).tolist() == wanted != []


def test_extras_and_policy_versions_come_with_the_step_that_they_arrived_with():
    table = a_table(n_frames=1, extras={"logits": ArraySpec.of((2,), np.float32)})
    episodes = Episodes(table)
    for value, kind in enumerate([F, M, M]):
        extras = {"logits": np.full((1, 2), value, np.float32)}
        episodes.write((0, kind, value), extras=extras, policy_version=10 + value)
    found = transitions(table)
    assert [found[key]["extras"]["logits"].tolist() for key in (0, 1)] == [[0, 0], [1, 1]]
    assert [found[key]["policy_version"] for key in (0, 1)] == [11, 12]


@pytest.mark.parametrize("frame_dtype", ["|u1", "<f4", "<i2", "|b1"])
def test_frames_keep_their_dtype_and_shape(frame_dtype):
    table = a_table(n_frames=2, frame=ArraySpec(shape=(2, 1, 3), dtype=frame_dtype))
    pixels = np.arange(6).reshape(1, 2, 1, 3).astype(frame_dtype)
    answer = Episodes(table).write((0, F, 0), frame=pixels)
    assert answer.stack.dtype.str == frame_dtype
    assert np.array_equal(answer.stack, [[np.zeros_like(pixels[0]), pixels[0]]])


# the ring turns ------------------------------------------------------------------------------------


def test_old_episodes_give_way_to_new_ones():
    table = a_table(capacity=8, n_frames=2)
    episodes = Episodes(table)
    for begin in (0, 4, 8):
        episodes.steps(F, M, M, END, begin=begin)
    assert (table.memory.ring.tail, table.memory.ring.head) == (4, 12)
    assert table.starts(Transition(n_step=1)).tolist() == [4, 5, 6, 8, 9, 10]
    found = transitions(table)
    assert found.keys() == {4, 5, 6, 8, 9, 10}
    for key, row in found.items():
        before = None if key in (4, 8) else key - 1
        assert np.array_equal(row["stack"], a_stack(before, key))
        assert np.array_equal(row["next_stack"], a_stack(key, key + 1))
        assert row["probability"] == pytest.approx(1 / 6)


def test_a_stack_that_lost_a_row_cannot_be_drawn_or_asked_for():
    table = a_table(capacity=8, n_frames=3)
    keys = Episodes(table).steps(F, M, M, M, M, M, M, M, M, M)  # rows 0 and 1 are gone
    assert table.starts(Transition(n_step=1)).tolist() == keys[4:-1]
    assert np.array_equal(table.memory.stacks(np.array([4])).stack[0], a_stack(2, 3, 4))
    for key in (1, 2, 3):
        with pytest.raises(EvictedError, match=f"stack of step {key} is not there.* 2 to 9"):
            table.memory.stacks(np.array([key]))


def test_a_start_may_be_overwritten_while_its_n_step_end_is_pending():
    table = a_table(capacity=8, n_frames=1)
    table.starts(Transition(n_step=3))
    slow, fast = Episodes(table, "slow"), Episodes(table, "fast")
    slow.steps(F, M)
    fast.steps(F, M, M, M, M, M, M)  # row 0 is gone, row 1 is the slow lane's newest
    assert table.memory.ring.tail == 1
    slow.write((0, M, 2))  # overwrites row 1: what the slow lane began can't be completed
    slow.write((0, M, 3))
    slow.write((0, CUT, 4))
    slow_rows = [row for row in range(table.memory.ring.tail, table.memory.ring.head) if row in (9, 10, 11)]
    assert slow_rows == [9, 10, 11]
    assert table.starts(Transition(n_step=3)).tolist() == [4, 5, 9, 10]


def test_a_lane_that_slept_too_long_is_refused_and_nothing_is_stored():
    table = a_table(capacity=8, n_frames=2)
    sleeper, other = Episodes(table, "sleeper"), Episodes(table, "other")
    sleeper.steps(F, M)
    other.steps(F, *[M] * 6)
    before = contents(table)
    with pytest.raises(EvictedError, match=r"lane 0 .*: 8 steps are too few .*; raise capacity_steps, or"):
        sleeper.write((0, M, 2))
    assert contents(table) == before
    other.write((0, M, 7))
    again = Episodes(table, "sleeper", incarnation=2)
    assert np.array_equal(again.write((0, F, 9)).stack[0], a_stack(None, 9))


def test_a_request_that_would_overwrite_its_own_predecessors_is_refused_whole():
    table = a_table(capacity=12, n_frames=3)
    episodes = Episodes(table, lanes=3)
    episodes.write((0, F, 0))
    episodes.write((1, F, 10), (2, F, 20))
    for at in range(1, 4):
        episodes.write((1, M, 10 + at), (2, M, 20 + at))
    episodes.write((1, M, 14))
    before = contents(table)
    with pytest.raises(EvictedError, match="lane 0 "):
        episodes.write((1, M, 15), (2, M, 24), (0, M, 1))
    assert contents(table) == before
    answer = episodes.write((1, M, 15), (2, M, 24))
    assert np.array_equal(answer.stack, [a_stack(13, 14, 15), a_stack(22, 23, 24)])


@pytest.mark.parametrize(("n_frames", "lanes", "capacity"), [(3, 4, 15), (1, 8, 15)])
def test_a_writer_whose_stacks_cannot_fit_is_refused(n_frames, lanes, capacity):
    table = a_table(capacity=capacity, n_frames=n_frames)
    needed = lanes * (n_frames + 1)
    with pytest.raises(
        InvalidRequestError, match=f"{lanes} lanes need at least {needed} .* has {capacity}"
    ):
        table.memory.open_writer("w", 1, lanes)
    assert not table.memory.writers


# exactly once --------------------------------------------------------------------------------------


def test_a_request_that_comes_again_is_answered_again_and_not_applied():
    table = a_table(capacity=20)
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0), (1, F, 10))
    answer = episodes.write((0, END, 1), (1, M, 11), (0, F, 2))
    request = episodes.request
    before = contents(table)
    assert table.memory.is_repeated(request)
    again = table.memory.answer_again(request)
    assert again.key.tolist() == answer.key.tolist()
    assert again.stack.tobytes() == answer.stack.tobytes()
    assert contents(table) == before
    episodes.write((0, M, 3))
    assert table.memory.is_repeated(request)
    assert table.memory.answer_again(request).stack.tobytes() == answer.stack.tobytes()


def test_a_request_too_old_to_be_answered_again_is_refused():
    table = a_table()
    episodes = Episodes(table)
    episodes.steps(F, *[M] * 20)
    with pytest.raises(SequenceError, match=r"request 3 of writer 'w' .* the next number is 22"):
        table.memory.answer_again(observe(3, [(0, M, 2)]))
    with pytest.raises(SequenceError, match="request 0"):
        table.memory.answer_again(observe(0, [(0, M, 2)]))


def test_a_request_whose_answer_was_overwritten_is_refused():
    table = a_table(capacity=8, n_frames=2)
    episodes = Episodes(table)
    episodes.steps(F, M)
    Episodes(table, "other").steps(F, *[M] * 6)
    with pytest.raises(
        SequenceError, match=r"request 2 of writer 'w' was applied, and the stack of step 1"
    ):
        table.memory.answer_again(observe(2, [(0, M, 1)]))


@pytest.mark.parametrize("sequence", [3, 4, 2**62])
def test_a_gap_is_refused_with_the_number_that_is_expected(sequence):
    table = a_table()
    Episodes(table).steps(F)
    with pytest.raises(SequenceError, match=f"sent request {sequence}, and 2 is expected"):
        table.memory.is_repeated(observe(sequence, [(0, M, 1)]))
    assert not table.memory.is_repeated(observe(2, [(0, M, 1)]))


def test_an_older_incarnation_is_fenced():
    table = a_table()
    old = Episodes(table, incarnation=5)
    old.steps(F, M)
    Episodes(table, incarnation=6).steps(F, begin=50)
    before = contents(table)
    with pytest.raises(FencedError, match="incarnation 5 of writer 'w' has been replaced by 6"):
        old.write((0, M, 2))
    with pytest.raises(FencedError, match="replaced by 6"):
        table.memory.is_repeated(observe(1, [(0, F, 0)], incarnation=5))
    with pytest.raises(FencedError, match="replaced by 6"):
        table.memory.open_writer("w", 5, 1)
    assert contents(table) == before


def test_a_writer_that_was_never_opened_is_refused():
    table = a_table()
    Episodes(table, "other")
    with pytest.raises(UnknownWriterError, match="writer 'w' is not open in table 't'; open it first"):
        table.memory.observe(observe(1, [(0, F, 0)]), now=0.0)
    with pytest.raises(UnknownWriterError, match="is open as incarnation 1, not 2"):
        table.memory.observe(observe(1, [(0, F, 0)], writer="other", incarnation=2), now=0.0)


def test_a_new_incarnation_closes_the_open_episodes_as_truncated():
    table = a_table(n_frames=2)
    old = Episodes(table, lanes=3)
    old.write((0, F, 0), (1, F, 10), (2, F, 20))
    old.write((0, M, 1), (1, END, 11))
    old.write((0, M, 2))
    assert table.starts(Transition(n_step=3)).tolist() == [1]
    new = Episodes(table, lanes=2, incarnation=2)
    assert new.sequence == 1
    assert table.starts(Transition(n_step=3)).tolist() == [0, 1, 3]
    found = transitions(table, n_step=3, discount=0.5)
    assert (found[0]["steps"], found[0]["discount"], found[0]["next_key"]) == (2, 0.25, 5)
    assert np.array_equal(found[0]["next_stack"], a_stack(1, 2))
    assert (found[1]["steps"], found[1]["discount"]) == (1, 0)
    assert np.array_equal(new.write((0, F, 30)).stack[0], a_stack(None, 30))
    assert table.starts(Transition(n_step=3)).tolist() == [0, 1, 3]


def test_opening_the_same_incarnation_again_changes_nothing():
    table = a_table()
    episodes = Episodes(table, lanes=2)
    episodes.write((0, F, 0))
    before = contents(table)
    assert table.memory.open_writer("w", 1, 2) == 2
    assert contents(table) == before
    with pytest.raises(InvalidRequestError, match="was opened with 2 lanes, not 1; give as many or more"):
        table.memory.open_writer("w", 1, 1)
    assert contents(table) == before
    assert np.array_equal(episodes.write((0, M, 1)).stack[0], a_stack(None, 0, 1))


def test_where_there_are_too_many_writers_the_idlest_is_forgotten():
    table = a_table(capacity=2000)
    for at in range(1024):
        table.memory.open_writer(f"w{at}", 1, 1, now=float(at))
    table.memory.observe(observe(1, [(0, F, 0)], writer="w0"), now=5000.0)
    assert table.memory.open_writer("one more", 1, 1, now=6000.0) == 1
    assert len(table.memory.writers) == 1024
    assert "w1" not in table.memory.writers
    assert table.memory.is_repeated(observe(1, [(0, F, 0)], writer="w0"))


def test_where_there_are_more_lanes_than_steps_the_idlest_writers_are_forgotten():
    table = a_table(capacity=100)
    for at, name in enumerate("abc"):
        table.memory.open_writer(name, 1, 20, now=float(at))
    table.memory.observe(observe(1, [(0, F, 0)], writer="a"), now=9.0)
    table.memory.open_writer("d", 1, 25, now=10.0)
    table.memory.open_writer("e", 1, 25, now=11.0)  # so there would be 110 lanes
    assert table.memory.writers.keys() == {"a", "c", "d", "e"}


# what can't be stored ------------------------------------------------------------------------------

NOTHING_FITS = [
    ([(0, M, 1)], {}, "lane 0 got MID while no episode is open; begin one with FIRST"),
    ([(0, END, 1)], {}, "lane 0 got LAST while no episode is open"),
    ([(1, F, 1)], {}, "lane 1 got FIRST while its episode is open; end that episode with LAST first"),
    ([(1, M, 1), (1, F, 2)], {}, "lane 1 got FIRST while its episode is open"),
    ([(1, END, 1), (1, M, 2)], {}, "the second is no FIRST"),
    ([(1, M, 1), (1, M, 2), (1, M, 3)], {}, "lane 1 stands in two rows of one request, and the second"),
    ([(2, F, 1)], {}, "lane holds 2; writer 'w' has 2 lanes, 0 to 1"),
    ([(-1, F, 1)], {}, "lane holds -1; writer 'w' has 2 lanes"),
    ([(1, (3, False), 1)], {}, "step_type holds 3; it must be 0"),
    ([(1, (MID, True), 1)], {}, "terminated is true on a step that is not LAST"),
    ([(1, M, 1)], {"lane": np.zeros(0, np.int32)}, r"lane has shape \(0,\).*K from 1 to 50"),
    ([(1, M, 1)], {"lane": np.ones(51, np.int32)}, r"lane has shape \(51,\).*K from 1 to 50"),
    ([(1, M, 1)], {"lane": np.ones((1, 1), np.int32)}, r"lane has shape \(1, 1\)"),
    ([(1, M, 1)], {"lane": np.ones((), np.int32)}, r"lane has shape \(\)"),
    ([(1, M, 1)], {"lane": np.ones(1, np.int64)}, "dtype <i8; it must be <i4"),
    ([(1, M, 1)], {"step_type": np.ones(2, np.uint8)}, r"step_type has shape \(2,\).*be \(1,\) and \|u1"),
    ([(1, M, 1)], {"step_type": np.ones(1, np.int32)}, r"step_type has .* <i4; it must be"),
    (
        [(1, M, 1)],
        {"terminated": np.zeros(1, np.uint8)},
        r"terminated has .*\|u1; it must be \(1,\) and \|b1",
    ),
    ([(1, M, 1)], {"frame": np.zeros((1, 1, 2), np.int32)}, r"frame has shape \(1, 1, 2\).* \(1, 2\)"),
    ([(1, M, 1)], {"frame": np.zeros((2, 2), np.int32)}, r"frame has shape \(2, 2\).* \(1, 2\)"),
    ([(1, M, 1)], {"frame": np.zeros((1, 2), np.float64)}, "frame has .* <f8; the table takes .* <i4"),
    ([(1, M, 1)], {"action": np.zeros((1, 1), np.int32)}, r"action has shape \(1, 1\).* \(1,\)"),
    ([(1, M, 1)], {"reward": np.zeros(1, np.float64)}, "reward has .* <f8; the table takes .* <f4"),
    ([(1, M, 1)], {"reward": np.array([np.nan], np.float32)}, "the reward of lane 1 is nan"),
    ([(1, M, 1)], {"reward": np.array([np.inf], np.float32)}, "the reward of lane 1 is inf; .* finite"),
    ([(1, M, 1)], {"reward": np.array([-np.inf], np.float32)}, "the reward of lane 1 is -inf"),
    ([(1, M, 1)], {"extras": {"x": np.zeros(1)}}, r"extras are \['x'\]; the table takes \[\]"),
]


@pytest.mark.parametrize(("rows", "changes", "said"), NOTHING_FITS)
def test_steps_that_do_not_fit_are_refused_and_nothing_is_stored(rows, changes, said):
    table = a_table(capacity=100)
    episodes = Episodes(table, lanes=2)
    episodes.write((1, F, 0))
    table.starts(Transition(n_step=1))
    before = contents(table)
    with pytest.raises(InvalidRequestError, match=said):
        episodes.write(*rows, **changes)
    assert contents(table) == before
    assert table.starts(Transition(n_step=1)).tolist() == []
    episodes.write((1, M, 1))
    assert table.starts(Transition(n_step=1)).tolist() == [0]


@pytest.mark.parametrize("reward", [np.nan, np.inf, 1e39, -2e30])
def test_a_reward_whose_sums_would_not_be_finite_is_refused(reward):
    table = a_table(n_frames=1, reward=ArraySpec(dtype="<f8"))
    episodes = Episodes(table)
    episodes.write((0, F, 0), reward=np.zeros(1))
    with pytest.raises(InvalidRequestError, match=r"the reward of lane 0 is .*finite, and within ±1e\+30"):
        episodes.write((0, M, 1), reward=np.array([reward]))
    for _ in range(64):
        episodes.write((0, M, 1), reward=np.array([1e30]))
    assert np.isfinite(transitions(table, n_step=64, discount=1.0)[0]["reward"])


@pytest.mark.parametrize("missing", [{}, {"value": np.zeros((1, 2), np.float32)}, {"value": np.zeros(1)}])
def test_extras_must_be_those_of_the_table(missing):
    table = a_table(extras={"value": ArraySpec.of((), np.float32)})
    with pytest.raises(InvalidRequestError, match="extras"):
        Episodes(table).write((0, F, 0), extras=missing)


def test_a_discrete_action_out_of_range_is_refused():
    table = a_table(action=ArraySpec.of((), np.int32, n_values=4))
    episodes = Episodes(table)
    episodes.write((0, F, 0), action=np.zeros(1, np.int32))
    with pytest.raises(InvalidRequestError, match=r"action holds 4; a value must lie in \[0, 4\)"):
        episodes.write((0, M, 4))


def test_no_answer_is_larger_than_a_message_may_be():
    table = a_table(capacity=40, n_frames=4, frame=ArraySpec.of((1 << 21,), np.uint8))
    table.check_sample(sample(batch_size=25, n_step=1))
    with pytest.raises(
        InvalidRequestError, match=f"a message may have {MAX_MESSAGE_BYTES:,}; ask for at most 25"
    ):
        table.check_sample(sample(batch_size=26, n_step=1))
    assert table.memory.stacks(np.zeros(0, np.int64)).stack.shape == (0, 4, 1 << 21)
    with pytest.raises(InvalidRequestError, match=r"40 stacks take 335,544,640 bytes; .* at most 31 at"):
        table.memory.stacks(np.zeros(40, np.int64))
    # (the frames of a real request could not even be sent, so this one only seems to hold them)
    wide = a_table(capacity=400, n_frames=64, frame=ArraySpec.of((1 << 17,), np.uint8))
    Episodes(wide, lanes=5)
    rows = {
        "frame": np.broadcast_to(np.uint8(0), (40, 1 << 17)),
        "lane": np.zeros(40, np.int32),
        "action": np.zeros(40, np.int32),
        "reward": np.zeros(40, np.float32),
        "step_type": np.zeros(40, np.uint8),
        "terminated": np.zeros(40, np.bool_),
    }
    with pytest.raises(InvalidRequestError, match=r"40 stacks take .* at most 31 at once"):
        wide.memory.check(observe(1, [(0, F, 0)], **rows))
    wide.memory.check(observe(1, [(0, F, 0)], **rows, stacks=False))


# numbers for those who watch -----------------------------------------------------------------------


def test_returns_and_lengths_are_counted_for_whole_episodes():
    table = a_table()
    episodes = Episodes(table)
    episodes.steps(F, M, M, END)
    assert list(table.memory.returns) == [60.0]
    assert list(table.memory.lengths) == [3]
    episodes.write((0, F, 7))
    episodes.write((0, CUT, 1), (0, F, 5))
    episodes.write((0, M, 2))
    assert list(table.memory.returns) == [60.0, 10.0]
    assert list(table.memory.lengths) == [3, 1]
    assert table.memory.episodes == 2
    assert table.limiter.inserts == 5


def test_the_draw_is_the_same_for_the_same_seed():
    def drawn(seed):
        table = a_table(seed=seed)
        Episodes(table).steps(F, *[M] * 50)
        return table.sample(sample()).key.tolist()

    assert drawn(3) == drawn(3) != drawn(4)
