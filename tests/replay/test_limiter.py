import random
from collections import deque

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fornix.common.errors import InvalidRequestError
from fornix.common.specs import LimiterSpec
from fornix.replay.limiter import Limiter
from fornix.replay.limits import check_limits

CAPACITY = 1000
TIGHT = LimiterSpec.ratio(4.0, 5.0, min_size=10)  # the surplus lies between -20 and 20


def a_limiter(spec=TIGHT, inserts=0, consumed=0, leased=0, capacity=CAPACITY, uses=None):
    limiter = Limiter.create(spec, capacity, uses)
    limiter.inserts, limiter.consumed, limiter.leased = inserts, consumed, leased
    return limiter


def test_a_free_limiter_waits_for_the_minimum_size_alone():
    limiter = a_limiter(LimiterSpec.at_least(3))
    for inserts, may_sample in ((0, False), (2, False), (3, True), (10**9, True)):
        limiter.inserts = inserts
        assert limiter.may_sample() is may_sample
        assert limiter.may_insert()
    limiter.charge(10**12)
    limiter.lease(10**12)
    assert limiter.may_sample()
    assert limiter.surplus is None


@pytest.mark.parametrize(
    ("inserts", "consumed", "may_insert", "may_sample"),
    [
        (0, 0, True, False),
        (9, 0, True, False),  # below the minimum size inserts are always free
        (10, 0, True, True),  # d = 0
        (14, 0, True, True),  # d = 16 < 20
        (15, 0, False, True),  # d = 20
        (15, 1, True, True),
        (10, 19, True, True),  # d = -19 > -20
        (10, 20, True, False),
        (11, 20, True, True),
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        TIGHT,
        LimiterSpec(min_size=10, samples_per_insert=4.0, min_surplus=-20.0, max_surplus=20.0),
    ],
)
def test_either_side_may_run_ahead_as_far_as_its_bound(spec, inserts, consumed, may_insert, may_sample):
    limiter = a_limiter(spec, inserts, consumed)
    assert limiter.may_insert() is may_insert
    assert limiter.may_sample() is may_sample


def test_leases_hold_back_samples_and_leave_inserts_waiting():
    limiter = a_limiter(inserts=15, leased=39)  # d = 20, and 39 are out
    assert (limiter.may_sample(), limiter.may_insert()) == (True, False)
    limiter.lease(1)
    assert (limiter.may_sample(), limiter.may_insert()) == (False, False)
    limiter.give_back(1)
    limiter.charge(1)
    assert (limiter.may_sample(), limiter.may_insert()) == (False, True)
    limiter.give_back(39)
    assert (limiter.may_sample(), limiter.may_insert()) == (True, True)
    assert (limiter.samples, limiter.surplus) == (1, 19)


@pytest.mark.parametrize("shape", [LimiterSpec.queue, LimiterSpec.stack])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_queue_or_stack_holds_its_size_and_gives_what_it_holds(shape, size):
    for inserts in range(20):
        for consumed in range(inserts + 1):
            limiter = a_limiter(shape(size), inserts, consumed, uses=1)
            assert limiter.may_insert() == (inserts - consumed < size)
            assert limiter.may_sample() == (inserts - consumed > 0)


ratios = st.floats(1e-3, 1e3)
low_bounds = st.floats(-1e4, 1e4)


@st.composite
def specs(draw):
    """Limits of any kind that a table of CAPACITY steps takes."""
    min_size = draw(st.integers(1, 50))
    if draw(st.booleans()):
        return LimiterSpec.ratio(draw(ratios), draw(st.floats(1e-3, 1e4)), min_size)
    low, high = draw(low_bounds), draw(low_bounds)
    assume(low < high)
    ratio = draw(ratios)
    return LimiterSpec(min_size=min_size, samples_per_insert=ratio, min_surplus=low, max_surplus=high)


def a_side_is_open(limiter):
    return limiter.may_insert() or limiter.may_sample()


