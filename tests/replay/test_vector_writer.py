"""What a vector of Gymnasium environments did is what the table holds, in each autoreset mode."""

import numpy as np
import pytest

from fornix.common import trees
from fornix.common.errors import EvictedError, InvalidRequestError, UnknownWriterError, WaitTimeoutError
from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import TableSpec, Transition
from fornix.replay.autoreset import Autoreset
from fornix.replay.client import Client
from fornix.replay.vector_writer import VectorWriter

from .vector_envs import ACTIONS, FORMS, MODES, N_FRAMES, Lane, Run, make_envs, open_table, spec_of

every_mode = pytest.mark.parametrize("mode", sorted(MODES))


def run_until(run, done, steps=100):
    """Step until `done(run)`."""
    for _ in range(steps):
        run.step()
        if done(run):
            return
    raise AssertionError("it never came to that")


@every_mode
@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_every_row_and_every_stack_is_what_the_environments_did(mode, form, action):
    run = Run(mode, form=form, action=action)
    run.begin()
    for _ in range(30):
        run.step()
    run.check()
    for lane in run.lanes:
        assert [row[:3] + row[4:] for row in lane.rows] == [row[:3] + row[4:] for row in lane.env.log]
        assert lane.env.episode > 3


def true_transitions(lane, n_step, discount):
    """Return {the first row's place: (action, return, discount, stack, next stack)} of one lane."""
    frames = [lane.env.frame(row[4])[""] for row in lane.rows]
    begins = np.maximum.accumulate([at if row[0] == FIRST else 0 for at, row in enumerate(lane.rows)])

    def stack(at):
        there = frames[max(begins[at], at - N_FRAMES + 1) : at + 1]
        return np.stack([np.zeros_like(frames[0])] * (N_FRAMES - len(there)) + there)

    found = {}
    for at, row in enumerate(lane.rows):
        after = [k for k in range(at + 1, min(at + 1 + n_step, len(begins))) if begins[k] == begins[at]]
        ends = [later for later in after if lane.rows[later][0] == LAST]
        if row[0] == LAST or not (ends or len(after) == n_step):
            continue
        steps = len(after)
        returned = sum(discount**k * lane.rows[later][3] for k, later in enumerate(after))
        weight = 0.0 if ends and lane.rows[ends[0]][1] else discount**steps
        found[row[4]] = (lane.rows[at + 1][2], returned, weight, stack(at), stack(at + steps))
    return found


@every_mode
@pytest.mark.parametrize("n_step", [1, 3])
def test_every_transition_that_is_drawn_is_a_true_one_and_all_are(mode, n_step):
    run = Run(mode)
    run.begin()
    for _ in range(30):
        run.step()
    true = {}
    for lane in run.lanes:
        true |= true_transitions(lane, n_step, 0.5)
    drawn = run.client.sample("t", 3000, Transition(n_step=n_step), discount=0.5).result()
    seen = set()
    for at in range(3000):
        where = tuple(drawn.stack[at, -1].tolist())
        action, returned, discount, stack, next_stack = true[where]
        assert drawn.action[at] == action
        assert drawn.reward[at] == pytest.approx(returned)
        assert drawn.discount[at] == discount
        np.testing.assert_array_equal(drawn.stack[at], stack)
        np.testing.assert_array_equal(drawn.next_stack[at], next_stack)
        seen.add(where)
    assert seen == true.keys()


@every_mode
def test_a_step_takes_one_request_however_many_episodes_end(mode):
    run = Run(mode, copies=8, first=True)
    run.begin()
    for _ in range(30):
        run.step()
    assert len(run.transport.requests) == 31
    run.check()


def test_what_ended_both_ways_counts_as_terminated():
    run = Run("same_step")
    run.begin()
    run_until(run, lambda run: any(env._ending == (True, True) for env in run.envs.envs), 20)
    both = next(env for env in run.envs.envs if env._ending == (True, True))
    run_until(run, lambda run: both.at == 0)
    last = [row for row in run.transport.rows[both.number] if row[0] == LAST][-1]
    assert last[1]


