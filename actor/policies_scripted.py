"""Policies that learn nothing: yardsticks for what learning is worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.actor.environments import EnvironmentSpec, VectorEnvironment
from fornix.actor.treasurehunt import FIRST_TREASURE, MOVES, WALL
from fornix.common.config import TreasureHuntConfig

ScriptedPolicy = Callable[[NDArray[Any]], NDArray[np.int64]]
"""Takes frames `[copies, agents, *frame_shape]` and returns actions `[copies, agents]`."""


def random_policy(spec: EnvironmentSpec, rng: np.random.Generator) -> ScriptedPolicy:
    """Return the policy that draws every action evenly."""

    def act(frame: NDArray[Any]) -> NDArray[np.int64]:
        return rng.integers(0, spec.n_actions, frame.shape[:2])

    return act


def greedy_policy(config: TreasureHuntConfig, rng: np.random.Generator) -> ScriptedPolicy:
    """Return the policy that walks to the nearest treasure in sight, whatever its kind.

    Nearest is by the number of moves. An agent steps around walls and other agents, wanders where
    it sees no treasure, and draws evenly between moves, or treasures, that are equally good.
    """
    offset = _window_offsets(config.radius)
    distance = np.abs(offset).sum(axis=1)
    beside = np.array([np.flatnonzero((offset == move).all(axis=1))[0] for move in MOVES])
    kinds = FIRST_TREASURE + len(config.treasures) + 1

    def act(frame: NDArray[Any]) -> NDArray[np.int64]:
        window = frame.reshape(*frame.shape[:2], len(offset), kinds)
        treasure = window[..., FIRST_TREASURE:-1].any(axis=-1)
        tie = rng.random(treasure.shape) / 2
        nearest = np.where(treasure, distance + tie, np.inf).argmin(axis=-1)
        closer = (offset[nearest] @ np.array(MOVES).T > 0) & treasure.any(axis=-1, keepdims=True)
        free = ~window[:, :, beside][..., [WALL, -1]].any(axis=-1)
        action: NDArray[np.int64] = (2 * free + closer + rng.random(closer.shape)).argmax(axis=-1)
        return action

    return act


def play_episodes(
    environment: VectorEnvironment, policy: ScriptedPolicy, episodes: int
) -> NDArray[np.float64]:
    """Play whole episodes of every copy and return their scores, summed over agents and turns.

    Args:
        environment: Its copies are all reset first.
        policy: Acts for every agent.
        episodes: Episodes to play in each copy, one after another. All copies start each together,
            so one whose episode ends early plays on uncounted until the last has ended.

    Returns:
        Scores `[episodes * copies]`.
    """
    return np.concatenate([_play_round(environment, policy) for _ in range(episodes)])


def _play_round(environment: VectorEnvironment, policy: ScriptedPolicy) -> NDArray[np.float64]:
    """Play one episode in every copy; return scores `[copies]`."""
    counted = np.ones(environment.copies, np.bool_)
    score = np.zeros(environment.copies)
    frame = environment.reset(counted)
    while counted.any():
        step = environment.step(policy(frame))
        score += counted * step.reward.sum(axis=1)
        over = step.terminated | step.truncated
        counted &= ~over
        frame = environment.reset(over)
    return score


def _window_offsets(radius: int) -> NDArray[np.int64]:
    """Return (row, column) from the middle to each cell of a window, row by row: `[cells, 2]`."""
    span = np.arange(-radius, radius + 1)
    return np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
