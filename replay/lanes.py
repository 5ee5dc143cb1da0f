"""A writer's lanes: which episodes are open, and how the rows of a request go on with them."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, Array
from fornix.replay.stacking import NONE, Numbers

_NAMES = ("FIRST", "MID", "LAST")
_ANSWERS_KEPT = 8


@dataclass
class Writer:
    """What the server knows of one writer: its place in the order, and its lanes.

    What it says of a lane's episode means nothing while none is open there.
    """

    name: str
    incarnation: int
    newest: Numbers
    """int64 [lanes]: the newest row of each lane's open episode, or NONE while none is open."""
    first: Numbers
    """int64 [lanes]: the FIRST row of that episode."""
    position: Numbers
    """int64 [lanes]: steps from there to the newest row."""
    returns: NDArray[np.float64]
    """float64 [lanes]: rewards summed over the open episode."""
    sequence: int = 0
    """Number of the last request that was applied."""
    answers: deque[tuple[int, Numbers]] = field(default_factory=lambda: deque(maxlen=_ANSWERS_KEPT))
    """The last requests' numbers, and the rows that their answers were made of."""
    last_seen: float = 0.0
    mapped: bool = False
    """Whether it gathers its stacks itself."""
    at: int = 0
    """Its cell in the memory's file, if there is one."""
    opening: int = 0
    """Tells it from all writers that had this cell before."""
    durable: int = 0
    """Number of the last request that the disk is known to have."""

    @classmethod
    def open(cls, name: str, incarnation: int, lanes: int, now: float) -> "Writer":
        """Return a writer with `lanes` lanes, none of them in an episode."""
        newest, first, position = np.full((3, lanes), NONE, np.int64)
        return cls(name, incarnation, newest, first, position, np.zeros(lanes), last_seen=now)

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return len(self.newest)

    def grow(self, lanes: int) -> None:
        """Add lanes, in which no episode is open."""
        more = lanes - self.lanes
        for name in ("newest", "first", "position"):
            setattr(self, name, np.append(getattr(self, name), np.full(more, NONE, np.int64)))
        self.returns = np.append(self.returns, np.zeros(more))


