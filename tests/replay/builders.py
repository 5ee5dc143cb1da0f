"""Short ways to make tables and requests."""

import copy

import numpy as np

from fornix.common import trees
from fornix.common.messages import FIRST, LAST, MID, Observe, Sample
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec, Transition
from fornix.replay.memory import Memory
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


def spec(capacity=100, n_frames=3, limiter=None, sampler=None, rows_of=None, **changes):
    return TableSpec(
        signature=signature(n_frames, **changes),
        capacity_steps=capacity,
        limiter=limiter or LimiterSpec(),
        sampler=sampler or SamplerSpec(),
        rows_of=rows_of,
    )


def a_table(capacity=100, n_frames=3, seed=0, **changes):
    """Return a table with rows of its own."""
    made = spec(capacity, n_frames, **changes)
    memory = Memory(made.signature, AnonymousColumns(made.signature, capacity))
    return Table(made, memory, np.random.default_rng(seed))


def a_table_on(memory, capacity, n_frames, sampler=None, seed=0, limiter=None):
    """Return a table that draws from the rows of a memory, which others draw from too."""
    made = TableSpec(
        signature=memory.signature.model_copy(update={"n_frames": n_frames}),
        capacity_steps=capacity,
        limiter=limiter or LimiterSpec(),
        sampler=sampler or SamplerSpec(),
        rows_of="t",
    )
    return Table(made, memory, np.random.default_rng(seed))


def column(spec, values, at=0):
    """Return an array for each value, [len(values), *shape]; zeros, as padding has, for None.

    No other value (up to 99,999) or place `at` has the same, and none looks like padding.
    """
    signs = (-1) ** np.arange(int(np.prod(spec.shape)))
    numbers = np.array([0 if value is None else value + 1 + 100_000 * at for value in values], np.int64)
    return (numbers[:, None] * signs).reshape(len(values), *spec.shape).astype(spec.dtype)


def frames_of(like, values):
    """Return the frames of values under a signature: by path, [len(values), *obs] each."""
    return {path: column(spec, values, at) for at, (path, spec) in enumerate(like.frames.items())}


def extras_of(like, values):
    """Return the extras of values under a signature, by name."""
    return {name: column(spec, values, 20 + at) for at, (name, spec) in enumerate(like.extras.items())}


def actions_of(like, values):
    """Return the actions of values: the values themselves where that is enough, zeros for None."""
    if like.action.shape == ():
        return np.array([value or 0 for value in values], like.action.dtype)
    return column(like.action, values, at=40)


def frame(value):
    """Return a frame that no other value has, and that no padding looks like."""
    return np.array([value + 1, -value - 1], np.int32)


def observe(sequence, rows, *, writer="w", incarnation=1, table="t", like=None, **changes):
    """Return a request of rows (lane, (step type, terminated), value).

    A row's frame is made of its value, and so are its extras; its action is the value, its reward
    10 · value, and on FIRST numbers that must never be seen again.
    """
    like = like or signature()
    lanes, kinds, values = zip(*rows, strict=True) if rows else ((), (), ())
    step_type = np.array([kind for kind, _ in kinds], np.uint8)
    acted = step_type != FIRST
    actions = actions_of(like, values)
    actions[~acted] = -999
    fields = {
        "table": table,
        "writer": writer,
        "incarnation": incarnation,
        "sequence": sequence,
        "lane": np.array(lanes, np.int32),
        "step_type": step_type,
        "terminated": np.array([terminated for _, terminated in kinds], np.bool_),
        "action": actions,
        "reward": np.where(acted, 10 * np.array(values), 1e9).astype(np.float32),
        "frame": trees.bare(frames_of(like, values)),
        "extras": extras_of(like, values),
    }
    return Observe(**(fields | changes))


def sample(batch_size=32, n_step=1, discount=0.5, table="t", timeout_s=10.0, **changes):
    fields = {"table": table, "batch_size": batch_size, "discount": discount, "timeout_s": timeout_s}
    return Sample(**({"unit": Transition(n_step=n_step)} | fields | changes))


def a_stack(*values):
    """Return the stack of these values, None for padding."""
    zeros = np.zeros(2, np.int32)
    return np.stack([zeros if value is None else frame(value) for value in values])


class Episodes:
    """Writes to one table, a request for each call, under the numbers that are due."""

    def __init__(self, table, writer="w", lanes=1, incarnation=1):
        self.table = table
        self._who = {"writer": writer, "incarnation": incarnation}
        self.sequence = table.memory.open_writer(writer, incarnation, lanes)

    def write(self, *rows, **changes):
        """Send rows (lane, kind, value), and return the answer."""
        self.request = observe(self.sequence, rows, **self._who, **changes)
        answer = self.table.memory.observe(self.request, now=0.0)
        self.sequence += 1
        return answer

    def steps(self, *kinds, lane=0, begin=0):
        """Send one row a request, of values begin, begin + 1, …; return the keys."""
        answers = [self.write((lane, kind, begin + at)) for at, kind in enumerate(kinds)]
        return [int(answer.key[0]) for answer in answers]


def drawn(table, unit, discount=0.5, draws=400):
    """Return what is drawn, by its keys: dicts of every field."""
    batch = table.sample(sample(draws, unit=unit, discount=discount))
    assert batch is not None
    found = {}
    for at, key in enumerate(batch.key.tolist()):
        row = {
            name: getattr(batch, name)[at]
            for name in type(batch).model_fields
            if name not in ("extras", "held_s", "frame", "oldest", "mask", "memory")
        }
        row["window"] = batch.frame[batch.index[at]]
        n_frames, steps = table.spec.signature.n_frames, int(row["steps"])
        row["stack"] = row["window"][:n_frames]
        row["next_stack"] = row["window"][steps : steps + n_frames]
        row["extras"] = {name: array[at] for name, array in batch.extras.items()}
        row["mask"] = None if batch.mask is None else batch.mask[at]
        found[key] = row
    return found


def transitions(table, n_step=1, discount=0.5, draws=400):
    """Return the transitions that are drawn, by their keys: dicts of every field."""
    return drawn(table, Transition(n_step=n_step), discount, draws)


def contents(table):
    """Return all that a table remembers, so that two moments can be compared."""
    ring = table.memory.ring
    columns = {name: ring.column(name).tobytes() for name in ring.names}
    writers = {
        name: (writer.incarnation, writer.sequence, writer.newest.tolist(), writer.returns.tolist())
        for name, writer in table.memory.writers.items()
    }
    limiter = table.limiter
    counts = (ring.head, ring.tail, limiter.inserts, limiter.samples, limiter.leased, table.memory.episodes)
    return columns, copy.deepcopy(writers), counts
