"""A writer's lanes: which episodes are open, and whether the steps that come fit them."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, Array
from fornix.replay.ring import NONE, Numbers

_NAMES = ("FIRST", "MID", "LAST")
_ANSWERS_KEPT = 8


@dataclass
class Writer:
    """What the server knows of one writer: its place in the order, and its lanes."""

    name: str
    incarnation: int
    newest: Numbers
    """int64 [lanes]: the newest row of each lane's open episode, or NONE while none is open."""
    returns: NDArray[np.float64]
    """float64 [lanes]: rewards summed over the open episode."""
    lengths: NDArray[np.int64]
    """int64 [lanes]: actions in the open episode."""
    sequence: int = 0
    """Number of the last request that was applied."""
    answers: deque[tuple[int, Numbers]] = field(default_factory=lambda: deque(maxlen=_ANSWERS_KEPT))
    """The last requests' numbers, and the rows that their answers were made of."""
    last_seen: float = 0.0

    @classmethod
    def open(cls, name: str, incarnation: int, lanes: int, now: float) -> "Writer":
        """Return a writer with `lanes` lanes, none of them in an episode."""
        return cls(
            name,
            incarnation,
            np.full(lanes, NONE, np.int64),
            np.zeros(lanes),
            np.zeros(lanes, np.int64),
            last_seen=now,
        )

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return len(self.newest)


def waves(lane: Array, step_type: Array, newest: Numbers) -> list[NDArray[np.int64]]:
    """Return the rows of a request as one or two waves in which each lane stands once.

    Args:
        lane: int [K], in range.
        step_type: uint8 [K].
        newest: int64 [lanes], NONE where no episode is open.

    Raises:
        InvalidRequestError: if a step doesn't fit its lane's episode.
    """
    if np.any(step_type > LAST):
        raise InvalidRequestError(
            f"step_type holds {step_type.max()}; it must be 0 (FIRST), 1 (MID) or 2 (LAST)"
        )
    rank = _rank_within_lane(lane)
    if rank.max(initial=0) > 1:
        crowded = lane[rank == 2][0]
        raise InvalidRequestError(
            f"lane {crowded} stands in {np.count_nonzero(lane == crowded)} rows of one request; send "
            f"at most two new steps of a lane at once"
        )
    is_open = newest != NONE
    found = []
    for wave in range(int(rank.max(initial=-1)) + 1):
        rows = np.flatnonzero(rank == wave)
        if wave == 1 and (step_type[rows] != FIRST).any():
            lost = lane[rows][step_type[rows] != FIRST][0]
            raise InvalidRequestError(
                f"lane {lost} stands in two rows of one request, and the second is no FIRST: nobody would "
                f"be handed the first one's stack; send one step after another, or LAST and then FIRST"
            )
        _require_fitting(lane[rows], step_type[rows], is_open)
        is_open[lane[rows]] = step_type[rows] != LAST
        found.append(rows)
    return found


def _rank_within_lane(lane: Array) -> NDArray[np.int64]:
    """Return for each row how many rows of the same lane stand before it."""
    if (lane[1:] > lane[:-1]).all():
        return np.zeros(len(lane), np.int64)
    order = np.argsort(lane, kind="stable")
    ordered = lane[order]
    begins = np.ones(len(lane), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    place = np.arange(len(lane))
    rank = np.empty(len(lane), np.int64)
    rank[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return rank


def _require_fitting(lane: Array, step_type: Array, is_open: NDArray[np.bool_]) -> None:
    wrong = (step_type == FIRST) == is_open[lane]
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    if step_type[at] == FIRST:
        raise InvalidRequestError(
            f"lane {lane[at]} got FIRST while its episode is open; end that episode with LAST first, "
            f"or open the writer under a new incarnation"
        )
    raise InvalidRequestError(
        f"lane {lane[at]} got {_NAMES[step_type[at]]} while no episode is open; begin one with FIRST"
    )