@given(specs(), st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=80))
def test_without_leases_a_side_is_always_open_and_the_surplus_stays_near(spec, moves):
    limiter = a_limiter(spec)
    buffer, largest = spec.error_buffer_inserts, 0
    for wants_to_sample, size in moves:
        if wants_to_sample and limiter.may_sample():
            limiter.charge(size)
            largest = max(largest, size)
        elif not wants_to_sample and limiter.may_insert():
            limiter.inserts += size
            largest = max(largest, size * spec.samples_per_insert)
        assert a_side_is_open(limiter)
        if buffer is not None and limiter.inserts >= spec.min_size:
            assert abs(limiter.surplus) <= spec.samples_per_insert * buffer + largest


kinds = st.sampled_from(["insert", "insert", "lease", "lease", "consume", "give back", "change"])


@given(specs(), st.lists(st.tuples(kinds, st.integers(1, 300), specs()), max_size=60), st.randoms())
def test_leases_close_both_sides_only_until_they_end(spec, moves, chance):
    limiter, leases = a_limiter(spec), []
    for kind, size, other in moves:
        if kind == "insert" and limiter.may_insert():
            limiter.inserts += size
        elif kind == "lease" and limiter.may_sample():
            leases.append(size)
            limiter.lease(size)
        elif kind == "change":
            limiter.change(other)
        elif kind in ("consume", "give back") and leases:
            end(limiter, leases.pop(chance.randrange(len(leases))), kind == "consume")
        assert a_side_is_open(limiter) or leases
    while leases:
        end(limiter, leases.pop(), chance.random() < 0.5)
    assert a_side_is_open(limiter)


def end(limiter, samples, is_consumed):
    """End a lease; that never closes the side that it could open, nor the other one."""
    before = limiter.may_insert(), limiter.may_sample()
    limiter.give_back(samples)
    if is_consumed:
        limiter.charge(samples)
    assert limiter.may_insert() >= before[0]
    assert limiter.may_sample() >= before[1]


class Starts:
    """A ring of starts that may each be drawn a few times; the oldest are overwritten."""

    def __init__(self, limiter, times, chance):
        self.limiter, self.times, self.chance = limiter, times, chance
        self.left = deque(maxlen=limiter.capacity_steps)

    def draw(self):
        """Draw one, if the limiter and the starts allow it."""
        there = [at for at, left in enumerate(self.left) if left]
        if not there or not self.limiter.may_sample():
            return False
        self.left[self.chance.choice(there)] -= 1
        self.limiter.charge(1)
        return True

    def insert(self):
        """Insert one, if the limiter allows it."""
        if not self.limiter.may_insert():
            return False
        self.left.append(self.times)
        self.limiter.inserts += 1
        return True


@st.composite
def limited_draws(draw):
    """A limiter's fields, a capacity and max_times_sampled."""
    times, low = draw(st.integers(1, 3)), draw(st.integers(-30, 20))
    spec = LimiterSpec(
        min_size=draw(st.integers(1, 12)),
        samples_per_insert=draw(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])),
        min_surplus=low,
        max_surplus=low + draw(st.integers(1, 40)),
    )
    return spec, draw(st.integers(12, 40)), times


@given(limited_draws(), st.randoms(), st.floats(0, 1))
def test_starts_never_run_out_under_limits_that_are_not_refused(limited, chance, eagerness):
    spec, capacity, times = limited
    try:
        limiter = Limiter.create(spec, capacity, uses=times)
    except InvalidRequestError:
        assume(False)
    starts = Starts(limiter, times, chance)
    for _ in range(150):
        first, then = (starts.draw, starts.insert)[:: 1 if chance.random() < eagerness else -1]
        assert first() or then()


@given(limited_draws())
def test_starts_do_run_out_under_limits_that_are_refused(limited):
    spec, capacity, times = limited
    refused = "can't be kept where" if spec.samples_per_insert > times else "can't be undercut"
    try:
        check_limits(spec, capacity, uses=times)
        assume(False)
    except InvalidRequestError as error:
        assume(refused in str(error))
    starts = Starts(Limiter(spec, capacity), times, random.Random(0))
    assert any(not starts.draw() and not starts.insert() for _ in range(2000))


