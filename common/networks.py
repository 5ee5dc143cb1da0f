"""The implicit quantile network: frame stacks and quantile fractions in, quantile values out.

Z_τ(x, a) = f_a(ψ(x) ⊙ φ(τ)), after Dabney et al. 2018, "Implicit Quantile Networks for
Distributional Reinforcement Learning". A batch shares its fractions, and f is one linear layer
(noisy, dueling), so φ folds into f's weights: for N fractions and A actions the quantile part is
one product of ψ [B, F] with a matrix [F, N·A]. Layers over B·N rows would cost several times the
rest of the network. Each fraction is still uniform, so every transition has the paper's expected
gradient; only the draws within one batch are no longer independent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fornix.common.config import NetworkConfig
from fornix.common.layers import FlatStacks, ImageStacks, NoisyLinear, linear


class ImplicitQuantileNetwork(nn.Module):
    """IQN with dueling streams (Wang et al. 2016) and factorised noise in its last layer.

    `train()` turns the noise on, `eval()` turns it off; nothing else differs between the two modes.
    Frames of two or three dimensions, [H, W] or [H, W, C] as Gymnasium has them, pass through
    convolutions first; all others enter the hidden layers flat and unscaled.

    Args:
        frame_shape: Shape of one frame.
        n_frames: Frames in a stack.
        n_actions: Discrete actions.
        config: Width, depth and kind of the layers.
        generator: Draws the initial weights; the global generator is left alone.
    """

    frequencies: Tensor

    def __init__(
        self,
        frame_shape: Sequence[int],
        n_frames: int,
        n_actions: int,
        config: NetworkConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_actions = n_actions
        features = config.width * (2 if config.dueling else 1)
        sigma = config.noisy_sigma if config.noisy else 0.0
        self.trunk = _trunk(frame_shape, n_frames, config, features, generator)
        self.embedding = linear(config.cosines, features, generator)
        self.advantage = NoisyLinear(config.width, n_actions, sigma, generator)
        self.value = NoisyLinear(config.width, 1, sigma, generator) if config.dueling else None
        self.register_buffer("frequencies", math.pi * torch.arange(config.cosines), persistent=False)

    def resample_noise(self, generator: torch.Generator) -> None:
        """Draw new noise for the noisy layers, which stays until the next call."""
        for layer in (self.advantage, self.value):
            if layer is not None:
                layer.resample(generator)

    def forward(self, stacks: Tensor, taus: Tensor) -> Tensor:
        """Return the quantile values of each action.

        Args:
            stacks: [B, n_frames, *frame_shape], any dtype.
            taus: [N] float32, quantile fractions in [0, 1], the same for the whole batch.

        Returns:
            [B, N, n_actions] float32.
        """
        weight, bias = self._head()
        weight = (self._embed(taus).unsqueeze(1) * weight).flatten(0, 1)
        values = functional.linear(self.trunk(stacks), weight, bias.repeat(len(taus)))
        return values.view(-1, len(taus), self.n_actions)

    def action_values(self, stacks: Tensor, taus: Tensor) -> Tensor:
        """Return the mean over `taus` of what `forward` returns, [B, n_actions], at less cost."""
        weight, bias = self._head()
        return functional.linear(self.trunk(stacks), self._embed(taus).mean(0) * weight, bias)

    def _embed(self, taus: Tensor) -> Tensor:
        """Return φ(τ) [N, F]."""
        return functional.relu(self.embedding(torch.cos(taus.outer(self.frequencies))))

    def _head(self) -> tuple[Tensor, Tensor]:
        """Return f's weight [n_actions, F] and bias [n_actions], V + A - mean(A) folded into them.

        The first half of the F features are the value stream's, the second the advantage stream's.
        """
        weight, bias = self.advantage.effective()
        if self.value is None:
            return weight, bias
        value_weight, value_bias = self.value.effective()
        centred = weight - weight.mean(0)
        return torch.cat([value_weight.expand_as(weight), centred], 1), bias - bias.mean() + value_bias


def midpoints(n: int) -> Tensor:
    """Return the fractions (i + ½)/n [n] float32: for a mean over quantiles without randomness."""
    return (torch.arange(n) + 0.5) / n


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """Draw a uniform fraction from each n-th of [0, 1]: [n] float32, less noisy than n draws."""
    return (torch.arange(n) + torch.rand(n, generator=generator)) / n


def _trunk(
    frame_shape: Sequence[int],
    n_frames: int,
    config: NetworkConfig,
    features: int,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return ψ: stacks to [B, features] through `config.layers` hidden layers."""
    entrance: FlatStacks | ImageStacks
    if len(frame_shape) in (2, 3):
        entrance = ImageStacks(frame_shape, n_frames, generator)
    else:
        entrance = FlatStacks(frame_shape, n_frames)
    widths = [entrance.outputs, *[config.width] * (config.layers - 1), features]
    trunk = nn.Sequential(entrance)
    for n_in, n_out in pairwise(widths):
        trunk.extend([linear(n_in, n_out, generator), nn.ReLU(inplace=True)])
    return trunk
