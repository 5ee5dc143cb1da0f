"""The learner process: trains its policies until all gradient steps are made, or it is told to stop."""

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError, UnreachableError
from fornix.common.policies import policy_groups
from fornix.common.weights import WeightsPublisher
from fornix.learner.batches import PrefetchedBatches
from fornix.learner.monitor import Monitor
from fornix.learner.trainer import PolicyTrainer, check_run_dir, save_all
from fornix.learner.waiting import wait_for_table
from fornix.replay.batches import Transitions
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)
_LOOK_PERIOD_S = 0.1


def learn(
    config: RunConfig,
    run_dir: Path,
    index: int,
    resume: bool,
    stop: threading.Event,
    seen: Callable[[Transitions], None] | None = None,
) -> None:
    """Train this learner's share of the policies.

    Args:
        config: of the run.
        run_dir: where checkpoints, metrics and events go.
        index: of this learner, from 0: it trains every policy whose number leaves this remainder, and
            publishes at the address with this number.
        resume: whether to go on from the newest checkpoints, where there are any.
        stop: set by whoever wants it to end; it saves checkpoints then too.
        seen: called with each batch before it is trained on.
    """
    torch.set_num_threads(config.learner.threads)
    policies = [group.policy for group in policy_groups(config)][index :: config.learner.processes]
    if not policies:
        raise ConfigurationError(
            f"learner {index} has no policy to train: there are {len(policy_groups(config))} and "
            f"{config.learner.processes} learners; lower learner.processes"
        )
    check_run_dir(run_dir, policies, resume)
    publisher = WeightsPublisher(config.weights.addresses[index])
    trainers: list[PolicyTrainer] = []
    sources: list[PrefetchedBatches] = []
    try:
        for policy in policies:
            signature = wait_for_table(config, policy, f"learner-{index}", stop)
            if signature is None:
                return
            source = PrefetchedBatches(
                config.replay.address, policy, signature, config.learner, seen, memory=config.replay.memory
            )
            sources.append(source)
            trainers.append(PolicyTrainer(config, policy, signature, source, publisher, run_dir))
            trainers[-1].begin(resume)
        with Monitor(config, run_dir, index, trainers):
            _train(trainers, stop)
            save_all(trainers, stop)
            _wait_for_others(config, index, trainers, stop)
    finally:
        for source in sources:
            source.stop()
        for source in sources:
            source.close()
        publisher.close()


def _train(trainers: list[PolicyTrainer], stop: threading.Event) -> None:
    """Let the trainers take turns; none waits long while another could train."""
    _LOG.info("trains %s", ", ".join(repr(trainer.policy) for trainer in trainers))
    timeout_s = 0.5 if len(trainers) == 1 else 0.005
    while not stop.is_set():
        if all(trainer.done for trainer in trainers):
            _LOG.info("has made all gradient steps")
            return
        for trainer in trainers:
            trainer.step(timeout_s)


def _wait_for_others(
    config: RunConfig, index: int, trainers: list[PolicyTrainer], stop: threading.Event
) -> None:
    """Draw batches, and repeat the weights, until the other learners have made their steps too.

    They may be behind, after a crash; their agents live in the same copies as those of this learner's
    policies, which the limiter would hold back.
    """
    others = [f"learner-{i}" for i in range(config.learner.processes) if i != index]
    looked = -math.inf
    with Client.connect(config.replay.address, name="learner", give_up_after_s=2.0) as client:
        while others and not stop.is_set():
            for trainer in trainers:
                trainer.step(_LOOK_PERIOD_S)
            if time.monotonic() - looked > _LOOK_PERIOD_S:
                looked = time.monotonic()
                others = _unfinished(client, others)


def _unfinished(client: Client, learners: list[str]) -> list[str]:
    """Return those that haven't reported that they made all gradient steps, and saved them."""
    try:
        reports = client.info().reports
    except UnreachableError as error:
        _LOG.warning("waits for the replay server: %s", error)
        return learners
    metrics = {name: reports[name]["metrics"] if name in reports else {} for name in learners}
    return [name for name, told in metrics.items() if not told.get("finished")]
