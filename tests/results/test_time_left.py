"""How far a run is, and the time it still takes."""

from __future__ import annotations

import math

import pytest

from fastnmf.engine.state import Iteration, Stopping
from fastnmf.results import time_left
from fastnmf.results.time_left import Way


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its time is set."""
    now = [0.0]
    monkeypatch.setattr(time_left.time, "perf_counter", lambda: now[0])
    return now


def run(stopping, changes, clock, *, seconds=0.5):
    """The way after iterations with these changes, each of so many seconds."""
    way = Way(stopping)
    for iteration, change in enumerate(changes, 1):
        clock[0] += seconds
        # the objective falls by the share `change` over 10 iterations
        way.add(Iteration(iteration, change, 0.3, clock[0], relative_objective=1.0))
    return way


def exponential(iterations):
    return [0.9**i for i in range(iterations)]


def power(iterations):
    return [i**-1.5 for i in range(1, iterations + 1)]


@pytest.mark.parametrize("trend", [exponential, power])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_end_by_tol_is_within_the_range(trend, noise, clock):
    stopping = Stopping(5000, 1e-3)
    changes = trend(5000)
    ends = next(i for i, change in enumerate(changes, 1) if change <= 1e-3)
    shaken = [change * math.exp(noise * (-1) ** i) for i, change in enumerate(changes)]
    told = 0
    for made in range(30, ends, 4):
        least, most = run(stopping, shaken[:made], clock).left()
        assert least - 2 <= 0.5 * (ends - made) <= most + 2
        told += least > 0
    assert told > 0


def test_the_time_left_is_never_more_than_max_iter_and_max_seconds_allow(clock):
    # 100 s for all; the change would take thousands of iterations
    way = run(Stopping(200, 1e-9), power(40), clock)
    assert way.left() == (0.0, 80.0)
    clock[0] = 0.0
    way = run(Stopping(200, 1e-9, deadline=50.0), power(40), clock)
    assert way.left() == (0.0, 30.0)


def test_without_tol_the_time_left_is_exact(clock):
    assert run(Stopping(50, 0.0), exponential(10), clock).left() == pytest.approx((20.0, 20.0))


def test_a_change_that_does_not_fall_promises_no_end(clock):
    assert run(Stopping(100, 1e-4), [0.1] * 60, clock).left() == (0.0, 20.0)


@pytest.mark.parametrize("made", [0, 1])
def test_nothing_is_said_before_an_iteration_was_timed(made, clock):
    assert run(Stopping(100, 1e-4), exponential(made), clock).left() is None


def test_few_iterations_have_no_trend(clock):
    least, most = run(Stopping(100, 1e-4), exponential(19), clock).left()
    assert (least, most) == (0.0, pytest.approx(40.5))


def test_the_share_is_that_of_whichever_end_is_nearest(clock):
    assert run(Stopping(100, 0.0), [1.0] * 25, clock).share == pytest.approx(0.25)
    # 1e-2 is halfway to 1e-4
    assert run(Stopping(100, 1e-4), [1.0, *[1e-2] * 5], clock).share == pytest.approx(0.5)
    clock[0] = 0.0
    way = run(Stopping(100, 0.0, deadline=10.0), [1.0] * 8, clock)
    assert way.share == pytest.approx(0.4)


def test_the_share_never_falls(clock):
    way = run(Stopping(1000, 1e-4), [1.0, *[1e-2] * 5], clock)
    before = way.share
    for iteration in range(7, 20):
        way.add(Iteration(iteration, 0.9, 0.3, clock[0]))
    assert way.share == before


def test_the_error_rule_is_followed_by_the_fall_of_the_objective(clock):
    way = Way(Stopping(1000, 1e-4, rule="error"))
    for iteration in range(1, 300):
        clock[0] += 0.5
        objective = 0.5 + 0.97**iteration
        way.add(Iteration(iteration, math.nan, 0.3, clock[0], relative_objective=objective))
        if iteration == 250:
            least, most = way.left()
            # 0.97**t (0.97**-10 - 1) = 1e-4 / 2 at t = 295
            assert 0 < least <= 0.5 * 45 <= most < 100
            assert 0.5 < way.share < 1
    assert way.share == 1


def test_rows_for_validation_have_no_trend(clock):
    way = Way(Stopping(1000, 1e-4, rule="validation"))
    for iteration in range(1, 101):
        clock[0] += 0.5
        way.add(Iteration(iteration, 0.1, 0.3, clock[0], validation_error=0.97**iteration))
    assert way.left() == (0.0, 450.0)
    assert way.share == pytest.approx(0.1)
