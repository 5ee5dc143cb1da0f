"""Any Gymnasium environment with discrete actions and box observations, vectorised."""

import difflib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from fornix.actor.environments import (
    EnvironmentSpec,
    VectorStep,
    check_action,
    check_mask,
    check_running,
    check_sizes,
)
from fornix.common.config import GymnasiumConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError


class GymnasiumVector:
    """Copies of one Gymnasium environment, each with the one agent `agent_0`.

    Frames keep the shape and dtype of the observation space. Action 0 is the space's first action,
    wherever that starts.

    Args:
        config: The environment's id.
        copies: Copies to step together, at least 1.
        seed: Each copy's generator is seeded from it, at least 0.
        render_mode: What the copies are made with; `render` needs "rgb_array".

    Raises:
        ConfigurationError: `copies` or `seed` is out of range, no environment can be made by this
            id, or its spaces don't fit.
    """

    def __init__(
        self, config: GymnasiumConfig, copies: int, seed: int, *, render_mode: str | None = None
    ) -> None:
        check_sizes(copies, seed)
        self.copies = copies
        self._id = config.id
        self._envs: SyncVectorEnv[Any, Any] = SyncVectorEnv(
            [lambda: _make(config.id, render_mode)] * copies, autoreset_mode=AutoresetMode.DISABLED
        )
        try:
            action, observation = _spaces(config.id, self._envs)
        except ConfigurationError:
            self._envs.close()
            raise
        self.spec = EnvironmentSpec(
            observation.shape, observation.dtype, int(action.n), agents=("agent_0",)
        )
        self._first_action = int(action.start)
        self._seeds = np.random.default_rng(seed).integers(2**31, size=copies).tolist()
        self._frame = np.zeros((copies, 1, *observation.shape), observation.dtype)
        self._begun = np.zeros(copies, np.bool_)
        self._over = np.ones(copies, np.bool_)

    def reset(self, mask: NDArray[np.bool_]) -> NDArray[Any]:
        """Begin new episodes where `mask` is true; see `VectorEnvironment.reset`."""
        check_mask(mask, self._begun)
        if mask.any():
            # A copy is seeded at its first reset only: later episodes go on drawing from there.
            seeds = [None if begun else seed for begun, seed in zip(self._begun, self._seeds, strict=True)]
            frame, _ = self._envs.reset(seed=seeds, options={"reset_mask": mask.copy()})
            self._frame = frame[:, None]
            self._begun |= mask
            self._over &= ~mask
        return self._frame.copy()

    def step(self, action: NDArray[np.int64]) -> VectorStep:
        """Let the agent of every copy act once; see `VectorEnvironment.step`."""
        check_action(action, self.copies, self.spec)
        check_running(self._over)
        frame, reward, terminated, truncated, _ = self._envs.step(
            action[:, 0].astype(np.int64) + self._first_action
        )
        self._frame = frame[:, None]
        self._over = terminated | truncated
        return VectorStep(self._frame.copy(), reward[:, None].astype(np.float32), terminated, truncated)

    def render(self, copy: int = 0) -> NDArray[np.uint8]:
        """Draw one copy: RGB `[height, width, 3]`.

        Raises:
            InvalidRequestError: There is no such copy, it never began an episode, or the copies
                were not made for drawing.
            ConfigurationError: Gymnasium can't draw it here, for want of a package perhaps.
        """
        if self._envs.render_mode != "rgb_array":
            raise InvalidRequestError(
                f"this environment's render mode is {self._envs.render_mode}; make it with "
                "render_mode='rgb_array' (make_environment: renders=True) to draw it"
            )
        if not 0 <= copy < self.copies or not self._begun[copy]:
            raise InvalidRequestError(
                f"can't draw copy {copy}: name one from 0 to {self.copies - 1}, and reset it first"
            )
        try:
            return np.asarray(self._envs.envs[copy].render(), np.uint8)
        except gymnasium.error.Error as error:
            raise ConfigurationError(f"{self._id} can't be drawn: {error}") from None

    def close(self) -> None:
        """Close every copy. A second call does nothing."""
        self._envs.close()


def _make(environment_id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Make one copy; every way in which Gymnasium says no becomes a ConfigurationError."""
    try:
        return gymnasium.make(environment_id, render_mode=render_mode)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigurationError(
            f"the environment {environment_id!r} needs what is not installed: {error}"
        ) from error
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        near = difflib.get_close_matches(environment_id, gymnasium.registry, n=3)
        hint = f"the nearest known ids are {', '.join(near)}" if near else "no known id is near it"
        raise ConfigurationError(
            f"Gymnasium can't make an environment with the id {environment_id!r} ({error}); "
            f"{hint}. Write 'package:Name-v0' for one that another package registers"
        ) from error


def _spaces(environment_id: str, envs: SyncVectorEnv[Any, Any]) -> tuple[Discrete, Box]:
    """Return one copy's spaces of actions and observations, if both fit."""
    action, observation = envs.single_action_space, envs.single_observation_space
    if not isinstance(action, Discrete):
        raise ConfigurationError(
            f"{environment_id} has the action space {action}, but fornix needs Discrete actions; "
            "choose a discrete variant, or register one whose wrapper maps 0..n-1 to such actions"
        )
    if not isinstance(observation, Box):
        raise ConfigurationError(
            f"{environment_id} has the observation space {observation}, but fornix needs a Box; "
            "register a variant wrapped in gymnasium.wrappers.FlattenObservation"
        )
    return action, observation
