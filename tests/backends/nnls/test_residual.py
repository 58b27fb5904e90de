"""The measure of exactness and the solver by the residual."""

from __future__ import annotations

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


def test_violation_is_infinite_where_codes_are_not_finite():
    A, D = torch.ones(2, 3), torch.eye(3)
    Z = torch.tensor([[1.0, 1, 1], [1, torch.nan, 1]])
    kkt, above_zero, _ = measure(A, D, Z)
    assert kkt.tolist() == [0, float("inf")]
    assert above_zero.tolist() == [-3, float("inf")]
