"""The layers of networks. Each draws its initial weights from a given generator."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

IMAGE_CHANNELS = (16, 32, 32)
"""Output channels of the convolutions, each of which halves height and width."""


class NoisyLinear(nn.Module):
    """y = (w + σ_w ⊙ ε_out ε_inᵀ) x + b + σ_b ⊙ ε_out, the noise of Fortunato et al. 2018.

    ε is zero until `resample` draws it. In evaluation mode, or with `sigma=0`, there is no noise.

    Args:
        n_in: Inputs.
        n_out: Outputs.
        sigma: The paper's σ₀: each noise scale starts at σ₀/√n_in.
        generator: Draws the initial weights.
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(self, n_in: int, n_out: int, sigma: float, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        weight, bias = torch.empty(n_out, n_in), torch.empty(n_out)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(bias.uniform_(-bound, bound, generator=generator))
        self.noisy = sigma > 0
        if self.noisy:
            self.weight_sigma = nn.Parameter(torch.full_like(weight, sigma * bound))
            self.bias_sigma = nn.Parameter(torch.full_like(bias, sigma * bound))
            self.register_buffer("noise_in", torch.zeros(n_in), persistent=False)
            self.register_buffer("noise_out", torch.zeros(n_out), persistent=False)

    def resample(self, generator: torch.Generator) -> None:
        """Draw new noise, which stays until the next call."""
        for noise in (self.noise_in, self.noise_out) if self.noisy else ():
            noise.normal_(generator=generator)
            noise.copy_(noise.sign() * noise.abs().sqrt())

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return weight [n_out, n_in] and bias [n_out] with the noise of the moment in them."""
        if not (self.noisy and self.training):
            return self.weight, self.bias
        weight = self.weight + self.weight_sigma * self.noise_out.outer(self.noise_in)
        return weight, self.bias + self.bias_sigma * self.noise_out

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n_in] to [..., n_out]."""
        return functional.linear(x, *self.effective())


class FlatStacks(nn.Module):
    """Stacks [B, n_frames, *frame_shape] of any dtype to float32 [B, outputs], unscaled."""

    def __init__(self, frame_shape: Sequence[int], n_frames: int) -> None:
        super().__init__()
        self.outputs = n_frames * math.prod(frame_shape)

    def forward(self, stacks: Tensor) -> Tensor:
        """Flatten and cast."""
        return stacks.flatten(1).to(torch.float32)


class ImageStacks(nn.Module):
    """Stacks of images [B, n_frames, H, W] or [B, n_frames, H, W, C] to features [B, outputs].

    Frames and colours are the channels of convolutions (3x3, stride 2). uint8 pixels are scaled to
    [0, 1]; other dtypes are taken as they are.
    """

    def __init__(self, frame_shape: Sequence[int], n_frames: int, generator: torch.Generator) -> None:
        super().__init__()
        height, width, *colours = frame_shape
        channels = [n_frames * math.prod(colours), *IMAGE_CHANNELS]
        self.convolutions = nn.Sequential()
        for n_in, n_out in pairwise(channels):
            convolution = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, device="meta")
            self.convolutions.extend([_drawn(convolution, generator), nn.ReLU(inplace=True)])
        shrink = 2 ** len(IMAGE_CHANNELS)
        self.outputs = channels[-1] * math.ceil(height / shrink) * math.ceil(width / shrink)

    def forward(self, stacks: Tensor) -> Tensor:
        """Scale, move colours to the channel axis beside the frames, and convolve."""
        x = stacks.to(torch.float32)
        if stacks.dtype == torch.uint8:
            x = x / 255
        if x.dim() == 5:
            x = x.movedim(-1, 2).flatten(1, 2)
        features: Tensor = self.convolutions(x)
        return features.flatten(1)


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with weights drawn from `generator`."""
    return _drawn(nn.Linear(n_in, n_out, device="meta"), generator)


def _drawn(layer: Layer, generator: torch.Generator) -> Layer:
    """Give a layer on the meta device weights and biases, uniform in ±1/√fan_in (torch's default).

    A layer that is built elsewhere would draw from the global generator first.
    """
    bound = 1 / math.sqrt(layer.weight[0].numel())
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