def test_what_a_side_waits_for_is_told_in_numbers():
    limiter = a_limiter(inserts=7)
    assert "has 7 inserts and needs 10" in limiter.why_no_sample()
    assert "after 3 more inserts" in limiter.why_no_sample()
    limiter.inserts = 16
    for part in ("16 inserts have been made and 0 transitions drawn", "a surplus of 24", "drawn: 5"):
        assert part in limiter.why_no_insert()
    limiter.charge(45)
    for part in ("45 transitions have been drawn for 16 inserts", "a surplus of -21", "needed: 1"):
        assert part in limiter.why_no_sample()
    for said in (limiter.why_no_sample(), a_limiter(inserts=15).why_no_insert()):
        assert "samples_per_insert 4.0 as error_buffer_inserts 5.0 allows" in said


def test_leases_and_bounds_are_named_in_what_a_side_waits_for():
    queue = a_limiter(LimiterSpec.queue(4), inserts=10, consumed=6, leased=4, uses=1)
    assert "as max_surplus 3.0 allows; transitions still to be consumed: 1" in queue.why_no_insert()
    assert "6 transitions drawn (4 more are leased and not yet consumed)" in queue.why_no_insert()
    said = queue.why_no_sample()
    assert "6 transitions have been drawn for 10 inserts and 4 more are leased and not yet consumed" in said
    assert "as min_surplus -1.0 allows; inserts still needed: 1, which wait until 1 of the leased" in said
    queue.give_back(1)
    queue.charge(1)
    assert queue.why_no_sample().endswith("inserts still needed: 1")


def test_who_does_not_wait_is_told_so():
    for limiter in (a_limiter(inserts=10), a_limiter(LimiterSpec(), inserts=1)):
        assert limiter.why_no_sample() == "the limiter lets samples go ahead now"
        assert limiter.why_no_insert() == "the limiter lets inserts go ahead now"


quarters = st.integers(1, 40).map(lambda number: number / 4)
whole = st.integers(-60, 60)


@given(quarters, whole, st.integers(1, 40), st.integers(1, 20), *[st.integers(0, 90)] * 3, st.booleans())
def test_who_waits_is_told_how_much_opens_the_way(
    ratio, low, width, min_size, inserts, consumed, leased, changed
):
    spec = LimiterSpec(
        min_size=min_size, samples_per_insert=ratio, min_surplus=low, max_surplus=low + width
    )
    limiter = a_limiter(LimiterSpec.ratio(2.0, 3.0) if changed else spec, inserts, consumed, leased)
    limiter.change(spec)
    if not limiter.may_insert():
        needed = int(limiter.why_no_insert().rpartition(" ")[2])
        limiter.charge(needed - 1)
        assert not limiter.may_insert()
        limiter.charge(1)
        assert limiter.may_insert()
    if not limiter.may_sample():
        needed = inserts_told(limiter.why_no_sample())
        limiter.inserts += needed - 1
        assert not limiter.may_sample()
        limiter.inserts += 1
        assert limiter.may_sample()


def inserts_told(said):
    if "needed: " in said:
        return int(said.rpartition("needed: ")[2].partition(",")[0])
    return int(said.rpartition("after ")[2].partition(" ")[0])


@given(specs(), st.floats(1e-3, 1e4), st.integers(0, 100), st.integers(0, 10**4))
def test_other_bounds_with_the_same_ratio_count_as_if_they_had_always_been(spec, buffer, inserts, consumed):
    new = LimiterSpec.ratio(spec.samples_per_insert, buffer, spec.min_size)
    limiter, other = a_limiter(spec, inserts, consumed), a_limiter(new, inserts, consumed)
    limiter.change(new)
    for more in (0, 60):
        limiter.inserts, other.inserts = inserts + more, inserts + more
        assert limiter.surplus == pytest.approx(other.surplus, rel=1e-9, abs=1e-6)


