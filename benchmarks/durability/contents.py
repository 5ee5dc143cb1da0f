"""What is written: rows of which every byte follows from five numbers, and requests that follow from two.

A row is known by `who`: writer, incarnation, lane, episode and step. Its frame says so, and the rest of
the frame, the action, the reward and the extra follow from that; as does at which step the episode ends,
and whether that terminates it. So whatever comes out of a memory can be checked by itself. What a
writer's incarnation writes, request by request, follows from these two numbers: a `Script` tells it to the
actor, and to whoever checks later what has become of it.
"""

from typing import NamedTuple

import numpy as np

from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import Episode, Sequence
from fornix.replay.batches import Transitions
from fornix.replay.steps import Steps

N_FRAMES, ITEMS, LANES = 4, 32, 8
LONGEST = 24  # steps of an episode after its first
_ROUNDS = 12  # that some requests have more
DISCOUNT = 0.5  # so that every sum of rewards is exact
PARTS = ("writer", "incarnation", "lane", "episode", "step")
SIGNATURE = Signature(
    frame=ArraySpec.of((ITEMS,), np.uint32),
    action=ArraySpec.of((), np.int32),
    extras={"who": ArraySpec.of((len(PARTS),), np.int64)},
    n_frames=N_FRAMES,
)

_PRIMES = np.array([15_485_863, 32_452_843, 49_979_687, 67_867_967, 86_028_121], np.uint64)
_ODD = np.random.default_rng(0).integers(1, 2**63, ITEMS, np.uint64) | np.uint64(1)
_HALF = np.uint64(32)
_STEP = np.array([0, 0, 0, 0, 1])


class FaultError(Exception):
    """Something is not what it must be."""


class Request(NamedTuple):
    """What one request writes."""

    sequence: int
    who: np.ndarray
    """int64 [K, 5], of its rows."""
    kind: np.ndarray
    """uint8 [K]: FIRST, MID or LAST."""
    leave: np.ndarray
    """int32 [J]: lanes that leave before the rows come, all of them in an episode."""
    stacks: bool
    """Whether it asks for stacks."""

    def steps(self):
        """Return the rows as an actor writes them."""
        last = self.kind == LAST
        return Steps(
            lane=self.who[:, 2].astype(np.int32),
            step_type=self.kind,
            terminated=last & last_of(self.who)[1],
            action=action_of(self.who),
            reward=reward_of(self.who),
            frame=frame_of(self.who),
            extras={"who": self.who.copy()},
        )

    def newest(self):
        """Return the places of each lane's newest row, in the order in which the lanes first appear."""
        places = {lane: at for at, lane in enumerate(self.who[:, 2].tolist())}
        return np.fromiter(places.values(), np.int64, len(places))


class Script:
    """All requests of one incarnation of a writer, one after another."""

    def __init__(self, writer, incarnation):
        self._rng = np.random.default_rng([writer, incarnation])
        self.sequence = 0
        #: of each lane's next row
        self.who = np.zeros((LANES, len(PARTS)), np.int64)
        self.who[:, 0], self.who[:, 1], self.who[:, 2] = writer, incarnation, np.arange(LANES)

    def next(self):
        """Return the next request."""
        self.sequence += 1
        draws = self._rng.random((2, LANES))
        kind_of_request = self._rng.random()
        only_leave = 0.15 <= kind_of_request < 0.19
        leaves = draws[0] < (0.3 if only_leave else 0.02)
        leave = np.flatnonzero(leaves & (self.who[:, 4] > 0)).astype(np.int32)
        self._end(leave)
        going = (draws[1] < 0.9) & (not (only_leave and len(leave)))
        going[0] |= not going.any() and not len(leave)
        rows = [self._advance(np.flatnonzero(going))]
        if kind_of_request < 0.1:  # without stacks, a lane may have any run of rows
            rows += [self._advance(np.flatnonzero(self._rng.random(LANES) < 0.5)) for _ in range(_ROUNDS)]
        else:
            begins = going & (self.who[:, 4] == 0) & (rows[0][2] == LAST)
            rows.append(self._advance(np.flatnonzero(begins & (draws[0] < 0.5))))
        who = np.concatenate([part[0] for part in rows])
        kind = np.concatenate([part[1] for part in rows])
        return Request(self.sequence, who, kind, leave, stacks=kind_of_request >= 0.15)

    def _advance(self, lanes):
        """Return the next rows of lanes: who they are, their types, and the type of each lane's."""
        who = self.who[lanes]
        step = who[:, 4]
        ends = (step > 0) & (step == last_of(who)[0])
        kind = np.select([step == 0, ends], [FIRST, LAST], MID).astype(np.uint8)
        self.who[lanes, 4] += 1
        self._end(lanes[ends])
        of_lane = np.full(LANES, FIRST, np.uint8)
        of_lane[lanes] = kind
        return who, kind, of_lane

    def _end(self, lanes):
        self.who[lanes, 3] += 1
        self.who[lanes, 4] = 0


def frame_of(who):
    """Return the frames of rows `who` [..., 5], uint32 [..., ITEMS]: no two the same, none with a zero."""
    mixed = (who.astype(np.uint64) * _PRIMES).sum(axis=-1, dtype=np.uint64)
    frame = ((mixed[..., None] * _ODD) >> _HALF).astype(np.uint32) | np.uint32(1)
    frame[..., : len(PARTS)] = who + 1
    return frame


def who_of(frame):
    """Return who frames say that they are, int64 [..., 5]."""
    return frame[..., : len(PARTS)].astype(np.int64) - 1


