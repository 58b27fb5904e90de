"""When iterations restricted to few concepts of each row are taken, by their model."""

from __future__ import annotations

import math

import pytest

from fastnmf.planning.hardware import Machine, machine
from fastnmf.planning.plan import Problem, choose
from fastnmf.planning.restricted import (
    restricted_seconds,
    restricting_may_pay,
    restricting_pays,
    slope_rows,
)
from fastnmf.solvers import hals


def pays(n, d, K, active, **on):
    problem, machine = Problem(n, d, K, 4, hals.SOLVER), Machine(2, **on)
    return restricting_pays(problem, choose(problem, machine), machine, active)


@pytest.mark.parametrize(
    ("n", "d", "K", "active", "expected"),
    [
        (20_000, 384, 10_000, 32, True),
        (20_000, 384, 4_000, 32, True),
        (20_000, 384, 1_000, 8, True),
        # codes of many concepts, and few concepts
        (20_000, 384, 10_000, 2_000, False),
        (20_000, 384, 1_000, 300, False),
        (20_000, 384, 50, 10, False),
        (100, 20, 40, 4, False),
    ],
)
def test_few_of_many_concepts_are_swept_alone(n, d, K, active, expected):
    assert pays(n, d, K, active) is expected


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("n", "d", "K"), [(60, 20, 7), (60, 20, 61), (500, 100, 50)])
def test_small_fits_are_not_restricted_on_any_processor(n, d, K, wide):
    """The calls alone take longer than a dense iteration."""
    problem, on = Problem(n, d, K, 4, hals.SOLVER), machine(2, compiled=True, wide=wide)
    assert not restricting_may_pay(problem, choose(problem, on), on)


def test_nothing_is_restricted_before_codes_were_counted():
    assert not pays(20_000, 384, 10_000, math.nan)


def test_nothing_is_restricted_without_compiled_sweeps():
    assert pays(20_000, 384, 10_000, 32)
    assert not pays(20_000, 384, 10_000, 32, concept_seconds=9e-6)


@pytest.mark.parametrize(("n", "K", "expected"), [(20_000, 10_000, True), (1797, 16, False)])
def test_small_fits_need_not_count_what_is_active(n, K, expected):
    problem, on = Problem(n, 64, K, 4, hals.SOLVER), Machine(2)
    assert restricting_may_pay(problem, choose(problem, on), on) is expected


def test_seconds_grow_with_the_active_concepts():
    problem, on = Problem(2000, 100, 3000, 4, hals.SOLVER), Machine()
    plan = choose(problem, on)
    few, many = (restricted_seconds(problem, plan, active, on) for active in (5, 50))
    assert 0 < few < many


def test_slopes_of_a_tile_take_bounded_memory():
    assert [slope_rows(K, 4) for K in (10, 10_000, 10**7)] == [1024, 419, 64]
