"""Treasure hunt against a slow reading of its rules, and the yardsticks that it is known by."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.actor.environments import make_environment
from fornix.actor.policies_scripted import greedy_policy, play_episodes, random_policy
from fornix.actor.treasurehunt import (
    EMPTY,
    FIRST_TREASURE,
    MOVES,
    WALL,
    TreasureHunt,
    distinct,
)
from fornix.common.config import TreasureHuntConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError


@st.composite
def configs(draw):
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    return TreasureHuntConfig(
        height=height,
        width=width,
        agents=draw(st.integers(1, min(4, (height - 2) * (width - 2)))),
        treasures=draw(st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9), min_size=1, max_size=3)),
        spawn_prob=draw(st.sampled_from([0, 0.1, 0.5, 1])),
        max_turns=draw(st.integers(1, 6)),
        radius=draw(st.integers(1, 3)),
    )


def plain_moves(world, cells, places, action):
    """Resolve one copy's moves; return its cells, its agents' places and their rewards."""
    cells, places, rewards = [list(row) for row in cells], [tuple(p) for p in places], []
    values = list(world.config.treasures.values())
    for agent, move in enumerate(action):
        row, column = places[agent]
        target = row + MOVES[move][0], column + MOVES[move][1]
        found = world.kinds[cells[target[0]][target[1]]]
        rewards.append({"empty": 0, "wall": -1, "agent": 0}.get(found))
        if found in ("wall", "agent"):
            continue
        if found != "empty":
            rewards[-1] = values[world.kinds.index(found) - FIRST_TREASURE]
        cells[row][column] = EMPTY
        cells[target[0]][target[1]] = len(world.kinds) - 1
        places[agent] = target
    return np.array(cells), places, rewards


def plain_frame(world, cells, place):
    """Read what an agent at `place` sees, cell by cell."""
    radius, frame = world.config.radius, []
    for row in range(place[0] - radius, place[0] + radius + 1):
        for column in range(place[1] - radius, place[1] + radius + 1):
            inside = 0 <= row < world.config.height and 0 <= column < world.config.width
            kind = cells[row][column] if inside else WALL
            frame += [int(kind == other) for other in range(len(world.kinds))]
    return frame


def all_of(world):
    return np.ones(world.copies, bool)


def begun(config=None, copies=3, seed=0):
    world = TreasureHunt(config or TreasureHuntConfig(), copies, seed)
    world.reset(all_of(world))
    return world


def random_actions(world, rng):
    return rng.integers(0, 4, (world.copies, world.config.agents))


def assert_sound(world, frames):
    """What holds at the beginning of every turn, whatever happened before."""
    cells, places = world.cells(), world.positions()
    border = np.ones(cells.shape[1:], bool)
    border[1:-1, 1:-1] = False
    for copy in range(world.copies):
        np.testing.assert_array_equal(cells[copy] == WALL, border)
        agents = np.argwhere(cells[copy] == len(world.kinds) - 1)
        assert sorted(map(tuple, agents)) == sorted(map(tuple, places[copy]))
        assert len(agents) == world.config.agents
        for agent, place in enumerate(places[copy]):
            assert frames[copy, agent].tolist() == plain_frame(world, cells[copy], place)


@settings(max_examples=60, deadline=None)
@given(configs(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_whole_episode_follows_the_rules_cell_by_cell(config, copies, seed):
    world, rng = TreasureHunt(config, copies, seed), np.random.default_rng(seed)
    assert_sound(world, world.reset(all_of(world)))
    for turn in range(1, config.max_turns + 1):
        cells, places, action = world.cells(), world.positions(), random_actions(world, rng)
        step = world.step(action)
        assert_sound(world, step.frame)
        for copy in range(copies):
            moved, stands, rewards = plain_moves(world, cells[copy], places[copy], action[copy])
            assert list(map(tuple, world.positions()[copy])) == stands
            assert step.reward[copy].tolist() == rewards
            assert_only_grown(world, moved, world.cells()[copy])
        assert step.truncated.tolist() == [turn == config.max_turns] * copies
        assert not step.terminated.any()


def assert_only_grown(world, before, after):
    """Growth fills empty cells with treasures and touches nothing else; its extremes are exact."""
    grown = before != after
    assert (before[grown] == EMPTY).all()
    assert ((after[grown] >= FIRST_TREASURE) & (after[grown] < len(world.kinds) - 1)).all()
    if world.config.spawn_prob == 0:
        assert not grown.any()
    if world.config.spawn_prob == 1:
        assert EMPTY not in after


@settings(max_examples=30, deadline=None)
@given(configs(), st.integers(2, 4), st.data())
def test_a_reset_leaves_the_other_copies_as_they_are(config, copies, data):
    world, rng = begun(config, copies), np.random.default_rng(1)
    frames = world.step(random_actions(world, rng)).frame
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=copies, max_size=copies)))
    cells = world.cells()
    again = world.reset(mask)
    assert_sound(world, again)
    np.testing.assert_array_equal(again[~mask], frames[~mask])
    np.testing.assert_array_equal(world.cells()[~mask], cells[~mask])


def test_an_episode_begins_without_the_last_ones_treasures():
    world = begun(TreasureHuntConfig(spawn_prob=0.5), copies=200)
    world.step(random_actions(world, np.random.default_rng(0)))
    world.reset(all_of(world))
    share = (world.cells() == FIRST_TREASURE).sum() / (200 * (64 - 5))
    assert share == pytest.approx(0.5, abs=0.02)  # leftovers would make it at least 0.7


def test_growth_keeps_to_its_probability_and_draws_kinds_evenly():
    treasures = {"a": 1, "b": 2, "c": 3}
    world = begun(TreasureHuntConfig(treasures=treasures, spawn_prob=0.3), copies=500)
    floor = 500 * (64 - 5)
    shares = [(world.cells() == FIRST_TREASURE + kind).sum() / floor for kind in range(3)]
    assert shares == pytest.approx([0.1] * 3, abs=0.01)


def test_the_same_seed_makes_the_same_run_and_another_seed_another():
    def run(seed):
        world, rng = begun(seed=seed), np.random.default_rng(5)
        steps = [world.step(random_actions(world, rng)) for _ in range(50)]
        frames = [step.frame for step in steps] + [world.reset(all_of(world))]
        return np.stack(frames), np.stack([step.reward for step in steps])

    (frames, rewards), (same_frames, same_rewards) = run(7), run(7)
    np.testing.assert_array_equal(frames, same_frames)
    np.testing.assert_array_equal(rewards, same_rewards)
    assert (frames != run(8)[0]).any()


def test_frames_and_steps_handed_out_are_never_written_to_again():
    world, rng = begun(TreasureHuntConfig(max_turns=2)), np.random.default_rng(0)
    kept, copies = [], []
    for _ in range(2):
        step = world.step(random_actions(world, rng))
        kept += [step.frame, step.reward, step.truncated]
        copies += [array.copy() for array in kept[-3:]]
    world.reset(all_of(world))
    world.step(random_actions(world, rng))
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_spec_says_what_arrives():
    world = begun(TreasureHuntConfig(treasures={"a": 1, "b": 2}, radius=1, agents=2))
    step = world.step(np.zeros((3, 2), np.int64))
    assert world.spec.agents == ("agent_0", "agent_1")
    assert step.frame.shape == (3, 2, *world.spec.frame_shape) == (3, 2, 3 * 3 * 5)
    assert step.frame.dtype == world.spec.frame_dtype == np.uint8
    assert (step.reward.dtype, step.reward.shape) == (np.float32, (3, 2))


def test_agents_may_fill_the_whole_floor():
    config = TreasureHuntConfig(height=4, width=5, agents=6)
    world = begun(config)
    assert (world.cells()[:, 1:-1, 1:-1] == len(world.kinds) - 1).all()


def test_distinct_draws_every_ordered_choice_equally_often():
    drawn = distinct(np.random.default_rng(0), 24_000, 2, 4)
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(pairs) == 12
    assert (np.abs(counts - 2000) < 200).all()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros((3, 4), np.int64), r"int64\[3, 4\].*int64\[3, 5\]"),
        (np.zeros((3, 5), np.float32), "float32"),
        (np.full((3, 5), 4), "agent_0 in copy 0 is 4; actions run from 0 to 3"),
        (np.full((3, 5), -1), "is -1"),
    ],
)
def test_a_bad_action_is_refused_and_moves_nothing(action, words):
    world = begun()
    cells = world.cells()
    with pytest.raises(InvalidRequestError, match=words):
        world.step(action)
    np.testing.assert_array_equal(world.cells(), cells)


def test_an_ended_copy_is_not_stepped_until_it_is_reset():
    world = begun(TreasureHuntConfig(max_turns=1))
    still = np.zeros((3, 5), np.int64)
    assert world.step(still).truncated.all()
    world.reset(np.array([True, False, True]))
    with pytest.raises(InvalidRequestError, match="copies 1 have no running episode"):
        world.step(still)
    world.reset(np.array([False, True, False]))
    world.step(still)


def test_the_first_reset_must_name_every_copy():
    world = TreasureHunt(TreasureHuntConfig(), 20, 0)
    with pytest.raises(InvalidRequestError, match="no running episode"):
        world.step(np.zeros((20, 5), np.int64))
    with pytest.raises(InvalidRequestError, match=r"copies 1, .* and 11 more .*never begun"):
        world.reset(np.arange(20) == 0)


@pytest.mark.parametrize("mask", [np.ones(2, bool), np.ones(3, np.int64), np.ones((3, 1), bool)])
def test_a_bad_mask_is_refused(mask):
    with pytest.raises(InvalidRequestError, match=r"needs bool\[3\]"):
        begun().reset(mask)


@pytest.mark.parametrize(("copies", "seed", "word"), [(0, 0, "copies is 0"), (1, -1, "seed is -1")])
def test_impossible_sizes_are_refused(copies, seed, word):
    with pytest.raises(ConfigurationError, match=word):
        make_environment(TreasureHuntConfig(), copies, seed)


def test_random_play_scores_255():
    world = TreasureHunt(TreasureHuntConfig(), 500, 1)
    scores = play_episodes(world, random_policy(world.spec, np.random.default_rng(2)), 20)
    assert scores.shape == (10_000,)
    assert scores.mean() == pytest.approx(255, abs=4)  # its standard error is 0.54


def test_walking_to_the_nearest_treasure_scores_about_534():
    world = TreasureHunt(TreasureHuntConfig(), 500, 1)
    scores = play_episodes(world, greedy_policy(world.config, np.random.default_rng(2)), 4)
    print(f"greedy to the nearest visible treasure: {scores.mean():.1f}")
    assert scores.mean() == pytest.approx(534, abs=15)  # its standard error is 1.5


def test_a_picture_shows_walls_agents_and_treasures():
    config = TreasureHuntConfig(agents=3, spawn_prob=0.2, treasures={"a": 1, "b": 2})
    world = begun(config, copies=1)
    picture = world.render(0, px=20)
    assert (picture.shape, picture.dtype) == ((200, 200, 3), np.uint8)
    middles = picture[14::20, 10::20].astype(int)  # below the agents' eyes
    looks = {kind: set() for kind in range(len(world.kinds))}
    for (row, column), kind in np.ndenumerate(world.cells()[0]):
        looks[kind].add(tuple(middles[row, column]))
    assert [len(looks[kind]) for kind in looks] == [1, 1, 1, 1, 3]
    assert len(set.union(*looks.values())) == 7
    assert (world.render(0, px=20, windows=True) != picture).any()


def test_a_picture_needs_a_copy_and_some_pixels():
    world = TreasureHunt(TreasureHuntConfig(), 2, 0)
    assert world.render(1, px=4).shape == (40, 40, 3)  # an empty world, before the first reset
    for copy, px in ((2, 24), (-1, 24), (0, 3)):
        with pytest.raises(InvalidRequestError, match=f"copy {copy} at {px} pixels"):
            world.render(copy, px)


def test_treasure_hunt_needs_neither_gymnasium_nor_pettingzoo():
    code = (
        "import sys\n"
        "from fornix.actor.environments import make_environment\n"
        "from fornix.common.config import TreasureHuntConfig\n"
        "make_environment(TreasureHuntConfig(), 1, 0)\n"
        "assert not {'gymnasium', 'pettingzoo', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
