"""Codes of rows whose entries have weights: encode and nnls."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from fastnmf import NMF, SemiNMF, nnls
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
A, D = torch.rand(20, 9, generator=DRAWN), torch.rand(4, 9, generator=DRAWN)
W = torch.rand(20, 9, generator=DRAWN) * (torch.rand(20, 9, generator=DRAWN) > 0.3)
W[5] = 0
HIDDEN = torch.where(W > 0, A, torch.nan)
EACH = torch.cat([nnls(A[i, None] * W[i].sqrt(), D * W[i].sqrt()) for i in range(20)])


def test_codes_are_those_of_each_row_by_itself():
    nmf = NMF(4).load_dictionary(D)
    Z, info = nmf.encode(HIDDEN, weights=W, return_info=True)
    assert torch.allclose(Z, EACH, atol=1e-5)
    assert info.converged
    assert float(info.kkt.max()) < 1e-6
    error = (W * (A - Z @ D).square()).sum() / (W * A.square()).sum()
    assert info.relative_error == pytest.approx(float(error.sqrt()), rel=1e-4)
    found, each = nnls(HIDDEN, D, weights=W, return_info=True)
    assert torch.allclose(found, EACH, atol=1e-5)
    assert bool((each.status == 0).all())
    assert not found[5].any()


def test_a_start_does_not_change_them():
    Z0 = torch.rand(20, 4)
    assert torch.allclose(nnls(HIDDEN, D, Z0, weights=W), EACH, atol=1e-5)


def test_the_penalty_is_the_same_for_all_rows():
    Z = NMF(4, alpha_Z=0.02, l1_ratio=0.5).load_dictionary(D).encode(HIDDEN, weights=W)
    expected = [
        nnls(A[i, None] * W[i].sqrt(), D * W[i].sqrt(), l1=0.09, l2=0.09) for i in range(20)
    ]
    assert torch.allclose(Z, torch.cat(expected), atol=1e-5)


def test_weights_of_rows_with_a_penalty_are_those_of_their_entries():
    rows = W[:, :1] + 0.1
    how = {"l1": 0.1, "l2": 0.2}
    one, other = nnls(A, D, weights=rows, **how), nnls(A, D, weights=rows.expand(20, 9), **how)
    assert torch.allclose(one, other)


def test_an_offset_is_subtracted():
    b = torch.full((9,), 0.2)
    model = SemiNMF(4, offset=True).load_dictionary(D - 0.5, b)
    Z = model.encode(HIDDEN, weights=W)
    each = [nnls((A[i, None] - b) * W[i].sqrt(), (D - 0.5) * W[i].sqrt()) for i in range(20)]
    assert torch.allclose(Z, torch.cat(each), atol=1e-4)


@pytest.mark.parametrize("how", [{"method": "sweeps"}, {"max_iter": 0}])
def test_what_is_not_exact_is_refused(how):
    with pytest.raises(InvalidInput, match="weights of entries"):
        NMF(4).load_dictionary(D).encode(HIDDEN, weights=W, **how)
    with pytest.raises(InvalidInput, match="do not go with max_iter"):
        nnls(HIDDEN, D, weights=W, max_iter=3)


def test_target_l0_is_refused_with_what_to_do():
    model = NMF(4, target_l0=2).load_dictionary(D)
    with pytest.raises(InvalidInput, match=r"give top_k=…, or take a model with a penalty: NMF\(K"):
        model.encode(HIDDEN, weights=W)
    assert int((model.encode(HIDDEN, weights=W, top_k=2) > 0).sum(1).max()) <= 2


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_at_most_k_concepts_are_those_of_each_row_by_itself(k):
    seen = W > 0
    B, observed = D.double(), A.double()
    Z, info = NMF(4).load_dictionary(B).encode(HIDDEN, weights=seen, top_k=k, return_info=True)
    each = [nnls(observed[i, s][None], B[:, s], top_k=k) for i, s in enumerate(seen) if s.any()]
    assert torch.allclose(Z[seen.any(1)], torch.cat(each), atol=1e-9)
    assert info.method == "pursuit"
    assert float(info.kkt.max()) < 1e-12
    found, said = nnls(HIDDEN, B, weights=seen, top_k=k, return_info=True)
    assert torch.equal(found, Z)
    assert torch.equal(said.support, (Z > 0).sum(1).int())


def test_codes_of_a_model_with_top_k_are_exchanged_as_without_weights():
    drawn = torch.Generator().manual_seed(1)
    B = torch.rand(16, 9, generator=drawn, dtype=torch.float64)
    X = torch.rand(40, 9, generator=drawn, dtype=torch.float64)
    model, plain = NMF(16, top_k=3).load_dictionary(B), NMF(16).load_dictionary(B)
    ones = torch.ones(40, 9)
    losses = [
        (X - Z @ B).square().sum(1)
        for Z in (model.encode(X), model.encode(X, weights=ones), plain.encode(X, top_k=3))
    ]
    assert torch.allclose(losses[1], losses[0], rtol=1e-9)
    assert bool((losses[1] <= losses[2] * (1 + 1e-9)).all())
    assert bool((losses[1] < 0.999 * losses[2]).any())


def test_refit_is_the_least_squares_on_the_support_without_the_penalty():
    model = NMF(4, alpha_Z=0.03, l1_ratio=1.0).load_dictionary(D)
    Z = model.encode(HIDDEN, weights=W)
    again, info = model.encode(HIDDEN, weights=W, refit=True, return_info=True)
    assert info.method == "exact, then refit"
    assert float(info.kkt.max()) < 1e-6
    assert not bool(((again > 0) & (Z == 0)).any())
    for i in range(20):
        used, root = Z[i] > 0, W[i].sqrt()
        expected = nnls(A[i, None] * root, D[used] * root)
        assert torch.allclose(again[i, used], expected[0], atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"refit": True}])
@pytest.mark.parametrize("penalty", [{}, {"alpha_Z": 0.02, "l1_ratio": 0.5}])
@pytest.mark.parametrize("kind", ["entries", "mask", "rows"])
def test_codes_have_the_gradient_of_the_optimum(how, penalty, kind):
    weights = {"entries": W, "mask": W > 0, "rows": W[:, :1] + 0.1}[kind][:5].double()
    model = NMF(4, **penalty).load_dictionary(D.double())
    X = A[:5].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda X: model.encode(X, weights=weights, **how), (X,))


def test_an_offset_changes_no_gradient_and_what_is_missing_has_none():
    b = torch.full((9,), 0.2, dtype=torch.float64)
    model = SemiNMF(4, offset=True).load_dictionary(D.double() - 0.5, b)
    X, weights = A[:4].double(), (W > 0)[:4]
    assert torch.autograd.gradcheck(
        lambda X: model.encode(X, weights=weights), (X.clone().requires_grad_(),)
    )
    X = torch.where(weights, X, torch.nan).requires_grad_()
    model.encode(X, weights=weights).sum().backward()
    assert X.grad.isfinite().all()
    assert not X.grad[~weights].any()


def test_nnls_has_gradients_in_A_and_D_any_number_of_times():
    X, B = A[:4].double().requires_grad_(), D.double().requires_grad_()
    weights = W[:4].double() + 0.1

    def codes(X, B):
        return nnls(X, B, weights=weights, l2=0.1)

    assert torch.autograd.gradcheck(codes, (X, B))
    assert torch.autograd.gradgradcheck(codes, (X, B))


def test_a_gradient_where_there_is_none_is_refused(tmp_path):
    X = A.clone().requires_grad_()
    model = NMF(4).load_dictionary(D)
    with pytest.raises(InvalidInput, match="only where all is in memory"):
        model.encode(X, weights=W, codes=tmp_path / "Z.npy")
    with pytest.raises(InvalidInput, match="for dense A and dense weights only"):
        nnls(X, D, weights=scipy.sparse.csr_array(W.numpy()))


@pytest.mark.parametrize("penalty", [{}, {"alpha_Z": 0.02}])
def test_weights_of_rows_go_with_an_offset(penalty):
    b = torch.full((9,), 0.2, dtype=torch.float64)
    model = SemiNMF(4, offset=True, **penalty).load_dictionary(D.double() - 0.5, b)
    rows = torch.ones(20, 1)
    rows[3] = 0
    Z, plain = model.encode(A.double(), weights=rows), model.encode(A.double())
    plain[3] = 0
    assert torch.allclose(Z, plain, atol=1e-9)


def test_one_weight_for_all_is_refused_with_what_to_write():
    with pytest.raises(InvalidInput, match=r"such as weights\.expand\(20, 1\)"):
        nnls(A[:, :1], D[:, :1], weights=torch.ones(1, 1))


MODEL = NMF(4).load_dictionary(D)
KINDS = {"rows": W[:, :1] + 0.1, "features": W[:1] + 0.1, "entries": W}


@pytest.mark.parametrize("given", ["memory", "npy", "map", "batches", "once"])
@pytest.mark.parametrize("codes", ["memory", "sparse", "Z.npy", "Z.npz"])
def test_rows_are_read_from_and_written_to_files(given, codes, tmp_path):
    np.save(tmp_path / "A.npy", HIDDEN.numpy())
    np.save(tmp_path / "W.npy", W.numpy())
    inputs = {
        "memory": (HIDDEN, W),
        "npy": (tmp_path / "A.npy", tmp_path / "W.npy"),
        "map": tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "AW"),
        "batches": ([*HIDDEN.split(7)], W),
        "once": (iter(HIDDEN.split(7)), W),
    }
    X, weights = inputs[given]
    place = tmp_path / codes if "." in codes else codes
    Z, info = MODEL.encode(X, weights=weights, codes=place, return_info=True)
    Z = Z if Z.layout == torch.strided else Z.to_dense()
    assert torch.allclose(Z, EACH, atol=1e-5)
    assert len(info.kkt) == len(A)
    X = HIDDEN if given == "once" else X
    other = nnls(X, D, weights=weights, codes=place)
    assert torch.equal(other if other.layout == torch.strided else other.to_dense(), Z)


def test_weights_have_the_leading_dimensions_of_the_rows():
    for weights in KINDS.values():
        Z = MODEL.encode(A, weights=weights)
        for function in (MODEL.encode, lambda X, weights: nnls(X, D, weights=weights)):
            shaped = weights if len(weights) == 1 else weights.reshape(4, 5, -1)
            found = function(A.reshape(4, 5, 9), weights=shaped)
            assert torch.allclose(found, Z.reshape(4, 5, 4), atol=1e-5)
            found = function(A.reshape(4, 5, 9).numpy(), weights=weights.numpy())
            assert torch.allclose(found, Z.reshape(4, 5, 4), atol=1e-5)
            one = function(A[0], weights=weights[0] if weights.shape[1] > 1 else weights[:1])
            assert torch.allclose(one, Z[0], atol=1e-5)
            assert torch.allclose(function(A[:1], weights=weights[:1]), Z[:1], atol=1e-5)


def test_no_rows_have_no_codes():
    for weights in KINDS.values():
        for some in {len(weights[:1]), 0}:
            assert MODEL.encode(A[:0], weights=weights[:some]).shape == (0, 4)
            assert nnls(A[:0], D, weights=weights[:some]).shape == (0, 4)
    with pytest.raises(InvalidInput, match=r"shape \(20, 9\), A has \(0, 9\)"):
        MODEL.encode(A[:0], weights=W)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (20, 5), (5, 9)])
def test_weights_of_another_shape_are_refused(shape):
    for function in (MODEL.encode, lambda X, weights: nnls(X, D, weights=weights)):
        with pytest.raises(InvalidInput, match="weights have shape"):
            function(A, weights=torch.ones(shape))


def test_a_start_may_be_sparse():
    Z0 = scipy.sparse.csr_array(EACH.numpy())
    assert torch.allclose(MODEL.encode(HIDDEN, Z0=Z0, weights=W), EACH, atol=1e-5)
    with pytest.raises(InvalidInput, match="Z0 has 3 rows, A has 20"):
        MODEL.encode(HIDDEN, Z0=EACH[:3], weights=W)


def test_weights_have_no_gradient():
    with pytest.raises(InvalidInput, match="weights require a gradient"):
        nnls(A, D, weights=KINDS["features"].clone().requires_grad_())


def test_dictionaries_of_no_concepts_and_of_no_matrix():
    for weights in KINDS.values():
        assert nnls(A, D[:0], weights=weights).shape == (20, 0)
    for how in ({}, {"weights": W}):
        with pytest.raises(InvalidInput, match=r"D has shape \(9,\)"):
            nnls(A, D[0], **how)
