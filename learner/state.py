"""What a learner must remember to go on to the bit: named tensors and integers, nothing pickled."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fornix.common.errors import CheckpointError


@dataclass(frozen=True)
class LearnerState:
    """All that the next updates depend on: safetensors and JSON can hold it."""

    tensors: dict[str, Tensor]
    """`online.*` and `target.*` weights, `adam.*` moments, the `generator`'s state (uint8)."""
    scalars: dict[str, int]
    """`gradient_steps`: steps done."""

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Return copies of the tensors whose names begin with `prefix`, named without it."""
        return {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Raise CheckpointError unless the tensors have just the names and shapes `expected`."""
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointError(
                    f"the learner's state has {_described(found.get(name))} under {name!r} where "
                    f"this network needs {_described(expected.get(name))}; resume with the "
                    "configuration that it was saved with"
                )


def adam_shapes(name: str, parameter: Tensor) -> dict[str, torch.Size]:
    """Return the names and shapes of what Adam remembers of one parameter."""
    moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape)
    return {f"adam.{name}.{k}": shape for k, shape in (moments | {"step": torch.Size()}).items()}


def _described(shape: torch.Size | None) -> str:
    """Name a tensor in a sentence by its shape."""
    return "nothing" if shape is None else f"a tensor {list(shape)}"
