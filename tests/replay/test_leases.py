from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fornix.common.errors import InvalidRequestError
from fornix.common.specs import LimiterSpec
from fornix.replay import leases as module
from fornix.replay.leases import MAX_LEASES, MAX_SESSIONS, Leases
from fornix.replay.limiter import Limiter

LIFETIME_S = 10.0


@pytest.fixture
def limiter():
    return Limiter.create(LimiterSpec(), 1000)


@pytest.fixture
def leases(limiter):
    return Leases(limiter, LIFETIME_S)


def counts(limiter):
    return limiter.leased, limiter.consumed


def test_samples_are_charged_when_they_are_consumed(limiter, leases):
    for lease in (1, 2, 3):
        leases.grant("a", lease, 10 * lease, now=0.0)
    assert counts(limiter) == (60, 0)
    assert leases.consume("a", 2, now=1.0) == 30
    assert counts(limiter) == (30, 30)
    assert leases.consume("a", 2, now=1.0) == 0
    assert leases.consume("a", 99, now=1.0) == 30
    assert counts(limiter) == (0, 60)


def test_the_same_lease_again_takes_the_place_of_the_first(limiter, leases):
    leases.grant("a", 1, 10, now=0.0)
    leases.grant("a", 1, 7, now=1.0)
    assert counts(limiter) == (7, 0)
    leases.expire(now=20.0)
    leases.grant("a", 1, 8, now=21.0)
    assert counts(limiter) == (8, 0)
    assert leases.consume("a", 1, now=22.0) == 8
    assert counts(limiter) == (0, 8)


def test_sessions_are_apart(limiter, leases):
    leases.grant("a", 1, 10, now=0.0)
    leases.grant("b", 1, 7, now=0.0)
    assert leases.consume("b", 1, now=0.0) == 7
    assert leases.release("a")
    assert not leases.release("a")
    assert counts(limiter) == (0, 7)


def test_what_is_not_known_is_ignored(limiter, leases):
    assert leases.consume("nobody", 5, now=0.0) == 0
    leases.touch("nobody", now=0.0)
    assert not leases.release("nobody")
    assert len(leases) == 0
    leases.grant("a", 1, 10, now=0.0)
    leases.consume("a", 50, now=0.0)  # only 1 was granted
    leases.grant("a", 2, 10, now=0.0)
    assert counts(limiter) == (10, 10)


def test_a_session_that_is_silent_for_its_lifetime_gives_back(limiter, leases):
    leases.grant("a", 1, 10, now=0.0)
    leases.grant("b", 1, 7, now=4.0)
    assert leases.next_deadline() == 10.0
    leases.touch("a", now=5.0)
    assert leases.next_deadline() == 14.0
    assert not leases.expire(now=13.9)
    assert leases.expire(now=14.0)
    assert counts(limiter) == (10, 0)
    assert leases.next_deadline() == 15.0
    assert leases.expire(now=99.0)
    assert not leases.expire(now=99.0)
    assert counts(limiter) == (0, 0)
    assert leases.next_deadline() is None


def test_a_session_without_leases_has_no_deadline(leases):
    leases.grant("a", 1, 10, now=0.0)
    leases.consume("a", 1, now=1.0)
    leases.touch("a", now=2.0)
    assert leases.next_deadline() is None


def test_what_was_given_back_for_silence_is_charged_if_it_was_consumed_after_all(limiter, leases):
    leases.grant("a", 1, 10, now=0.0)
    leases.grant("a", 2, 20, now=0.0)
    leases.expire(now=10.0)
    leases.grant("a", 3, 40, now=11.0)
    assert leases.consume("a", 1, now=12.0) == 10
    assert counts(limiter) == (40, 10)
    assert leases.consume("a", 3, now=12.0) == 60
    assert counts(limiter) == (0, 70)


def test_what_a_session_released_is_not_charged_and_it_may_begin_again(limiter, leases):
    leases.grant("a", 5, 10, now=0.0)
    leases.consume("a", 5, now=0.0)
    leases.grant("a", 6, 10, now=0.0)
    leases.release("a")
    assert leases.consume("a", 6, now=1.0) == 0
    leases.grant("a", 1, 3, now=1.0)
    assert counts(limiter) == (3, 10)


def test_a_number_that_was_acknowledged_is_refused(limiter, leases):
    leases.grant("a", 7, 10, now=0.0)
    leases.consume("a", 7, now=0.0)
    with pytest.raises(
        InvalidRequestError, match="acknowledged all up to 7; number leases upwards, from 8"
    ):
        leases.grant("a", 7, 10, now=0.0)
    assert counts(limiter) == (0, 10)


def test_a_session_that_fetches_without_end_is_refused(limiter, leases):
    for lease in range(1, MAX_LEASES + 1):
        leases.grant("a", lease, 1, now=0.0)
    with pytest.raises(InvalidRequestError, match=r"has 4096 leases .* the limit; acknowledge"):
        leases.grant("a", MAX_LEASES + 1, 1, now=0.0)
    leases.grant("a", MAX_LEASES, 2, now=0.0)
    assert counts(limiter) == (MAX_LEASES + 1, 0)
    leases.consume("a", 1, now=0.0)
    leases.check("a", MAX_LEASES + 1)


