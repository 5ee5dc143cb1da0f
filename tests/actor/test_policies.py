import numpy as np
import pytest
import torch

from fornix.actor.policies import GreedyPolicy, epsilon_schedule
from fornix.common.config import NetworkConfig
from fornix.common.errors import SignatureError
from fornix.common.networks import ImplicitQuantileNetwork, midpoints

LANES = 64


def network(seed: int = 0) -> ImplicitQuantileNetwork:
    generator = torch.Generator().manual_seed(seed)
    return ImplicitQuantileNetwork((6,), 3, 4, NetworkConfig(width=16, cosines=8), generator)


def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (LANES, 3, 6), dtype=np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_acts_greedily_where_epsilon_is_zero():
    net = network()
    actions = GreedyPolicy(net).act(stacks(), np.zeros(LANES), rng())
    with torch.no_grad():
        best = net(torch.from_numpy(stacks()), midpoints(32)).mean(1).argmax(1)
    assert actions.dtype == np.int64
    assert actions.shape == (LANES,)
    assert np.array_equal(actions, best.numpy())


def test_acts_at_random_as_often_as_each_lane_explores():
    policy, source = GreedyPolicy(network()), rng()
    epsilon = np.repeat([0.0, 0.4, 1.0], [1, LANES - 2, 1])
    greedy = policy.act(stacks(), np.zeros(LANES), source)
    draws = np.stack([policy.act(stacks(), epsilon, source) for _ in range(400)])
    changed = (draws != greedy).mean(0)
    assert changed[0] == 0
    # A random action is the greedy one in a quarter of all cases.
    assert changed[1:-1].mean() == pytest.approx(0.4 * 3 / 4, abs=0.02)
    np.testing.assert_allclose(np.bincount(draws[:, -1]) / 400, 0.25, atol=0.08)


def test_same_generator_same_actions():
    epsilon = np.full(LANES, 0.5)
    first, second = (GreedyPolicy(network()).act(stacks(), epsilon, rng()) for _ in range(2))
    assert np.array_equal(first, second)


def test_noise_is_drawn_for_each_act_or_not_at_all():
    noisy = GreedyPolicy(network(), noise=torch.Generator().manual_seed(0))
    quiet = GreedyPolicy(network())
    epsilon = np.zeros(LANES)

    def kinds(policy: GreedyPolicy) -> int:
        return len({policy.act(stacks(), epsilon, rng()).tobytes() for _ in range(10)})

    assert kinds(noisy) > 1
    assert kinds(quiet) == 1


@pytest.mark.parametrize("as_arrays", [True, False])
def test_acts_with_the_weights_that_were_loaded(as_arrays):
    policy, other = GreedyPolicy(network(0)), network(1)
    weights = other.state_dict()
    policy.load({k: v.numpy() for k, v in weights.items()} if as_arrays else weights)
    expected = GreedyPolicy(other).act(stacks(), np.zeros(LANES), rng())
    assert np.array_equal(policy.act(stacks(), np.zeros(LANES), rng()), expected)


def test_acts_on_stacks_that_are_read_only_views():
    frames = np.random.default_rng(0).integers(0, 2, (LANES, 8, 6), dtype=np.uint8)
    frames.setflags(write=False)
    windows = frames[:, 2:5]
    actions = GreedyPolicy(network()).act(windows, np.zeros(LANES), rng())
    expected = GreedyPolicy(network()).act(windows.copy(), np.zeros(LANES), rng())
    assert np.array_equal(actions, expected)


def test_weights_of_another_network_are_refused():
    other = ImplicitQuantileNetwork((7,), 3, 4, NetworkConfig(width=16, cosines=8), torch.Generator())
    own = network()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with pytest.raises(SignatureError, match=r"trunk\.1\.weight"):
        GreedyPolicy(own).load(other.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_epsilon_schedule():
    np.testing.assert_allclose(epsilon_schedule(3, 0.1, 2.0), [0.1, 0.01, 0.001])
    np.testing.assert_allclose(epsilon_schedule(1, 0.1, 7.0), [0.1])
    assert epsilon_schedule(4, 0.0, 7.0).tolist() == [0.0] * 4
