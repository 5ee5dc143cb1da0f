"""Trains one policy: batches in, gradient steps, publications and checkpoints out."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fornix.common.config import RunConfig
from fornix.common.errors import CheckpointError, ConfigurationError
from fornix.common.seeding import seed_for
from fornix.common.signature import Signature
from fornix.learner.batches import BatchSource
from fornix.learner.checkpoints import Checkpoint, folder, list_checkpoints, load_newest, save
from fornix.learner.update import Learner

_LOG = logging.getLogger(__name__)
_SAVE_AGAIN_AFTER_S = 2.0


class Publishes(Protocol):
    """Where weights are published."""

    def publish(self, policy: str, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Publish weights; they must not change any more."""


class PolicyTrainer:
    """The training of one policy from its table.

    Args:
        config: of the run.
        policy: its name, and its table's.
        signature: of the table.
        batches: to train on.
        weights: where to publish.
        run_dir: where checkpoints go.
        clock: seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: str,
        signature: Signature,
        batches: BatchSource,
        weights: Publishes,
        run_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if signature.action.n_values is None or signature.action.shape != ():
            raise ConfigurationError(
                f"the actions of table {policy!r} are {signature.action}; this learner needs one "
                f"discrete action, with n_values in its signature"
            )
        self.policy = policy
        self._config = config
        self._signature = signature
        self._batches = batches
        self._weights = weights
        self._run_dir = run_dir
        self._clock = clock
        self.learner = Learner(
            signature.frame.shape,
            signature.n_frames,
            signature.action.n_values,
            config.network,
            config.learner,
            seed_for(config.seed, "learner", policy),
        )
        self.version = 0
        self._began: float | None = None
        self._ended: float | None = None
        self._saved_steps: int | None = None
        self.waited_s = 0.0
        self.metrics: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether all gradient steps have been made."""
        return self.learner.gradient_steps >= self._config.learner.gradient_steps

    @property
    def finished(self) -> bool:
        """Whether all gradient steps have been made and saved: not even a crash leads back."""
        return self.done and self._saved_steps == self.learner.gradient_steps

    @property
    def seconds(self) -> float:
        """Time since `begin`, and in the trainings that it goes on from; it stops when all is done."""
        if self._began is None:
            return 0.0
        return (self._clock() if self._ended is None else self._ended) - self._began

    @property
    def doing(self) -> str:
        """What it does, or waits for."""
        return "is done" if self.done else self._batches.doing or "trains"

    def begin(self, resume: bool) -> None:
        """Go on from the newest whole checkpoint if there is one.

        Raises:
            CheckpointError: if there is one that may not be resumed, as the two trainings' checkpoints
                would be mixed; or as `resume` says.
        """
        if _has_checkpoints(self._run_dir, self.policy, resume):
            self.resume()
        else:
            self._began = self._clock()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, and publish its weights again.

        Raises:
            CheckpointError: if there is none, none is whole, or it is of another network or table.
        """
        checkpoint = load_newest(self._run_dir, self.policy, set_aside=True)
        if checkpoint.signature != self._signature:
            raise CheckpointError(
                f"the checkpoint of {self.policy!r} was trained from {checkpoint.signature.lines()}, "
                f"and the table holds {self._signature.lines()}; resume with the run's configuration"
            )
        self.learner.load_state_dict(checkpoint.state)
        self.version = checkpoint.version
        self._saved_steps = checkpoint.step
        now = self._clock()
        self._began, self._ended = now - checkpoint.seconds, now if self.done else None
        self._publish()
        _LOG.info("policy %r goes on from gradient step %d", self.policy, checkpoint.step)

    def step(self, timeout_s: float) -> bool:
        """Make one gradient step if a batch comes in time; return whether it was made.

        One that is done drops the batch: were its table not drawn from any more, the limiter would hold
        back the actors, and with them the other policies.
        """
        began = self._clock()
        batch = self._batches.get(timeout_s)
        if self.done:
            return False
        self.waited_s += self._clock() - began
        if batch is not None:
            self.metrics = self.learner.update(batch)
            self._after_step()
        return batch is not None

    def save(self) -> None:
        """Write a checkpoint, or raise CheckpointError."""
        save(
            self._run_dir,
            Checkpoint(self.policy, self._signature, self.version, self.seconds, self.learner.state_dict()),
        )
        self._saved_steps = self.learner.gradient_steps

    def _after_step(self) -> None:
        steps = self.learner.gradient_steps
        if self.done:
            self._ended = self._clock()
        if steps % self._config.learner.publish_period_steps == 0 or self.done:
            self._publish()
        if steps % self._config.learner.checkpoint_period_steps == 0 and not self.done:
            try:
                self.save()
            except CheckpointError as error:
                _LOG.error("%s", error)  # the next one may succeed; training is worth more than one

    def _publish(self) -> None:
        self.version += 1
        self._weights.publish(self.policy, self.version, self.learner.weights())


def check_run_dir(run_dir: Path, policies: Iterable[str], resume: bool) -> None:
    """Say which policies begin anew although they are to be resumed.

    Raises:
        CheckpointError: if there are checkpoints that may not be resumed.
    """
    for policy in policies:
        if not _has_checkpoints(run_dir, policy, resume) and resume:
            _LOG.info("no checkpoint in %s, begins at gradient step 0", folder(run_dir, policy))


def save_all(trainers: Sequence[PolicyTrainer], stop: threading.Event) -> None:
    """Write a checkpoint of each trainer; try again until that succeeds, or `stop` is set.

    Raises:
        CheckpointError: if one can't be written and `stop` is set.
    """
    while trainers:
        failed: dict[PolicyTrainer, CheckpointError] = {}
        for trainer in trainers:
            try:
                trainer.save()
            except CheckpointError as error:
                _LOG.error("%s", error)
                failed[trainer] = error
        if failed and stop.wait(_SAVE_AGAIN_AFTER_S):
            raise next(iter(failed.values()))
        trainers = list(failed)


def _has_checkpoints(run_dir: Path, policy: str, resume: bool) -> bool:
    """Return whether there are checkpoints, or raise CheckpointError if they may not be resumed."""
    found = bool(list_checkpoints(run_dir, policy))
    if found and not resume:
        raise CheckpointError(
            f"{folder(run_dir, policy)} holds checkpoints of a training before this one; "
            f"go on from them with --resume, or name another folder"
        )
    return found
