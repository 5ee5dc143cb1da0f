"""The learner's core: a batch in, one gradient step, one soft target update. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fornix.common.config import LearnerConfig, NetworkConfig
from fornix.common.errors import CheckpointError, TrainingError
from fornix.common.networks import ImplicitQuantileNetwork, stratified
from fornix.learner.losses import double_q_targets, quantile_huber_loss, take_action
from fornix.learner.state import LearnerState, adam_shapes


@dataclass(frozen=True)
class Batch:
    """B transitions. See docs/replay.md for their definition."""

    stack: Tensor
    """[B, n_frames, *frame_shape]: what the actor acted on."""
    action: Tensor
    """[B] integers: what it did."""
    reward: Tensor
    """[B] float32: the n-step return, Σ_{k<m} γ^k r_{t+1+k}."""
    discount: Tensor
    """[B] float32: γ^m, or 0 where the episode terminated."""
    next_stack: Tensor
    """[B, n_frames, *frame_shape]: the stack m steps later."""


class Learner:
    """Trains an online network, and a target network that follows it.

    Args:
        frame_shape: Shape of one frame.
        n_frames: Frames in a stack.
        n_actions: Discrete actions.
        network: Kind and size of both networks.
        config: How to train.
        seed: Seed of the initial weights, quantile fractions and noise.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        n_frames: int,
        n_actions: int,
        network: NetworkConfig,
        config: LearnerConfig,
        seed: int,
    ) -> None:
        self.config = config
        self.gradient_steps = 0
        self._generator = torch.Generator().manual_seed(seed)
        shape = (frame_shape, n_frames, n_actions, network, self._generator)
        self.online, self.target = (ImplicitQuantileNetwork(*shape) for _ in range(2))
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self._pairs = list(zip(self.target.parameters(), self.online.parameters(), strict=True))
        self._optimizer = torch.optim.Adam(
            self.online.parameters(),
            lr=config.learning_rate,
            eps=config.adam_epsilon,
            fused=True,
        )

    def update(self, batch: Batch) -> dict[str, float]:
        """Make one gradient step and one soft target update; return metrics of the step.

        Raises:
            TrainingError: The loss is not finite. The weights are as they were before.
        """
        loss, value = self._loss(batch)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss of gradient step {self.gradient_steps} is {loss.item()}; "
                "look for rewards or frames that are not finite, or lower learning_rate"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rate = self._set_learning_rate()
        self._optimizer.step()
        self._follow()
        self.gradient_steps += 1
        return {"loss": loss.item(), "value": value.item(), "learning_rate": rate}

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the batch's mean loss, and the mean value of the actions taken."""
        taus, targets = self._targets(batch)
        values = take_action(self.online(batch.stack, taus), batch.action)
        losses = quantile_huber_loss(values, targets, taus, self.config.huber_kappa)
        return losses.mean(), values.detach().mean()

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return fractions [N], and [B, N] samples of the return after each transition."""
        for network in (self.online, self.target):
            network.resample_noise(self._generator)
        taus, target_taus = (stratified(self.config.quantiles, self._generator) for _ in range(2))
        with torch.no_grad():
            action_values = self.online.action_values(batch.next_stack, target_taus)
            next_values = self.target(batch.next_stack, target_taus)
        return taus, double_q_targets(batch.reward, batch.discount, action_values, next_values)

    def _set_learning_rate(self) -> float:
        """Set and return the step's rate: linear from `learning_rate` to `learning_rate_end`."""
        done = min(1.0, self.gradient_steps / self.config.gradient_steps)
        start, end = self.config.learning_rate, self.config.learning_rate_end
        rate = start + (end - start) * done
        self._optimizer.param_groups[0]["lr"] = rate
        return rate

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target a share `tau` of the way to the online network: once a gradient step."""
        for target, online in self._pairs:
            target.lerp_(online, self.config.tau)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights to act with: the target network's.

        They average the online network's over the last 1/tau steps, and score higher and steadier.
        """
        return {name: tensor.clone() for name, tensor in self.target.state_dict().items()}

    def state_dict(self) -> LearnerState:
        """Return copies of everything that the next updates depend on."""
        tensors = {f"online.{k}": v for k, v in self.online.state_dict().items()}
        tensors |= {f"target.{k}": v for k, v in self.target.state_dict().items()}
        for name, parameter in self.online.named_parameters():
            moments = self._optimizer.state[parameter].items()
            tensors |= {f"adam.{name}.{k}": v for k, v in moments}
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["generator"] = self._generator.get_state()
        return LearnerState(tensors, {"gradient_steps": self.gradient_steps})

    def load_state_dict(self, state: LearnerState) -> None:
        """Go on from `state`: the next updates are those that its learner would have made.

        Raises:
            CheckpointError: The state is not of a learner like this one. Nothing has changed then.
        """
        steps = state.scalars.get("gradient_steps", -1)
        if steps < 0:
            raise CheckpointError(f"the learner's state was saved after {steps} gradient steps")
        state.check(self._shapes(trained=steps > 0))
        self.online.load_state_dict(state.section("online."))
        self.target.load_state_dict(state.section("target."))
        for name, parameter in self.online.named_parameters():
            self._optimizer.state[parameter] = state.section(f"adam.{name}.")
        self._generator.set_state(state.tensors["generator"])
        self.gradient_steps = steps

    def _shapes(self, *, trained: bool) -> dict[str, torch.Size]:
        """Return the shape of each tensor in `state_dict`; Adam remembers nothing until trained."""
        shapes = {"generator": self._generator.get_state().shape}
        for name, parameter in self.online.named_parameters():
            shapes |= {f"{net}.{name}": parameter.shape for net in ("online", "target")}
            shapes |= adam_shapes(name, parameter) if trained else {}
        return shapes