def test_the_action_of_a_step_that_resets_is_not_looked_at():
    run = Run("next_step")
    run.begin()
    run_until(run, lambda run: run.done.any() and not run.done.all())
    over = run.done
    action, *rest = run.act()
    action = np.where(over, -7, action)
    run.answered(run.rows.step(action, *rest))
    run.check()
    firsts = [run.transport.rows[lane][-1] for lane in np.flatnonzero(over)]
    assert all(row[0] == FIRST and row[2] == 0 for row in firsts)
    assert (action[over] == -7).all()  # the caller's array is left alone


# --- modes, and what can be wrong about them ---


@pytest.mark.parametrize("mode", list(Autoreset))
def test_a_mode_is_known_by_its_name_and_by_gymnasiums_member(mode):
    theirs = MODES[mode.value]
    for name in (mode, mode.value, mode.name, theirs, theirs.value, theirs.name):
        assert Autoreset.of(name) is mode
    assert Autoreset.of(make_envs(mode.value).metadata["autoreset_mode"]) is mode


def test_another_mode_is_refused():
    with pytest.raises(InvalidRequestError, match=r"'always'; it must be 'next_step', 'same_step' or"):
        Autoreset.of("always")


def ended(mode, form="box", **options):
    """Return a run, and what it gives to `VectorWriter.step` when some episodes have ended."""
    run = Run(mode, form=form, **options)
    run.begin()
    while True:
        given = run.act()
        if run.done.any() and not run.done.all():
            return run, given
        run.answered(run.rows.step(*given))


def refused(run, match, *given, **options):
    """The step is refused and changes nothing."""
    before = len(run.transport.requests)
    with pytest.raises(InvalidRequestError, match=match):
        run.rows.step(*given, **options)
    assert len(run.transport.requests) == before


@pytest.mark.parametrize("form", ["box", "discrete", "dict"])
def test_a_missing_last_observation_is_named_and_nothing_is_written(form):
    run, given = ended("same_step", form)
    info = given[-1]
    lane = int(np.flatnonzero(run.done)[0])
    refused(run, rf"lane {lane} ended.*there is no info\['final_obs'\].*SAME_STEP", *given[:-1])
    refused(run, rf"lane {lane} ended", *given[:-1], {"other": 1})
    nobody = {"_final_obs": np.zeros(4, bool)}
    refused(run, rf"lane {lane} ended.*has none for it", *given[:-1], info | nobody)
    nothing = {"final_obs": np.full(4, None)}
    refused(run, rf"lane {lane} ended.*has none for it", *given[:-1], info | nothing)
    few = {"_final_obs": np.ones(3, bool)}
    refused(run, rf"lane {lane} ended.*has 3 rows, and the observation 4", *given[:-1], info | few)
    run.answered(run.rows.step(*given))
    run.step()
    run.check()


def test_a_last_observation_unlike_the_others_points_at_the_wrapper():
    run, given = ended("same_step")
    info = given[-1]
    one = int(np.flatnonzero(run.done)[0])
    for odd in (np.zeros(2, np.int32), np.zeros(3), {"a": np.zeros(3, np.int32)}):
        final = info["final_obs"].copy()
        final[one] = odd
        refused(run, "wrapper", *given[:-1], info | {"final_obs": final})
    run.answered(run.rows.step(*given))
    run.check()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_last_observations_may_come_as_one_array_for_all(form):
    """As vector environments of other people's give them, without a mask."""
    run, given = ended("same_step", form)
    dense = trees.mapped(given[1], np.zeros_like)
    for lane in np.flatnonzero(run.done):
        end = run.envs.envs[lane].log[-2][4]
        for path, array in run.envs.envs[lane].frame(end).items():
            trees.leaves(dense)[path][lane] = array
    run.answered(run.rows.step(*given[:-1], {"final_obs": dense}))
    run.check()


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_environments_that_reset_in_the_same_step_are_found_out(mode):
    run, given = ended("same_step")
    rows = VectorWriter(run.client.open_writer("t", "other", 4), mode)
    rows.reset(given[1]).result()
    with pytest.raises(InvalidRequestError, match=r"reset in the same step, but autoreset is .*metadata"):
        rows.step(*given)