def test_of_too_many_leases_that_were_given_back_the_oldest_are_forgotten(limiter, leases):
    for lease in range(1, MAX_LEASES + 1):
        leases.grant("a", lease, 1, now=0.0)
    leases.expire(now=10.0)
    for lease in (1, MAX_LEASES + 1, MAX_LEASES + 2):  # 1 is outstanding again, so 2 and 3 have to go
        leases.grant("a", lease, 1, now=11.0)
    assert leases.consume("a", 5, now=12.0) == 3
    assert leases.consume("a", MAX_LEASES + 2, now=12.0) == MAX_LEASES - 3


def test_of_too_many_sessions_the_one_silent_longest_is_forgotten(limiter, leases):
    for number in range(MAX_SESSIONS):
        leases.grant(f"s{number}", 1, 1, now=float(number))
    leases.touch("s0", now=2000.0)
    leases.grant("another", 1, 1, now=2000.0)
    assert len(leases) == MAX_SESSIONS
    assert limiter.leased == MAX_SESSIONS
    assert leases.consume("s1", 1, now=2000.0) == 0  # forgotten
    assert leases.consume("s0", 1, now=2000.0) == 1


class Model:
    """All that was ever granted, as a list; everything is found by going through it."""

    def __init__(self):
        self.rows = []
        self.seen = {}
        self.moment = 0
        self.consumed = 0

    def touch(self, session, now):
        if session in self.seen:
            self.moment += 1
            self.seen[session] = (now, self.moment)

    def of(self, session, *states):
        return [row for row in self.rows if row["session"] == session and row["state"] in states]

    def may_grant(self, session, lease):
        again = any(row["lease"] == lease for row in self.of(session, "out"))
        below = any(row["lease"] >= lease for row in self.of(session, "used"))
        return not below and (again or len(self.of(session, "out")) < module.MAX_LEASES)

    def grant(self, session, lease, samples, now):
        if session not in self.seen and len(self.seen) == module.MAX_SESSIONS:
            self.release(min(self.seen, key=self.seen.get))
        same = [row for row in self.of(session, "out", "back") if row["lease"] == lease]
        self.rows = [row for row in self.rows if row not in same]
        self.rows.append({"session": session, "lease": lease, "samples": samples, "state": "out"})
        if len(self.of(session, "out", "back")) > module.MAX_LEASES:
            self.rows.remove(min(self.of(session, "back"), key=lambda row: row["at"]))
        self.seen[session] = None
        self.touch(session, now)

    def consume(self, session, up_to, now):
        used = [row for row in self.of(session, "out", "back") if row["lease"] <= up_to]
        for row in used:
            row["state"] = "used"
        self.touch(session, now)
        charged = sum(row["samples"] for row in used)
        self.consumed += charged
        return charged

    def release(self, session):
        had = bool(self.of(session, "out"))
        self.rows = [row for row in self.rows if row["session"] != session]
        self.seen.pop(session, None)
        return had

    def expire(self, now):
        late = [s for s, (then, _) in self.seen.items() if then + LIFETIME_S <= now and self.of(s, "out")]
        for session in late:
            for row in self.of(session, "out"):
                self.moment += 1
                row.update(state="back", at=self.moment)
        return bool(late)

    def next_deadline(self):
        holding = [then for session, (then, _) in self.seen.items() if self.of(session, "out")]
        return min(holding) + LIFETIME_S if holding else None

    @property
    def leased(self):
        return sum(row["samples"] for row in self.rows if row["state"] == "out")


sessions = st.sampled_from("abcd")
numbers = st.integers(1, 12)


class LeasesAgainstModel(RuleBasedStateMachine):
    """Does the same to the leases and to the model, and compares all that either says."""

    def __init__(self):
        super().__init__()
        self.limits = mock.patch.multiple(module, MAX_SESSIONS=3, MAX_LEASES=4)
        self.limits.start()
        self.limiter = Limiter.create(LimiterSpec(), 1000)
        self.leases, self.model = Leases(self.limiter, LIFETIME_S), Model()
        self.now = 0.0
        self.uncounted = 0

    def teardown(self):
        self.limits.stop()

    @rule(session=sessions, lease=numbers, samples=st.integers(1, 50))
    def grant(self, session, lease, samples):
        if self.model.may_grant(session, lease):
            self.leases.grant(session, lease, samples, self.now)
            self.model.grant(session, lease, samples, self.now)
        else:
            with pytest.raises(InvalidRequestError):
                self.leases.grant(session, lease, samples, self.now)

    @rule(session=sessions, up_to=st.integers(0, 15))
    def consume(self, session, up_to):
        charged = self.model.consume(session, up_to, self.now)
        assert self.leases.consume(session, up_to, self.now) == charged

    @rule(session=sessions)
    def release(self, session):
        assert self.leases.release(session) == self.model.release(session)

    @rule(session=sessions)
    def touch(self, session):
        self.leases.touch(session, self.now)
        self.model.touch(session, self.now)

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 10.0]))
    def time_passes(self, seconds):
        self.now += seconds
        assert self.leases.expire(self.now) == self.model.expire(self.now)

    @rule(samples=st.integers(1, 50))
    def charge_without_a_lease(self, samples):
        self.limiter.charge(samples)
        self.uncounted += samples

    @invariant()
    def both_agree(self):
        assert self.limiter.leased == self.model.leased
        assert self.limiter.consumed == self.model.consumed + self.uncounted
        assert self.leases.next_deadline() == self.model.next_deadline()
        assert len(self.leases) == len(self.model.seen) <= module.MAX_SESSIONS


TestLeasesAgainstModel = LeasesAgainstModel.TestCase
TestLeasesAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
