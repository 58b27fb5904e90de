"""Entries that are observed because they are stored: of A, or of sparse weights."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from fastnmf import NMF
from fastnmf.data.arrays import Expected
from fastnmf.data.weights.given import read_weights
from fastnmf.data.weights.stored import stored_entries
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
N, P, K = 60, 12, 2
SEEN = torch.rand(N, P, generator=DRAWN) < 0.6
TRUTH = (torch.rand(N, K, generator=DRAWN) @ torch.rand(K, P, generator=DRAWN)).double()
PLACES = SEEN.numpy().nonzero()
START = torch.rand(N, K).double(), torch.rand(K, P).double()


def test_values_are_those_at_the_places_of_the_weights():
    W = scipy.sparse.csr_array(([2.0, 1.0, 3.0], ([0, 0, 2], [1, 3, 0])), shape=(3, 4))
    # at one of these places nothing is stored, elsewhere what cannot be used
    A = scipy.sparse.csr_array(([5.0, np.nan, 7.0], ([0, 1, 2], [3, 1, 0])), shape=(3, 4))
    for X in (A, A.toarray()):
        found = stored_entries(X, read_weights(W), Expected(), torch.device("cpu"))
        assert found.X.values.tolist() == [0.0, 5.0, 7.0]
        assert found.W.values.tolist() == [2.0, 1.0, 3.0]


def sparse_weights(kind):
    weights = scipy.sparse.csr_array((np.arange(len(PLACES[0])) % 3 * 0.5, PLACES), shape=(N, P))
    return (
        weights.asformat(kind)
        if kind != "torch"
        else torch.from_numpy(weights.toarray()).to_sparse()
    )


@pytest.mark.parametrize("kind", ["csr", "coo", "torch"])
def test_sparse_weights_are_those_of_the_dense_matrix(kind, tmp_path):
    W = sparse_weights(kind)
    dense = torch.from_numpy(W.toarray()) if kind != "torch" else W.to_dense()
    hidden = torch.where(dense > 0, TRUTH, torch.nan)
    how = {"init": START, "tol": 0.0, "max_iter": 20, "accelerate": False}
    known = NMF(K, **how)
    Z, D = known.fit(hidden, weights=dense)
    np.save(tmp_path / "A.npy", hidden.numpy())
    for X in (hidden, hidden.numpy(), scipy.sparse.csr_array(TRUTH.numpy()), tmp_path / "A.npy"):
        nmf = NMF(K, **how)
        Y, E = nmf.fit(X, weights=W)
        assert torch.allclose(Y, Z, atol=1e-8)
        assert torch.allclose(E, D, atol=1e-8)
        assert nmf.fit_info_.relative_error == pytest.approx(known.fit_info_.relative_error)
        codes = nmf.encode(X, weights=W)
        assert torch.allclose(codes, known.encode(hidden, weights=dense), atol=1e-8)


def test_sparse_weights_that_cannot_be_used_are_refused(tmp_path):
    W = sparse_weights("csr")
    scipy.sparse.save_npz(tmp_path / "W.npz", W)
    assert NMF(2, max_iter=2).fit(TRUTH, weights=tmp_path / "W.npz")[0].shape == (N, 2)
    with pytest.raises(InvalidInput, match=r"shape \(60, 12\), A has \(60, 11\)"):
        NMF(2).fit(TRUTH[:, 1:], weights=W)
    X, (i, j) = TRUTH.clone(), (part[-1] for part in (W > 0).nonzero())
    X[i, j] = torch.nan
    with pytest.raises(InvalidInput, match="A has 1 nan or inf entry"):
        NMF(2).fit(X, weights=W)
    W.data[7] = -1
    with pytest.raises(InvalidInput, match=f"row {PLACES[0][7]}, column {PLACES[1][7]}: −1"):
        NMF(2).fit(TRUTH, weights=W)
    # of rows and of features
    for shape in ((N, 1), (1, P)):
        one = scipy.sparse.csr_array(np.ones(shape))
        assert NMF(2, max_iter=2).fit(TRUTH, weights=one)[0].shape == (N, 2)