@every_mode
def test_who_steps_before_the_first_reset_is_told_to_reset(mode):
    run = Run(mode)
    observation, _ = run.envs.reset(seed=0)
    given = [np.zeros(4, np.int64), observation, np.zeros(4), *np.zeros((2, 4), bool), {}]
    refused(run, r"lanes \[0, 1, 2, 3\] have begun no episode yet; call reset\(observation\) first", *given)
    run.transport.refuse = [EvictedError]
    with pytest.raises(EvictedError):
        run.rows.reset(observation).result()
    refused(run, r"call reset\(observation\) first", *given)
    run.rows.reset(observation, np.arange(4) != 1).result()
    refused(run, r"lanes \[1\] have begun no episode", *given)
    assert run.rows.reset(observation, np.arange(4) == 1).result().lane.tolist() == [0, 1, 2, 3]
    assert run.rows.step(*given).result().lane.tolist() == [0, 1, 2, 3]


@every_mode
def test_a_lane_that_left_before_the_first_reset_needs_none(mode):
    rows, step, _ = no_vector(mode, begin=False)
    rows.leave([2])
    rows.reset(np.zeros((3, 3), np.int32), np.arange(3) < 2).result()
    assert step() == [0, 1]
    rows.join([2])
    assert step() == [0, 1]
    rows.leave([2])
    rows.join([2], at_once=True)
    assert step() == [0, 1, 2]


@every_mode
def test_lanes_that_all_joined_at_once_need_no_reset(mode):
    rows, step, written = no_vector(mode, begin=False)
    rows.leave(range(3))
    rows.join(range(3), at_once=True)
    assert step() == [0, 1, 2]
    assert [row[0] for lane in range(3) for row in written[lane]] == [FIRST] * 3


def test_who_steps_an_environment_that_is_over_is_told_to_reset_it():
    run, given = ended("disabled")
    run.answered(run.rows.step(*given))
    over = ", ".join(map(str, np.flatnonzero(run.done)))
    refused(run, rf"lanes \[{over}\] ended and were not reset; call envs.reset", *given)
    run.answered(run.rows.reset(*run.reset_done()))
    run.step()
    run.check()


def test_lanes_may_be_reset_one_after_another():
    run, given = ended("disabled", copies=6)
    run.answered(run.rows.step(*given))
    for lane in np.flatnonzero(run.done):
        run.over = np.arange(6) == lane
        run.answered(run.rows.reset(*run.reset_done()))
    run.step()
    run.check()


def test_first_is_for_who_resets_by_hand():
    run, given = ended("next_step")
    refused(run, "'next_step' the environments reset themselves", *given, first=given[1])


def test_first_must_not_have_overwritten_the_last_observations():
    run, given = ended("disabled", first=True)
    refused(run, "copy=True", *given, first=given[1])
    refused(run, "first has the arrays", *given, first=given[1].astype(float))
    run.answered(run.rows.step(*given, first=run.reset_done()[0]))
    run.check()


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_environments_may_write_into_the_same_arrays(mode):
    run = Run(mode)
    run.envs = make_envs(mode, copy=False)
    run.lanes = [Lane(env) for env in run.envs.envs]
    run.envs.action_space.seed(0)
    run.begin()
    for _ in range(30):
        run.step()
    run.check()


# --- lanes that join and leave ---


@every_mode
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_lanes_join_and_leave_at_random(mode, first, seed):
    run = Run(mode, copies=6, form="tuple", first=first)
    rng = np.random.default_rng(seed)
    run.begin()
    for _ in range(80):
        run.step()
        for number, lane in enumerate(run.lanes):
            if rng.random() < 0.1:
                (run.leave if lane.joined else run.join)(number)
            elif rng.random() < 0.05 and not lane.joined and lane.env.at + 1 < lane.env._length:
                run.join(number, at_once=True)
    before = len(run.transport.requests)
    run.answered(run.rows.flush())
    assert len(run.transport.requests) == before + 1
    run.check()


