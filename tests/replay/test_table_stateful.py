import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fornix.common.errors import EvictedError, SequenceError
from fornix.replay.client import Transitions
from fornix.replay.stacking import Stacker
from fornix.replay.starts import StartIndex

from .builders import CUT, END, Episodes, F, M, a_table, observe, sample
from .model import Model

WRITERS = ("a", "b", "c")
plans = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([M, M, M, M, END, CUT])), min_size=1, max_size=6
)


class TableAgainstModel(RuleBasedStateMachine):
    """Does the same to a table and to the model, and compares all that either says."""

    def __init__(self):
        super().__init__()
        self.n_steps = {}
        self.requests = {}
        self.values = 0

    @initialize(capacity=st.integers(8, 40), n_frames=st.integers(1, 4), seed=st.integers(0, 99))
    def begin(self, capacity, n_frames, seed):
        self.table = a_table(capacity, n_frames, seed)
        self.model = Model(capacity, n_frames)
        self.open_writer("a", 2)

    @rule(name=st.sampled_from(WRITERS), lanes=st.integers(1, 3))
    def open_writer(self, name, lanes):
        lanes = max(1, min(lanes, self.model.capacity // (self.model.n_frames + 1)))
        known = self.model.writers.get(name)
        incarnation = 0 if known is None else known.incarnation + 1
        self.requests.pop(name, None)
        assert self.table.open_writer(name, incarnation, lanes) == 1
        self.model.open_writer(name, incarnation, lanes)

    @rule(name=st.sampled_from(WRITERS))
    def open_the_same_again(self, name):
        known = self.model.writers.get(name)
        if known is not None:
            sequence = self.table.open_writer(name, known.incarnation, len(known.open))
            assert sequence == known.sequence + 1

    @rule(name=st.sampled_from(WRITERS), plan=plans)
    def step(self, name, plan):
        if name in self.model.writers:
            self._write(name, self._rows(name, plan))

    @rule(name=st.sampled_from(WRITERS), plan=plans, times=st.integers(2, 20))
    def step_on_and_on(self, name, plan, times):
        """Turns the ring, and lets other writers' lanes fall asleep."""
        if name in self.model.writers:
            for _ in range(times):
                self._write(name, self._rows(name, plan))

    @rule(name=st.sampled_from(WRITERS), plan=plans, early=st.integers(-2, 6))
    def wake_just_in_time(self, name, plan, early):
        """Let a writer's lanes sleep until the ring has almost reached their stacks."""
        others = [other for other in self.model.writers if other != name]
        if name not in self.model.writers or not others:
            return
        awake = [episode for episode in self.model.writers[name].open if episode]
        oldest = min((self.model.stack_rows(one.rows[-1])[0].number for one in awake), default=0)
        for _ in range(self.model.capacity if awake else 0):
            if self.model.tail < oldest - early:
                self._write(others[0], self._rows(others[0], [(0, M)]))
        self._write(name, self._rows(name, plan))

    @rule(name=st.sampled_from(WRITERS))
    def repeat(self, name):
        if name not in self.requests:
            return
        request, newest, answer = self.requests[name]
        assert self.table.is_repeated(request)
        if all(self.model.is_whole(row) for row in newest):
            again = self.table.answer_again(request)
            assert again.key.tolist() == answer.key.tolist()
            assert again.stack.tobytes() == answer.stack.tobytes()
        else:
            with pytest.raises(SequenceError):
                self.table.answer_again(request)

    @rule(n_step=st.integers(1, 5))
    def use(self, n_step):
        if len(self.n_steps) < 3:
            self.n_steps[n_step] = True

    @rule(where=st.floats(-0.1, 1.1))
    def ask(self, where):
        number = self.model.tail + round(where * len(self.table.ring))
        rows = self.model.rows
        if self.model.tail <= number < len(rows) and self.model.is_whole(rows[number]):
            answer = self.table.stacks(np.array([number]))
            assert answer.stack[0].tolist() == self.model.stack(rows[number]).tolist()
        else:
            with pytest.raises(EvictedError):
                self.table.stacks(np.array([number]))

    @precondition(lambda self: self.n_steps)
    @rule(which=st.integers(0, 2), discount=st.sampled_from([0.0, 0.5, 1.0]))
    def draw(self, which, discount):
        n_step = list(self.n_steps)[which % len(self.n_steps)]
        before = self.table.limiter.samples
        batch = self.table.sample(sample(24, n_step, discount))
        if batch is None:
            assert not self.model.starts(n_step)
            assert self.table.limiter.samples == before
            return
        assert self.table.limiter.samples == before + 24
        made = Transitions(batch, n_step)
        assert set(batch.key.tolist()) <= set(self.model.starts(n_step))
        for at, key in enumerate(batch.key.tolist()):
            wanted = self.model.transition(key, n_step, discount)
            parts = {name: getattr(batch, name)[at].item() for name in wanted if "stack" not in name}
            parts |= {"stack": made.stack[at].tolist(), "next_stack": made.next_stack[at].tolist()}
            assert parts == wanted

    @invariant()
    def the_starts_are_the_models(self):
        if not hasattr(self, "table"):
            return
        ring = self.table.ring
        assert (ring.tail, ring.head) == (self.model.tail, len(self.model.rows))
        for n_step in self.n_steps:
            wanted = self.model.starts(n_step)
            assert self.table.starts(n_step).tolist() == wanted
            scanned = StartIndex(ring, Stacker(ring, self.model.n_frames), n_step)
            assert scanned.numbers().tolist() == wanted
            assert scanned.count == len(wanted)

    def _rows(self, name, plan):
        """Return rows that fit the lanes' episodes: what can't come next becomes a FIRST."""
        lanes = self.model.writers[name].open
        is_open = [episode is not None for episode in lanes]
        rows, met = [], [0] * len(lanes)
        for lane, kind in plan:
            lane %= len(lanes)
            met[lane] += 1
            full = len(rows) == self.model.capacity // 2
            if full or met[lane] > 2 or (met[lane] == 2 and is_open[lane]):
                continue  # a lane's second row must begin an episode
            kind = kind if is_open[lane] else F
            is_open[lane] = kind not in (END, CUT)
            self.values += 1
            rows.append((lane, kind, self.values))
        return rows

    def _write(self, name, rows):
        writer = self.model.writers[name]
        head = len(self.model.rows)
        request = observe(
            writer.sequence + 1, rows, writer=name, incarnation=writer.incarnation, policy_version=head
        )
        assert not self.table.is_repeated(request)
        if self.model.would_lose_a_stack(name, rows):
            with pytest.raises(EvictedError):
                self.table.observe(request, now=0.0)
            return
        answer = self.table.observe(request, now=0.0)
        newest = self.model.observe(name, rows)
        assert answer.key.tolist() == [row.number for row in newest]
        assert answer.stack.tolist() == [self.model.stack(row).tolist() for row in newest]
        self.requests[name] = (request, newest, answer)


TableAgainstModel.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestTableAgainstModel(TableAgainstModel.TestCase):
    """A table of few steps does what the model does, whatever comes in whatever order."""


# the draw is uniform -------------------------------------------------------------------------------

DRAWS_AT_ONCE = 65_536
_Z = 3.0902  # of which a normal variable is above with probability 0.001


def chi_square_limit(freedom):
    """Return what chi² exceeds with probability 0.001, by Wilson and Hilferty (1931)."""
    third = 2 / (9 * freedom)
    return freedom * (1 - third + _Z * third**0.5) ** 3


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def drawn_counts(table, n_step, rounds):
    starts = table.starts(n_step)
    counts = np.zeros(len(starts), np.int64)
    for _ in range(rounds):
        keys = table.sample(sample(DRAWS_AT_ONCE, n_step)).key
        places = np.searchsorted(starts, keys)
        assert np.array_equal(starts[places], keys)
        counts += np.bincount(places, minlength=len(starts))
    return counts


def turn(table, steps):
    """Let three lanes play episodes of several lengths until the table has seen `steps` rows."""
    episodes = Episodes(table, lanes=3, incarnation=table.ring.head + 1)
    lengths, places = (4, 7, 11), [0, 0, 0]
    while table.ring.head < steps:
        rows = []
        for lane, length in enumerate(lengths):
            kind = F if places[lane] == 0 else END if places[lane] == length else M
            places[lane] = (places[lane] + 1) % (length + 1)
            rows.append((lane, kind, lane))
        episodes.write(*rows)


def test_the_limit_tells_even_counts_from_skewed_ones():
    assert chi_square_limit(10) == pytest.approx(29.59, rel=0.01)
    assert chi_square_limit(100) == pytest.approx(149.45, rel=0.01)
    rng = np.random.default_rng(0)
    even = rng.multinomial(1_048_576, np.full(150, 1 / 150))
    assert chi_square(even) < chi_square_limit(149)
    skewed = np.full(150, 1 / 150)
    skewed[:75] *= 1.02
    skewed[75:] *= 0.98
    assert chi_square(rng.multinomial(1_048_576, skewed)) > chi_square_limit(149)


@pytest.mark.parametrize("steps", [180, 200, 203, 1001])
def test_every_start_is_drawn_as_often_as_any_other(steps):
    """Before the ring is full, when it has just turned by a request, and after many turns."""
    table = a_table(capacity=200, n_frames=3, seed=7)
    turn(table, steps)
    counts = drawn_counts(table, n_step=3, rounds=16)
    assert counts.sum() >= 1_000_000
    assert len(counts) > 100
    assert chi_square(counts) < chi_square_limit(len(counts) - 1)


def test_few_starts_among_many_steps_are_drawn_as_often_as_each_other():
    table = a_table(capacity=400, n_frames=2, seed=7)
    turn(table, 401)
    crowd = Episodes(table, "crowd", lanes=30)
    for kind in (F, *[M] * 11):
        crowd.write(*((lane, kind, lane) for lane in range(30)))
    Episodes(table, "finisher").steps(F, *[M] * 15, END)
    counts = drawn_counts(table, n_step=20, rounds=4)
    assert 10 < len(counts) < 0.1 * len(table.ring)
    assert chi_square(counts) < chi_square_limit(len(counts) - 1)
