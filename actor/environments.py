"""What an actor steps: many copies of one environment at once, each with one or more agents.

Nothing resets itself. A copy whose episode ended hands out its real last frame and waits until the
environment loop, having stored that frame, calls `reset` with a mask that names it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.common.config import EnvironmentConfig, TreasureHuntConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError


@dataclass(frozen=True)
class EnvironmentSpec:
    """What holds for every copy of an environment, for as long as it lives."""

    frame_shape: tuple[int, ...]
    """Shape of one agent's observation."""
    frame_dtype: np.dtype[Any]
    """Dtype of every observation."""
    n_actions: int
    """Actions are the integers 0 .. n_actions - 1."""
    agents: tuple[str, ...]
    """Names of the agents in a copy, in the order of every array's agent axis."""


@dataclass(frozen=True)
class VectorStep:
    """What one step of every copy brought. No later call writes to the arrays."""

    frame: NDArray[Any]
    """`[copies, agents, *frame_shape]`: where the actions led, at an episode's end too."""
    reward: NDArray[np.float32]
    """`[copies, agents]`: what each agent's action earned it."""
    terminated: NDArray[np.bool_]
    """`[copies]`: the episode is over, and nothing can follow its last frame."""
    truncated: NDArray[np.bool_]
    """`[copies]`: the episode was cut off, and could have gone on from its last frame."""


class VectorEnvironment(Protocol):
    """Copies of one environment that are stepped together and reset one by one.

    Two environments of equal configuration, number of copies and seed that get the same calls give
    the same answers.
    """

    spec: EnvironmentSpec
    copies: int

    def reset(self, mask: NDArray[np.bool_]) -> NDArray[Any]:
        """Begin a new episode in the copies where `mask` is true, whether or not theirs had ended.

        Args:
            mask: Bool `[copies]`. The first reset names every copy.

        Returns:
            Frames `[copies, agents, *frame_shape]`: first frames where `mask` is true, the current
            frames of the other copies elsewhere. The array is the caller's.

        Raises:
            InvalidRequestError: `mask` has a wrong shape or dtype, or some copies never began.
        """
        ...

    def step(self, action: NDArray[np.int64]) -> VectorStep:
        """Let every agent of every copy act once.

        Args:
            action: Integers `[copies, agents]` from 0 to `spec.n_actions - 1`.

        Raises:
            InvalidRequestError: `action` has a wrong shape, dtype or value, or a copy's episode has
                ended or never began. Nothing has moved then.
        """
        ...

    def close(self) -> None:
        """Release what the environment holds. A second call does nothing."""
        ...


def make_environment(
    config: EnvironmentConfig, copies: int, seed: int, *, renders: bool = False
) -> VectorEnvironment:
    """Build the environment that `config` describes.

    Args:
        config: Its kind and settings.
        copies: Copies to step together, at least 1.
        seed: Source of all its randomness, at least 0.
        renders: Whether Gymnasium environments are to draw pictures. Treasure hunt always can.

    Raises:
        ConfigurationError: `copies` or `seed` is out of range, or there is no such environment.
    """
    if isinstance(config, TreasureHuntConfig):
        from fornix.actor.treasurehunt import TreasureHunt

        return TreasureHunt(config, copies, seed)
    from fornix.actor.gymnasium_vector import GymnasiumVector

    return GymnasiumVector(config, copies, seed, render_mode="rgb_array" if renders else None)


def check_sizes(copies: int, seed: int) -> None:
    """Raise ConfigurationError unless `copies` is at least 1 and `seed` at least 0."""
    if copies < 1:
        raise ConfigurationError(f"copies is {copies}, but an environment needs at least 1")
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}, but a seed is an integer from 0 upwards")


def check_mask(mask: NDArray[np.bool_], begun: NDArray[np.bool_]) -> None:
    """Raise InvalidRequestError unless a reset with `mask` leaves every copy in an episode.

    Args:
        mask: What `reset` was given.
        begun: Bool `[copies]`, true where a copy has been reset before.
    """
    if mask.shape != begun.shape or mask.dtype != np.bool_:
        raise InvalidRequestError(
            f"reset got a mask of {mask.dtype}{list(mask.shape)}, but needs "
            f"bool{list(begun.shape)}: one flag for each copy"
        )
    if not (mask | begun).all():
        raise InvalidRequestError(
            f"copies {_where(~(mask | begun))} have never begun an episode and reset's mask leaves "
            "them out; let the first reset name every copy"
        )


def check_action(action: NDArray[np.int64], copies: int, spec: EnvironmentSpec) -> None:
    """Raise InvalidRequestError unless `action` is integers `[copies, agents]` in range."""
    expected = (copies, len(spec.agents))
    if action.shape != expected or action.dtype.kind not in "iu":
        raise InvalidRequestError(
            f"step got actions of {action.dtype}{list(action.shape)}, but needs "
            f"int64{list(expected)}: one for each agent of each copy"
        )
    if action.min() < 0 or action.max() >= spec.n_actions:
        copy, agent = np.argwhere((action < 0) | (action >= spec.n_actions))[0]
        raise InvalidRequestError(
            f"the action of {spec.agents[agent]} in copy {copy} is {action[copy, agent]}; actions "
            f"run from 0 to {spec.n_actions - 1}"
        )


def check_running(over: NDArray[np.bool_]) -> None:
    """Raise InvalidRequestError if any copy is `over` (bool `[copies]`): ended, or never begun."""
    if over.any():
        raise InvalidRequestError(
            f"step was called while copies {_where(over)} have no running episode; "
            "reset them first, with a mask that is true there"
        )


def _where(flags: NDArray[np.bool_]) -> str:
    """Name the indices of the true flags, the first eight at most."""
    indices = np.flatnonzero(flags).tolist()
    shown = ", ".join(map(str, indices[:8]))
    return f"{shown} and {len(indices) - 8} more" if len(indices) > 8 else shown
