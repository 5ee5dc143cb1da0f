"""Pearson's chi-square test, without scipy."""

import math

import numpy as np


def p_value(counts, expected):
    """Return the probability of counts at least this far from what is expected, each at least 5.

    The cube root of chi-square / df is close to normal (Wilson & Hilferty 1931).
    """
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    assert expected.min() >= 5
    assert np.isclose(counts.sum(), expected.sum())
    df = len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * df)
    z = ((chi_square / df) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def assert_drawn_as(numbers, probability):
    """Assert that draws, integers [N], follow {number: probability}; what has 0 must not be there."""
    found, counts = np.unique(numbers, return_counts=True)
    counted = dict(zip(found.tolist(), counts.tolist(), strict=True))
    possible = [number for number, share in probability.items() if share > 0]
    assert counted.keys() <= set(possible)
    assert sum(probability.values()) == np.float64(1.0) or np.isclose(sum(probability.values()), 1.0)
    p = p_value(
        [counted.get(number, 0) for number in possible],
        [len(numbers) * probability[number] for number in possible],
    )
    assert p > 0.001
