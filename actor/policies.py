"""How an actor chooses: ε-greedy on the mean of the quantile values, with an ε for each lane."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fornix.common.errors import SignatureError
from fornix.common.networks import ImplicitQuantileNetwork, midpoints


class GreedyPolicy:
    """Greedy on an IQN's action values, at fixed quantile midpoints.

    Args:
        network: The network that it acts with; `load` changes its weights.
        quantiles: Midpoints over which the values are averaged.
        noise: Draws the network's noise anew for each `act`; None acts without noise (evaluation).
    """

    def __init__(
        self,
        network: ImplicitQuantileNetwork,
        quantiles: int = 32,
        noise: torch.Generator | None = None,
    ) -> None:
        self._network = network.train(noise is not None)
        self._taus = midpoints(quantiles)
        self._noise = noise

    def load(self, weights: Mapping[str, Tensor | NDArray[np.float32]]) -> None:
        """Act with these weights from now on: a learner's `weights()`, as tensors or as arrays.

        Raises:
            SignatureError: They are of another network. Nothing has changed then.
        """
        needed = {name: tuple(tensor.shape) for name, tensor in self._network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for name in sorted(needed.keys() | found.keys()):
            if needed.get(name) != found.get(name):
                raise SignatureError(
                    f"the weights are not of this policy's network; give actor and learner the same "
                    f"network section and environment: {name} has shape {found.get(name)}, and "
                    f"{needed.get(name)} is needed"
                )
        self._network.load_state_dict({k: _tensor(v) for k, v in weights.items()})

    @torch.no_grad()
    def act(
        self, stacks: NDArray[np.generic], epsilon: NDArray[np.floating], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Choose an action for each lane.

        Args:
            stacks: [L, n_frames, *frame_shape]
            epsilon: [L]: the probability of a uniformly random action in each lane.
            rng: Decides who acts at random, and how.

        Returns:
            [L] int64
        """
        if self._noise is not None:
            self._network.resample_noise(self._noise)
        values = self._network.action_values(_tensor(stacks), self._taus)
        greedy: NDArray[np.int64] = values.argmax(1).numpy()
        random = rng.integers(self._network.n_actions, size=len(stacks))
        return np.where(rng.random(len(stacks)) < epsilon, random, greedy)


def _tensor(array: Tensor | NDArray[np.generic]) -> Tensor:
    """Copy an array, which may be read-only: what came by socket is, and `from_numpy` minds."""
    return array if isinstance(array, Tensor) else torch.tensor(array)


def epsilon_schedule(lanes: int, epsilon: float, alpha: float) -> NDArray[np.float64]:
    """Return ε of each lane: ε_i = epsilon^(1 + alpha·i/(lanes - 1)) (Horgan et al. 2018).

    Lane 0 explores most. One lane alone explores with `epsilon`.
    """
    share = np.arange(lanes) / max(1, lanes - 1)
    return np.power(epsilon, 1 + alpha * share)
