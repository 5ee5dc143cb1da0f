"""The treasure-hunt world as a PettingZoo `ParallelEnv`, for libraries that expect one."""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from fornix.actor.treasurehunt import TreasureHunt
from fornix.common.config import TreasureHuntConfig
from fornix.common.errors import ConfigurationError, InvalidRequestError


class TreasureHuntParallel(ParallelEnv):  # type: ignore[misc]  # pettingzoo is untyped
    """One treasure-hunt world, its agents named `agent_0`, `agent_1` and so on.

    Args:
        config: The world's size, agents, treasures and rules; the defaults if None.
        render_mode: "rgb_array", or None for a world that is not drawn.

    Attributes:
        state_space: Of `state()`: uint8 `[height, width, planes]`.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "fornix_treasurehunt_v0",
        "render_modes": ["rgb_array"],
        "render_fps": 8,
        "is_parallelizable": True,
    }

    def __init__(self, config: TreasureHuntConfig | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigurationError(f"render_mode is {render_mode!r}; use 'rgb_array' or None")
        self.config = config or TreasureHuntConfig()
        self.render_mode = render_mode
        self._world = TreasureHunt(self.config, copies=1, seed=0)
        spec = self._world.spec
        self.possible_agents = list(spec.agents)
        self.agents: list[str] = []
        self.observation_spaces = {name: Box(0, 1, spec.frame_shape, np.uint8) for name in spec.agents}
        self.action_spaces = {name: Discrete(spec.n_actions) for name in spec.agents}
        planes = len(self._world.kinds) - 1 + len(spec.agents)
        self.state_space = Box(0, 1, (self.config.height, self.config.width, planes), np.uint8)
        self._seeded = False

    def observation_space(self, agent: str) -> Box:
        """Return the space of `agent`'s observations: the same object at each call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Discrete:
        """Return the space of `agent`'s actions: the same object at each call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], dict[str, dict[str, Any]]]:
        """Begin an episode.

        Args:
            seed: Source of all randomness from here on. None goes on with the last seed's
                generator, or at the very first reset begins with one that differs each time.
            options: Ignored.

        Returns:
            Observations and (empty) infos, by agent.
        """
        if seed is not None or not self._seeded:
            fresh = int(np.random.SeedSequence().generate_state(1)[0])
            self._world = TreasureHunt(self.config, 1, fresh if seed is None else seed)
            self._seeded = True
        self.agents = self.possible_agents[:]
        frame = self._world.reset(np.ones(1, np.bool_))
        return dict(zip(self.agents, frame[0], strict=True)), self._infos()

    def step(
        self, actions: dict[str, int]
    ) -> tuple[
        dict[str, NDArray[np.uint8]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Let every agent act once; after the episode's last turn `agents` is empty.

        Returns:
            Observations, rewards, terminations, truncations and (empty) infos, by agent.

        Raises:
            InvalidRequestError: `actions` does not name exactly the living agents, or an action is
                out of range, or no episode is running.
        """
        if not self.agents or actions.keys() != set(self.agents):
            raise InvalidRequestError(
                f"step got actions of {sorted(actions)}, but the living agents are {self.agents}; "
                "give each exactly one action, and call reset where none is alive"
            )
        names = self.possible_agents
        step = self._world.step(np.array([[actions[name] for name in names]]))
        infos = self._infos()
        if step.truncated[0]:
            self.agents = []
        return (
            dict(zip(names, step.frame[0], strict=True)),
            dict(zip(names, step.reward[0].tolist(), strict=True)),
            dict.fromkeys(names, bool(step.terminated[0])),
            dict.fromkeys(names, bool(step.truncated[0])),
            infos,
        )

    def state(self) -> NDArray[np.uint8]:
        """Return the whole world: uint8 `[height, width, planes]`, one-hot along the planes.

        The planes are empty, wall, each kind of treasure, and each agent in turn.
        """
        cells = self._world.cells()[0].astype(np.int64)
        rows, columns = self._world.positions()[0].T
        cells[rows, columns] += np.arange(len(self.possible_agents))
        state: NDArray[np.uint8] = np.eye(self.state_space.shape[-1], dtype=np.uint8)[cells]
        return state

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the world: RGB `[height * 24, width * 24, 3]`, or None without a render mode."""
        return self._world.render(0, windows=True) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Do nothing: a world holds memory only."""

    def _infos(self) -> dict[str, dict[str, Any]]:
        return {name: {} for name in self.possible_agents}
