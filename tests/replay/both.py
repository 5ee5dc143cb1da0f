"""The same done to a memory with its tables and to the model, and all compared that either says."""

import numpy as np
import pytest

from fornix.common.errors import EvictedError, SequenceError
from fornix.common.messages import Sample, UpdatePriorities
from fornix.common.signature import ArraySpec, frame_name
from fornix.common.specs import Episode, SamplerSpec, Sequence, Transition
from fornix.replay.samplers import make_sampler
from fornix.replay.stacking import Stacker
from fornix.replay.starts import StartIndex
from fornix.replay.units import starts_of

from .builders import CUT, END, F, M, a_table, a_table_on, observe, signature
from .model import Model, TableModel

#: What steps may look like: plain; with extras and continuous actions; frames of several arrays.
LIKE = (
    {},
    {"extras": {"value": ArraySpec.of((), np.float32)}, "action": ArraySpec.of((2,), np.float32)},
    {
        "frame": {
            "board": ArraySpec.of((2, 1), np.int32),
            "rest": (ArraySpec.of((), np.float64), {"x": ArraySpec.of((3,), np.float32)}),
        },
        "extras": {"logits": ArraySpec.of((2,), np.float32), "seen": ArraySpec.of((), np.int64)},
    },
)
UNITS = (
    Transition(n_step=1),
    Transition(n_step=2),
    Transition(n_step=5),
    Sequence(length=1),
    Sequence(length=3),
    Sequence(length=4, overlap=2),
    Sequence(length=5, overlap=4, burn_in=2),
    Sequence(length=12, overlap=5),
    Episode(max_steps=1),
    Episode(max_steps=4),
    Episode(max_steps=50),
)
KINDS = ("uniform", "prioritized", "fifo", "lifo", "epoch")


def a_sampler(rng):
    return SamplerSpec(
        kind=rng.choice(KINDS),
        max_times_sampled=rng.choice([None, None, 1, 3]),
        priority_exponent=rng.choice([0.0, 0.6, 1.0]),
    )


