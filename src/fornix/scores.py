"""Scores with their confidence intervals: at random, untrained, trained, and by rule of thumb."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.config import RunConfig, TreasureHuntConfig

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Score:
    """The mean score of some episodes, each summed over its agents."""

    mean: float
    half_width: float | None
    """Of the mean's 95 % confidence interval (normal approximation); None for a single episode."""
    episodes: int

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> "Score":
        """Return the mean of `scores` [episodes] with its interval."""
        n = len(scores)
        half_width = None if n < 2 else _NORMAL_95 * float(np.std(scores, ddof=1)) / math.sqrt(n)
        return cls(float(np.mean(scores)), half_width, n)

    def __str__(self) -> str:
        return f"{self.mean:,.1f}" + ("" if self.half_width is None else f" ± {self.half_width:,.1f}")

    def to_json(self) -> dict[str, Any]:
        """Return the score under self-explaining keys."""
        half = self.half_width
        interval = None if half is None else [self.mean - half, self.mean + half]
        return {"mean": self.mean, "confidence_interval_95": interval, "episodes": self.episodes}


def random_score(config: RunConfig, episodes: int, seed: int) -> Score:
    """Return the score of uniformly random play; needs no torch."""
    from fornix.actor.policies_scripted import random_policy

    return _scripted(config, episodes, seed, random_policy)


def nearest_treasure_score(config: RunConfig, episodes: int, seed: int) -> Score | None:
    """Return the score of walking to the nearest treasure in sight; None where there are none."""
    from fornix.actor.policies_scripted import greedy_policy

    environment = config.environment
    if not isinstance(environment, TreasureHuntConfig):
        return None
    return _scripted(config, episodes, seed, lambda spec, rng: greedy_policy(environment, rng))


def greedy_score(
    config: RunConfig, weights: Mapping[str, Mapping[str, Any] | None], episodes: int, seed: int
) -> Score:
    """Return the score of playing greedily with these weights; None for untrained ones."""
    import torch

    from fornix.actor.evaluation import play

    torch.set_num_threads(1)  # the batches are small: threads would mostly wait for each other
    return Score.of(play(config, weights, episodes, seed).scores)


def untrained(config: RunConfig) -> dict[str, Mapping[str, Any] | None]:
    """Return what makes `greedy_score` play with freshly initialised networks."""
    from fornix.common.policies import policy_groups

    return dict.fromkeys((group.policy for group in policy_groups(config)), None)


def newest(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Return the newest checkpoint of each policy, or raise CheckpointError."""
    from fornix.common.policies import policy_groups
    from fornix.learner.checkpoints import load_newest

    return {group.policy: load_newest(run_dir, group.policy) for group in policy_groups(config)}


def _scripted(config: RunConfig, episodes: int, seed: int, policy: Callable[..., Any]) -> Score:
    from fornix.actor.environments import make_environment
    from fornix.actor.policies_scripted import play_episodes

    copies = min(episodes, 100)
    environment = make_environment(config.environment, copies, seed)
    try:
        rng = np.random.default_rng(seed)
        scores = play_episodes(environment, policy(environment.spec, rng), -(-episodes // copies))
        return Score.of(scores[:episodes])
    finally:
        environment.close()