def test_a_new_ratio_counts_from_the_change_on():
    limiter = a_limiter(inserts=1000, consumed=3955)  # d = 5
    limiter.change(LimiterSpec.ratio(8.0, 5.0, min_size=10))
    assert (limiter.surplus, limiter.inserts, limiter.samples) == (5, 1000, 3955)
    limiter.inserts += 2
    limiter.charge(3)
    assert limiter.surplus == 5 + 2 * 8 - 3
    limiter.change(TIGHT)
    assert limiter.surplus == 18


def test_a_limiter_that_was_free_starts_to_count_at_nought():
    limiter = a_limiter(LimiterSpec(), inserts=500, consumed=10**6)
    limiter.change(TIGHT)
    assert limiter.surplus == 0
    limiter.inserts += 1
    assert limiter.surplus == 4
    limiter.change(LimiterSpec())
    assert limiter.surplus is None


def test_a_new_minimum_size_that_is_not_reached_yet_lets_the_surplus_begin_there():
    filling = a_limiter(inserts=4)
    filling.change(LimiterSpec.ratio(4.0, 5.0, min_size=6))
    filling.inserts = 6
    assert (filling.surplus, filling.may_sample()) == (0, True)
    raised = a_limiter(inserts=12)  # d = 8
    raised.change(LimiterSpec.ratio(4.0, 5.0, min_size=100))
    assert (raised.may_sample(), raised.may_insert()) == (False, True)
    raised.change(LimiterSpec.ratio(2.0, 5.0, min_size=50))  # changed again before it is reached
    raised.inserts = 50
    assert (raised.surplus, raised.may_sample()) == (8, True)
    raised.change(LimiterSpec.ratio(2.0, 5.0))
    assert raised.surplus == 8


def test_a_change_keeps_leases():
    limiter = a_limiter(inserts=10, leased=19)
    limiter.change(LimiterSpec.ratio(1.0, 19.0, min_size=10))
    assert (limiter.leased, limiter.surplus, limiter.may_sample()) == (19, 0, False)


@pytest.mark.parametrize("before", [LimiterSpec(), LimiterSpec.ratio(0.5, 50.0, 10), LimiterSpec.queue(20)])
@pytest.mark.parametrize(
    ("inserts", "consumed", "leased"), [(0, 0, 0), (9, 3, 0), (40, 30, 4), (40, 40, 0)]
)
def test_a_table_that_becomes_a_queue_offers_what_is_left_to_draw(before, inserts, consumed, leased):
    limiter = a_limiter(before, inserts, consumed, leased, uses=1)
    limiter.change(LimiterSpec.queue(5))
    there = inserts - consumed
    assert limiter.surplus == there - 1
    assert limiter.may_sample() == (there - leased > 0)
    assert limiter.may_insert() == (there < 5)


def test_a_table_that_becomes_a_queue_offers_nothing_that_was_overwritten():
    limiter = a_limiter(LimiterSpec(), inserts=5000, consumed=100, leased=2, uses=1)
    limiter.lose(3900)
    limiter.change(LimiterSpec.queue(5))
    assert limiter.surplus == 998 + 2 - 1
    limiter.lose(3)
    assert limiter.surplus == 995 + 2 - 1


def test_what_was_overwritten_counts_only_where_every_draw_does():
    for ratio, surplus in ((2.0, 15), (1.0, 9)):
        limiter = a_limiter(LimiterSpec.ratio(ratio, 50.0, min_size=1), inserts=11, consumed=1, uses=2)
        limiter.lose(4)
        assert limiter.surplus == surplus


def test_a_table_that_becomes_a_queue_after_late_charges_has_nothing_left_to_draw():
    limiter = a_limiter(LimiterSpec(), inserts=10, consumed=12, uses=1)
    limiter.change(LimiterSpec.queue(5))
    assert (limiter.surplus, limiter.may_sample(), limiter.may_insert()) == (-1, False, True)


