"""Gymnasium environments as vectors: final frames, seeds, offsets, and clear refusals."""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from fornix.actor.environments import make_environment
from fornix.actor.gymnasium_vector import GymnasiumVector
from fornix.common.config import GymnasiumConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError

COUNTER = "fornix_tests/Counter-v0"


class Counter(gymnasium.Env):
    """Counts the steps into one buffer that it hands out again and again; action 6 ends it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None, action_space=None, observation_space=None):
        self.render_mode = render_mode
        self.action_space = action_space or Discrete(2, start=5)
        self.observation_space = observation_space or Box(0, 1e9, (2,), np.float64)
        self.buffer = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[:] = 0, self.np_random.integers(1000)
        return self.buffer, {}

    def step(self, action):
        self.buffer[0] += 1
        return self.buffer, float(action), bool(action == 6), False, {}

    def render(self):
        return np.full((4, 6, 3), self.buffer[0], np.uint8)


@pytest.fixture(autouse=True)
def counter():
    """Register `Counter`, cut off after 3 steps, for the length of a test."""
    gymnasium.register(
        COUNTER,
        Counter,
        max_episode_steps=3,
        disable_env_checker=True,  # it would complain about the buffer, which is the point
    )
    yield
    del gymnasium.registry[COUNTER]


@pytest.fixture
def env():
    with closing(GymnasiumVector(GymnasiumConfig(id=COUNTER), 2, seed=0)) as env:
        yield env


def act(*actions):
    return np.array(actions)[:, None]


ALL = np.ones(2, bool)


def test_the_spec_is_the_space(env):
    assert env.spec.frame_shape == (2,)
    assert env.spec.frame_dtype == np.float64
    assert (env.spec.n_actions, env.spec.agents) == (2, ("agent_0",))
    frame = env.reset(ALL)
    assert (frame.shape, frame.dtype) == ((2, 1, 2), np.float64)


def test_actions_count_from_the_spaces_start(env):
    env.reset(ALL)
    step = env.step(act(0, 1))
    assert step.reward.tolist() == [[5], [6]]
    assert step.reward.dtype == np.float32


def test_an_episode_hands_out_its_real_last_frame_and_waits(env):
    env.reset(ALL)
    step = env.step(act(0, 1))
    assert step.terminated.tolist() == [False, True]
    assert step.frame[:, 0, 0].tolist() == [1, 1]
    frame = env.reset(step.terminated)
    assert frame[:, 0, 0].tolist() == [1, 0]
    np.testing.assert_array_equal(frame[0], step.frame[0])
    assert env.step(act(0, 0)).frame[:, 0, 0].tolist() == [2, 1]


def test_a_time_limit_truncates(env):
    env.reset(ALL)
    for _ in range(3):
        step = env.step(act(0, 0))
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.frame[:, 0, 0].tolist() == [3, 3]


def test_a_step_can_end_both_ways(env):
    env.reset(ALL)
    for actions in (act(0, 0), act(0, 0), act(1, 0)):
        step = env.step(actions)
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [True, True]


def test_what_was_handed_out_is_never_written_to_again(env):
    frame = env.reset(ALL)
    before = frame.copy()
    env.reset(~ALL)[:] = -1
    np.testing.assert_array_equal(env.reset(~ALL), before)
    step = env.step(act(0, 0))
    kept = step.frame.copy()
    env.step(act(0, 0))
    step.frame[:] = -1  # nor does the caller's writing reach the environment
    assert env.reset(~ALL)[:, 0, 0].tolist() == [2, 2]
    np.testing.assert_array_equal(frame, before)
    assert kept[:, 0, 0].tolist() == [1, 1]


def test_a_copy_that_ended_is_not_stepped(env):
    with pytest.raises(InvalidRequestError, match="copies 0, 1 have no running episode"):
        env.step(act(0, 0))
    env.reset(ALL)
    env.step(act(1, 0))
    with pytest.raises(InvalidRequestError, match="copies 0 have no running episode"):
        env.step(act(0, 0))


def test_the_first_reset_names_every_copy(env):
    with pytest.raises(InvalidRequestError, match="copies 1 have never begun"):
        env.reset(np.array([True, False]))


@pytest.mark.parametrize("action", [act(0, 2), act(-1, 0), act(0, 0)[0], act(0.0, 0.0)])
def test_a_bad_action_is_refused(env, action):
    env.reset(ALL)
    with pytest.raises(InvalidRequestError, match="action"):
        env.step(action)


def test_a_seed_fixes_all_episodes_of_all_copies():
    def firsts(seed):
        with closing(make_environment(GymnasiumConfig(id=COUNTER), 2, seed)) as env:
            return np.stack([env.reset(ALL) for _ in range(3)])[:, :, 0, 1]

    np.testing.assert_array_equal(firsts(4), firsts(4))
    assert len(set(firsts(4).ravel())) == 6  # every copy and every episode its own
    assert (firsts(4) != firsts(5)).any()


def test_cartpole_runs_to_its_ends():
    with closing(make_environment(GymnasiumConfig(), 4, 0)) as env:
        env.reset(np.ones(4, bool))
        rng, ended = np.random.default_rng(0), 0
        for _ in range(200):
            step = env.step(rng.integers(0, 2, (4, 1)))
            past = (np.abs(step.frame[:, 0, 2]) > 0.2095) | (np.abs(step.frame[:, 0, 0]) > 2.4)
            np.testing.assert_array_equal(step.terminated, past)
            ended += step.terminated.sum()
            env.reset(step.terminated)
        assert ended > 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CartPol-v1", "'CartPol-v1'.*nearest known ids are CartPole-v"),
        ("CartPole-v77", "'CartPole-v77'.*CartPole-v1"),
        ("qqqqqqq", "'qqqqqqq'.*no known id is near"),
        ("no id at all!", "no id at all!"),
        ("no_such_package:Env-v0", "no_such_package"),
        ("a:b:c", "'a:b:c'"),
    ],
)
def test_an_unknown_id_is_refused_with_its_neighbours(name, words):
    with pytest.raises(ConfigurationError, match=words):
        make_environment(GymnasiumConfig(id=name), 1, 0)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"action_space": Box(-1, 1, (1,))}, "action space Box.*needs Discrete"),
        ({"observation_space": Discrete(3)}, "observation space Discrete.*FlattenObservation"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(space, words):
    gymnasium.registry[COUNTER].kwargs.update(space)
    with pytest.raises(ConfigurationError, match=words):
        make_environment(GymnasiumConfig(id=COUNTER), 1, 0)


def test_a_missing_dependency_is_named():
    def needs(**_):
        raise gymnasium.error.DependencyNotInstalled("run pip install box")

    gymnasium.registry[COUNTER].entry_point = needs
    with pytest.raises(ConfigurationError, match="not installed: run pip install box"):
        make_environment(GymnasiumConfig(id=COUNTER), 1, 0)


def test_pictures_need_the_render_mode_and_a_begun_copy(env):
    env.reset(ALL)
    with pytest.raises(InvalidRequestError, match="renders=True"):
        env.render(0)
    with closing(make_environment(GymnasiumConfig(id=COUNTER), 2, 0, renders=True)) as drawn:
        with pytest.raises(InvalidRequestError, match="can't draw copy 1"):
            drawn.render(1)
        drawn.reset(ALL)
        drawn.step(act(0, 0))
        assert (drawn.render(1) == 1).all()
        with pytest.raises(InvalidRequestError, match="can't draw copy 2"):
            drawn.render(2)


@pytest.mark.parametrize(("copies", "seed"), [(0, 0), (1, -1)])
def test_impossible_sizes_are_refused(copies, seed):
    with pytest.raises(ConfigurationError, match=r"is (0|-1)"):
        make_environment(GymnasiumConfig(), copies, seed)


def test_closing_twice_is_harmless(env):
    env.close()
    env.close()
