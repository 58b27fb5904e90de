"""The cost model of exact codes: sweeps where they are faster, the exact solver elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastnmf.planning.codes import CodesCost
from fastnmf.planning.hardware import machine

ON = machine(threads=2, compiled=True, wide=True)


def cost(d, K, itemsize=4, on=ON):
    return CodesCost(d, K, itemsize, on)


@pytest.mark.parametrize(("support", "measured"), [(6, 0.8), (30, 6.6), (118, 103), (199, 430)])
def test_exact_solver_takes_about_as_long_as_was_measured(support, measured):
    assert 0.5 < cost(384, 400).exact_seconds(support) * 1e6 / measured < 2


@pytest.mark.parametrize(
    ("n", "d", "K", "first"),
    [
        # measured: 25 and 127 µs a row, 32 and 37
        (10_000, 384, 200, True),
        (4000, 1536, 200, True),
        # at K = d sweeps hardly converge, and beyond 600 concepts they take long
        (10_000, 384, 384, False),
        (4000, 1536, 1000, False),
        # few rows are not worth the calls
        (1, 384, 50, False),
        (8, 384, 50, False),
    ],
)
def test_sweeps_come_first_where_they_are_faster(n, d, K, first):
    assert cost(d, K).sweeps_first(n) is first


@pytest.mark.parametrize(
    ("n", "d", "K", "start"),
    [
        # measured, one thread: 390 µs a row of 650 at 384; 2,150 of 3,450 at 1,000
        (1000, 384, 384, True),
        (100, 1536, 1000, True),
        # more concepts than features: supports after a round are far from the solution's
        (1000, 384, 500, False),
        (1, 384, 384, False),
    ],
)
def test_sweeps_are_a_start_up_to_as_many_concepts_as_features(n, d, K, start):
    assert cost(d, K).sweeps_start(n) is start


def test_without_a_compiled_sweep_few_rows_are_not_swept():
    slow = machine(threads=2, compiled=False, wide=True)
    assert cost(384, 50).overhead < cost(384, 50, on=slow).overhead
    assert cost(384, 200).sweeps_first(40)
    assert cost(384, 200, on=slow).exact_seconds(20) > cost(384, 200).exact_seconds(20)


def test_costs_follow_the_rates_and_the_dtype():
    twice = replace(ON, gemm=2 * ON.gemm, sweep=2 * ON.sweep, elementwise=2 * ON.elementwise)
    assert cost(384, 200, on=twice).round_seconds == pytest.approx(cost(384, 200).round_seconds / 2)
    assert cost(384, 200, itemsize=8).round_seconds == pytest.approx(
        2 * cost(384, 200).round_seconds
    )