@dataclass(frozen=True)
class Runs:
    """The rows of one request, by lane: each lane's rows are a run, in the order that they came in.

    `order` sorts the rows into runs, and the other arrays follow that order. In the usual request each
    lane has one row, and lanes ascend: then every row is a run, and the order is as it came.
    """

    lane: Array
    step_type: Array
    order: NDArray[np.int64] | slice
    begins: NDArray[np.bool_]
    """bool [K]: the first row of a run."""
    kinds: list[int]
    """How many rows there are of each step type."""

    @classmethod
    def of(cls, lane: Array, step_type: Array) -> "Runs":
        """Return the runs of a request."""
        begins = np.ones(len(lane), np.bool_)
        kinds = np.bincount(step_type, minlength=LAST + 1).tolist()
        if (lane[1:] > lane[:-1]).all():
            return cls(lane, step_type, slice(None), begins, kinds)
        order = np.argsort(lane, kind="stable")
        lane = lane[order]
        np.not_equal(lane[1:], lane[:-1], out=begins[1:])
        return cls(lane, step_type[order], order, begins, kinds)

    @property
    def single(self) -> bool:
        """Whether each lane has one row."""
        return isinstance(self.order, slice)

    def check(self, is_open: NDArray[np.bool_], stacks: bool) -> None:
        """Raise InvalidRequestError if a step doesn't fit its lane's episode.

        Args:
            is_open: bool [lanes], whether an episode is open.
            stacks: whether a stack is asked for.
        """
        if len(self.kinds) > LAST + 1:
            raise InvalidRequestError(
                f"step_type holds {self.step_type.max()}; it must be 0 (FIRST), 1 (MID) or 2 (LAST)"
            )
        if stacks and not self.single:
            self._check_stacks()
        goes_on = is_open[self.lane]
        if not self.single:
            goes_on[1:] = np.where(self.begins[1:], goes_on[1:], self.step_type[:-1] != LAST)
        wrong = (self.step_type == FIRST) == goes_on
        if wrong.any():
            raise InvalidRequestError(self._why_wrong(int(np.argmax(wrong))))

    def _check_stacks(self) -> None:
        """Refuse rows whose stacks nobody would be handed."""
        later = ~self.begins
        lost = later & (self.step_type != FIRST)
        if lost.any():
            raise InvalidRequestError(
                f"lane {self.lane[lost][0]} stands in two rows of one request, and the second is no FIRST: "
                f"nobody would be handed the first one's stack; send one step after another, or LAST and "
                f"then FIRST, or ask for no stacks"
            )

    def _why_wrong(self, at: int) -> str:
        lane, step_type = self.lane[at], self.step_type[at]
        if step_type == FIRST:
            return (
                f"lane {lane} got FIRST while its episode is open; end that episode with LAST first, "
                f"let the lane leave, or open the writer under a new incarnation"
            )
        return f"lane {lane} got {_NAMES[step_type]} while no episode is open; begin one with FIRST"

    def ends(self) -> NDArray[np.bool_]:
        """Return bool [K]: the last row of a run."""
        ends = np.ones(len(self.begins), np.bool_)
        ends[:-1] = self.begins[1:]
        return ends

    def follow(self, writer: Writer, head: int) -> "Links":
        """Return how the rows go on with a writer's episodes.

        Args:
            writer: of the lanes; it is not changed.
            head: the number that the first row of the request will have.
        """
        if self.single and not self.kinds[FIRST]:
            lane = self.lane
            return Links(writer.newest[lane], writer.first[lane], writer.position[lane] + 1)
        first = self.step_type == FIRST
        numbers = head + np.arange(len(first))[self.order]
        if self.single:
            return Links(
                predecessor=np.where(first, numbers, writer.newest[self.lane]),
                first=np.where(first, numbers, writer.first[self.lane]),
                position=np.where(first, 0, writer.position[self.lane] + 1),
            )
        predecessor = np.where(self.begins, writer.newest[self.lane], np.roll(numbers, 1))
        # where an episode goes on, its first row in the request tells of those before
        heads = np.flatnonzero(self.begins | first)
        run = np.repeat(heads, np.diff(heads, append=len(first)))
        after = np.arange(len(first)) - run
        begun = first[run]
        return Links(
            predecessor=np.where(first, numbers, predecessor),
            first=np.where(begun, numbers[run], writer.first[self.lane]),
            position=after + np.where(begun, 0, writer.position[self.lane] + 1),
        )

    def returns(self, writer: Writer, reward: Array) -> NDArray[np.float64]:
        """Return float64 [K]: the rewards of each row's episode up to its last row in the request.

        Args:
            writer: that knows the rewards before.
            reward: [K], in the request's order.
        """
        if self.single and not self.kinds[FIRST]:
            known: NDArray[np.float64] = writer.returns[self.lane]
            known += reward
            return known
        first = self.step_type == FIRST
        earned = np.where(first, 0.0, reward[self.order])
        if self.single:
            return np.where(first, 0.0, writer.returns[self.lane] + earned)
        heads = self.begins | first
        earned[heads & ~first] += writer.returns[self.lane[heads & ~first]]
        begins = np.flatnonzero(heads)
        total: NDArray[np.float64] = np.add.reduceat(earned, begins)
        return np.repeat(total, np.diff(begins, append=len(first)))


@dataclass(frozen=True)
class Links:
    """How rows go on with their episodes; int64 [K] each, in the order of their runs."""

    predecessor: Numbers
    """The row before; a FIRST row itself."""
    first: Numbers
    """The episode's FIRST row."""
    position: Numbers
    """Steps from there."""
