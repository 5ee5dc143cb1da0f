"""n-step transitions, assembled from their starts.

For a start t in an episode whose rows after it are t+1, t+2, ...:

    m        = min(n, rows that follow t in its episode)
    R        = sum over k = 1..m of γ^(k-1) · reward[t+k]
    discount = 0 if row t+m is terminated, else γ^m

so a truncated episode bootstraps from its real last frame. The action is that of row t+1: a row holds
the action that led to it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import Batch
from fornix.replay.ring import NONE, Numbers, Ring
from fornix.replay.stacking import Stacker
from fornix.replay.storage import EXTRA_PREFIX


def assemble(
    ring: Ring,
    stacker: Stacker,
    starts: Numbers,
    probability: float,
    n_step: int,
    discount: float,
) -> Batch:
    """Return the transitions that begin at `starts`, int64 [B], all of them sampleable."""
    rows = np.full((len(starts), stacker.n_frames + n_step), NONE, np.int64)
    rows[:, : stacker.n_frames], _ = stacker.rows(starts)
    returns = np.zeros(len(starts), np.float64)
    last = starts.copy()
    current = starts
    for step in range(n_step):
        current = ring.after(current)
        rows[:, stacker.n_frames + step] = current
        there = current >= 0
        rewards = ring.read("reward", current).astype(np.float64)
        returns += np.where(there, discount**step * rewards, 0.0)
        np.copyto(last, current, where=there)
    steps = np.count_nonzero(rows[:, stacker.n_frames :] >= 0, axis=1)
    decided = rows[:, stacker.n_frames]
    bootstrap = np.where(ring.read("terminated", last), 0.0, np.power(discount, steps))
    return Batch(
        key=starts,
        next_key=last,
        probability=np.full(len(starts), probability),
        window=stacker.gather(rows),
        steps=steps.astype(np.int32),
        action=ring.read("action", decided),
        reward=returns.astype(np.float32),
        discount=bootstrap.astype(np.float32),
        policy_version=ring.read("policy_version", decided).astype(np.int64),
        extras=_extras(ring, starts),
    )


def _extras(ring: Ring, starts: Numbers) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(EXTRA_PREFIX): ring.read(name, starts)
        for name in ring.names
        if name.startswith(EXTRA_PREFIX)
    }
