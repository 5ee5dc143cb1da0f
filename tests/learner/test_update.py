import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from fornix.common.config import LearnerConfig, NetworkConfig
from fornix.common.errors import CheckpointError, TrainingError
from fornix.learner.state import LearnerState
from fornix.learner.update import Batch, Learner

NETWORK = NetworkConfig(width=16, layers=2, cosines=16)
CONFIG = LearnerConfig(gradient_steps=10, learning_rate=1e-3, learning_rate_end=1e-4, tau=0.1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small matrices gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner(seed: int = 0, config: LearnerConfig = CONFIG) -> Learner:
    return Learner((6,), 3, 4, NETWORK, config, seed)


def batch(seed: int = 0, size: int = 8) -> Batch:
    source = np.random.default_rng(seed)

    def stack() -> torch.Tensor:
        return torch.from_numpy(source.integers(0, 2, (size, 3, 6), dtype=np.uint8))

    reward = torch.from_numpy(source.normal(size=size).astype(np.float32))
    action = torch.from_numpy(source.integers(0, 4, size))
    return Batch(stack(), action, reward, torch.full((size,), 0.9), stack())


def assert_equal(first: LearnerState, second: LearnerState) -> None:
    assert first.scalars == second.scalars
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_fault_0_3_the_target_is_soft_updated_once_a_gradient_step():
    """By the numbers in the weights: target_new = target_old + τ·(online_new - target_old)."""
    trained = learner()
    for step in range(3):
        before = trained.state_dict().tensors
        trained.update(batch(step))
        after = trained.state_dict().tensors
        names = [name for name in after if name.startswith("target.")]
        assert names
        for name in names:
            online = after[name.replace("target.", "online.")]
            once = torch.lerp(before[name], online, CONFIG.tau)
            assert torch.equal(after[name], once), name
            assert not torch.equal(after[name], torch.lerp(once, online, CONFIG.tau)), name


def test_an_update_is_one_step_of_adam():
    trained = learner()
    before = trained.state_dict().tensors
    trained.update(batch())
    state = trained.state_dict()
    for name in (name for name in before if name.startswith("online.")):
        # Adam's first step is the learning rate, up or down, wherever there is a gradient.
        change = (state.tensors[name] - before[name]).abs().max().item()
        assert change == pytest.approx(CONFIG.learning_rate, rel=1e-3), name
    steps = [value.item() for name, value in state.tensors.items() if name.endswith(".step")]
    assert set(steps) == {1.0}
    assert trained.gradient_steps == state.scalars["gradient_steps"] == 1


def test_same_seed_same_bits():
    first, second, other = learner(0), learner(0), learner(1)
    for step in range(5):
        assert first.update(batch(step)) == second.update(batch(step))
        other.update(batch(step))
    assert_equal(first.state_dict(), second.state_dict())
    name = "online.embedding.weight"
    assert not torch.equal(first.state_dict().tensors[name], other.state_dict().tensors[name])


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_saved_learner_goes_on_to_the_bit(steps_before, tmp_path):
    first = learner()
    for step in range(steps_before):
        first.update(batch(step))
    state = first.state_dict()
    safetensors.torch.save_file(state.tensors, tmp_path / "state.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "state.safetensors")
    second = learner(seed=1)
    second.update(batch(99))
    second.load_state_dict(LearnerState(tensors, json.loads(json.dumps(state.scalars))))
    for step in range(4):
        assert first.update(batch(step)) == second.update(batch(step))
    assert_equal(first.state_dict(), second.state_dict())


def test_state_is_a_copy():
    trained = learner()
    state = trained.state_dict()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    weights = trained.weights()
    trained.update(batch())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors.items())
    assert all(torch.equal(before[f"target.{k}"], tensor) for k, tensor in weights.items())


@pytest.mark.parametrize("damage", ["missing", "shape", "extra", "steps"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage):
    trained = learner()
    trained.update(batch())
    state = trained.state_dict()
    tensors, scalars, name = dict(state.tensors), dict(state.scalars), "target.embedding.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][1:]
    elif damage == "extra":
        tensors["online.unknown"] = torch.zeros(1)
    else:
        scalars, name = {}, "gradient steps"
    with pytest.raises(CheckpointError, match="online.unknown" if damage == "extra" else name):
        trained.load_state_dict(LearnerState(tensors, scalars))
    assert_equal(trained.state_dict(), state)


def test_learning_rate_falls_in_a_line_and_stays():
    trained = learner()
    rates = [trained.update(batch(step))["learning_rate"] for step in range(12)]
    np.testing.assert_allclose(rates[:10], 1e-3 - np.arange(10) * 0.9e-4)
    assert rates[10:] == [pytest.approx(1e-4)] * 2


def test_a_loss_that_is_not_finite_is_refused_and_changes_nothing():
    trained = learner()
    before = trained.state_dict().tensors
    poisoned = dataclasses.replace(batch(), reward=torch.full((8,), torch.nan))
    with pytest.raises(TrainingError, match="gradient step 0 is nan"):
        trained.update(poisoned)
    after = trained.state_dict().tensors
    weights = [name for name in before if name.startswith(("online.", "target."))]
    assert all(torch.equal(before[name], after[name]) for name in weights)


def test_weights_to_act_with_are_the_target_networks():
    trained = learner()
    trained.update(batch())
    for name, weight in trained.weights().items():
        assert torch.equal(weight, trained.state_dict().tensors[f"target.{name}"])


def test_learns_the_quantiles_of_a_bandit():
    """Arm a of four pays a + uniform(0, 1): Z_τ(x, a) must become a + τ, and arm 3 the best."""
    config = LearnerConfig(gradient_steps=500, learning_rate=1e-2, learning_rate_end=1e-4, huber_kappa=0.01)
    trained, source = learner(0, config), np.random.default_rng(0)
    stack = torch.ones(128, 3, 6, dtype=torch.uint8)
    for _ in range(config.gradient_steps):
        action = source.integers(0, 4, 128)
        reward = torch.from_numpy((action + source.random(128)).astype(np.float32))
        trained.update(Batch(stack, torch.from_numpy(action), reward, torch.zeros(128), stack))
    taus = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    with torch.no_grad():
        values = trained.online.eval()(stack[:1], taus)[0]
    expected = torch.arange(4.0) + taus.unsqueeze(1)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.1)
