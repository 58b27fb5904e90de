"""The half-step of codes with at most k concepts a row: what it chooses between, and that no row
ends above where it was."""

from __future__ import annotations

import pytest
import torch
from half_steps import backends_of, method_of
from nnls_problems import draw

from fastnmf.numerics import keep_largest_
from fastnmf.solvers import anls, hals
from fastnmf.solvers.half_step import ResidualData
from fastnmf.solvers.penalties import NO_PENALTY
from fastnmf.solvers.registry import learner
from fastnmf.solvers.supports.pursuit import pursue_, support_kkt
from fastnmf.solvers.supports.top_k import solver_of
from fastnmf.solvers.supports.working_set import prepare_concepts

EVERY_BACKEND = pytest.mark.parametrize("backend", backends_of("anls"))
EVERY_SIGN = pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])


def losses(A, D, Z):
    return (A - Z @ D).double().square().sum(1)


def half_step(A, D, Z, most, backend="torch"):
    """Z after a half-step, and the sums."""
    by = solver_of(most, hals.SOLVER)
    compute = method_of("anls", backend=backend).compute(len(D), D)
    fixed = by.fix("residual", D, None, len(A), NO_PENALTY, compute)
    sums, Z = torch.zeros(4, dtype=torch.float64), Z.clone()
    by.half_steps_(Z.T, ResidualData(A.T, torch.full_like(A, torch.nan).T), fixed, compute, sums, 1)
    return Z, sums


def problem(signed, dtype=torch.float32):
    A, D = draw(30, 12, 40, signed=signed)
    return A.to(dtype), D.to(dtype)


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize("most", [1, 3, 40])
def test_a_row_has_as_many_concepts_at_most_and_is_at_least_as_good_as_a_pursuit(
    backend, signed, most
):
    A, D = problem(signed)
    Z, sums = half_step(A, D, torch.zeros(30, 40), most, backend)
    assert ((Z > 0).sum(1) <= most).all()
    assert (Z >= 0).all()
    pursued = torch.zeros_like(Z)
    pursue_(pursued.T, A, prepare_concepts(D, 0), most, method_of("anls", backend=backend).ops)
    assert (losses(A, D, Z) <= losses(A, D, pursued) * (1 + 1e-6)).all()
    assert (support_kkt(A, D, Z) <= 1e-6).all()
    after = [float(Z.double().square().sum()), float(losses(A, D, Z).sum())]
    assert sums[:3].tolist() == pytest.approx([after[0], *after], rel=1e-5)


@EVERY_SIGN
def test_backends_find_the_same_codes(signed):
    A, D = problem(signed, torch.float64)
    found = [half_step(A, D, torch.zeros_like(A @ D.T), 4, name)[0] for name in backends_of("anls")]
    for Z in found[1:]:
        torch.testing.assert_close(Z, found[0])


@EVERY_SIGN
def test_a_row_that_has_the_best_concepts_keeps_them(signed):
    """A pursuit misses some of them."""
    generator = torch.Generator().manual_seed(0)
    A, D = problem(signed)
    used = torch.rand(400, 40, generator=generator).topk(4, dim=1).indices
    best = torch.zeros(400, 40).scatter_(1, used, 1.0)
    A = best @ D
    start = best * (1 + torch.rand(best.shape, generator=generator))
    kept, _ = half_step(A, D, start, 4)
    torch.testing.assert_close(kept, best, rtol=1e-4, atol=1e-4)
    found, _ = half_step(A, D, torch.zeros_like(best), 4)
    missed = losses(A, D, found) > 1e-3 * A.double().square().sum(1)
    assert missed.any()
    # an exchange finds some of those that a pursuit does not
    pursued = torch.zeros_like(best)
    pursue_(pursued.T, A, prepare_concepts(D, 0), 4, method_of("anls").ops)
    assert missed.sum() < (losses(A, D, pursued) > 1e-3 * A.double().square().sum(1)).sum()


def test_codes_of_too_many_concepts_and_of_concepts_of_zeros_are_dropped():
    A, D = problem(signed=False)
    D[3] = 0
    Z, _ = half_step(A, D, torch.ones(30, 40), 2)
    assert ((Z > 0).sum(1) <= 2).all()
    only = torch.zeros(30, 40)
    only[:, 3] = 1
    Z, _ = half_step(A, D, only, 2)
    assert (Z[:, 3] == 0).all()


def test_the_largest_codes_are_kept():
    Z = torch.tensor([[1.0, 2, 3], [0, 1, 0]])
    norms = torch.tensor([4.0, 1, 1])
    assert keep_largest_(Z.clone(), norms, 2).tolist() == [[1, 0, 3], [0, 1, 0]]
    assert keep_largest_(Z.clone(), norms, 3).tolist() == Z.tolist()


def test_the_dictionary_is_that_of_the_other_solver():
    by = solver_of(3, anls.SOLVER)
    assert learner(by, 10) is anls.SOLVER
    assert learner(by, 10**6) is hals.SOLVER
    assert by is solver_of(3, anls.SOLVER)
    assert by.most == 3
    assert by.work("residual", by_size(10), 2).flops > by.work("residual", by_size(5), 2).flops


def by_size(K):
    from fastnmf.solvers.base import Size

    return Size(100, 8, K, 4)
