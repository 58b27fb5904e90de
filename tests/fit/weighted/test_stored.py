"""Fits and codes in which the stored entries of a sparse A are observed, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from fastnmf import NMF, nnls
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
N, P, K = 150, 40, 2
SEEN = torch.rand(N, P, generator=DRAWN) < 0.4
TRUTH = (torch.rand(N, K, generator=DRAWN) @ torch.rand(K, P, generator=DRAWN)).double()
# zeros that are stored are values
TRUTH[:, 4] = 0.0
PLACES = SEEN.numpy().nonzero()
STORED = scipy.sparse.csr_array((TRUTH.numpy()[PLACES], PLACES), shape=(N, P))
START = torch.rand(N, K).double(), torch.rand(K, P).double()


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_a_fit_is_that_of_the_mask(backend):
    how = {"init": START, "tol": 0.0, "max_iter": 20, "accelerate": False, "backend": backend}
    sparse, dense = NMF(K, **how), NMF(K, **how)
    Z, D = sparse.fit(STORED, weights="stored")
    Y, E = dense.fit(torch.where(SEEN, TRUTH, torch.nan), weights=SEEN)
    assert torch.allclose(Z, Y, atol=1e-8)
    assert torch.allclose(D, E, atol=1e-8)
    for name in ("relative_error", "r_squared", "mean_l0"):
        one, other = (getattr(m.fit_info_, name) for m in (sparse, dense))
        assert one == pytest.approx(other, rel=1e-6), name
    assert sparse.fit_info_.weights == "stored"


def test_what_is_not_stored_is_predicted():
    nmf = NMF(K, seed=0, tol=0)
    Z, D = nmf.fit(STORED.astype(np.float32), 500, weights="stored")
    error = (Z @ D - TRUTH)[~SEEN].norm() / TRUTH[~SEEN].norm()
    assert float(error) < 0.05
    plain = NMF(K, seed=0)
    plain.fit(STORED.astype(np.float32))
    assert plain.fit_info_.relative_error > 10 * nmf.fit_info_.relative_error


def test_codes_are_those_of_the_mask():
    X = torch.where(SEEN, TRUTH, torch.nan)
    D = START[1]
    assert torch.allclose(nnls(STORED, D, weights="stored"), nnls(X, D, weights=SEEN))
    nmf = NMF(K).load_dictionary(D)
    Z, info = nmf.encode(STORED, weights="stored", return_info=True)
    assert torch.allclose(Z, nmf.encode(X, weights=SEEN))
    assert float(info.kkt.max()) < 1e-12


def test_ratings_that_are_not_stored_are_unknown_not_zero():
    """Issue 25229 of scikit-learn: ratings in a sparse matrix, of which NaN, or what is not stored,
    is to have no part in the loss. A NaN that is stored is an error that says what to do."""
    unknown = STORED.copy()
    unknown.data[::5] = np.nan
    with pytest.raises(InvalidInput, match="nan"):
        NMF(K).fit(unknown, weights="stored")
    rows, columns = PLACES
    kept = ~np.isnan(unknown.data)
    places = rows[kept], columns[kept]
    rated = scipy.sparse.csr_array((unknown.data[kept], places), shape=(N, P))
    nmf = NMF(K, seed=0, tol=0)
    Z, D = nmf.fit(rated, 300, weights="stored")
    left = np.isnan(unknown.data)
    wanted = TRUTH.numpy()[rows[left], columns[left]]
    found = (Z @ D).numpy()[rows[left], columns[left]]
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_dense_matrix_stores_nothing():
    with pytest.raises(InvalidInput, match="dense"):
        NMF(K).fit(TRUTH, weights="stored")
