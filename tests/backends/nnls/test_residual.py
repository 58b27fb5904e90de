"""The measure of exactness and the solver by the residual."""

from __future__ import annotations

import pytest
import torch

from fastnmf.backends.nnls.residual import measure, solve_by_residual


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