@every_mode
def test_the_episode_of_a_lane_that_leaves_is_cut_and_not_terminated(mode):
    run = Run(mode, copies=2)
    run.begin()
    run_until(run, lambda run: run.lanes[1].open and run.lanes[1].env.at >= 1)
    before = len(run.transport.requests)
    run.leave(1)
    assert len(run.transport.requests) == before  # it goes with the next step
    left = run.lanes[1].env.log[-1][4]
    run.step()
    assert run.transport.requests[before].leave.tolist() == [1]
    drawn = run.client.sample("t", 500, Transition(n_step=1), discount=0.5).result()
    cut = (drawn.next_stack[:, -1] == left).all(axis=1)
    assert cut.any()
    assert (drawn.discount[cut] == 0.5).all()
    run.step()
    assert not [request for request in run.transport.requests[before + 1 :] if np.any(request.leave)]
    run.check()


@every_mode
def test_a_lane_that_joins_waits_for_an_episode_to_begin(mode):
    run = Run(mode)
    run.begin()
    run_until(run, lambda run: run.lanes[2].open and run.lanes[2].env._length - run.lanes[2].env.at >= 2)
    run.leave(2)
    run.join(2)
    answer = run.step()
    assert answer.lane.tolist() == [0, 1, 3]
    run_until(run, lambda run: run.lanes[2].shown)
    assert run.transport.rows[2].count("left") == 1
    assert [row[0] for row in run.transport.rows[2] if row != "left"].count(FIRST) >= 2
    run.check()


def test_a_lane_that_joins_at_once_when_its_environment_resets_begins_with_the_new_episode():
    run = Run("same_step")
    run.begin()
    env = run.envs.envs[2]
    run_until(run, lambda _: env._length - env.at == 1 and env._ending[0])
    run.leave(2)
    run.join(2, at_once=True)
    run.step()
    assert run.transport.rows[2][-1][:2] == (FIRST, False)
    run.step()
    run.check()


def no_vector(mode, begin=True):
    """Return rows, and a function that writes a step of three lanes of which some are done."""
    _, transport, writer = open_table(3)
    rows = VectorWriter(writer, mode)

    def step(*done):
        zeros, no = np.zeros((3, 3), np.int32), np.zeros(3, bool)
        action, reward = np.zeros(3, np.int64), np.zeros(3, np.float32)
        over = np.isin(np.arange(3), done)
        return rows.step(action, zeros, reward, no, over).result().lane.tolist()

    if begin:
        rows.reset(np.zeros((3, 3), np.int32)).result()
    return rows, step, transport.rows


def test_a_lane_that_has_to_be_reset_still_has_to_when_it_comes_back():
    rows, step, _ = no_vector("disabled")
    step(1)
    rows.leave([1])
    assert step() == [0, 2]
    rows.join([1])
    with pytest.raises(InvalidRequestError, match=r"\[1\] ended and were not reset"):
        step()
    rows.leave([1])
    rows.join([1], at_once=True)
    assert step() == [0, 1, 2]


def test_a_lane_whose_environment_was_reset_while_it_was_away_joins_with_the_next_episode():
    rows, step, written = no_vector("next_step")
    rows.leave([1])
    step(1)
    assert rows.reset(np.zeros((3, 3), np.int32), np.arange(3) == 1).result().lane.tolist() == [0, 2]
    rows.join([1])
    assert step() == [0, 2]  # its environment is in mid-episode
    assert step(1) == [0, 2]
    assert step() == [0, 1, 2]
    assert [row[0] for row in written[1] if row != "left"] == [FIRST, FIRST]


@every_mode
def test_a_lane_that_joins_at_once_begins_with_the_next_observation(mode):
    run = Run(mode)
    run.begin()
    run_until(run, lambda run: run.lanes[2].open and run.lanes[2].env._length - run.lanes[2].env.at >= 2)
    run.leave(2)
    run.join(2, at_once=True)
    assert run.step().lane.tolist() == [0, 1, 2, 3]
    assert run.transport.rows[2][-2] == "left"
    assert run.transport.rows[2][-1][0] == FIRST
    run.check()


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_an_episode_of_one_frame_is_refused_and_its_lane_may_leave(mode):
    run = Run(mode)
    run.begin()
    run_until(run, lambda run: run.lanes[2].open and run.lanes[2].env._length - run.lanes[2].env.at == 1)
    run.leave(2)
    run.rows.join([2], at_once=True)
    given = run.act()
    refused(run, r"lanes \[2\] ended with the observation that begins", *given)
    run.rows.leave([2])
    run.answered(run.rows.step(*given))
    run.check()


