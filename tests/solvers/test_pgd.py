"""Projected gradient with momentum: its step, its iterates, and that it descends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from half_steps import EVERY_CASE, backends_of, dtype_name, iterate
from oracle import TOLERANCES, pgd_half_step, problem, relative_difference

from fastnmf import NMF
from fastnmf.solvers.pgd import largest_eigenvalue, momenta


def bound(B):
    G = torch.tensor(B @ B.T)
    return float(largest_eigenvalue(lambda v: G @ v, G.diagonal()))


@pytest.mark.parametrize("backend", backends_of("pgd"))
@EVERY_CASE
def test_pgd_half_step_is_that_of_fista(n, d, K, kind, form, dtype, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    Z1, _, _ = iterate(
        "pgd", A, Z, D, form=form, dtype=dtype, fixed_dictionary=True, backend=backend
    )
    expected = pgd_half_step(Z.T, A, D, bound(D.astype(np.float64)), len(momenta())).T
    assert relative_difference(Z1, expected) <= TOLERANCES["pgd", dtype_name(dtype)]


@pytest.mark.parametrize(
    ("n", "d", "K", "kind"),
    [
        # one concept, zero itself: the bound is 1
        (9, 6, 1, "zero_concepts"),
        (5, 1, 2, "plain"),
        (23, 17, 5, "zero_concepts"),
        # eigenvalues close to each other, and G without full rank
        (40, 13, 37, "duplicates"),
        (65, 40, 131, "plain"),
    ],
)
def test_step_bounds_the_largest_eigenvalue_and_is_tight(n, d, K, kind):
    _, _, D = problem(n, d, K, kind=kind)
    exact = np.linalg.eigvalsh(D @ D.T)[-1] if D.any() else 1.0
    assert exact * (1 - 1e-12) <= bound(D) <= 1.02 * exact


def test_step_bounds_the_largest_eigenvalue_of_unconnected_concepts():
    """The power iteration leaves all but the strongest group of concepts, so that quotients of the
    others mean little."""
    D = np.zeros((12, 12))
    D[:5, :5] = 1.0 + np.eye(5)
    D[5:11, 5:11] = 0.9 + np.eye(6)
    exact = np.linalg.eigvalsh(D @ D.T)[-1]
    assert exact <= bound(D) <= np.trace(D @ D.T)


# fewer concepts than features, and more
@pytest.mark.parametrize(
    ("n", "d", "K", "form"),
    [(60, 20, 7, "normal"), (60, 20, 7, "residual"), (60, 20, 45, "normal")],
)
def test_pgd_never_raises_the_loss(n, d, K, form):
    A, Z, D = problem(n, d, K)
    losses = []
    for _ in range(40):
        Z, D, _ = iterate("pgd", A, Z, D, form=form, dtype=torch.float64)
        losses.append(np.linalg.norm(A - Z @ D))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_of_zero_data_vanish_without_overflow(dtype):
    """The Gram matrix of codes that vanish is of numbers that are not normal, whose inverse
    overflows."""
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(20, 4, generator=generator), torch.rand(4, 3, generator=generator)
    model = NMF(4, solver="pgd", unit_norm=True, init=start, tol=0, max_iter=100)
    Z, D = model.fit(torch.zeros(20, 3, dtype=dtype))
    assert float(Z.max()) < 1e-30
    torch.testing.assert_close(D.norm(dim=1), torch.ones(4, dtype=dtype))
