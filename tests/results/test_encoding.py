"""The summary of an encoding, and the warning where it did not converge."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from oracle import problem

from fastnmf import NMF, ConvergenceWarning
from fastnmf.solvers.registry import SOLVERS

PENALTIES = [{}, {"alpha_Z": 0.01, "l1_ratio": 0.5}]


def model(solver="hals", K=5, **options):
    A, _, D = problem(60, 20, K)
    return torch.tensor(A), NMF(K, solver=solver, **options).load_dictionary(torch.tensor(D))


def kkt_of(A, D, Z, l1, l2):
    """The KKT residual of each row, written out entry by entry."""
    A, D, Z = (np.asarray(M) for M in (A, D, Z))
    found = []
    for a, z in zip(A, Z, strict=True):
        slope = D @ (a - z @ D) - l1 - l2 * z
        scale = max(abs(D @ a) + abs(D @ D.T) @ z + l1)
        worst = max(max(slope.max(), 0), max(abs(slope[z > 0]), default=0))
        found.append(worst / scale)
    return np.array(found)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_summary_is_true(solver, penalty):
    A, nmf = model(solver, **penalty)
    for max_iter in (2, 3000):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Z, info = nmf.encode(A, max_iter, 1e-9, method="sweeps", return_info=True)
            assert torch.equal(Z, nmf.encode(A, max_iter, 1e-9, method="sweeps"))
        weight = 20 * penalty.get("alpha_Z", 0)
        expected = kkt_of(A, nmf.D, Z, 0.5 * weight, 0.5 * weight)
        np.testing.assert_allclose(info.kkt, expected, rtol=1e-6, atol=1e-14)
        error = float((A - Z @ nmf.D).norm() / A.norm())
        assert info.relative_error == pytest.approx(error)
        assert info.method == solver
        assert info.converged is (solver == "anls" or max_iter > 2)
        assert info.iterations <= (1 if solver == "anls" else max_iter)
        assert solver in str(info)
        # codes of mu are never zero, and a slope counts wherever they are not
        if info.converged and solver != "mu":
            assert float(info.kkt.max()) < 1e-5


def test_an_encoding_that_did_not_converge_warns():
    A, nmf = model("mu")
    with pytest.warns(ConvergenceWarning, match="not converged after max_iter=2") as caught:
        nmf.encode(A, max_iter=2, method="sweeps")
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # that many were asked for
        nmf.encode(A, max_iter=2, tol=0, method="sweeps")
        nmf.encode(A, max_iter=0, method="sweeps")
        nmf.encode(A, max_iter=2)
        model()[1].encode(A, method="sweeps")
        model("anls")[1].encode(A, method="sweeps")


def test_summary_of_any_shape_and_place(tmp_path):
    A, nmf = model()
    whole, info = nmf.encode(A, return_info=True)
    Z, shaped = nmf.encode(A.reshape(3, 4, 5, 20), return_info=True)
    assert Z.shape == (3, 4, 5, 5)
    assert shaped.kkt.shape == (60,)
    Z, filed = nmf.encode(A, codes=tmp_path / "Z.npy", return_info=True)
    np.testing.assert_allclose(Z, whole)
    for other in (shaped, filed):
        np.testing.assert_allclose(other.kkt, info.kkt, atol=1e-12)
        assert other.relative_error == pytest.approx(info.relative_error)
    empty, none = nmf.encode(A[:0], return_info=True)
    assert empty.shape == (0, 5)
    assert none.kkt.shape == (0,)
    assert none.relative_error == 0
    assert "0 rows" in str(none)


def test_summary_beside_a_gradient():
    A, nmf = model()
    A.requires_grad_()
    Z, info = nmf.encode(A, return_info=True)
    Z.sum().backward()
    assert A.grad.abs().sum() > 0
    assert not info.kkt.requires_grad
    with pytest.raises(TypeError, match="return_info='yes' must be True or False"):
        nmf.encode(A, return_info="yes")