@every_mode
def test_lanes_are_added_to_the_writer(mode):
    run = Run(mode, copies=5, lanes=2)
    run.begin()
    run_until(run, lambda run: not any(run.over[[2, 4]]))
    run.join(4, 2)
    assert run.rows.lanes == run.writer.lanes == 5
    run.lanes[3].joined = False
    for _ in range(30):
        run.step()
    assert 3 not in run.transport.rows
    run.join(3, at_once=run.lanes[3].env.at + 1 < run.lanes[3].env._length)
    for _ in range(10):
        run.step()
    assert all(run.transport.rows[lane] for lane in range(5))
    run.check()


def test_lanes_that_cant_be_added_leave_everything_as_it_was():
    run = Run("next_step", copies=3, lanes=2, capacity=10)
    run.begin()
    for wanted, match in (
        ([2], "3 lanes need at least 12 steps"),
        ([70_000], "beyond 65536 lanes"),
        ([-1], "no lane -1"),
        ([0], r"\[0\] have joined already"),
        ([[0]], "shape"),
        (np.array([0.5]), "dtype <f8"),
        (np.array([True]), "which has shape"),
    ):
        with pytest.raises(InvalidRequestError, match=match):
            run.rows.join(wanted)
    for wanted, match in (([2], "no lane 2; lanes are 0 to 1"), (np.ones(3, bool), "which has shape")):
        with pytest.raises(InvalidRequestError, match=match):
            run.rows.leave(wanted)
    assert run.rows.lanes == run.writer.lanes == 2
    run.step()
    run.check()


def test_a_writer_that_the_server_forgot_does_not_grow():
    run = Run("next_step", copies=3, lanes=2)
    run.begin()
    run.client.reset_table("t")
    with pytest.raises(UnknownWriterError, match="waits for request 1 of writer 'w', and 2 would be next"):
        run.rows.join([2])
    assert run.rows.lanes == run.writer.lanes == 2


def test_all_lanes_may_leave():
    run = Run("same_step")
    run.begin()
    run.leave(*range(4))
    assert len(run.step().stack) == 0
    assert len(run.step().stack) == 0
    run.join(*range(4))
    for _ in range(10):
        run.step()
    run.check()


def test_flush_sends_what_has_left_and_shows_who_stays():
    run = Run("next_step", form="dict", extras={"hidden": ArraySpec.of((2,), np.float32)})
    hidden = {"hidden": np.zeros((4, 2), np.float32)}
    run.begin(extras=hidden)
    run.step(extras=hidden)
    run.leave(0, 2)
    assert run.answered(run.rows.flush()).lane.tolist() == [1, 3]
    assert run.transport.requests[-1].leave.tolist() == [0, 2]
    assert len(run.transport.requests[-1].lane) == 0
    assert run.answered(run.rows.flush(stacks=False)).stack is None
    run.step(extras=hidden)
    run.check()


@every_mode
def test_a_reset_in_mid_episode_cuts_it(mode):
    run = Run(mode)
    run.begin()
    run_until(run, lambda run: sum(lane.open for lane in run.lanes) >= 2)
    run.begin()
    assert any("left" in rows for rows in run.transport.rows.values())
    run.step()
    run.over = np.array([True, False, False, True])
    run.answered(run.rows.reset(*run.reset_done()))
    run.step()
    run.check()


def test_what_was_not_shown_before_a_reset_is_asked_for():
    run, given = ended("disabled", form="dict")
    answer = run.answered(run.rows.step(*given, stacks=False))
    assert answer.stack is None
    run.answered(run.rows.reset(*run.reset_done()))
    run.check()


# --- what can go wrong on the way ---


