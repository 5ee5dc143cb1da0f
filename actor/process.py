"""One actor: its halves, policies and writers, over any transport."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fornix.actor.environments import EnvironmentSpec, VectorEnvironment, make_environment
from fornix.actor.policies import GreedyPolicy, epsilon_schedule
from fornix.actor.vector import AgentGroup, VectorActor
from fornix.common.config import RunConfig
from fornix.common.errors import SignatureError
from fornix.common.messages import Stacks
from fornix.common.networks import ImplicitQuantileNetwork
from fornix.common.policies import policy_groups
from fornix.common.seeding import seed_for
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.common.weights import Weights, WeightsSource
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)


class LearningPolicy:
    """Acts with the newest weights of a policy; at random while there are none (version 0)."""

    def __init__(self, policy: GreedyPolicy, source: WeightsSource, n_actions: int) -> None:
        self._policy = policy
        self._source = source
        self._n_actions = n_actions
        self._weights: Weights | None = None

    @property
    def version(self) -> int:
        """How many publications of the weights there have been."""
        return 0 if self._weights is None else self._weights.version

    def refresh(self) -> None:
        """Take the newest weights, if there are newer ones that fit; else keep those there are."""
        newest = self._source.newest()
        if newest is None:
            return
        try:
            self._policy.load(newest.tensors)
        except SignatureError as error:
            _LOG.warning("acts on with version %d: %s", self.version, error)
        else:
            self._weights = newest

    def act(
        self, stacks: NDArray[np.generic], epsilon: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return actions [L]; random with probability `epsilon` [L]."""
        if self._weights is None:
            return rng.integers(self._n_actions, size=len(stacks))
        return self._policy.act(stacks, epsilon, rng)


def table_spec(config: RunConfig, spec: EnvironmentSpec) -> TableSpec:
    """Return what the tables of a run are created with."""
    return TableSpec(
        signature=Signature(
            frame=ArraySpec.of(spec.frame_shape, spec.frame_dtype),
            action=ArraySpec.of((), np.int32, spec.n_actions),
            n_frames=config.replay.n_frames,
        ),
        capacity_steps=config.replay.capacity_steps,
        limiter=LimiterSpec(
            min_size=config.replay.min_size,
            samples_per_insert=config.replay.samples_per_insert,
            error_buffer_inserts=config.replay.error_buffer_inserts,
        ),
    )


def make_network(config: RunConfig, spec: EnvironmentSpec, seed: int) -> ImplicitQuantileNetwork:
    """Return a network for an environment, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return ImplicitQuantileNetwork(
        spec.frame_shape, config.replay.n_frames, spec.n_actions, config.network, generator
    )


class Actor:
    """The copies of one actor process, as two half-vectors that take turns.

    While one half waits for its stacks the other steps, which hides the round trip.

    Args:
        config: of the run.
        index: of this actor, from 0.
        client: to the replay server.
        subscribe: makes a source of a policy's weights.
        incarnation: of its writers; the time in nanoseconds if not given.
        clock: seconds.
        seen: called with each answer's keys and stacks, before they are acted on.
    """

    def __init__(
        self,
        config: RunConfig,
        index: int,
        client: Client,
        subscribe: Callable[[str], WeightsSource],
        *,
        incarnation: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        seen: Callable[[Stacks], None] | None = None,
    ) -> None:
        self._config = config
        self._index = index
        self._client = client
        self._incarnation = incarnation
        self._clock = clock
        self._seen = seen
        first_half = config.actor.copies // 2
        self._halves = [
            make_environment(config.environment, copies, seed_for(config.seed, "world", index, half))
            for half, copies in enumerate((first_half, config.actor.copies - first_half))
        ]
        self.spec = self._halves[0].spec
        self._groups = policy_groups(config)
        self.sources = [subscribe(group.policy) for group in self._groups]
        self.policies = [self._make_policy(at, source) for at, source in enumerate(self.sources)]
        self.vectors: list[VectorActor] = []

    def begin(self) -> None:
        """Create what tables are missing, open the writers and begin episodes in all copies.

        To be called again when the server has forgotten this actor.
        """
        spec = table_spec(self._config, self.spec)
        for vector in self.vectors:
            vector.abandon()
        for group in self._groups:
            self._client.create_table(group.policy, spec)
        copies, actors = self._config.actor.copies, self._config.actor.processes
        epsilon = epsilon_schedule(
            actors * copies, self._config.actor.epsilon, self._config.actor.epsilon_alpha
        )[self._index :: actors][:copies]
        share = np.split(epsilon, [copies // 2])
        self.vectors = [
            self._make_vector(half, environment, share[half])
            for half, environment in enumerate(self._halves)
        ]
        for vector in self.vectors:
            vector.begin()

    def close(self) -> None:
        """Close the environments and the weights sources."""
        for environment in self._halves:
            environment.close()
        for source in self.sources:
            source.close()

    def _make_policy(self, at: int, source: WeightsSource) -> LearningPolicy:
        seed = seed_for(self._config.seed, "noise", self._index, at)
        network = make_network(self._config, self.spec, seed)
        noise = torch.Generator().manual_seed(seed) if self._config.network.noisy else None
        policy = GreedyPolicy(network, noise=noise)
        return LearningPolicy(policy, source, self.spec.n_actions)

    def _make_vector(
        self, half: int, environment: VectorEnvironment, epsilon: NDArray[np.float64]
    ) -> VectorActor:
        groups = [
            AgentGroup(
                group,
                policy,
                self._client.open_writer(
                    group.policy,
                    f"actor-{self._index}.{half}",
                    environment.copies * len(group.agents),
                    self._incarnation,
                ),
                epsilon,
            )
            for group, policy in zip(self._groups, self.policies, strict=True)
        ]
        rng = np.random.default_rng(seed_for(self._config.seed, "explore", self._index, half))
        return VectorActor(environment, groups, epsilon, rng, clock=self._clock, seen=self._seen)
