"""Random histories with deaths, power cuts and flipped bits; a seed that fails is printed with its call."""

import logging

import pytest
import verify_durability
from durability.flips import Flips
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**31)
runs = settings(deadline=None, print_blob=True, database=None)

#: Of histories that found a fault once.
KNOWN = (5253, 1049, 65, 35, 11)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def run(seed):
    """Run the history of a seed, or say how to run it again."""
    try:
        return verify_durability.history(seed)
    except BaseException as error:
        error.add_note(
            f"python benchmarks/verify_durability.py --seed {seed} --power-cuts 1 --kills 1 --flips 0"
        )
        raise


@settings(runs, max_examples=25)
@given(seeds)
def test_nothing_that_was_promised_is_lost_through_kills_and_power_cuts(seed):
    run(seed)


@pytest.mark.parametrize("seed", KNOWN)
def test_histories_that_failed_once(seed):
    counts = run(seed)
    assert counts["rows"]


def test_a_history_has_both_kinds_of_death_and_rows_to_lose():
    counts = run(0)
    assert counts["kills"]
    assert counts["power cuts"]
    assert counts["sampled"]


@settings(runs, max_examples=3)
@given(seeds)
def test_flipped_bits_are_never_handed_out(seed):
    damaged = Flips(seed)
    for _ in range(25):
        damaged.flip()
    assert damaged.counts["stacks compared"]
