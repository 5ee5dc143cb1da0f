"""Short ways to make tables and requests."""

import numpy as np

from fornix.common.messages import FIRST, LAST, MID, LimiterSpec, Observe, Sample, TableSpec
from fornix.common.signature import ArraySpec, Signature
from fornix.replay.storage import AnonymousColumns
from fornix.replay.table import Table

#: What may happen to a lane, as (step type, terminated).
F, M, END, CUT = (FIRST, False), (MID, False), (LAST, True), (LAST, False)


class Clock:
    """A clock that a test turns."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def signature(n_frames=3, **changes):
    fields = {
        "frame": ArraySpec.of((2,), np.int32),
        "action": ArraySpec.of((), np.int32),
        "n_frames": n_frames,
    }
    return Signature(**(fields | changes))


def spec(capacity=100, n_frames=3, limiter=None, **changes):
    return TableSpec(
        signature=signature(n_frames, **changes),
        capacity_steps=capacity,
        limiter=limiter or LimiterSpec(),
    )


def a_table(capacity=100, n_frames=3, seed=0, **changes):
    made = spec(capacity, n_frames, **changes)
    return Table(made, AnonymousColumns(made.signature, capacity), np.random.default_rng(seed))


def frame(value):
    """Return a frame that no other value has, and that no padding looks like."""
    return np.array([value + 1, -value - 1], np.int32)


def observe(sequence, rows, *, writer="w", incarnation=1, table="t", **changes):
    """Return a request of rows (lane, (step type, terminated), value).

    A row's frame is made of its value; its action is the value, its reward 10 · value, and on FIRST
    numbers that must never be seen again.
    """
    lanes, kinds, values = zip(*rows, strict=True)
    step_type = np.array([kind for kind, _ in kinds], np.uint8)
    acted = step_type != FIRST
    values = np.array(values)
    fields = {
        "table": table,
        "writer": writer,
        "incarnation": incarnation,
        "sequence": sequence,
        "lane": np.array(lanes, np.int32),
        "step_type": step_type,
        "terminated": np.array([terminated for _, terminated in kinds]),
        "action": np.where(acted, values, -999).astype(np.int32),
        "reward": np.where(acted, 10 * values, 1e9).astype(np.float32),
        "frame": np.stack([frame(value) for value in values]),
    }
    return Observe(**(fields | changes))


def sample(batch_size=32, n_step=1, discount=0.5, table="t", timeout_s=10.0):
    return Sample(table=table, batch_size=batch_size, n_step=n_step, discount=discount, timeout_s=timeout_s)


def a_stack(*values):
    """Return the stack of these values, None for padding."""
    zeros = np.zeros(2, np.int32)
    return np.stack([zeros if value is None else frame(value) for value in values])


class Episodes:
    """Writes to one table, a request for each call, under the numbers that are due."""

    def __init__(self, table, writer="w", lanes=1, incarnation=1):
        self.table = table
        self._who = {"writer": writer, "incarnation": incarnation}
        self.sequence = table.open_writer(writer, incarnation, lanes)

    def write(self, *rows, **changes):
        """Send rows (lane, kind, value), and return the answer."""
        self.request = observe(self.sequence, rows, **self._who, **changes)
        answer = self.table.observe(self.request, now=0.0)
        self.sequence += 1
        return answer

    def steps(self, *kinds, lane=0, begin=0):
        """Send one row a request, of values begin, begin + 1, …; return the keys."""
        answers = [self.write((lane, kind, begin + at)) for at, kind in enumerate(kinds)]
        return [int(answer.key[0]) for answer in answers]


def transitions(table, n_step=1, discount=0.5, draws=400):
    """Return the transitions that are drawn, by their keys: dicts of every field."""
    batch = table.sample(sample(draws, n_step, discount))
    assert batch is not None
    found = {}
    for at, key in enumerate(batch.key.tolist()):
        row = {
            name: getattr(batch, name)[at]
            for name in type(batch).model_fields
            if name not in ("extras", "held_s")
        }
        n_frames, steps = table.spec.signature.n_frames, int(row["steps"])
        row["stack"] = row["window"][:n_frames]
        row["next_stack"] = row["window"][steps : steps + n_frames]
        row["extras"] = {name: array[at] for name, array in batch.extras.items()}
        found[key] = row
    return found
