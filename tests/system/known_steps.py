"""Steps of which every byte follows from four numbers: writer, lane, episode and step.

So whoever is handed a stack can tell whether it is what was written. Run as a program, this writes such
steps as fast as it can, as two writers in turn, and checks the stacks that it is handed; until its input
ends:

    python known_steps.py ADDRESS MEMORY
"""

import json
import select
import sys

import numpy as np

from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import TableSpec
from fornix.replay.batches import Transitions
from fornix.replay.client import Client
from fornix.replay.steps import Steps

TABLE = "known"
N_FRAMES, ITEMS, LANES, CAPACITY = 4, 256, 8, 256
LONGEST = 12  # steps of an episode after its first
SIGNATURE = Signature(
    frame=ArraySpec.of((ITEMS,), np.uint32),
    action=ArraySpec.of((), np.int32),
    extras={"who": ArraySpec.of((4,), np.int64)},
    n_frames=N_FRAMES,
)
SPEC = TableSpec(signature=SIGNATURE, capacity_steps=CAPACITY)

_NOISE = np.lib.stride_tricks.sliding_window_view(
    np.random.default_rng(0).integers(1, 2**32, 2**16 + ITEMS, np.uint32), ITEMS
)
_PRIMES = np.array([15_485_863, 32_452_843, 49_979_687, 67_867_967])
_STEP = np.array([0, 0, 0, 1])


def frame_of(who):
    """Return the frames of steps `who` [..., 4], uint32 [..., ITEMS]: no two the same, none with a zero."""
    frame = _NOISE[(who * _PRIMES).sum(axis=-1) % len(_NOISE)]
    frame[..., :4] = who + 1
    return frame


def last_of(who):
    """Return the number of the last step in the episodes of steps `who`, and whether it terminates them."""
    seed = (who[..., :3] * _PRIMES[:3]).sum(axis=-1) >> 3
    return 1 + seed % LONGEST, seed // LONGEST % 2 == 0


def window_of(who, steps, length):
    """Return the windows that begin with the stack of `who` [B, 4] and end `steps` [B] later.

    They are [B, N_FRAMES + length, ITEMS], zero before an episode's first step, and beyond their ends.
    """
    place = np.arange(1 - N_FRAMES, length + 1)
    step = who[:, None, :] + place[:, None] * _STEP
    there = (step[..., 3] >= 0) & (place <= np.asarray(steps)[..., None])
    window = frame_of(step)
    window[~there] = 0
    return window


def stack_of(who):
    """Return the stacks of steps `who` [B, 4]."""
    return window_of(who, 0, 0)


class Lanes:
    """The lanes of one writer; its number is in every frame."""

    def __init__(self, number, lanes=LANES):
        self.who = np.zeros((lanes, 4), np.int64)
        self.who[:, 0], self.who[:, 1] = number, np.arange(lanes)

    def steps(self):
        """Return the next step of every lane; the stacks of `who` are due for it."""
        step = self.who[:, 3]
        last, terminated = last_of(self.who)
        ends = step == last
        return Steps(
            lane=self.who[:, 1].astype(np.int32),
            step_type=np.select([step == 0, ends], [FIRST, LAST], MID).astype(np.uint8),
            terminated=ends & terminated,
            action=step.astype(np.int32),
            reward=step.astype(np.float32),
            frame=frame_of(self.who),
            extras={"who": self.who.copy()},
        )

    def go_on(self):
        """Go on to the next step, or to the next episode."""
        ends = self.who[:, 3] == last_of(self.who)[0]
        self.who[:, 2] += ends
        self.who[:, 3] = np.where(ends, 0, self.who[:, 3] + 1)


def check(drawn):
    """Raise AssertionError unless a batch, drawn with discount 1, is all that follows from its extras.

    These come from the server's own memory, whatever way the frames have taken.
    """
    single = isinstance(drawn, Transitions)
    who = drawn.extras["who"] if single else drawn.extras["who"][:, 0]
    steps, length = drawn.batch.steps, drawn.window.shape[1] - N_FRAMES
    last, terminated = last_of(who)
    assert np.array_equal(drawn.window, window_of(who, steps, length)), "the windows differ"
    if single:
        after = who + steps[:, None] * _STEP
        taken = np.arange(1, length + 1) + who[:, 3:]
        assert np.array_equal(steps, np.minimum(length, last - who[:, 3])), "the steps differ"
        assert np.array_equal(drawn.stack, stack_of(who)), "the stacks differ"
        assert np.array_equal(drawn.next_stack, stack_of(after)), "the stacks that follow differ"
        assert np.array_equal(drawn.action, who[:, 3] + 1), "the actions differ"
        assert np.array_equal(drawn.reward, (taken * (taken <= after[:, 3:])).sum(axis=1)), "rewards differ"
        assert np.array_equal(drawn.discount, ~(terminated & (after[:, 3] == last))), "the discounts differ"
        return
    row, at = np.nonzero(drawn.mask)
    each = who[row] + at[:, None] * _STEP
    assert np.array_equal(drawn.mask.sum(axis=1), steps), "the masks differ"
    assert np.array_equal(drawn.extras["who"][row, at], each), "the extras differ"
    assert np.array_equal(drawn.stack[row, at], stack_of(each)), "the stacks differ"
    assert np.array_equal(drawn.next_stack[row, at], stack_of(each + _STEP)), (
        "the stacks that follow differ"
    )
    assert np.array_equal(drawn.action[row, at], each[:, 3] + 1), "the actions differ"


def main(address, memory):
    """Write until the standard input ends; then say how many stacks were handed out and compared."""
    compared, pending = 0, []
    with Client.connect(address, memory=memory) as client:
        client.create_table(TABLE, SPEC)
        writers = [(client.open_writer(TABLE, f"writer-{at}", LANES), Lanes(at)) for at in range(2)]
        while not select.select([sys.stdin], [], [], 0)[0]:
            for writer, lanes in writers:
                if len(pending) == len(writers):
                    answer, due = pending.pop(0)
                    assert np.array_equal(answer.result().stack, due), "other stacks than were written"
                    compared += len(due)
                pending.append((writer.observe(lanes.steps()), stack_of(lanes.who)))
                lanes.go_on()
    print(json.dumps({"compared": compared}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
