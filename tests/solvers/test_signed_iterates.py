"""Half-steps with a free dictionary are those of the per-concept loops, in both forms, on every
backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import BACKEND_NAMES, BLOCK, backends_of, case_name, dtype_name, iterate
from oracle import (
    TOLERANCES,
    factors_difference,
    free_hals_half_step,
    free_pgd_half_step,
    hals_half_step,
    least_squares_half_step,
    pgd_half_step,
    relative_difference,
    signed_mu_half_step,
    signed_problem,
)

from fastnmf.solvers.constraints import FREE
from fastnmf.solvers.pgd import largest_eigenvalue, largest_eigenvalue_of_signed, momenta

# n, d, K, kind of the problem, form, dtype
CASES = [
    # one block of concepts in three tiles
    (23, 17, 5, "zero_rows", "normal", torch.float32),
    (23, 17, 5, "zero_concepts", "residual", torch.float64),
    # blocks, a whole one and more
    (40, 31, BLOCK + 1, "zero_codes", "normal", torch.float64),
    (40, 31, BLOCK + 1, "plain", "residual", torch.float32),
    # a single concept, and feature
    (9, 6, 1, "plain", "normal", torch.float32),
    (9, 1, 2, "plain", "residual", torch.float64),
    # d < K: concepts depend on each other
    (60, 13, 37, "duplicates", "normal", torch.float64),
    (60, 13, 37, "plain", "residual", torch.float32),
]
EVERY_CASE = pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), CASES, ids=case_name)


def start_of(n, d, K, kind, dtype):
    return [M.astype(dtype_name(dtype)) for M in signed_problem(n, d, K, kind=kind)]


def step(solver, start, form, dtype, backend):
    Z, D, _ = iterate(solver, *start, form=form, dtype=dtype, backend=backend, constraint=FREE)
    return Z, D


@pytest.mark.parametrize("backend", backends_of("hals"))
@EVERY_CASE
def test_hals_sweeps_a_free_dictionary_without_a_bound(n, d, K, kind, form, dtype, backend):
    A, Z, D = start = start_of(n, d, K, kind, dtype)
    Z1, D1 = step("hals", start, form, dtype, backend)
    tolerance = TOLERANCES["hals", dtype_name(dtype)]
    assert relative_difference(Z1, hals_half_step(Z.T, A, D).T) <= tolerance
    expected = free_hals_half_step(D, A.T, Z1.T)
    assert factors_difference((Z1, D1), (Z1, expected), A) <= tolerance
    assert K == 1 or (D1 < 0).any()


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@EVERY_CASE
def test_mu_multiplies_codes_and_solves_the_dictionary(n, d, K, kind, form, dtype, backend):
    if form == "residual":
        pytest.skip("mu has the normal form only")
    A, Z, D = start = start_of(n, d, K, kind, dtype)
    Z1, D1 = step("mu", start, form, dtype, backend)
    tolerance = TOLERANCES["mu", dtype_name(dtype)]
    assert relative_difference(Z1, signed_mu_half_step(Z.T, A, D).T) <= tolerance
    assert_solved(D1, A, Z1, D, dtype)


@pytest.mark.parametrize("backend", backends_of("pgd"))
@EVERY_CASE
def test_pgd_steps_along_the_gradient_of_a_free_dictionary(n, d, K, kind, form, dtype, backend):
    A, Z, D = start = start_of(n, d, K, kind, dtype)
    Z1, D1 = step("pgd", start, form, dtype, backend)
    G = torch.from_numpy(D @ D.T)
    L = float(largest_eigenvalue_of_signed(lambda V: G @ V, G.diagonal()))
    tolerance = 10 * TOLERANCES["pgd", dtype_name(dtype)]
    steps = len(momenta())
    assert relative_difference(Z1, pgd_half_step(Z.T, A, D, L, steps).T) <= tolerance
    G = torch.from_numpy(Z1.T @ Z1)
    L = float(largest_eigenvalue(lambda v: G @ v, G.diagonal()))
    assert relative_difference(D1, free_pgd_half_step(D, A.T, Z1.T, L, steps)) <= tolerance


@pytest.mark.parametrize("backend", backends_of("anls"))
@EVERY_CASE
def test_anls_solves_both_halves(n, d, K, kind, form, dtype, backend):
    A, _, D = start = start_of(n, d, K, kind, dtype)
    Z1, D1 = step("anls", start, form, dtype, backend)
    E = A - Z1 @ D
    slope, scale = E @ D.T, np.abs(A @ D.T) + Z1 @ np.abs(D @ D.T)
    worst = np.where(Z1 > 0, np.abs(slope), np.maximum(slope, 0)).max(1)
    # in float32 and normal form, of products with D a share of that rounding is left
    allowed = {torch.float32: 1e-4, torch.float64: 1e-9}[dtype]
    assert (worst <= allowed * scale.max(1)).all()
    assert_solved(D1, A, Z1, D, dtype)


def assert_solved(D1, A, Z, D, dtype):
    """D1 is the least squares solution for Z, as near to D as one is."""
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-7}[dtype]
    expected = least_squares_half_step(D, A.T, Z.T)
    assert relative_difference(Z @ D1, Z @ expected) <= tolerance
    dead = ~Z.any(0)
    assert (D1[dead] == D[dead]).all()
    if np.linalg.matrix_rank(Z[:, ~dead], tol=1e-2 * np.linalg.norm(Z)) < (~dead).sum():
        return
    assert relative_difference(D1, expected) <= 10 * tolerance


@pytest.mark.parametrize("kind", ["normal", "equal", "one", "zero"])
@pytest.mark.parametrize("K", [1, 7, 300])
def test_bound_of_a_signed_gram_matrix_holds_and_is_near(K, kind):
    generator = torch.Generator().manual_seed(K)
    D = torch.randn(K, 40, generator=generator, dtype=torch.float64)
    if kind == "equal":
        D = torch.eye(K, dtype=torch.float64)
    elif kind == "one":
        D[:, 1:] = 0
    elif kind == "zero":
        D[:] = 0
    G = D @ D.T
    largest = float(torch.linalg.eigvalsh(G)[-1])
    bound = float(largest_eigenvalue_of_signed(lambda V: G @ V, G.diagonal()))
    if kind == "zero":
        assert bound == 1
    else:
        assert (1 - 1e-12) * largest <= bound <= 1.5 * largest
