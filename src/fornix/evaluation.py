"""The weights that a run has learned, for whoever wants to play with them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fornix.common.config import RunConfig
from fornix.scores import newest


def load_policies(config: RunConfig, run_dir: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the newest weights of each of a run's policies, by name, as `actor.evaluation.play` takes.

    Raises:
        CheckpointError: if a policy has no checkpoint, or its newest is damaged.
    """
    return {policy: one.acting_weights for policy, one in newest(config, run_dir).items()}
