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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.messages import Batch, Sample
from fornix.common.specs import Episode, Transition
from fornix.replay.ring import Ring
from fornix.replay.samplers import Draw
from fornix.replay.stacking import NONE, Numbers, Places, Stacker
from fornix.replay.storage import EXTRA_PREFIX


class Windows(NamedTuple):
    """Where B units lie, of T steps each."""

    places: Places
    """[B, n_frames + T]: of the frames of each stack, then of the rows after it; else of the zeros."""
    oldest: Numbers
    """[B]: the oldest row of each stack."""
    following: Numbers
    """[B, T]: the rows after each start, or NONE."""


def walk(ring: Ring, stacker: Stacker, starts: Numbers, span: int, request: Sample) -> Windows:
    """Return where the units lie that begin at rows, int64 [B], all of them sampleable.

    Args:
        ring: of the rows.
        stacker: that makes the stacks.
        starts: to begin at.
        span: T, steps that a unit has at most; whole episodes are cut to the longest of them.
        request: that says what a unit is.
    """
    return _walk(ring, stacker, starts, span, isinstance(request.unit, Episode))


def assemble(
    ring: Ring, stacker: Stacker, draw: Draw, windows: Windows, members: int, request: Sample
) -> Batch:
    """Return what begins at the drawn rows.

    Args:
        ring: of the rows.
        stacker: that makes the stacks.
        draw: int64 [B] rows, with their probabilities.
        windows: that `walk` found for them.
        members: N, how many starts there were to draw from.
        request: for the unit, γ, β, and how frames are to be sent.
    """
    there = windows.following >= 0
    steps = np.count_nonzero(there, axis=1)
    last = windows.following[np.arange(len(steps)), steps - 1]
    # of steps that are not there the last row's, to be masked
    slots = ring.slots(windows.following)
    rewards = np.where(there, ring.column("reward")[slots], 0).astype(np.float64)
    terminated = ring.read("terminated", last)
    if isinstance(request.unit, Transition):
        powers = request.discount ** np.arange(windows.following.shape[1] + 1)
        reward = rewards @ powers[:-1]
        discount = np.where(terminated, 0.0, powers[steps])
        columns = _columns(ring, slots[:, 0], ring.slots(draw.numbers), None)
    else:
        reward = rewards
        discount = np.where(there, request.discount, 0.0)
        discount[np.flatnonzero(terminated), steps[terminated] - 1] = 0.0
        acted_in = np.concatenate([draw.numbers[:, None], windows.following[:, :-1]], axis=1)
        columns = _columns(ring, slots, ring.slots(acted_in), there)
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


def _walk(ring: Ring, stacker: Stacker, starts: Numbers, span: int, cut: bool) -> Windows:
    stacks, oldest = stacker.places(starts)
    following = np.full((len(starts), span), NONE, np.int64)
    current = starts
    for at in range(span):
        current = ring.after(current)
        if cut and (current < 0).all():
            following = following[:, :at]
            break
        following[:, at] = current
    after = np.where(following < 0, stacker.zeros, following % ring.capacity)
    places = np.concatenate([stacks, after], axis=1, dtype=np.int32, casting="same_kind")
    return Windows(places, oldest, following)


def _columns(
    ring: Ring, decided: Numbers, acted_in: Numbers, there: NDArray[np.bool_] | None
) -> dict[str, Any]:
    """Return actions, policy versions and extras of slots; zeros where no step is `there`, if not None."""

    def read(name: str, slots: Numbers) -> NDArray[Any]:
        values = ring.column(name)[slots]
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


def _frames(stacker: Stacker, windows: Windows, mapped: bool) -> dict[str, Any]:
    if mapped:
        return {"index": windows.places, "oldest": windows.oldest}
    places, frames = stacker.gather_once(windows.places)
    return {"index": places, "frame": trees.bare(frames)}
