"""The PettingZoo face of treasure hunt: PettingZoo's own checks, and what they leave open."""

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test
from pettingzoo.test.state_test import test_state_space as check_state_space

from fornix.actor.treasurehunt import TreasureHunt
from fornix.actor.treasurehunt_parallel import TreasureHuntParallel
from fornix.common.config import TreasureHuntConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError

CONFIG = TreasureHuntConfig(agents=3, max_turns=4, treasures={"gem": 10, "trap": -3})


def still(env):
    return dict.fromkeys(env.agents, 0)


def test_pettingzoo_finds_no_fault():
    parallel_api_test(TreasureHuntParallel(), num_cycles=120)
    parallel_seed_test(TreasureHuntParallel, num_cycles=60)
    check_state_space(TreasureHuntParallel())


def test_it_is_the_vectorised_world_with_one_copy():
    env, world = TreasureHuntParallel(CONFIG), TreasureHunt(CONFIG, 1, seed=9)
    observations, _ = env.reset(seed=9)
    frames, rng = world.reset(np.ones(1, bool)), np.random.default_rng(0)
    for _ in range(CONFIG.max_turns):
        np.testing.assert_array_equal(list(observations.values()), frames[0])
        action = rng.integers(0, 4, (1, 3))
        observations, rewards, *_ = env.step(dict(zip(env.agents, action[0], strict=True)))
        step = world.step(action)
        frames = step.frame
        assert list(rewards.values()) == step.reward[0].tolist()


def test_an_episode_ends_truncated_and_without_agents():
    env = TreasureHuntParallel(CONFIG)
    env.reset(seed=0)
    for _ in range(CONFIG.max_turns - 1):
        _, _, terminated, truncated, _ = env.step(still(env))
        assert not any((terminated | truncated).values())
    observations, _, terminated, truncated, _ = env.step(still(env))
    assert env.agents == []
    assert all(truncated.values())
    assert not any(terminated.values())
    assert set(observations) == set(env.possible_agents)
    with pytest.raises(InvalidRequestError, match="call reset"):
        env.step({})


def test_a_reset_without_a_seed_goes_on_and_with_one_starts_over():
    env = TreasureHuntParallel(CONFIG)
    env.reset(seed=3)
    first = env.state()
    env.reset()
    assert (env.state() != first).any()
    env.reset(seed=3)
    np.testing.assert_array_equal(env.state(), first)


def test_two_worlds_that_were_never_seeded_differ():
    worlds = [TreasureHuntParallel() for _ in range(2)]
    for env in worlds:
        env.reset()
    assert (worlds[0].state() != worlds[1].state()).any()


def test_the_state_tells_every_cell_and_every_agent():
    env = TreasureHuntParallel(CONFIG)
    env.reset(seed=0)
    state = env.state()
    assert env.state_space.contains(state)
    assert (state.sum(axis=-1) == 1).all()
    assert state[..., 4:].sum(axis=(0, 1)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("change", [{"agent_9": 0}, {"agent_0": 4}])
def test_bad_actions_are_refused(change):
    env = TreasureHuntParallel(CONFIG)
    env.reset(seed=0)
    with pytest.raises(InvalidRequestError, match=next(iter(change))):
        env.step(still(env) | change)


def test_it_draws_itself_if_asked_to():
    env = TreasureHuntParallel(CONFIG, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (240, 240, 3)
    assert TreasureHuntParallel(CONFIG).render() is None
    with pytest.raises(ConfigurationError, match="human"):
        TreasureHuntParallel(render_mode="human")
    env.close()
