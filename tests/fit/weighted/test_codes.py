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


@pytest.mark.parametrize(
    "how", [{"method": "sweeps"}, {"top_k": 2}, {"refit": True}, {"max_iter": 0}]
)
def test_what_needs_one_gram_matrix_is_refused(how):
    with pytest.raises(InvalidInput, match="weights of entries"):
        NMF(4).load_dictionary(D).encode(HIDDEN, weights=W, **how)


def test_a_gradient_is_refused():
    with pytest.raises(InvalidInput, match="gradient"):
        nnls(A.clone().requires_grad_(), D, weights=W)


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
