"""hals and mu give the iterates of the plain loops, in both forms, on every backend."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from half_steps import (
    BACKEND_NAMES,
    BLOCK,
    CASES,
    EVERY_CASE,
    backends_of,
    case_name,
    dtype_name,
    iterate,
)
from oracle import (
    HALF_STEPS,
    TOLERANCES,
    factors_difference,
    hals_half_step_in_float32,
    problem,
    relative_difference,
)
from oracle import iterate as expected_iterates

from fastnmf import NMF, Tuning
from fastnmf.backends.registry import BACKENDS
from fastnmf.solvers import half_step

EVERY_PAIR = pytest.mark.parametrize(
    ("solver", "backend"),
    [(solver, backend) for solver in HALF_STEPS for backend in backends_of(solver)],
)


def start_of(n, d, K, kind, dtype):
    return [M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind)]


@functools.cache
def ten_iterations(solver, *start):
    """The iterates of the loop, which knows no form or backend."""
    return expected_iterates(solver, *start_of(*start), 10)


@EVERY_PAIR
@EVERY_CASE
def test_half_steps_are_those_of_the_loop(n, d, K, kind, form, dtype, solver, backend):
    A, Z, D = start_of(n, d, K, kind, dtype)
    Z1, D1, _ = iterate(solver, A, Z, D, form=form, dtype=dtype, backend=backend)
    tolerance = TOLERANCES[solver, dtype_name(dtype)]
    half_step = HALF_STEPS[solver]
    assert relative_difference(Z1, half_step(Z.T, A, D).T) <= tolerance
    expected = half_step(D, A.T, Z1.T)
    assert factors_difference((Z1, D1), (Z1, expected), A) <= tolerance


# A is not fitted exactly within ten iterations: from then on float32 follows its own rounding
TEN = [
    (n, d, K, kind, form, dtype)
    for n, d, K, kind, form, dtype in CASES
    if not n < K < d and (n > 20 or form == "normal")
]
TEN += [
    # in float32 the residual is carried through many updates
    (40, 13, 37, "zero_rows", "residual", torch.float32),
    (65, 40, 131, "duplicates", "residual", torch.float32),
]


@EVERY_PAIR
@pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), TEN, ids=case_name)
def test_ten_iterations_are_those_of_the_loop(n, d, K, kind, form, dtype, solver, backend):
    A, Z, D = start_of(n, d, K, kind, dtype)
    *given, _ = iterate(solver, A, Z, D, form=form, dtype=dtype, iterations=10, backend=backend)
    expected = ten_iterations(solver, n, d, K, kind, dtype)
    allowed = TOLERANCES[solver, dtype_name(dtype)]
    if K > max(n, d) and (solver, form, dtype) == ("hals", "normal", torch.float32):
        # singular Gram matrices on both sides: the loop itself, in float32, is off by 0.5 to 2.5e-5
        # (five seeds), and by how much depends on the order in which a machine adds
        for _ in range(10):
            Z = hals_half_step_in_float32(Z.T, A, D).T
            D = hals_half_step_in_float32(D, A.T, Z.T)
        allowed = max(allowed, 3 * factors_difference((Z, D), expected, A))
    assert factors_difference(given, expected, A) <= allowed


STRIDED = [
    # tiles of rows as they are, and blocks of concepts
    (40, 13, BLOCK, "normal", torch.float32),
    (40, 13, 37, "normal", torch.float64),
    (40, 13, 37, "residual", torch.float32),
]


@EVERY_PAIR
@pytest.mark.parametrize(("n", "d", "K", "form", "dtype"), STRIDED, ids=case_name)
def test_strided_rows_give_the_same_iterates(n, d, K, form, dtype, solver, backend):
    A, Z, D = start_of(n, d, K, "plain", dtype)
    *given, _ = iterate(
        solver, A, Z, D, form=form, dtype=dtype, iterations=10, backend=backend, wide=True
    )
    expected = ten_iterations(solver, n, d, K, "plain", dtype)
    assert factors_difference(given, expected, A) <= TOLERANCES[solver, dtype_name(dtype)]


FITS = {
    "many inner steps": {"nb_concepts": 60},
    "accelerated": {"accelerate": True, "tol": 1e-9},
    "l1": {"alpha_Z": 0.01, "l1_ratio": 1.0},
    "l2": {"alpha_Z": 0.01, "alpha_D": 0.005},
    "unit norm": {"alpha_Z": 0.01, "l1_ratio": 0.5, "unit_norm": True},
    "in tiles": {"tuning": Tuning(chunk_rows=150)},
}


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
def test_fits_without_the_product_with_the_data_are_the_same(options, monkeypatch, tmp_path):
    if "cpp" not in BACKEND_NAMES:
        pytest.skip(BACKENDS["cpp"].probe())
    A = np.lib.format.open_memmap(tmp_path / "A.npy", "w+", np.float16, (431, 37))
    A[:] = np.random.default_rng(0).random(A.shape)
    fits = []
    for least_rows in (1 << 30, 0):
        monkeypatch.setattr(half_step, "LEAST_ROWS", least_rows)
        model = NMF(**{"nb_concepts": 7, "max_iter": 15, "tol": 0, "seed": 0, **options})
        fits.append(model.fit(A))
    (Z, D), (Z1, D1) = fits
    assert relative_difference((Z1 @ D1).numpy(), (Z @ D).numpy()) < 1e-4
