"""The same actor, service and learner in one process, step by step and reproducible to the bit.

The reference that a distributed run is held against, and the way to debug: no process, no socket, no
thread. The learner goes first whenever the limiter lets it; else the actors take their turns.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fornix import __version__
from fornix.actor.process import Actor
from fornix.actor.reporting import Reporter
from fornix.actor.vector import VectorActor
from fornix.common.config import RunConfig
from fornix.common.messages import Info
from fornix.common.policies import policy_groups
from fornix.common.seeding import seed_for
from fornix.common.weights import LocalWeights
from fornix.learner.batches import LocalBatches
from fornix.learner.monitor import Metrics, Progress, of_run
from fornix.learner.trainer import PolicyTrainer, check_run_dir, save_all
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService

_LOG = logging.getLogger(__name__)
_PERIOD_S = 1.0


def run_sequential(
    config: RunConfig,
    run_dir: Path,
    resume: bool,
    stop: threading.Event,
    on_info: Callable[[Info], None] = lambda info: None,
) -> None:
    """Train in this process until all gradient steps are made, or `stop` is set.

    Args:
        config: of the run.
        run_dir: where checkpoints, metrics and events go.
        resume: whether to go on from the newest checkpoints, where there are any.
        stop: set by whoever wants it to end; checkpoints are saved then too.
        on_info: called once a second with what the service tells.
    """
    torch.set_num_threads(config.learner.threads)
    check_run_dir(run_dir, [group.policy for group in policy_groups(config)], resume)
    service = ReplayService(time.monotonic, seed=seed_for(config.seed, "service"), version=__version__)
    run = _Run(config, run_dir, service)
    try:
        run.begin(resume)
        run.go(stop, on_info)
        save_all(run.trainers, stop)
    finally:
        run.close()


class _Run:
    """All parts of a run, wired to one service."""

    def __init__(self, config: RunConfig, run_dir: Path, service: ReplayService) -> None:
        self._config = config
        self._run_dir = run_dir
        self._service = service
        self._weights = LocalWeights()
        self._client = self._new_client("run")
        self._actors: list[Actor] = []
        self._reporters: list[Reporter] = []
        self.trainers: list[PolicyTrainer] = []

    def begin(self, resume: bool) -> None:
        for index in range(self._config.actor.processes):
            client = self._new_client(f"actor-{index}")
            actor = Actor(self._config, index, client, self._weights.subscriber, incarnation=1)
            self._actors.append(actor)
            self._reporters.append(Reporter(actor, client, f"actor-{index}"))
            actor.begin()
        for group in policy_groups(self._config):
            client = self._new_client("learner")
            signature = client.signature(group.policy)
            batches = LocalBatches(client, group.policy, self._config.learner)
            trainer = PolicyTrainer(
                self._config, group.policy, signature, batches, self._weights, self._run_dir
            )
            trainer.begin(resume)
            self.trainers.append(trainer)

    def go(self, stop: threading.Event, on_info: Callable[[Info], None]) -> None:
        turns = itertools.cycle(
            (vector, reporter)
            for actor, reporter in zip(self._actors, self._reporters, strict=True)
            for vector in actor.vectors
        )
        metrics = Metrics(self._run_dir, "metrics", max(t.seconds for t in self.trainers))
        progress = Progress(self.trainers, self._config.learner.gradient_steps)
        told = time.monotonic()
        try:
            while not stop.is_set() and not all(trainer.done for trainer in self.trainers):
                stepped = [trainer.step(0) for trainer in self.trainers]
                if not any(stepped):
                    self._let_act(turns)
                if time.monotonic() - told > _PERIOD_S:
                    told = time.monotonic()
                    self._tell(progress, metrics, on_info)
            self._tell(progress, metrics, on_info)
        finally:
            metrics.close()

    def _let_act(self, turns: Iterator[tuple[VectorActor, Reporter]]) -> None:
        """Let the next half-vector advance whose stacks are there."""
        for vector, reporter in turns:
            if vector.done():
                vector.advance()
                reporter.report("acts")
                return

    def _tell(self, progress: Progress, metrics: Metrics, on_info: Callable[[Info], None]) -> None:
        mine = progress.measure()
        everyone = of_run(self._client.info(), progress.version)
        told = mine | {"policy_lag": everyone["policy_lag"]}
        self._client.report("learner-0", progress.doing, told).result()
        info = self._client.info()
        try:
            metrics.write(mine | progress.of_policies() | everyone)
        except OSError as error:
            _LOG.error("can't write metrics: %s; training goes on", error)
        on_info(info)

    def close(self) -> None:
        for actor in self._actors:
            actor.close()

    def _new_client(self, name: str) -> Client:
        return Client(LocalTransport(self._service), name)
