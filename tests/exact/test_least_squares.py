"""Exact codes under penalties: the optimum of every kind of problem, at any scale, and truly
reported."""

from __future__ import annotations

import functools
import warnings

import nnls_problems
import numpy as np
import pytest
import torch
from half_steps import backends_of, method_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOLERANCES, exactness, least_penalised_squares, penalised_squares

from fastnmf import InvalidInput, nnls
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.errors import ConvergenceWarning
from fastnmf.exact import least_squares, rows
from fastnmf.exact.least_squares import LeastSquares
from fastnmf.planning.codes import CodesCost

EVERY_BACKEND = pytest.mark.parametrize("backend", backends_of("anls"))
EVERY_SIGN = pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
# l1, l2: each alone, both, so small that they hardly count, and so large that little is left
WEIGHTS = [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3), (1e-7, 1e-9), (3.0, 5.0)]
# d, K: fewer and more concepts than features
SIZES = [(9, 6), (4, 9)]
draw = functools.partial(nnls_problems.draw, decades=0.5)


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize(("d", "K"), SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_are_the_optimum_with_penalties(d, K, signed, dtype, backend):
    A, D = draw(12, d, K, signed, dtype)
    size, used = A.double().square().sum(1).numpy(), []
    for weights in WEIGHTS:
        l1, l2 = weights
        Z, info = nnls(A, D, l1=l1, l2=l2, backend=backend, return_info=True)
        assert Z.dtype == A.dtype
        assert (Z >= 0).all()
        assert (info.status == SOLVED).all()
        kkt = exactness(A, D, Z, *weights)
        assert (kkt <= {"float32": 1e-6, "float64": 1e-12}[dtype]).all()
        np.testing.assert_allclose(info.kkt, kkt, rtol=1e-6, atol=1e-15)
        least = least_penalised_squares(A, D, *weights)
        assert (penalised_squares(A, D, Z, *weights) <= least + 1e-6 * size).all()
        if dtype == "float64":
            assert (penalised_squares(A, D, Z, *weights) <= least + 1e-12 * size).all()
        used.append(float(info.support.double().mean()))
    assert used[0] > used[-1] > 0


@EVERY_BACKEND
def test_codes_with_curvature_are_those_of_scipy_on_more_rows(backend):
    """The problem without a penalty of [D | √l2 I] and [a | −l1 / √l2], at sizes beyond a search
    over all supports."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    for signed, (d, K) in ((False, (30, 20)), (True, (20, 60))):
        A, D = draw(8, d, K, signed)
        l1, l2 = 0.3, 0.2
        wide = np.hstack([D.numpy(), np.sqrt(l2) * np.eye(K)])
        extended = np.hstack([A.numpy(), np.full((len(A), K), -l1 / np.sqrt(l2))])
        expected = np.array([optimize.nnls(wide.T, a, maxiter=10**4)[0] for a in extended])
        Z = nnls(A, D, l1=l1, l2=l2, backend=backend)
        np.testing.assert_allclose(Z, expected, rtol=1e-8, atol=1e-10)


@EVERY_BACKEND
@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_working_sets_take_the_penalties(weights, backend, monkeypatch):
    monkeypatch.setattr(rows, "GRAM_BYTES", 0)
    for signed in (False, True):
        A, D = draw(20, 24, 90, signed)
        Z, info = nnls(A, D, l1=weights[0], l2=weights[1], backend=backend, return_info=True)
        assert (exactness(A, D, Z, *weights) <= 1e-12).all()
        assert (info.status == SOLVED).all()


@EVERY_BACKEND
@EVERY_SIGN
def test_starts_change_the_time_alone(signed, backend):
    A, D = draw(15, 8, 12, signed)
    D[3] = 0
    for l1, l2 in WEIGHTS[:3]:
        Z = nnls(A, D, l1=l1, l2=l2, backend=backend)
        for start in (torch.rand(15, 12), Z):
            again = nnls(A, D, start, l1=l1, l2=l2, backend=backend)
            torch.testing.assert_close(again, Z, rtol=1e-9, atol=1e-11)
            assert not again[:, 3].any()


@EVERY_BACKEND
def test_rows_that_meet_the_cap_are_reported_and_never_worse_than_zero(backend):
    A, D = draw(20, 12, 40, True)
    with pytest.warns(ConvergenceWarning, match="reached max_iter"):
        Z, info = nnls(A, D, l1=0.1, l2=0.1, max_iter=1, backend=backend, return_info=True)
    assert (info.status == CAPPED).any()
    zero = penalised_squares(A, D, 0 * Z)
    assert (penalised_squares(A, D, Z, 0.1, 0.1) <= zero * (1 + 1e-12)).all()


# factors of A and D, and the dtype
SCALES = [
    (1e-25, 1.0, "float32"),
    (1.0, 1e25, "float32"),
    (1e25, 1e-12, "float32"),
    (1e-200, 1.0, "float64"),
    (1.0, 1e-200, "float64"),
    (1e200, 1e100, "float64"),
]


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize(("of_rows", "of_concepts", "dtype"), SCALES)
def test_codes_follow_the_scale_of_data_and_dictionary(
    of_rows, of_concepts, dtype, signed, backend
):
    A, D = draw(12, 9, 6, signed, dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype]
    # squares of factors are not in the range of the weights
    weights = [(0.4, 0.0)] if abs(np.log10(of_concepts)) > 100 else WEIGHTS[:3]
    for l1, l2 in weights:
        expected = nnls(A, D, l1=l1, l2=l2, backend=backend)
        Z, info = nnls(
            A * of_rows,
            D * of_concepts,
            l1=l1 * of_concepts * of_rows if l1 else 0.0,
            l2=l2 * of_concepts**2 if l2 else 0.0,
            backend=backend,
            return_info=True,
        )
        found = Z.double() / of_rows * of_concepts
        torch.testing.assert_close(found, expected.double(), rtol=tolerance, atol=tolerance)
        assert (info.status == SOLVED).all()


@EVERY_BACKEND
@EVERY_SIGN
def test_rows_and_concepts_of_very_different_sizes_are_all_solved(signed, backend):
    """One weight l1 for all rows: those that are far smaller have zero codes, and the weight means
    nothing to those that are far larger."""
    A, D = draw(12, 9, 6, signed, "float32")
    factors = 10.0 ** torch.linspace(-30, 30, 12)[:, None]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    Z, info = nnls(A * factors[order], D, l1=0.4, backend=backend, return_info=True)
    assert (info.status == SOLVED).all()
    tiny, huge = (factors[order] < 1e-9)[:, 0], (factors[order] > 1e9)[:, 0]
    assert tiny.any()
    assert not Z[tiny].any()
    plain = nnls(A * factors[order], D, backend=backend)
    torch.testing.assert_close(Z[huge], plain[huge], rtol=1e-5, atol=0)
    # concepts: the one that is far smaller costs too much
    D[2] *= 1e-30
    Z, info = nnls(A, D, l1=0.1, l2=0.1, backend=backend, return_info=True)
    assert not Z[:, 2].any()
    assert (exactness(A, D, Z, 0.1, 0.1) <= 1e-6).all()
    assert (info.status == SOLVED).all()


@EVERY_BACKEND
def test_weights_beyond_all_slopes_leave_nothing(backend):
    A, D = draw(5, 6, 4, False, "float32")
    for l1, l2 in ((1e300, 0.0), (0.0, 1e30), (1e300, 1e300)):
        Z, info = nnls(A, D, l1=l1, l2=l2, backend=backend, return_info=True)
        assert (Z <= 1e-27).all()
        assert (info.status == SOLVED).all()


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_top_k_goes_with_penalties(signed, dtype, backend):
    A, D = draw(20, 10, 25, signed, dtype)
    exact = TOLERANCES["anls", dtype]
    for l1, l2 in WEIGHTS[:3]:
        full = penalised_squares(A, D, nnls(A, D, l1=l1, l2=l2, backend=backend), l1, l2)
        before = penalised_squares(A, D, 0 * nnls(A, D))
        size = before.copy()
        for top_k in (1, 3, 6, 10, 25):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                Z, info = nnls(A, D, l1=l1, l2=l2, top_k=top_k, backend=backend, return_info=True)
            # with curvature a solution may use more concepts than there are features
            assert ((Z > 0).sum(1) <= top_k).all()
            assert (info.kkt <= exact).all()
            now = penalised_squares(A, D, Z, l1, l2)
            assert (now <= before + exact * size).all()
            before = now
        np.testing.assert_allclose(now, full, atol=exact * size.max())


@EVERY_BACKEND
def test_codes_with_top_k_are_not_reported_as_unsolved(backend):
    """The residual of places that had other concepts in between was reported."""
    A, D = draw(30, 10, 12, True, seed=14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for top_k in (1, 2, 3):
            nnls(A, D, top_k=top_k, backend=backend)


@pytest.mark.parametrize(("n", "K"), [(0, 3), (4, 0), (0, 0)])
def test_no_rows_and_no_concepts_have_empty_codes_with_penalties(n, K):
    A, D = torch.rand(n, 5), torch.rand(K, 5)
    for options in ({"l1": 0.1}, {"l2": 0.1}, {"l1": 0.1, "l2": 0.1, "top_k": 2, "max_iter": 3}):
        Z, info = nnls(A, D, **options, return_info=True)
        assert Z.shape == (n, K)
        assert len(info.kkt) == n


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_weights_that_are_none_are_refused(name):
    A, D = torch.rand(3, 4), torch.rand(2, 4)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match=f"{name}=.*finite and at least 0"):
            nnls(A, D, **{name: wrong})
    with pytest.raises(TypeError, match=name):
        nnls(A, D, **{name: torch.ones(2)})


@EVERY_SIGN
@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_first_and_second_derivatives_are_right_under_penalties(weights, signed):
    l1, l2 = weights
    for d, K in ((5, 3), (3, 5)):
        A, D = draw(2, d, K, signed, seed=3)
        Z = nnls(A, D, l1=l1, l2=l2)
        assert (Z > 0).any()
        assert (Z == 0).any()

        def codes(A, D):
            return nnls(A, D, l1=l1, l2=l2)

        A.requires_grad_()
        D.requires_grad_()
        assert torch.autograd.gradcheck(codes, (A, D), atol=1e-6)
        if not signed:
            assert torch.autograd.gradgradcheck(lambda A, D: codes(A, D).square(), (A, D))


def test_tiles_of_rows_have_the_codes_of_all(monkeypatch):
    """A solver is kept from tile to tile, and every tile has its own groups of rows."""
    A, D = draw(40, 9, 6, False)
    A *= 10.0 ** torch.linspace(-20, 20, 40).double()[:, None]
    expected, info = nnls(A, D, l1=0.4, l2=0.1, return_info=True)
    monkeypatch.setattr(least_squares, "_SCRATCH", 63)
    ops = method_of("anls", backend="cpp" if "cpp" in backends_of("anls") else "torch").ops
    solver = LeastSquares(D, len(A), ops, least_squares.Penalty(0.4, 0.1), measures=True)
    assert solver.tile_rows == 7
    Z, found = solver(A)
    torch.testing.assert_close(Z, expected, rtol=1e-9, atol=0)
    assert torch.equal(found.status, info.status)
    assert torch.equal(found.support, info.support)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 10**6),
    st.floats(0, 3),
    st.floats(0, 3),
)
def test_any_small_problem_is_solved(d, K, signed, seed, l1, l2):
    A, D = draw(4, d, K, signed, seed=seed)
    Z, info = nnls(A, D, l1=l1, l2=l2, return_info=True)
    assert (exactness(A, D, Z, l1, l2) <= 1e-9).all()
    assert (info.status == SOLVED).all()
    least = least_penalised_squares(A, D, l1, l2)
    assert (penalised_squares(A, D, Z, l1, l2) <= least * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.4, 0.3)], ids=["plain", "penalised"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_BACKEND
def test_swept_rows_are_exact(weights, dtype, backend, monkeypatch):
    """Sweeps find most rows, and the solver those that they leave."""
    l1, l2 = weights
    A, D = (M.abs() for M in draw(40, 30, 8, False, dtype))
    monkeypatch.setattr(CodesCost, "sweeps_first", lambda self, n: True)
    Z, info = nnls(A, D, l1=l1, l2=l2, backend=backend, return_info=True)
    assert (Z >= 0).all()
    assert (info.status == SOLVED).all()
    assert float(info.kkt.max()) <= {torch.float32: 1e-6, torch.float64: 1e-9}[Z.dtype]
    assert (info.iterations == 0).any()
    monkeypatch.setattr(CodesCost, "sweeps_first", lambda self, n: False)
    expected = nnls(A.double(), D.double(), l1=l1, l2=l2, backend="torch")
    torch.testing.assert_close(Z.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["rows of any sign", "norms that differ"])
def test_rows_are_not_swept_where_that_does_not_show_that_they_are_exact(case, monkeypatch):
    A, D = (M.abs() for M in draw(40, 30, 8, False, "float32"))
    A = A - 0.2 * A.max() if case == "rows of any sign" else A
    D = D * torch.logspace(0, 3, len(D))[:, None] if case == "norms that differ" else D
    monkeypatch.setattr(CodesCost, "sweeps_first", lambda self, n: True)
    info = nnls(A, D, return_info=True)[1]
    assert (info.status == SOLVED).all()
    assert (info.iterations[info.support > 0] > 0).all()
