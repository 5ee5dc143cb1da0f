"""Playing without learning: the same actor, memory and stacking code, with scores kept."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fornix.actor.environments import EnvironmentSpec, VectorEnvironment, make_environment
from fornix.actor.policies import GreedyPolicy
from fornix.actor.process import make_network, table_spec
from fornix.actor.vector import AgentGroup, Policy, VectorActor
from fornix.common.config import RunConfig
from fornix.common.policies import policy_groups
from fornix.common.seeding import seed_for
from fornix.common.specs import LimiterSpec
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService

_COPIES = 100


@dataclass
class Played:
    """What came of playing."""

    scores: NDArray[np.float64]
    """[episodes]: each episode's rewards, summed over its agents."""
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    """RGB pictures [H, W, 3] of one episode, if they were asked for."""


@runtime_checkable
class Renders(Protocol):
    """An environment that can be drawn."""

    def render(self, copy: int) -> NDArray[np.uint8]:
        """Return an RGB picture [H, W, 3] of one copy."""


class FixedPolicy:
    """Acts greedily, with weights that stay; or at random, without any."""

    version = 0

    def __init__(self, policy: GreedyPolicy | None, n_actions: int) -> None:
        self._policy = policy
        self._n_actions = n_actions

    def refresh(self) -> None:
        """The weights stay."""

    def act(
        self, stacks: NDArray[np.generic], epsilon: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return actions [L]."""
        if self._policy is None:
            return rng.integers(self._n_actions, size=len(stacks))
        return self._policy.act(stacks, epsilon, rng)


def greedy_policy(
    config: RunConfig, spec: EnvironmentSpec, weights: Mapping[str, Any] | None
) -> GreedyPolicy:
    """Return a policy without noise; a freshly initialised network's if there are no weights."""
    policy = GreedyPolicy(make_network(config, spec, seed_for(config.seed, "fresh")))
    if weights is not None:
        policy.load(weights)
    return policy


def play(
    config: RunConfig,
    weights: Mapping[str, Mapping[str, Any] | None] | None,
    episodes: int,
    seed: int,
    record: bool = False,
) -> Played:
    """Play greedily and without noise, each copy of the environment the same number of episodes.

    Args:
        config: of the run.
        weights: of each policy by its name, None for a freshly initialised network's; None in place of
            the mapping plays uniformly at random.
        episodes: to play.
        seed: of the worlds.
        record: whether to draw the first copy's first episode.
    """
    copies = min(episodes, _COPIES)
    environment = make_environment(config.environment, copies, seed_for(seed, "evaluation"), renders=record)
    try:
        actor = _make_actor(config, environment, weights, seed)
        return _play(actor, environment, -(-episodes // copies), episodes, record)
    finally:
        environment.close()


def _make_actor(
    config: RunConfig,
    environment: VectorEnvironment,
    weights: Mapping[str, Mapping[str, Any] | None] | None,
    seed: int,
) -> VectorActor:
    copies, spec = environment.copies, environment.spec
    client = Client(LocalTransport(ReplayService(time.monotonic, seed=0)))
    capacity = copies * len(spec.agents) * (config.replay.n_frames + 4)
    tables = table_spec(config, spec).model_copy(
        update={"capacity_steps": capacity, "limiter": LimiterSpec()}
    )
    groups = []
    for group in policy_groups(config):
        client.create_table(group.policy, tables)
        lanes = copies * len(group.agents)
        greedy = None if weights is None else greedy_policy(config, spec, weights[group.policy])
        policy: Policy = FixedPolicy(greedy, spec.n_actions)
        writer = client.open_writer(group.policy, "evaluation", lanes, incarnation=1)
        groups.append(AgentGroup(group, policy, writer, np.zeros(copies)))
    rng = np.random.default_rng(seed_for(seed, "evaluation", "actions"))
    return VectorActor(environment, groups, np.zeros(copies), rng)


def _play(
    actor: VectorActor, environment: VectorEnvironment, each: int, episodes: int, record: bool
) -> Played:
    pictures: list[NDArray[np.uint8]] = []
    scores: list[list[float]] = [[] for _ in range(environment.copies)]
    actor.begin()
    while min(len(own) for own in scores) < each:
        if record and isinstance(environment, Renders) and not scores[0]:
            pictures.append(environment.render(0))
        actor.advance()
        while actor.finished:
            copy, score = actor.finished.popleft()
            scores[copy].append(score)
    return Played(np.array(_even(scores, each)[:episodes]), pictures)


def _even(scores: Sequence[Sequence[float]], each: int) -> list[float]:
    """Return the first `each` scores of every copy: a copy with short episodes counts no more."""
    return [own[turn] for turn in range(each) for own in scores]
