"""The weights that a run has learned, for whoever wants to play with them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fornix.common.config import RunConfig
from fornix.common.policies import policy_groups
from fornix.learner.checkpoints import load_newest


def load_policies(config: RunConfig, run_dir: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the newest weights of each of a run's policies, by name, as `actor.evaluation.play` takes.

    Raises:
        CheckpointError: if a policy has no checkpoint, or its newest is damaged.
    """
    return {
        group.policy: load_newest(run_dir, group.policy).acting_weights for group in policy_groups(config)
    }
