import pytest
from hypothesis import given
from hypothesis import strategies as st

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import LimiterSpec
from fornix.replay.limiter import Limiter


def a_limiter(min_size=1, ratio=None, buffer=None, capacity=1000):
    spec = LimiterSpec(min_size=min_size, samples_per_insert=ratio, error_buffer_inserts=buffer)
    return Limiter.create(spec, capacity)


def test_a_free_limiter_waits_for_the_minimum_size_alone():
    limiter = a_limiter(min_size=3)
    for inserts, may_sample in ((0, False), (2, False), (3, True), (10**9, True)):
        limiter.inserts = inserts
        assert limiter.may_sample() is may_sample
        assert limiter.may_insert()
    limiter.samples = 10**12
    assert limiter.may_sample()
    assert limiter.surplus is None


@pytest.mark.parametrize(
    ("inserts", "samples", "may_insert", "may_sample"),
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
def test_either_side_may_run_ahead_as_far_as_the_buffer(inserts, samples, may_insert, may_sample):
    limiter = a_limiter(min_size=10, ratio=4.0, buffer=5.0)
    limiter.inserts, limiter.samples = inserts, samples
    assert limiter.may_insert() is may_insert
    assert limiter.may_sample() is may_sample


ratios = st.floats(1e-3, 1e3)


@given(
    ratios,
    st.floats(1e-3, 1e4),
    st.integers(1, 50),
    st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=80),
)
def test_one_side_is_always_open_and_the_surplus_stays_near(ratio, buffer, min_size, moves):
    limiter = a_limiter(min_size, ratio, buffer)
    largest = 0
    for wants_to_sample, size in moves:
        if wants_to_sample and limiter.may_sample():
            limiter.samples += size
            largest = max(largest, size)
        elif not wants_to_sample and limiter.may_insert():
            limiter.inserts += size
            largest = max(largest, size * ratio)
        assert limiter.may_insert() or limiter.may_sample()
        if limiter.inserts >= min_size:
            assert abs(limiter.surplus) <= ratio * buffer + largest


def test_what_a_side_waits_for_is_told_in_numbers():
    limiter = a_limiter(min_size=10, ratio=4.0, buffer=5.0)
    limiter.inserts = 7
    assert "has 7 inserts and needs 10" in limiter.why_no_sample()
    assert "after 3 more inserts" in limiter.why_no_sample()
    limiter.inserts, limiter.samples = 11, 44
    for part in ("44 transitions", "11 inserts", "samples_per_insert 4.0", "error_buffer_inserts 5.0"):
        assert part in limiter.why_no_sample()
        assert part in limiter.why_no_insert()


@pytest.mark.parametrize(("inserts", "samples"), [(11, 24), (11, 44), (12, 61), (15, 0), (20, 3)])
def test_who_waits_is_told_how_much_opens_the_way(inserts, samples):
    limiter = a_limiter(min_size=10, ratio=4.0, buffer=5.0)
    limiter.inserts, limiter.samples = inserts, samples
    if limiter.may_sample():
        needed = int(limiter.why_no_insert().rpartition(" ")[2])
        limiter.samples += needed - 1
        assert not limiter.may_insert()
        limiter.samples += 1
        assert limiter.may_insert()
    else:
        needed = int(limiter.why_no_sample().rpartition(" ")[2])
        limiter.inserts += needed - 1
        assert not limiter.may_sample()
        limiter.inserts += 1
        assert limiter.may_sample()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_size": 1001}, "min_size 1001 is more than the 1000 steps"),
        ({"ratio": 4.0}, "belong together"),
        ({"buffer": 4.0}, "belong together"),
        ({"ratio": 1e9, "buffer": 1e9}, r"is 1e\+18, so one side could never open"),
    ],
)
def test_a_limiter_that_could_never_open_is_refused(fields, said):
    with pytest.raises(InvalidRequestError, match=said):
        a_limiter(**fields)
