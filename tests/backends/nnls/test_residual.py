"""The measure of exactness and the solver by the residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import exactness, least_penalised_squares, penalised_squares

from fastnmf.backends.nnls.residual import Terms, measure, solve_by_residual


def test_residual_solver_is_exact_where_concepts_repeat_or_are_zero():
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    D[6:11] = D[:5].clone()
    D[11] = 0
    A = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    Z = torch.stack([solve_by_residual(a, D, 1e-13) for a in A])
    assert float(measure(A, D, Z).kkt.max()) < 1e-12
    assert not Z[:, 11].any()
    assert int((Z > 0).sum(1).max()) <= 5


def test_measure_is_infinite_where_codes_are_not_finite():
    A, D = torch.ones(2, 3), torch.eye(3)
    Z = torch.tensor([[1.0, 1, 1], [1, torch.nan, 1]])
    found = measure(A, D, Z)
    assert found.kkt.tolist() == [0, float("inf")]
    assert found.change.tolist() == [-1, float("inf")]
    assert found.gap.tolist() == [0, float("inf")]


@pytest.mark.parametrize(("rows", "concepts"), [(1e-160, 1e-160), (1e-200, 1e90), (1e200, 1e-90)])
def test_measure_is_the_same_at_any_scale(rows, concepts):
    generator = torch.Generator().manual_seed(0)
    A, D, Z = (torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    D = D[:4] - 0.2
    found, expected = measure(A * rows, D * concepts, Z * rows / concepts), measure(A, D, Z)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=0)


def test_gap_bounds_the_distance_to_the_optimum():
    generator = torch.Generator().manual_seed(0)
    A, D = (torch.randn(20, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    D = D[:9]
    Z = torch.stack([solve_by_residual(a, D, 1e-14) for a in A])
    assert float(measure(A, D, Z).gap.max()) < 1e-12
    worse = Z + 0.01 * torch.rand(Z.shape, generator=generator, dtype=torch.float64)
    best, found = (A - Z @ D).square().sum(1), measure(A, D, worse)
    rise = ((A - worse @ D).square().sum(1) - best) / A.square().sum(1)
    assert (found.gap >= rise).all()
    assert (found.gap > 0).all()


# l1, l2, ridge
TERMS = [(0.5, 0.0, 0.0), (0.0, 0.4, 0.0), (0.5, 0.4, 0.0), (0.5, 0.0, 1e-8), (0.3, 0.2, 1e-8)]


@pytest.mark.parametrize(("l1", "l2", "ridge"), TERMS)
def test_penalties_are_in_the_codes_of_the_residual_solver(l1, l2, ridge):
    """Also along directions in which the residual does not change, where l1 alone counts."""
    generator = torch.Generator().manual_seed(1)
    D = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    D[4], D[5], D[8] = D[0], 3 * D[1], 0
    A = torch.randn(25, 4, generator=generator, dtype=torch.float64)
    terms = Terms(l1, l2)
    start = torch.rand(9, generator=generator, dtype=torch.float64)
    for begun in (None, start):
        Z = torch.stack([solve_by_residual(a, D, 1e-13, ridge, begun, terms) for a in A])
        least = least_penalised_squares(A, D, l1, l2)
        size = A.square().sum(1).numpy()
        assert (penalised_squares(A, D, Z, l1, l2) <= least + (1e-12 + ridge) * size).all()
        assert not Z[:, 8].any()
        if not ridge:
            assert float(measure(A, D, Z, terms=terms).kkt.max()) < 1e-12


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.0), (0.0, 0.4), (0.5, 0.4)])
def test_measure_has_the_penalties(l1, l2):
    generator = torch.Generator().manual_seed(2)
    A, D, Z = (torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    D, Z = D[:4] - 0.2, (Z - 0.5).clamp(min=0)
    D = D[:, :4]
    found, terms = measure(A, D, Z, terms=Terms(l1, l2)), Terms(l1, l2)
    np.testing.assert_allclose(found.kkt, exactness(A, D, Z, l1, l2), rtol=1e-12)
    value, size = penalised_squares(A, D, Z, l1, l2), A.square().sum(1).numpy()
    np.testing.assert_allclose(found.change * size, 2 * value - size, rtol=1e-10, atol=1e-12)
    rise = 2 * (value - least_penalised_squares(A, D, l1, l2)) / size
    assert (found.gap.numpy() >= rise).all()
    solved = torch.stack([solve_by_residual(a, D, 1e-14, terms=terms) for a in A])
    assert float(measure(A, D, solved, terms=terms).gap.max()) < 1e-12
    for rows, concepts in ((2.0**-400, 1.0), (2.0**300, 2.0**-350)):
        scaled = Terms(l1 * rows * concepts, l2 * concepts**2)
        again = measure(A * rows, D * concepts, Z * rows / concepts, terms=scaled)
        for one, other in zip(again, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=0)
