"""The answer of a `VectorWriter`: what to act on next, lane by lane."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.messages import Stacks
from fornix.replay.vector_lanes import Lanes, Rows

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class LaneStacks:
    """What to act on next, for L lanes in ascending order."""

    lane: Lanes
    """int32 [L]: all that are written; not those that have left, or still wait to begin."""
    key: Keys
    """int64 [L]: the newest step of each."""
    stack: Any
    """[L, n_frames, *obs], or a dict or tuple of such; None where only keys were asked for. Of a lane that
    ended and has not begun again, it is the last one: nothing that is done in it counts."""
    held_s: float
    """How long the limiter held the request back."""

    @classmethod
    def of(cls, rows: Rows, answer: Stacks, ask: Callable[[Keys], Stacks]) -> "LaneStacks":
        """Return an answer in the order of lanes, with the stacks of those that had no row.

        Args:
            rows: of the request.
            answer: of the server.
            ask: for stacks by their keys; called only if lanes are shown that had no row.
        """
        answered, after = rows.answered, rows.after
        lane = np.flatnonzero(after.shown).astype(np.int32)
        if len(lane) == len(answered) and (lane == answered).all():
            return cls(lane, answer.key, answer.stack, answer.held_s)
        at = np.searchsorted(lane, answered)
        key = after.key[lane]
        key[at] = answer.key
        stack = answer.stack
        if stack is not None:
            others = np.setdiff1d(np.arange(len(lane)), at)
            parts = [(at, stack)] + ([(others, ask(key[others]).stack)] if len(others) else [])
            stack = _merged(len(lane), parts)
        return cls(lane, key, stack, answer.held_s)


def _merged(lanes: int, parts: list[tuple[NDArray[np.intp], Any]]) -> Any:
    """Return stacks [lanes, …], or a tree of such, of which each part has those at some places."""
    form = parts[0][1]
    out = {path: np.empty((lanes, *a.shape[1:]), a.dtype) for path, a in trees.leaves(form).items()}
    for places, part in parts:
        for path, array in trees.leaves(part).items():
            out[path][places] = array
    return trees.like(form, out)
