"""What was drawn, assembled from its starts: transitions, sequences, episodes.

For a start t in an episode whose rows after it are t+1, t+2, ..., and T steps at most:

    m = min(T, rows that follow t in its episode)

A transition (T = n_step) has one return and one discount,

    R        = sum over k = 1..m of γ^(k-1) · reward[t+k]
    discount = 0 if row t+m is terminated, else γ^m

so a truncated episode bootstraps from its real last frame. Sequences and episodes have those of each
step k = 1..m, reward[t+k] and γ (or 0), and zeros after it. The action of step k is that of row t+k: a
row holds the action that led to it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.messages import Batch, Episode, Sample, Transition
from fornix.replay.ring import Ring
from fornix.replay.samplers import Draw
from fornix.replay.stacking import NONE, Numbers, Stacker, oldest_of
from fornix.replay.storage import EXTRA_PREFIX


@dataclass(frozen=True)
class _Windows:
    """The rows of B units: `rows` [B, n_frames + T], NONE where there is none."""

    rows: Numbers
    n_frames: int

    @property
    def following(self) -> Numbers:
        """[B, T]: the rows after each start."""
        return self.rows[:, self.n_frames :]

    @property
    def acted_in(self) -> Numbers:
        """[B, T]: the rows before those."""
        return self.rows[:, self.n_frames - 1 : -1]


def assemble(ring: Ring, stacker: Stacker, draw: Draw, span: int, members: int, request: Sample) -> Batch:
    """Return what begins at the drawn rows, all of them sampleable.

    Args:
        ring: of the rows.
        stacker: that makes the stacks.
        draw: int64 [B] rows, with their probabilities.
        span: T, steps that a unit has at most; whole episodes are cut to the longest of them.
        members: N, how many starts there were to draw from.
        request: for the unit, γ, β, and how frames are to be sent.
    """
    cut = isinstance(request.unit, Episode)
    windows = _walk(ring, stacker, draw.numbers, span, cut)
    there = windows.following >= 0
    steps = np.count_nonzero(there, axis=1)
    last = windows.following[np.arange(len(steps)), steps - 1]
    rewards = np.where(there, ring.read("reward", windows.following), 0).astype(np.float64)
    terminated = ring.read("terminated", last)
    if isinstance(request.unit, Transition):
        powers = request.discount ** np.arange(span + 1)
        reward = rewards @ powers[:-1]
        discount = np.where(terminated, 0.0, powers[steps])
        columns = _columns(ring, windows.following[:, 0], draw.numbers, None)
    else:
        reward = rewards
        discount = np.where(there, request.discount, 0.0)
        discount[np.flatnonzero(terminated), steps[terminated] - 1] = 0.0
        columns = _columns(ring, windows.following, windows.acted_in, there)
    return Batch(
        key=draw.numbers,
        next_key=last,
        probability=draw.probability,
        weight=_weights(draw.probability, members, request.importance_exponent),
        steps=steps.astype(np.int32),
        reward=reward.astype(np.float32),
        discount=discount.astype(np.float32),
        mask=None if isinstance(request.unit, Transition) else there,
        **columns,
        **_frames(stacker, windows, request.mapped),
    )


def _walk(ring: Ring, stacker: Stacker, starts: Numbers, span: int, cut: bool) -> _Windows:
    stacks, _ = stacker.rows(starts, ring.tail)
    rows = np.full((stacker.n_frames + span, len(starts)), NONE, np.int64)
    rows[: stacker.n_frames] = stacks.T
    current = starts
    for at in range(stacker.n_frames, len(rows)):
        current = ring.after(current)
        if cut and (current < 0).all():
            rows = rows[:at]
            break
        rows[at] = current
    return _Windows(rows.T, stacker.n_frames)


def _columns(
    ring: Ring, decided: Numbers, acted_in: Numbers, there: NDArray[np.bool_] | None
) -> dict[str, Any]:
    """Return actions, policy versions and extras; zeros where no step is `there` (None: everywhere)."""

    def read(name: str, rows: Numbers) -> NDArray[Any]:
        values = ring.read(name, rows)
        if there is not None:
            values[~there] = 0
        return values

    return {
        "action": read("action", decided),
        "policy_version": read("policy_version", decided).astype(np.int64),
        "extras": {
            name.removeprefix(EXTRA_PREFIX): read(name, acted_in)
            for name in ring.names
            if name.startswith(EXTRA_PREFIX)
        },
    }


def _weights(probability: NDArray[np.float64], members: int, exponent: float) -> NDArray[np.float32]:
    """Return (N · probability)^-β over the largest of the batch (Schaul et al. 2016)."""
    if exponent == 0.0:
        return np.ones(len(probability), np.float32)
    weights = (members * probability) ** -exponent
    weights /= weights.max()
    return weights.astype(np.float32)


def _frames(stacker: Stacker, windows: _Windows, mapped: bool) -> dict[str, Any]:
    slots = stacker.slots(windows.rows)
    if mapped:
        return {"index": slots, "oldest": oldest_of(windows.rows[:, : windows.n_frames])}
    places, frames = stacker.gather_once(slots)
    return {"index": places, "frame": trees.bare(frames)}
