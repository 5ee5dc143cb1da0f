"""Playing without learning: fair to every copy, the same for the same seed, and drawn if wanted."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from fornix.actor.environments import make_environment
from fornix.actor.evaluation import play
from fornix.actor.process import make_network, table_spec
from fornix.common.config import RunConfig
from fornix.common.policies import policy_groups
from fornix.evaluation import load_policies
from fornix.learner.checkpoints import Checkpoint, save
from fornix.learner.state import LearnerState

ROUNDS = "fornix_tests/Rounds-v0"
SMALL = {"width": 16, "layers": 1, "cosines": 8}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small matrices gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Rounds(gymnasium.Env):
    """Episodes of 1 to 9 steps, as its seed says; the score is the number of the episode, and a tenth."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    action_space = Discrete(2)
    observation_space = Box(0, 100, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.left = self.length = int(self.np_random.integers(1, 10))
        return self._frame(), {}

    def step(self, action):
        self.left -= 1
        return self._frame(), (self.episode + 0.1) / self.length, self.left == 0, False, {}

    def render(self):
        return np.full((4, 6, 3), self.left, np.uint8)

    def _frame(self):
        return np.array([self.left, self.episode], np.float32)


@pytest.fixture
def rounds():
    """The configuration of `Rounds`, which is registered for the length of a test."""
    gymnasium.register(ROUNDS, Rounds)
    yield a_config(environment={"kind": "gymnasium", "id": ROUNDS})
    del gymnasium.registry[ROUNDS]


def a_config(**changes):
    return RunConfig.model_validate({"network": SMALL, "replay": {"n_frames": 2}} | changes)


def hunt(**changes):
    return a_config(
        environment={"height": 6, "width": 6, "agents": 2, "max_turns": 8, "spawn_prob": 0.2}, **changes
    )


def weights_of(config, moves):
    """Weights of every policy of a run, each of which makes one and the same move."""
    environment = make_environment(config.environment, 1, 0)
    weights = {}
    for group, move in zip(policy_groups(config), moves, strict=True):
        network = make_network(config, environment.spec, seed=0)
        with torch.no_grad():
            network.advantage.bias[move] += 100
        weights[group.policy] = network.state_dict()
    environment.close()
    return weights


def test_random_play_of_treasure_hunt_scores_255():
    """The issue's figure, 255 ± 4: here the mean of 800 episodes, whose standard error is 1.4."""
    scores = play(RunConfig(), None, 800, seed=5).scores
    assert scores.shape == (800,)
    assert scores.mean() == pytest.approx(255, abs=8)
    assert 1 < scores.std() / np.sqrt(800) < 2


def test_every_copy_plays_the_same_number_of_episodes(rounds):
    """Or short episodes would count more: a copy plays many of them while another plays a long one."""
    scores = play(rounds, None, 100, seed=0).scores
    np.testing.assert_allclose(scores, 1.1, rtol=1e-4)
    scores = play(rounds, None, 250, seed=0).scores
    np.testing.assert_allclose(scores, [1.1] * 100 + [2.1] * 100 + [3.1] * 50, rtol=1e-4)


@pytest.mark.parametrize("episodes", [1, 7, 130])
def test_as_many_episodes_are_played_as_were_asked_for(episodes):
    assert play(hunt(), None, episodes, seed=0).scores.shape == (episodes,)


@pytest.mark.parametrize("sharing", ["shared", "per_agent"])
def test_the_same_seed_gives_the_same_scores(sharing):
    config = hunt(policy={"sharing": sharing})
    for weights in (None, weights_of(config, [3] if sharing == "shared" else [3, 0])):
        first, again, other = (play(config, weights, 20, seed).scores for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_weights_are_what_is_played_with():
    config = hunt()
    scores = [play(config, weights_of(config, [move]), 30, 0).scores for move in (0, 0, 2)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_a_policy_without_weights_is_a_fresh_network():
    config = hunt()
    fresh = play(config, {"shared": None}, 20, 0).scores
    assert np.array_equal(fresh, play(config, {"shared": None}, 20, 0).scores)
    assert not np.array_equal(fresh, play(config, None, 20, 0).scores)


def test_play_is_greedy_and_without_noise():
    """Noise would show where the same network plays differently by what its noise scale is."""
    config, weights = hunt(), weights_of(hunt(), [1])
    loud = {"shared": {n: w * 1e6 if "sigma" in n else w for n, w in weights["shared"].items()}}
    assert any("sigma" in name for name in weights["shared"])
    assert np.array_equal(play(config, weights, 30, 0).scores, play(config, loud, 30, 0).scores)


def test_each_agent_plays_by_its_own_policy():
    config = hunt(policy={"sharing": "per_agent"})
    pairs = ([0, 2], [0, 3], [2, 0], [3, 0])
    assert len({play(config, weights_of(config, moves), 30, 0).scores.tobytes() for moves in pairs}) == 4


def test_one_episode_is_drawn_if_wanted():
    config = hunt()
    played = play(config, weights_of(config, [0]), 3, seed=4, record=True)
    assert len(played.pictures) == 8  # a picture a turn
    assert {picture.shape for picture in played.pictures} == {(6 * 24, 6 * 24, 3)}
    assert {picture.dtype for picture in played.pictures} == {np.dtype(np.uint8)}
    assert len({picture.tobytes() for picture in played.pictures}) > 4
    assert np.array_equal(played.scores, play(config, weights_of(config, [0]), 3, seed=4).scores)
    assert play(config, None, 3, seed=4).pictures == []


def test_the_first_episode_of_the_first_copy_alone_is_drawn(rounds):
    pictures = play(rounds, None, 2, seed=0, record=True).pictures
    left = [int(picture[0, 0, 0]) for picture in pictures]
    assert left == list(range(len(left), 0, -1))


def test_a_gymnasium_environment_is_played_alike():
    config = a_config(environment={"kind": "gymnasium", "id": "CartPole-v1"})
    scores = play(config, None, 150, seed=0).scores
    assert 15 < scores.mean() < 32  # random play falls after about 22 steps
    assert (scores == scores.round()).all()


def test_a_run_is_played_by_its_newest_checkpoints(tmp_path):
    config = hunt(policy={"sharing": "per_agent"})
    environment = make_environment(config.environment, 1, 0)
    signature = table_spec(config, environment.spec).signature
    environment.close()
    for move, step in ((0, 10), (3, 20)):
        for policy, tensors in weights_of(config, [move, 1]).items():
            state = LearnerState({f"target.{n}": t for n, t in tensors.items()}, {"gradient_steps": step})
            save(tmp_path, Checkpoint(policy, signature, 1, 0.0, state))
    loaded = play(config, load_policies(config, tmp_path), 20, 0).scores
    assert np.array_equal(loaded, play(config, weights_of(config, [3, 1]), 20, 0).scores)
    assert not np.array_equal(loaded, play(config, weights_of(config, [0, 1]), 20, 0).scores)
