"""The course of a whole fit: error against time, recorded in the same way for every library."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import fastnmf
from fastnmf.engine.iteration import Step
from support.measure import imported
from support.tables import OURS
from support.workloads import relative_error

# more iterations than any fit makes: its time limit ends it
MANY = 10**9
# iterations of a first fit; nmf-torch has no error to return before its tenth
FIRST = 10
# the error is measured again when the time of a fit has grown by this fraction
GROWTH = 0.01
# relative difference between the last recorded error and that of the returned factors, which
# differ in their layout only
AGREEMENT = 1e-6


class TimeIsUp(Exception):
    """Ends the fit of a library that has no time limit."""


# the clock; its timer, which interrupts an iteration when the time is over; and the timer's signal
CLOCKS = {
    "wall": (time.perf_counter, signal.ITIMER_REAL, signal.SIGALRM),
    "processor": (time.process_time, signal.ITIMER_PROF, signal.SIGPROF),
}


class Course:
    """Error against time of one fit; the clock runs inside the `with` block, up to `seconds`.

    clock: one of CLOCKS; it is stopped while an error is measured. points: (seconds since the fit
    was called, relative error) at the end of iterations. iterations: how many were finished.
    """

    def __init__(self, A: Tensor, seconds: float, clock: str) -> None:
        self.A, self.seconds = A, seconds
        self.points: list[tuple[float, float]] = []
        self._now, self._timer, self._signal = CLOCKS[clock]
        self.iterations = 0
        self._last: tuple[float, Callable[[], float]] | None = None

    def __enter__(self) -> Course:
        self._earlier = signal.signal(self._signal, _raise_time_is_up)
        self._still = 0.0
        self._begun = self._now()
        signal.setitimer(self._timer, self.seconds)
        return self

    def __exit__(self, kind, *_: object) -> bool:
        """Suppress TimeIsUp; after a fit that ended by itself, record its last iteration."""
        self.disarm()
        signal.signal(self._signal, self._earlier)
        if kind is None and self._last is not None:
            self._measure(*self._last)
        return kind is TimeIsUp

    def disarm(self) -> None:
        """Stop the timer, for a fit that ends itself when `note` returns True."""
        signal.setitimer(self._timer, 0)

    def note(self, error: Callable[[], float]) -> bool:
        """Record the end of an iteration; return whether the time is over."""
        left = signal.setitimer(self._timer, 0)[0]
        stopped = self._now()
        seconds = stopped - self._begun - self._still
        self.iterations += 1
        self._last = seconds, error
        if not self.points or seconds >= (1 + GROWTH) * self.points[-1][0]:
            self._measure(seconds, error)
        self._still += self._now() - stopped
        signal.setitimer(self._timer, left)
        return seconds >= self.seconds

    def note_factors(self, Z, D) -> None:
        """As `note`, for factors (n, K) and (K, d), which are not copied; end the fit in time."""
        if self.note(lambda: relative_error(self.A, torch.as_tensor(Z), torch.as_tensor(D))):
            raise TimeIsUp

    def _measure(self, seconds: float, error: Callable[[], float]) -> None:
        self.points.append((seconds, error()))
        self._last = None


def _raise_time_is_up(*_: object) -> None:
    raise TimeIsUp


def fit_fastnmf(course: Course, K: int, seed: int, iterations: int, **start: str):
    """Record the error of the factors of each accepted iteration.

    The error that fastnmf computes itself is exact to 3e-4 only in normal form; its time is
    counted.
    """
    course.disarm()
    original, factors = Step.__call__, []

    def stepped(step: Step) -> None:
        factors[:] = step.state.codes, step.state.D
        original(step)

    def each(_) -> bool:
        return course.note(lambda: relative_error(course.A, *factors))

    options = {"tol": 0, "max_iter": iterations, "seed": seed, **start}
    with mock.patch.object(Step, "__call__", stepped):
        return fastnmf.NMF(K, **options).fit(course.A, callback=each)


def fit_overcomplete(solver: str, step: str):
    def fit(course: Course, K: int, seed: int, iterations: int, **start: str):
        if start:
            pytest.skip("Overcomplete gives no choice of start")
        nmf = imported("overcomplete.optimization.nmf", "overcomplete")
        # it draws its start from the global generators
        torch.manual_seed(seed)
        np.random.seed(seed)
        original = getattr(nmf, step)

        def stepped(*given):
            factors = original(*given)
            course.note_factors(*factors)
            return factors

        with mock.patch.object(nmf, step, stepped):
            return nmf.NMF(K, solver=solver, tol=0).fit(course.A, max_iter=iterations)

    return fit


def fit_sklearn(solver: str):
    def fit(course: Course, K: int, seed: int, iterations: int, **start: str):
        nmf = imported("sklearn.decomposition._nmf", "scikit-learn")
        model = nmf.NMF(K, solver=solver, tol=0, max_iter=iterations, random_state=seed, **start)
        with _SKLEARN_HOOKS[solver](nmf, course):
            Z = model.fit_transform(course.A.numpy())
        return torch.from_numpy(Z), torch.from_numpy(model.components_)

    return fit


def _after_coordinate_descent(nmf, course: Course):
    """Every second call, for the dictionary, ends an iteration."""
    original, calls = nmf._update_coordinate_descent, itertools.count()

    def updated(X, F, B, *options):
        violation = original(X, F, B, *options)
        if next(calls) % 2:
            course.note_factors(B, F.T)
        return violation

    return mock.patch.object(nmf, "_update_coordinate_descent", updated)


def _after_multiplicative_update(nmf, course: Course):
    original = nmf._multiplicative_update_h

    def updated(X, W, H, **options):
        H = original(X, W, H, **options)
        course.note_factors(W, H)
        return H

    return mock.patch.object(nmf, "_multiplicative_update_h", updated)


_SKLEARN_HOOKS = {"cd": _after_coordinate_descent, "mu": _after_multiplicative_update}


def fit_nmf_torch(course: Course, K: int, seed: int, iterations: int, **start: str):
    """Its default: sweeps of HALS until each half-step has converged. A rising error ends it."""
    nmf = imported("nmf", "nmf-torch")
    models = imported("nmf.nmf_models", "nmf-torch")
    # its default start fails at K > min(n, d); None is the same start, or a random one there
    options = {"init": None, "tol": 0, "random_state": seed, "batch_max_iter": iterations, **start}
    original = models.NMFBatchHALS._update_W

    def updated(model) -> None:
        original(model)
        course.note_factors(model.H, model.W)

    with (
        mock.patch.object(models.NMFBatchHALS, "_update_W", updated),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        Z, D, _ = nmf.run_nmf(course.A, K, **options)
    return torch.from_numpy(Z), torch.from_numpy(D)


CONTENDERS = {
    OURS: fit_fastnmf,
    "Overcomplete hals": fit_overcomplete("hals", "_one_step_hals"),
    "Overcomplete mu": fit_overcomplete("mu", "_one_step_multiplicative_rule"),
    "scikit-learn cd": fit_sklearn("cd"),
    "scikit-learn mu": fit_sklearn("mu"),
    "nmf-torch": fit_nmf_torch,
}


def follow(
    contender: str,
    A: Tensor,
    K: int,
    *,
    seed: int,
    seconds: float,
    clock: str = "wall",
    start: str = "default",
    iterations: int = MANY,
) -> Course:
    """Return the course of one fit, from the library's default start or from a random one.

    After a fit that ended by itself, the last recorded error is compared with that of the returned
    factors. Skips, as `imported` does, where the library cannot be used.
    """
    factors, chosen = None, {} if start == "default" else {"init": start}
    with Course(A, seconds, clock) as course:
        factors = CONTENDERS[contender](course, K, seed, iterations, **chosen)
    if factors is not None:
        assert course.points[-1][1] == pytest.approx(relative_error(A, *factors), rel=AGREEMENT)
    return course


def refusals(start: str) -> Iterator[tuple[str, str | None]]:
    """Run and check a short fit of each library: (its name, why it is left out or None)."""
    A = torch.rand(200, 30, generator=torch.Generator().manual_seed(0))
    for contender in CONTENDERS:
        try:
            follow(contender, A, 5, seed=0, seconds=60.0, start=start, iterations=FIRST)
        except pytest.skip.Exception as reason:
            yield contender, str(reason)
        else:
            yield contender, None
