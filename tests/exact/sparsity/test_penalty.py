"""The search for the penalty at which codes have a mean number of active concepts."""

from __future__ import annotations

import math

import pytest

from fastnmf.exact.sparsity.penalty import find_penalty


def active(l1):
    """Falls from 200 to 0, in steps of a code of 4,000 rows."""
    return round(4000 * 200 * math.exp(-3 * l1**0.7)) / 4000


@pytest.mark.parametrize("guess", [1e-6, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("target", [3, 32, 150.5])
def test_the_mean_is_found_from_any_guess(target, guess):
    calls = []
    found = find_penalty(target, lambda l1: calls.append(l1) or active(l1), guess)
    assert abs(active(found) / target - 1) <= 0.005
    assert found in calls
    assert len(calls) <= 16


@pytest.mark.parametrize(
    ("target", "guess", "most"), [(300, 1.0, 9), (300, 1e3, 12), (1e-4, 1.0, 16)]
)
def test_a_mean_that_does_not_exist_ends_with_the_nearest(target, guess, most):
    """Where it is above what no penalty gives, soon."""
    calls = []
    found = find_penalty(target, lambda l1: calls.append(l1) or active(l1), guess)
    assert len(calls) <= most
    misses = {l1: abs(math.log(max(active(l1), 1e-3) / target)) for l1 in calls}
    assert misses[found] == min(misses.values())
    if target == 300:
        assert active(found) >= 199


def test_a_mean_that_is_jumped_over_ends_where_it_jumps():
    calls = []
    found = find_penalty(5, lambda l1: calls.append(l1) or (8 if l1 < 0.3 else 3), 1.0)
    assert len(calls) <= 16
    assert found < 0.3


@pytest.mark.parametrize("slope", [0.15, 0.5, 1.0, 2.0])
def test_a_guess_that_is_near_needs_few_encodings(slope):
    calls = []
    find_penalty(32, lambda l1: calls.append(l1) or 30 * (l1 / 0.1) ** -slope, 0.1, 0.01)
    assert len(calls) <= 4
