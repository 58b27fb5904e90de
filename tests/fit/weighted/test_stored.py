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


def test_zeros_that_are_stored_count_in_the_error():
    X = STORED.copy()
    # other than in TRUTH, the factors are not zero there
    X.data[::5] = 0
    values = torch.zeros(N, P, dtype=torch.float64)
    values[PLACES] = torch.from_numpy(X.data)
    for options in ({}, {"alpha_Z": 0.01}, {"n_init": 2}):
        nmf = NMF(K, seed=0, **options)
        Z, D = nmf.fit(X, 30, weights="stored")
        error = (SEEN * (values - Z @ D)).norm() / values.norm()
        assert nmf.fit_info_.relative_error == pytest.approx(float(error), rel=1e-6)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_files_are_read_with_the_zeros_that_they_store(kind, tmp_path):
    path = tmp_path / "A.npz"
    scipy.sparse.save_npz(path, STORED.asformat(kind))
    known, found = NMF(K, seed=0), NMF(K, seed=0)
    known.fit(STORED, 5, weights="stored")
    found.fit(path, 5, weights="stored")
    assert torch.equal(known.D, found.D)
    Z = known.encode(STORED, weights="stored")
    assert torch.equal(known.encode(path, weights="stored", codes=tmp_path / "Z.npy"), Z)


def test_a_matrix_that_stores_nothing_is_refused(tmp_path):
    for function in (NMF(2).fit, NMF(2).load_dictionary(torch.ones(2, 4)).encode):
        with pytest.raises(InvalidInput, match="A stores no entry"):
            function(scipy.sparse.csr_array((5, 4)), weights="stored")
    np.save(tmp_path / "A.npy", np.ones((3, 2)))
    with pytest.raises(InvalidInput, match="A is dense; give a mask"):
        NMF(2).fit(tmp_path / "A.npy", weights="stored")