@every_mode
@pytest.mark.parametrize("error", [InvalidRequestError, EvictedError])
def test_a_request_that_was_refused_has_changed_nothing(mode, error):
    run = Run(mode, first=True)
    run.begin()
    rng = np.random.default_rng(0)
    for _ in range(40):
        given = run.act()
        options = {}
        if mode == "disabled" and run.done.any():
            options["first"], _ = run.reset_done()
        if rng.random() < 0.3:
            number = int(rng.integers(4))
            (run.leave if run.lanes[number].joined else run.join)(number)
        run.transport.refuse = [error]
        with pytest.raises(error):
            run.rows.step(*given, **options).result()
        run.answered(run.rows.step(*given, **options))
    run.check()


@every_mode
def test_a_request_that_timed_out_is_sent_again(mode):
    run = Run(mode, first=True)
    run.begin()
    for _ in range(30):
        given = run.act()
        options = {}
        if mode == "disabled" and run.done.any():
            options["first"], _ = run.reset_done()
        run.transport.refuse = [WaitTimeoutError, WaitTimeoutError]
        pending = run.rows.step(*given, **options)
        for _ in range(2):
            with pytest.raises(WaitTimeoutError):
                pending.result()
            refused(run, "take unanswered.result", *given, **options)
            for call in (run.rows.flush, lambda: run.rows.leave([0]), lambda: run.rows.join([5])):
                with pytest.raises(InvalidRequestError, match=r"call unanswered.send_again\(\)"):
                    call()
            pending.send_again()
        run.answered(pending)
    run.check()


@every_mode
def test_who_kept_nothing_of_a_request_that_timed_out_finds_it_at_the_writer(mode):
    run = Run(mode, first=True)
    assert run.rows.unanswered is None
    observation, _ = run.envs.reset(seed=0)
    run.transport.refuse = [WaitTimeoutError]
    with pytest.raises(WaitTimeoutError):
        run.rows.reset(observation).result()
    for _ in range(10):
        run.rows.unanswered.send_again()
        run.answered(run.rows.unanswered)
        assert run.rows.unanswered is None
        given = run.act()
        options = {"first": run.reset_done()[0]} if mode == "disabled" and run.done.any() else {}
        run.transport.refuse = [WaitTimeoutError]
        with pytest.raises(WaitTimeoutError):
            run.rows.step(*given, **options).result()
    run.rows.unanswered.send_again()
    run.answered(run.rows.unanswered)
    run.check()


def test_a_call_out_of_turn_leaves_the_arrays_of_a_request_in_flight_alone():
    run, given = ended("same_step")
    pending = run.rows.step(*given)
    sent = run.transport.requests[-1].frame
    before = sent.copy()
    other = [given[0], given[1] + 1000, *given[2:]]
    refused(run, "no answer yet", *other)
    np.testing.assert_array_equal(sent, before)
    run.answered(pending)
    run.check()


def test_a_stack_that_was_lost_after_the_write_does_not_upset_the_lanes(monkeypatch):
    run, given = ended("same_step")
    with monkeypatch.context() as patch:
        patch.setattr(run.writer._fetch, "stacks", lambda *_: (_ for _ in ()).throw(EvictedError("lost")))
        with pytest.raises(EvictedError):
            run.rows.step(*given).result()
    run.step()
    run.check()


def test_what_is_given_is_checked_before_anything_is_sent():
    run = Run("next_step")
    run.begin()
    action, observation, reward, terminated, truncated, info = run.act()
    for given, match in (
        ((action[:3], observation, reward, terminated, truncated), r"action has shape \(3,\).*4 rows"),
        ((action, observation[0], reward, terminated, truncated), r"observation has shape \(3,\)"),
        ((action, observation, 1.0, terminated, truncated), r"reward has shape \(\)"),
        ((action, observation, terminated, truncated, reward), r"truncated has .*<f8; it must be bool"),
        ((action, observation, reward, terminated[:, None], truncated), r"terminated has shape \(4, 1\)"),
        ((action, observation.astype(np.int64), reward, terminated, truncated), "frame has .*<i8"),
        ((action.astype(float), observation, reward, terminated, truncated), "action has .*<f8"),
        ((action + 7, observation, reward, terminated, truncated), r"lie in \[0, 7\)"),
        ((action, {"a": observation}, reward, terminated, truncated), r"frame has the arrays \['a'\]"),
    ):
        refused(run, match, *given, info)
    with pytest.raises(InvalidRequestError, match=r"mask has shape \(3,\)"):
        run.rows.reset(observation, np.ones(3, bool))
    with pytest.raises(InvalidRequestError, match=r"extras.*\(3, 1\)"):
        run.rows.reset(observation, extras={"x": np.ones((3, 1))})
    with pytest.raises(InvalidRequestError, match="must be finite"):
        run.rows.step(action, observation, reward * np.nan, terminated, truncated, info).result()
    run.answered(run.rows.step(action, observation, reward, terminated, truncated, info))
    run.check()