def last_of(who):
    """Return the number of the last step in the episodes of rows `who`, and whether it terminates them."""
    mixed = (who[..., :4].astype(np.uint64) * _PRIMES[:4]).sum(axis=-1, dtype=np.uint64)
    seed = ((mixed * _ODD[0]) >> _HALF).astype(np.int64)
    return 1 + seed % LONGEST, seed // LONGEST % 2 == 0


def action_of(who):
    """Return the actions that led to rows; 0 to the first."""
    return np.where(who[..., 4] > 0, who[..., 4] * 31 + who[..., 3] % 97, 0).astype(np.int32)


def reward_of(who):
    """Return the rewards that came with rows; 0 with the first."""
    return np.where(who[..., 4] > 0, (who[..., 4] * 7 + who[..., 3]) % 64, 0).astype(np.float32)


def window_of(who, steps, length):
    """Return the windows that begin with the stack of `who` [B, 5] and end `steps` [B] later.

    They are [B, N_FRAMES + length, ITEMS], zero before an episode's first row, and beyond their ends.
    """
    place = np.arange(1 - N_FRAMES, length + 1)
    each = who[:, None, :] + place[:, None] * _STEP
    there = (each[..., 4] >= 0) & (place <= np.asarray(steps)[..., None])
    window = np.zeros((*there.shape, ITEMS), np.uint32)
    window[there] = frame_of(each[there])
    return window


def stack_of(who):
    """Return the stacks of rows `who` [B, 5]."""
    return window_of(who, 0, 0)


class Looked(NamedTuple):
    """What is told of a batch that was found right."""

    stacks: int
    """How many there are in it."""
    who: np.ndarray
    """int64 [B, 5]: the row that each unit starts from."""
    after: np.ndarray
    """int64 [B, 5]: the row that it ends with."""
    cut: np.ndarray
    """bool [B]: whether it ends with its episode, and before the last step of that."""


def check_batch(drawn, unit):
    """Look at every byte of a batch of a unit, drawn with DISCOUNT; return what is to be told of it.

    Raises:
        FaultError: something in it is wrong.
    """
    single = isinstance(drawn, Transitions)
    who = drawn.extras["who"] if single else drawn.extras["who"][:, 0]
    steps, length = drawn.batch.steps.astype(np.int64), drawn.window.shape[1] - N_FRAMES
    last, terminates = last_of(who)
    end = who[:, 4] + steps
    after = who + steps[:, None] * _STEP
    _require(who[:, 4] < last, who, "was drawn, and nothing was done in it")
    _require(end <= last, who, "goes beyond the end of its episode")
    _check_window(drawn.window, who, steps, length)
    if single:
        _check_transitions(drawn, who, after, steps, terminates & (end == last))
        stacks = 2 * len(who)
    else:
        _check_sequences(drawn, who, steps, terminates, last)
        stacks = int((steps + 1).sum())
    if isinstance(unit, Sequence):
        _require(who[:, 4] % (unit.length - unit.overlap) == 0, who, "is no place for a sequence to start")
    if isinstance(unit, Episode):
        _require(who[:, 4] == 0, who, "is not the first of its episode")
    shorter = isinstance(unit, Episode) | (steps < length)
    return Looked(stacks, who, after, shorter & (end < last))


def _check_window(window, who, steps, length):
    due = window_of(who, steps, length)
    if np.array_equal(window, due):
        return
    at = int(np.argmax((window != due).any(axis=(1, 2))))
    found = who_of(window[at]).tolist()
    torn = (window[at] != frame_of(who_of(window[at]))).any(axis=1) & window[at].any(axis=1)
    what = "torn frames" if torn.any() else "other frames than were written"
    raise FaultError(f"the window of {who[at].tolist()} with {steps[at]} steps has {what}: {found}")


def _check_transitions(drawn, who, after, steps, terminated):
    n_step = drawn.n_step
    taken = who[:, None, :] + np.arange(1, n_step + 1)[:, None] * _STEP
    counts = np.arange(1, n_step + 1) <= steps[:, None]
    returns = (reward_of(taken) * counts * DISCOUNT ** np.arange(n_step)).sum(axis=1)
    _require((drawn.stack == stack_of(who)).all(axis=(1, 2)), who, "has another stack")
    _require((drawn.next_stack == stack_of(after)).all(axis=(1, 2)), who, "has another next stack")
    _require(drawn.action == action_of(taken[:, 0]), who, "has another action")
    _require(drawn.reward == returns.astype(np.float32), who, "has another return")
    _require(drawn.discount == np.where(terminated, 0, DISCOUNT**steps), who, "has another discount")


def _check_sequences(drawn, who, steps, terminates, last):
    length = drawn.mask.shape[1]
    _require((drawn.mask == (np.arange(length) < steps[:, None])).all(axis=1), who, "has another mask")
    row, at = np.nonzero(drawn.mask)
    each = who[row] + at[:, None] * _STEP
    taken = each + _STEP
    ends = terminates[row] & (taken[:, 4] == last[row])
    for name, found, due in (
        ("extras", drawn.extras["who"][row, at], each),
        ("actions", drawn.action[row, at], action_of(taken)),
        ("rewards", drawn.reward[row, at], reward_of(taken)),
        ("discounts", drawn.discount[row, at], np.where(ends, 0, DISCOUNT)),
        ("stacks", drawn.stack[row, at], stack_of(each)),
        ("next stacks", drawn.next_stack[row, at], stack_of(taken)),
    ):
        same = (found == due).reshape(len(each), -1).all(axis=1)
        _require(same, each, f"has other {name} in a sequence")
    beyond = ~drawn.mask
    if any(array[beyond].any() for array in (drawn.reward, drawn.discount, drawn.action)):
        raise FaultError("there is something in a sequence beyond its end")


def _require(right, who, what):
    right = np.asarray(right)
    if not right.all():
        raise FaultError(f"{who[int(np.argmin(right))].tolist()} {what}")
