"""The libraries that fastnmf is compared with: one iteration of each, by their own code.

Of an iteration that would take minutes, the products of whole matrices are timed once, its loop
over concepts (or rows) on the first few, and the rest is extrapolated. `measured_on` says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from support.candidate import checked
from support.loops import nmf_torch_loop, overcomplete_loop
from support.measure import Bench, Timing, called, imported, once
from support.workloads import Problem, Workload

# multiplications in the loops: the most of an iteration that is timed whole, and those of
# scikit-learn's part
WHOLE, PART = 2 * 10**8, 5 * 10**8


def time_baseline(bench: Bench, solver: str, name: str) -> None:
    """Time one iteration of a library; check its result unless only a part of it was timed."""
    timing = BASELINES[solver][name](bench.problem)
    label = {"kind": "iteration", "contender": name, "solver": solver, **timing.label}
    timing = replace(timing, label=label)
    # parts and large workloads take about a second a call: no call before the rounds
    slow = timing.measured_on or bench.problem.workload.heavy
    factors = bench.record(timing, None if slow else called(timing)[1:])
    if factors is not None:
        bench.note(relative_error=checked(bench.problem, solver, factors))


def concepts_timed(workload: Workload) -> int:
    """How many concepts of a loop of matrix-vector products are timed, for about a second."""
    if workload.n * workload.K**2 <= WHOLE:
        return workload.K
    return min(workload.K, 100 if workload.K <= 2000 else 32)


def copies(problem: Problem) -> tuple:
    return problem.A, problem.Z.clone(), problem.D.clone()


@functools.lru_cache(maxsize=1)
def products(problem: Problem) -> tuple[tuple, float]:
    """(C, G, cross, gram) of both halves as plain products, and the seconds they took, once."""
    A, Z, D = problem.A, problem.Z, problem.D
    made, seconds, _ = once(lambda: (A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z))
    return made, seconds


def concept_loop(problem: Problem, loop: Callable) -> Timing:
    """The loops of a library over its first concepts, given the products, for extrapolation."""
    K, part = problem.workload.K, concepts_timed(problem.workload)
    made, fixed_seconds = products(problem)
    return Timing(
        lambda: copies(problem)[1:],
        lambda Z, D: loop(*made, Z, D, part),
        {},
        scale=K / part,
        fixed_seconds=fixed_seconds,
        measured_on=f"{part} of {K:,} concepts",
    )


@functools.cache
def assert_loop_is_that_of(step: Callable, loop: Callable) -> None:
    """Refuse to time a transcribed loop that gives other factors than the library's step."""
    A, Z, D = (torch.rand(*shape) for shape in ((50, 20), (50, 7), (7, 20)))
    expected = step(A, Z.clone(), D.clone())
    made, given = (A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z), (Z.clone(), D.clone())
    loop(*made, *given, 7)
    torch.testing.assert_close(given[0], expected[0])
    loop(*made[:2], expected[0].T @ A, expected[0].T @ expected[0], Z, D, 7)
    torch.testing.assert_close(D, expected[1])


def overcomplete_hals(problem: Problem) -> Timing:
    step = imported("overcomplete.optimization.nmf", "overcomplete")._one_step_hals
    if concepts_timed(problem.workload) == problem.workload.K:
        return Timing(lambda: copies(problem), step, {})
    assert_loop_is_that_of(step, overcomplete_loop)
    return concept_loop(problem, overcomplete_loop)


def overcomplete_mu(problem: Problem) -> Timing:
    step = imported("overcomplete.optimization.nmf", "overcomplete")._one_step_multiplicative_rule
    return Timing(lambda: copies(problem), step, {})


def overcomplete_adam(problem: Problem) -> Timing:
    """One step of Adam on both factors at once; three are timed, so that the set-up is shared."""
    fit = imported("overcomplete.optimization.nmf", "overcomplete").projected_gradient_descent

    def step(A, Z, D):
        fit(A, Z, D, max_iter=3, tol=0)

    return Timing(lambda: copies(problem), step, {"iterations": 3}, scale=1 / 3)


def sklearn_cd(problem: Problem) -> Timing:
    """One pass of coordinate descent over the codes and one over the dictionary."""
    nmf = imported("sklearn.decomposition._nmf", "scikit-learn")
    n, d, K = problem.sizes
    A, Z, D = problem.A.numpy(), problem.Z.numpy(), problem.D.numpy()

    def step(W, Ht):
        nmf._update_coordinate_descent(A, W, Ht, 0, 0, False, None)
        nmf._update_coordinate_descent(A.T, Ht, W, 0, 0, False, None)
        return W, Ht.T

    if n * K**2 <= WHOLE:
        return Timing(lambda: (Z.copy(), D.T.copy()), step, {})
    products, fixed_seconds, _ = once(lambda: (D @ D.T, A @ D.T, Z.T @ Z, A.T @ Z))
    rows = max(1, min(n, PART // K**2))
    order = np.arange(K, dtype=np.intp)
    # in the dictionary half a feature costs as much as a row does in the codes' half
    return Timing(
        lambda: (Z[:rows].copy(),),
        lambda W: (nmf._update_cdnmf_fast(W, products[0], products[1][:rows], order), None)[1],
        {},
        scale=(n + d) / rows,
        fixed_seconds=fixed_seconds,
        measured_on=f"{rows:,} of {n + d:,} rows and features",
    )


def sklearn_mu(problem: Problem) -> Timing:
    nmf = imported("sklearn.decomposition._nmf", "scikit-learn")
    A = problem.A.numpy()

    def step(W, H):
        W = nmf._multiplicative_update_w(A, W, H, 2, 0, 0, 1)[0]
        return W, nmf._multiplicative_update_h(A, W, H, 2, 0, 0, 1)

    return Timing(lambda: (problem.Z.numpy().copy(), problem.D.numpy().copy()), step, {})


def nmf_torch_hals(problem: Problem) -> Timing:
    """One sweep a half, so that sweeps are compared; the library itself makes up to 200."""
    if concepts_timed(problem.workload) == problem.workload.K:
        return Timing(lambda: copies(problem), _nmf_torch_sweep, {})
    assert_loop_is_that_of(_nmf_torch_sweep, nmf_torch_loop)
    return concept_loop(problem, nmf_torch_loop)


def nmf_torch_mu(problem: Problem) -> Timing:
    return Timing(lambda: (_nmf_torch("NMFBatchMU", *copies(problem)),), _nmf_torch_step, {})


def _nmf_torch(name: str, A, Z, D, **options: Any):
    """A model of nmf-torch (its W is D, its H is Z) as it is when its loop begins."""
    models = imported("nmf.nmf_models", "nmf-torch")
    model = getattr(models, name)(
        len(D), "random", 2.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, "float", "cpu", **options
    )
    model.X, model.H, model.W = A, Z, D
    model._WWT, model._XWT = D @ D.T, A @ D.T
    return model


def _nmf_torch_step(model):
    model._update_H()
    model._update_W()
    return model.H, model.W


def _nmf_torch_sweep(A, Z, D):
    return _nmf_torch_step(_nmf_torch("NMFBatchHALS", A, Z, D, hals_max_iter=1))


BASELINES = {
    "hals": {
        "Overcomplete": overcomplete_hals,
        "scikit-learn cd": sklearn_cd,
        "nmf-torch": nmf_torch_hals,
    },
    "mu": {
        "Overcomplete": overcomplete_mu,
        "scikit-learn mu": sklearn_mu,
        "nmf-torch": nmf_torch_mu,
    },
    "pgd": {"Overcomplete": overcomplete_adam},
}