def test_lanes_that_have_left_may_bring_anything():
    run = Run("next_step")
    run.begin()
    run.leave(1)
    action, observation, reward, terminated, truncated, info = run.act()
    action[1], observation[1], reward[1], terminated[1] = -(2**40), -1, np.inf, True
    run.answered(run.rows.step(action, observation, reward, terminated, truncated, info))
    run.check()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("discrete", np.int32), ("discrete", np.uint8), ("box", np.float64)]
)
def test_actions_of_another_width_are_taken(kind, dtype):
    run = Run("same_step", action=kind)
    run.begin()
    for _ in range(20):
        action, *rest = run.act()
        run.answered(run.rows.step(action.astype(dtype), *rest))
    run.check()


def test_an_action_that_the_table_cant_hold_is_refused():
    run = Run("same_step")
    run.begin()
    action, *rest = run.act()
    action = action.astype(np.uint64)
    action[2] = 2**63
    refused(run, f"action holds {2**63}, which the table's <i8", action, *rest)


def test_extras_and_the_version_of_the_policy_pass_through():
    run = Run("same_step", extras={"hidden": ArraySpec.of((), np.float32)})

    def hidden():
        return {"hidden": np.array([env.at + 100 * env.episode for env in run.envs.envs], np.float32)}

    observation, _ = run.envs.reset()
    run.answered(run.rows.reset(observation, extras=hidden(), policy_version=3))
    for version in range(4, 24):
        given = run.act()
        run.answered(run.rows.step(*given, extras=hidden(), policy_version=version))
    run.leave(0)
    run.answered(run.rows.flush())
    assert [request.policy_version for request in run.transport.requests] == [*range(3, 24), 23]
    drawn = run.client.sample("t", 1000).result()
    where = drawn.stack[:, -1]
    np.testing.assert_array_equal(drawn.extras["hidden"], where[:, 2] + 100 * where[:, 1])
    refused(run, "extras", *run.act())


def test_over_a_socket_and_with_lanes_that_leave(serve, ipc_address):
    run = Run("same_step", form="dict")
    signature = Signature(
        frame=spec_of(FORMS["dict"][0]), action=ArraySpec.of((), np.int64, 7), n_frames=N_FRAMES
    )
    with serve(ipc_address), Client.connect(ipc_address) as client:
        client.create_table("t", TableSpec(signature=signature, capacity_steps=500))
        run.client, run.writer = client, client.open_writer("t", "w", 4)
        run.rows = VectorWriter(run.writer, "same_step")
        run.begin()
        for _ in range(10):
            run.step()
        run.leave(0, 3)
        run.answered(run.rows.flush())
        run.step()
        run.leave(1, 2)
        run.step()
        run.join(*range(4))
        for _ in range(10):
            run.step()


def test_rows_go_from_where_they_lie_if_no_episode_ends():
    client, transport, writer = open_table()
    rows = VectorWriter(writer, "next_step")
    observation = np.zeros((4, 3), np.int32)
    rows.reset(observation).result()
    no, action, reward = np.zeros(4, bool), np.zeros(4, np.int64), np.zeros(4, np.float32)
    rows.step(action, observation, reward, no, no).result()
    sent = transport.requests[-1]
    assert sent.frame is observation
    assert sent.action is action
    assert sent.reward is reward
    assert sent.step_type.tolist() == [MID] * 4
    del client
