"""encode with at most k concepts a row."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastnmf import NMF, InvalidInput, nnls
from fastnmf.solvers.penalties import Penalty
from fastnmf.solvers.supports.pursuit import support_kkt


def model_and_data(dtype=torch.float64, n=20, d=30, K=50, **options):
    g = torch.Generator().manual_seed(0)
    D, A = (torch.rand(*shape, generator=g, dtype=dtype) for shape in ((K, d), (n, d)))
    return NMF(K, **options).load_dictionary(D), A, D


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["hals", "anls"])
def test_codes_are_those_of_nnls_and_the_info_is_of_their_support(solver, dtype):
    nmf, A, D = model_and_data(dtype, solver=solver)
    Z, info = nmf.encode(A, top_k=4, return_info=True)
    assert ((Z > 0).sum(1) <= 4).all()
    torch.testing.assert_close(Z, nnls(A, D, top_k=4))
    assert info.method == "pursuit"
    assert info.converged
    assert info.iterations >= 4
    torch.testing.assert_close(info.kkt, support_kkt(A, D, Z))
    exact = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert (info.kkt <= exact).all()


def test_errors_fall_to_those_of_exact_codes():
    nmf, A, D = model_and_data()
    exact = nmf.encode(A)
    errors = [(A - nmf.encode(A, top_k=k) @ D).square().sum() for k in (1, 2, 4, 8, 16, 30, 99)]
    assert all(after <= before for before, after in itertools.pairwise(errors))
    torch.testing.assert_close(nmf.encode(A, top_k=99), exact)
    assert nmf.encode(A, top_k=99, return_info=True)[1].method != "pursuit"


def test_penalties_are_those_of_the_model():
    nmf, A, D = model_and_data(alpha_Z=0.01, l1_ratio=0.5)
    Z, info = nmf.encode(A, top_k=3, return_info=True)
    assert (info.kkt <= 1e-12).all()
    penalty = Penalty(0.005 * 30, 0.005 * 30)
    assert (support_kkt(A, D, Z, penalty) <= 1e-12).all()
    assert not (support_kkt(A, D, Z) <= 1e-6).any()


def test_curved_solutions_with_more_concepts_than_features_are_cut():
    nmf, A, _ = model_and_data(d=3, K=12, alpha_Z=1.0)
    full = nmf.encode(A)
    assert ((full > 0).sum(1) > 4).any()
    assert ((nmf.encode(A, top_k=4) > 0).sum(1) <= 4).all()
    torch.testing.assert_close(nmf.encode(A, top_k=12), full)


def test_leading_dimensions_and_files_are_kept(tmp_path):
    nmf, A, _ = model_and_data()
    Z = nmf.encode(A, top_k=3)
    assert torch.equal(nmf.encode(A.reshape(4, 5, 30), top_k=3), Z.reshape(4, 5, 50))
    assert torch.equal(nmf.encode(A, top_k=3, codes=tmp_path / "Z.npy"), Z)
    assert nmf.encode(A[:0], top_k=3).shape == (0, 50)


def test_the_gradient_is_that_of_the_support():
    nmf, A, D = model_and_data(n=6)
    X = A.clone().requires_grad_()
    Z = nmf.encode(X, top_k=3)
    weights = torch.rand(Z.shape, generator=torch.Generator().manual_seed(1), dtype=Z.dtype)
    (Z * weights).sum().backward()
    for i in range(len(A)):
        S = (Z[i] > 0).nonzero()[:, 0]
        expected = torch.linalg.solve(D[S] @ D[S].T, weights[i, S]) @ D[S]
        torch.testing.assert_close(X.grad[i], expected)
    assert torch.autograd.gradcheck(lambda X: nmf.encode(X, top_k=3), A.requires_grad_())


def test_top_k_is_checked_and_goes_with_nothing_that_it_would_ignore():
    nmf, A, _ = model_and_data()
    with pytest.raises(InvalidInput, match="top_k=0 must be at least 1"):
        nmf.encode(A, top_k=0)
    with pytest.raises(InvalidInput, match="top_k=2 and Z0 cannot be combined"):
        nmf.encode(A, top_k=2, Z0=torch.zeros(20, 50))
    for method in ("sweeps", "exact"):
        with pytest.raises(InvalidInput, match=f"top_k=2 and method='{method}' cannot"):
            nmf.encode(A, top_k=2, method=method)
