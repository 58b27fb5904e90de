"""At most k concepts for each row: the order of the pursuit, its codes, and how near it is to the
best choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from half_steps import backends_of, method_of
from nnls_problems import draw
from oracle import TOLERANCES

from fastnmf import InvalidInput, nnls
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.errors import ConvergenceWarning
from fastnmf.solvers.penalties import Penalty
from fastnmf.solvers.supports.pursuit import pursue_, support_kkt
from fastnmf.solvers.supports.working_set import prepare_concepts

EVERY_BACKEND = pytest.mark.parametrize("backend", backends_of("anls"))
EVERY_SIGN = pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])


def errors(A, D, Z):
    return (A - Z @ D).double().square().sum(1)


def least_squares(a, D, support):
    """The non-negative least squares error of a row on a support, and the codes: one solution of a
    subset of the support is it."""
    best, codes = float(a @ a), np.zeros(len(D))
    for size in range(1, len(support) + 1):
        for chosen in map(list, itertools.combinations(support, size)):
            z = np.linalg.lstsq(D[chosen].T, a, rcond=None)[0]
            error = float(np.square(a - z @ D[chosen]).sum())
            if (z >= 0).all() and error < best:
                best, codes = error, np.zeros(len(D))
                codes[chosen] = z
    return best, codes


def greedy(a, D, most):
    """Codes by the definition: the steepest concept, relative to its norm, enters, and codes are
    the non-negative least squares solution on the support; until there are `most`."""
    codes, norms = np.zeros(len(D)), np.linalg.norm(D, axis=1)
    while (codes > 0).sum() < most:
        slope = D @ (a - codes @ D) / norms
        slope[codes > 0] = -1
        k = int(slope.argmax())
        if slope[k] <= 1e-12 * max(D @ a / norms):
            break
        codes = least_squares(a, D, [*np.flatnonzero(codes), k])[1]
    return codes


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_codes_follow_the_definition(backend, signed, top_k):
    A, D = draw(12, 9, 15, signed)
    Z = nnls(A, D, top_k=top_k, backend=backend)
    assert ((Z > 0).sum(1) <= top_k).all()
    expected = torch.from_numpy(np.array([greedy(a, D.numpy(), top_k) for a in A.numpy()]))
    full = nnls(A, D)
    # the solution, where it has no more concepts, though the pursuit has not met it
    found = torch.where(((full > 0).sum(1) <= top_k)[:, None], full, expected)
    torch.testing.assert_close(Z, found, rtol=1e-9, atol=1e-9)


@EVERY_BACKEND
@EVERY_SIGN
def test_errors_are_near_the_best_choice_and_never_above_plain_greedy(backend, signed):
    """Plain greedy codes are products with the residual, one after the other."""
    for K, top_k in ((12, 2), (12, 3), (8, 3)):
        A, D = draw(12, 10, K, signed, seed=K + top_k)
        found = errors(A, D, nnls(A, D, top_k=top_k, backend=backend)).numpy()
        best, plain = [], []
        for a in A.numpy():
            choices = itertools.combinations(range(K), top_k)
            best.append(min(least_squares(a, D.numpy(), list(chosen))[0] for chosen in choices))
            unit, e = D.numpy() / np.linalg.norm(D.numpy(), axis=1, keepdims=True), a
            for _ in range(top_k):
                k = int((unit @ e).argmax())
                e = e - max(0, unit[k] @ e) * unit[k]
            plain.append(e @ e)
        assert np.median(found / np.array(best)) <= 1.05
        assert (found >= np.array(best) * (1 - 1e-9)).all()
        assert (found <= np.array(plain) * (1 + 1e-9)).all()


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_fall_with_top_k_to_those_of_the_solution(backend, signed, dtype):
    A, D = draw(20, 24, 40, signed, dtype)
    full, info = nnls(A, D, backend=backend, return_info=True)
    before, size = A.double().square().sum(1), A.double().square().sum(1)
    for top_k in (1, 2, 3, 4, 6, 9, 13, 18, 23, 24, 40, 10**6):
        Z, some = nnls(A, D, top_k=top_k, backend=backend, return_info=True)
        assert ((Z > 0).sum(1) <= top_k).all()
        assert torch.equal(some.support, (Z > 0).sum(1).int())
        now = errors(A, D, Z)
        exact = TOLERANCES["anls", dtype]
        assert (now <= before + exact * size).all()
        assert (some.kkt <= exact).all()
        assert (some.status == SOLVED).all()
        enough = info.support <= top_k
        assert (abs(now - errors(A, D, full))[enough] <= exact * size[enough]).all()
        before = now
    assert enough.all()


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_penalties_are_in_the_slopes_and_the_codes(backend, dtype):
    A, D = draw(15, 12, 30, False, dtype)
    penalty = Penalty(0.4, torch.linspace(0, 2, 30).double())
    ops = method_of("anls", backend=backend).ops
    F = torch.zeros(30, 15, dtype=A.dtype)
    pursue_(F, A, prepare_concepts(D, 0, penalty), 4, ops)
    plain = torch.zeros(30, 15, dtype=A.dtype)
    pursue_(plain, A, prepare_concepts(D, 0), 4, ops)
    assert ((F > 0).sum(0) <= 4).all()
    exact = TOLERANCES["anls", dtype]
    assert (support_kkt(A, D, F.T, penalty) <= exact).all()
    assert (support_kkt(A, D, plain.T) <= exact).all()
    assert not (support_kkt(A, D, plain.T, penalty) <= exact).any()


@EVERY_BACKEND
def test_dependent_concepts_and_zeros_do_no_harm(backend):
    A, D = draw(20, 8, 12, False)
    D = torch.cat((D, 3 * D, torch.zeros(2, 8)))
    A[3] = 0
    Z, info = nnls(A, D, top_k=5, backend=backend, return_info=True)
    assert Z.isfinite().all()
    assert ((Z > 0).sum(1) <= 5).all()
    assert not Z[3].any()
    assert not Z[:, 24:].any()
    assert (info.kkt <= 1e-12).all()
    alone = nnls(A, D[:12], top_k=5, backend=backend)
    torch.testing.assert_close(errors(A, D, Z), errors(A, D[:12], alone))


@EVERY_BACKEND
def test_max_iter_ends_a_pursuit_and_is_reported(backend):
    A, D = draw(10, 20, 30, False)
    with pytest.warns(ConvergenceWarning, match="reached max_iter"):
        Z, info = nnls(A, D, top_k=6, max_iter=2, backend=backend, return_info=True)
    assert (info.status == CAPPED).all()
    assert ((Z > 0).sum(1) <= 2).all()


def test_top_k_is_checked():
    A, D = draw(3, 4, 5, False)
    with pytest.raises(InvalidInput, match="top_k=0 must be at least 1"):
        nnls(A, D, top_k=0)
    with pytest.raises(TypeError, match=r"top_k=1\.5 must be a whole number"):
        nnls(A, D, top_k=1.5)
    with pytest.raises(InvalidInput, match="top_k and Z0 cannot be combined"):
        nnls(A, D, torch.zeros(3, 5).double(), top_k=2)