def test_a_change_that_is_refused_changes_nothing():
    limiter = a_limiter(inserts=12, consumed=3, uses=4)
    before = repr(limiter), limiter.surplus
    for spec in (LimiterSpec(min_size=1001), LimiterSpec.ratio(5.0, 1.0)):
        with pytest.raises(InvalidRequestError):
            limiter.change(spec)
        assert (repr(limiter), limiter.surplus) == before


def bounded(low, high, min_size=1, ratio=1.0):
    return LimiterSpec(min_size=min_size, samples_per_insert=ratio, min_surplus=low, max_surplus=high)


@pytest.mark.parametrize(
    ("spec", "uses", "said"),
    [
        (LimiterSpec(min_size=1001), None, "min_size 1001 is more than the 1000 steps .* lower min_size"),
        (LimiterSpec(samples_per_insert=4.0), None, "samples_per_insert and .* belong together"),
        (LimiterSpec(error_buffer_inserts=4.0), None, "samples_per_insert and .* belong together"),
        (LimiterSpec(samples_per_insert=1.0, min_surplus=0), None, "only min_surplus is set; set both"),
        (LimiterSpec(samples_per_insert=1.0, max_surplus=9), None, "only max_surplus is set; set both"),
        (LimiterSpec(min_surplus=0, max_surplus=9), None, "over samples_per_insert, which is not set"),
        (
            LimiterSpec(samples_per_insert=1.0, error_buffer_inserts=4.0, max_surplus=9),
            None,
            "error_buffer_inserts 4.0 and max_surplus 9.0 both say",
        ),
        (LimiterSpec.ratio(1e9, 1e9), None, r"is 1e\+18, so one side could never open"),
        (bounded(3, 3), None, "min_surplus 3 is not below max_surplus 3, so neither side"),
        (bounded(3, -2), None, "from a surplus of -2; raise max_surplus or lower"),
        (LimiterSpec.queue(0), 1, "the size of a queue or a stack is at least 1"),
        (LimiterSpec.ratio(1.5, 9.0), 1, "1.5 can't be kept where each start is drawn once .* to 1, or"),
        (LimiterSpec.ratio(3.5, 9.0), 3, "drawn 3 times at most .* raise max_times"),
        (
            bounded(-50, -10, 10, 0.5),
            1,
            "max_surplus -10 can't be undercut: with min_size 10 .* than -10",
        ),
        (bounded(-50, -20, 10), 2, "drawn 2 times at most, .* than -20"),
        (LimiterSpec.queue(1001), 1, "fall 1001 inserts behind and the table holds 994 steps"),
        (LimiterSpec.stack(1001), 1, "size of the queue or stack .* raise capacity"),
        (LimiterSpec.ratio(2.0, 901.0, 100), 2, "drawn 2 times, and samples_per_"),
    ],
)
def test_a_limiter_that_could_never_open_is_refused(spec, uses, said):
    with pytest.raises(InvalidRequestError, match=said):
        a_limiter(spec, uses=uses)


@pytest.mark.parametrize(
    ("spec", "uses"),
    [
        (LimiterSpec(min_size=1000), None),
        (LimiterSpec.queue(994), 1),  # of 1000 steps so many are held at any time
        (LimiterSpec.queue(1001), None),  # overwritten starts are not missed
        (LimiterSpec.queue(1), 1),
        (LimiterSpec.ratio(1.0, 894.0, 100), 1),
        (LimiterSpec.ratio(3.0, 1e6), 4),
        (bounded(-50, -9, 10, 0.5), 1),
        (bounded(-500, -100), None),  # samples may be drawn again and again
        (bounded(5, 9), None),  # a larger minimum size
    ],
)
def test_a_limiter_that_opens_is_taken(spec, uses):
    assert a_limiter(spec, uses=uses).may_insert()