class Both:
    """A memory and the tables that draw from it, and their models."""

    def __init__(self, capacity, n_frames, sampler, like, seed):
        table = a_table(capacity, n_frames, seed, sampler=sampler, **like)
        self.memory = table.memory
        self.model = Model(capacity, signature(n_frames, **like))
        self.tables = [(table, TableModel(self.model, capacity, n_frames, sampler))]
        self._requests = {}
        self._incarnation = self._values = 0

    def share(self, share):
        """Return so many rows of the ring, one at least."""
        return max(1, round(share * self.model.capacity))

    # who writes, and who draws -----------------------------------------------------------------------

    def open_writer(self, name, lanes):
        lanes = min(lanes, self._most_lanes())
        self._incarnation += 1
        self._requests[name] = []
        assert self.memory.open_writer(name, self._incarnation, lanes) == 1
        self.model.open_writer(name, self._incarnation, lanes)

    def open_the_same_again(self, name, more):
        """With as many lanes, or some that join."""
        known = self.model.writers[name]
        lanes = max(len(known.open), min(len(known.open) + more, self._most_lanes()))
        assert self.memory.open_writer(name, known.incarnation, lanes) == known.sequence + 1
        self.model.grow(name, lanes)

    def add_table(self, capacity, n_frames, sampler, seed):
        """Let another table draw from the rows."""
        n_frames = min(n_frames, self.model.n_frames)
        capacity = max(n_frames + 1, capacity)
        table = a_table_on(self.memory, capacity, n_frames, sampler, seed)
        self.tables.append((table, TableModel(self.model, capacity, n_frames, sampler)))

    def drop_table(self):
        table, model = self.tables.pop()
        table.close()
        self.model.tables.remove(model)

    def reset(self):
        self.memory.reset()
        for table, _ in self.tables:
            table.reset()
        self.model.reset()
        self._requests.clear()

    # steps --------------------------------------------------------------------------------------------

    def write(self, name, plan, stacks=True, leave=None):
        """Send rows like a plan, (lane, kind), and compare the answer; return whether they were taken."""
        writer = self.model.writers[name]
        leave = None if leave is None else [lane % len(writer.open) for lane in leave]
        rows = self._fitting(name, plan, stacks, leave or ())
        if not rows and leave is None:
            return False
        request = observe(
            writer.sequence + 1,
            rows,
            writer=name,
            incarnation=writer.incarnation,
            policy_version=self.model.head,
            like=self.model.like,
            stacks=stacks,
            leave=None if leave is None else np.array(leave, np.int32),
        )
        assert not self.memory.is_repeated(request)
        if self.model.would_lose_a_stack(name, rows, leave or ()):
            with pytest.raises(EvictedError):
                self.memory.observe(request, now=0.0)
            return False
        answer = self.memory.observe(request, now=0.0)
        newest = self.model.observe(name, rows, leave or ())
        assert answer.key.tolist() == [row.number for row in newest]
        if stacks:
            for at, row in enumerate(newest):
                assert by_path(answer.stack, at) == as_lists(self.model.stack(row))
        else:
            assert answer.stack is None
        self._requests[name].append((request, newest, answer))
        return True

    def play(self, rng, requests, ends, most):
        """Write as several writers, at random.

        Args:
            rng: of all choices.
            requests: how many.
            ends: how often an episode ends with a step.
            most: share of the ring that a request may have, at most one half.
        """
        for _ in range(requests):
            rows = rng.randint(1, self.share(most))
            kinds = [rng.choice((END, CUT)) if rng.random() < ends else M for _ in range(rows)]
            leave = [rng.randrange(3)] if rng.random() < 0.1 else None
            name = rng.choice(sorted(self.model.writers))
            self.write(name, [(rng.randrange(3), kind) for kind in kinds], rng.random() < 0.5, leave)

    def wake_just_in_time(self, name, other, plan, early, stacks):
        """Let a writer's lanes sleep until the ring has almost reached their stacks."""
        awake = [episode for episode in self.model.writers[name].open if episode]
        if name == other or not awake:
            return
        oldest = min(one.rows[-1].before(self.model.n_frames)[0].number for one in awake)
        for _ in range(2 * self.model.capacity):
            if self.model.tail >= oldest - early:
                break
            if not self.write(other, [(0, M)] * self.share(0.1), stacks=False):
                break
        self.write(name, plan, stacks)

    def repeat(self, name, back):
        """Send one of the last requests again."""
        applied = self._requests[name]
        if len(applied) < back:
            return
        request, newest, answer = applied[-back]
        assert self.memory.is_repeated(request)
        if back <= 8 and (not request.stacks or all(self.model.is_whole(row) for row in newest)):
            again = self.memory.answer_again(request)
            assert again.key.tolist() == answer.key.tolist()
            assert as_lists(again.stack) == as_lists(answer.stack)
        else:
            with pytest.raises(SequenceError):
                self.memory.answer_again(request)

    # what is asked ------------------------------------------------------------------------------------

    def ask(self, number):
        """Ask for the stack of a row, which may be gone or still to come."""
        rows = self.model.rows
        if self.model.tail <= number < len(rows) and self.model.is_whole(rows[number]):
            answer = self.memory.stacks(np.array([number]))
            assert by_path(answer.stack, 0) == as_lists(self.model.stack(rows[number]))
        else:
            with pytest.raises(EvictedError):
                self.memory.stacks(np.array([number]))

    def update_priorities(self, which, keys, values):
        table, model = self.tables[which]
        request = UpdatePriorities(
            table="t", key=np.array(keys, np.int64), priority=np.array(values, float)
        )
        reply = table.update_priorities(request)
        applied = model.update(keys, values)
        assert (reply.applied, reply.ignored) == (applied, len(keys) - applied)

    def draw(self, which, unit, count, discount=0.5, exponent=0.0, mapped=False):
        """Draw a batch and compare it field by field; return whether there was one."""
        table, model = self.tables[which]
        request = Sample(
            table="t",
            batch_size=count,
            unit=unit,
            discount=discount,
            importance_exponent=exponent,
            mapped=mapped,
        )
        batch = table.sample(request)
        if model.inserts < 1:
            assert batch is None
            return False
        starts = model.use(unit)
        if not starts.can_draw(count):
            assert batch is None
            assert table.why_no_sample(request).endswith("open it")
            return False
        self._check_batch(batch, starts, request)
        return True

    def compare(self):
        """Compare everything that can be told without changing anything."""
        ring = self.memory.ring
        assert (ring.tail, ring.head) == (self.model.tail, self.model.head)
        for table, model in self.tables:
            assert (table.limiter.inserts, table.limiter.samples) == (model.inserts, model.samples)
            assert len(table) == self.model.head - model.oldest
            for unit, starts in list(model.units.items()):
                assert table.starts(unit).tolist() == sorted(starts.order)
                stacker = Stacker(ring.columns.arrays, table.spec.signature)
                sampler = make_sampler("uniform", ring.capacity, None)
                scanned = StartIndex(ring, stacker, starts_of(unit, ring), sampler, model.oldest)
                assert scanned.numbers().tolist() == list(model.sampleable(unit))

    # how ----------------------------------------------------------------------------------------------

    def _most_lanes(self):
        return max(1, self.model.capacity // (self.model.n_frames + 1))

    def _fitting(self, name, plan, stacks, leave):
        """Return rows that fit the lanes' episodes: what can't come next becomes a FIRST."""
        lanes = self.model.writers[name].open
        is_open = [episode is not None and lane not in leave for lane, episode in enumerate(lanes)]
        rows, met = [], [0] * len(lanes)
        for lane, kind in plan:
            lane %= len(lanes)
            if len(rows) == self.model.capacity // 2:
                break
            met[lane] += 1
            if stacks and (met[lane] > 2 or (met[lane] == 2 and is_open[lane])):
                continue  # a lane's second row must begin an episode
            kind = kind if is_open[lane] else F
            is_open[lane] = kind not in (END, CUT)
            self._values = (self._values + 1) % 50_000
            rows.append((lane, kind, self._values))
        return rows

    def _check_batch(self, batch, starts, request):
        unit, model = request.unit, starts.table
        keys, members = batch.key.tolist(), len(starts.order)
        span = unit.n_step if isinstance(unit, Transition) else None
        if span is None:
            longest = max(starts.steps(key) for key in keys)
            span = unit.length if isinstance(unit, Sequence) else longest
        assert (batch.index.shape, batch.index.dtype) == ((len(keys), model.n_frames + span), np.int32)
        frames = batch.frame
        if request.mapped:
            assert frames is None
            assert batch.oldest.tolist() == [starts.oldest(key) for key in keys]
            frames = {path: self.memory.ring.column(frame_name(path)) for path in self.model.like.frames}
        else:
            assert len(set(by_frame(frames))) == len(by_frame(frames))  # each is sent once
        for at, key in enumerate(keys):
            wanted = as_lists(starts.drawn(key, request.discount, span))
            found = {
                name: as_lists(getattr(batch, name)[at])
                for name in ("key", "next_key", "steps", "action", "reward", "discount", "policy_version")
            }
            found["window"] = by_path(frames, batch.index[at])
            found["extras"] = {name: as_lists(array[at]) for name, array in batch.extras.items()}
            found["mask"] = None if batch.mask is None else as_lists(batch.mask[at])
            assert found.pop("reward") == pytest.approx(wanted.pop("reward"), rel=1e-6)
            assert found == wanted
        weights = (members * batch.probability) ** -request.importance_exponent
        assert np.allclose(batch.weight, weights / weights.max())
        starts.check_draw(keys, batch.probability.tolist())


def as_lists(value):
    """Return arrays, and dicts and lists of them, as plain Python."""
    if isinstance(value, dict):
        return {name: as_lists(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_lists(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


def by_path(arrays, places):
    """Return what arrays of a message have at some places, by path."""
    arrays = arrays if isinstance(arrays, dict) else {"": arrays}
    return {path: array[places].tolist() for path, array in arrays.items()}


def by_frame(arrays):
    """Return the frames of a message, as bytes each."""
    arrays = list(arrays.values()) if isinstance(arrays, dict) else [arrays]
    return [b"".join(array[at].tobytes() for array in arrays) for at in range(len(arrays[0]))]


def a_life(both, rng, rounds, turns):
    """Let all happen that can, at random, and compare after each of it.

    Args:
        both: that it happens to.
        rng: of all choices.
        rounds: how much happens.
        turns: so often the ring wraps at least.
    """
    both.open_writer("a", 2)
    while rounds > 0 or both.model.head < turns * both.model.capacity:
        rounds -= 1
        _happens(both, rng)
        both.compare()


def _happens(both, rng):
    writers = sorted(both.model.writers)
    name, other = rng.choice(writers), rng.choice(writers)
    which = rng.randrange(len(both.tables))
    _, model = both.tables[which]
    plan = [(rng.randrange(3), rng.choice([M, M, END, CUT])) for _ in range(rng.randint(1, 6))]
    action = rng.random()
    if action < 0.4:
        both.play(rng, rng.randint(1, 6), rng.choice([0.05, 0.3, 0.7]), rng.choice([0.05, 0.2, 0.5]))
    elif action < 0.7:
        for unit in [*model.units, *rng.choices(UNITS, k=len(model.units) < 3)]:
            discount, exponent = rng.choice([0.0, 0.5, 1.0]), rng.choice([0.0, 0.5])
            both.draw(which, unit, rng.randint(1, 30), discount, exponent, rng.random() < 0.3)
            both.draw(which, unit, 1)
    elif action < 0.8 and model.sampler.kind == "prioritized":
        keys = [rng.randint(model.tail - 20, both.model.head + 3) for _ in range(rng.randint(0, 20))]
        both.update_priorities(which, keys, [rng.randrange(9) / 4 for _ in keys])
    elif action < 0.84:
        both.wake_just_in_time(name, other, plan, rng.randint(-2, 6), rng.random() < 0.5)
    elif action < 0.88:
        both.repeat(name, rng.randint(1, 9))
    elif action < 0.92:
        both.open_writer(rng.choice("abc"), rng.randint(1, 3))
    elif action < 0.95:
        both.open_the_same_again(name, rng.randint(0, 2))
    elif action < 0.98:
        if len(both.tables) < 3:
            both.add_table(both.share(rng.random()), rng.randint(1, 4), a_sampler(rng), rng.getrandbits(32))
        else:
            both.drop_table()
    elif action < 0.985:
        both.reset()
        both.open_writer("a", 2)
