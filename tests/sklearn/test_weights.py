"""NMF of scikit-learn's interface: weights of samples, and missing values."""

from __future__ import annotations

import functools

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is an extra")
import scipy.sparse
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import fastnmf
from fastnmf.sklearn import NMF, MiniBatchNMF, non_negative_factorization

N, P, K = 80, 12, 2
DRAWN = np.random.default_rng(0)
X = DRAWN.random((N, K)) @ DRAWN.random((K, P)) + 0.01 * DRAWN.random((N, P))
SEEN = DRAWN.random((N, P)) < 0.7
HIDDEN = np.where(SEEN, X, np.nan)
START = {"W": DRAWN.random((N, K)), "H": DRAWN.random((K, P))}
MISSING = {"missing_values": np.nan}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn_passes_with_missing_values():
    check_estimator(NMF(**MISSING))


def test_missing_entries_have_the_weight_zero():
    options = {"max_iter": 30, "tol": 0, "init": "custom"}
    model = NMF(K, **options, **MISSING)
    W = model.fit_transform(HIDDEN, **START)
    own = fastnmf.NMF(K, init=(START["W"], START["H"]), max_iter=30, tol=0, stop="error")
    Z, D = own.fit(HIDDEN, weights=SEEN)
    assert np.array_equal(W, Z.numpy())
    assert np.array_equal(model.components_, D.numpy())
    error = np.sqrt(((X - W @ model.components_)[SEEN] ** 2).sum())
    assert model.reconstruction_err_ == pytest.approx(error, rel=1e-6)
    codes = own.encode(HIDDEN, weights=SEEN).numpy()
    assert np.allclose(model.transform(HIDDEN), codes, atol=1e-9)


def test_what_is_missing_is_predicted():
    """What issue 8447 of scikit-learn asks for, and pull request 8474 there proposes: NaN has no
    part in the loss, and is predicted, better than with an imputer in front of the model."""
    model = NMF(K, max_iter=500, tol=1e-8, random_state=0, **MISSING)
    filled = model.inverse_transform(model.fit_transform(HIDDEN))
    first = make_pipeline(SimpleImputer(), NMF(K, max_iter=500, tol=1e-8, random_state=0))
    other = first[-1].inverse_transform(first.fit_transform(HIDDEN))
    ours, theirs = (np.linalg.norm((X - Y)[~SEEN]) for Y in (filled, other))
    assert ours < 0.2 * theirs
    assert ours < 0.02 * np.linalg.norm(X[~SEEN])


def test_data_without_missing_values_are_fitted_as_before():
    found = [NMF(K, max_iter=20, random_state=0, **how).fit_transform(X) for how in ({}, MISSING)]
    assert np.array_equal(*found)


@pytest.mark.parametrize("init", ["nndsvda", "random", "custom"])
def test_every_start_takes_missing_values(init):
    given = {"H": START["H"]} if init == "custom" else {}
    model = NMF(K, init=init, max_iter=200, random_state=0, **MISSING)
    W = model.fit_transform(HIDDEN, **given)
    assert np.linalg.norm((X - W @ model.components_)[SEEN]) < 0.05 * np.linalg.norm(X[SEEN])


@pytest.mark.parametrize("call", ["fit", "fit_transform", "transform", "function"])
def test_nan_without_the_option_is_an_error_that_names_it(call):
    """In issue 25229 of scikit-learn data with NaN end in a message that says nothing of what to do
    within the model."""
    model = NMF(K, random_state=0).fit(X)
    if call == "function":
        run = functools.partial(non_negative_factorization, n_components=K)
    else:
        run = getattr(model, call)
    with pytest.raises(ValueError, match=r"contains NaN.*missing_values=np\.nan"):
        run(HIDDEN)


def test_spectra_that_are_normalised_by_dead_channels_and_dark_pixels():
    """Issue 24573 of scikit-learn: maps of spectra, each count divided by the roots of the means of
    its pixel and its channel, are NaN where these saw nothing, and end in an error."""
    drawn = np.random.default_rng(0)
    counts = drawn.gamma(1.0, size=(60, K)) @ drawn.random((K, 12)) * 100
    counts[[4, 9]], counts[:, 3] = 0, 0
    scale = np.sqrt(counts.mean(1, keepdims=True) * counts.mean(0))
    with np.errstate(invalid="ignore"):
        spectra = counts / scale
    assert np.isnan(spectra).any()
    with pytest.raises(ValueError, match="NaN"):
        NMF(K, random_state=0).fit(spectra)
    model = NMF(K, max_iter=2000, tol=1e-7, random_state=0, **MISSING)
    with pytest.warns(UserWarning, match="2 rows"):
        W = model.fit_transform(spectra)
    assert not W[[4, 9]].any()
    seen = ~np.isnan(spectra)
    left = (spectra - W @ model.components_)[seen]
    assert np.linalg.norm(left) < 0.01 * np.linalg.norm(spectra[seen])


def test_the_function_and_infinities():
    W, H, _ = non_negative_factorization(HIDDEN, n_components=K, max_iter=200, **MISSING)
    assert np.linalg.norm((X - W @ H)[SEEN]) < 0.1 * np.linalg.norm(X[SEEN])
    infinite = HIDDEN.copy()
    infinite[0, 0] = np.inf
    for model in (NMF(K, **MISSING), MiniBatchNMF(K)):
        with pytest.raises(ValueError, match="infinity"):
            model.fit(np.where(np.isnan(infinite), 0, infinite))
    with pytest.raises(ValueError, match="infinity"):
        NMF(K, **MISSING).fit(infinite)
    negative = HIDDEN.copy()
    negative[0, 0] = -1
    with pytest.raises(ValueError, match="negative"):
        NMF(K, **MISSING).fit(negative)


def test_nan_that_a_sparse_matrix_stores_is_refused():
    sparse = scipy.sparse.csr_array(np.where(np.arange(P) < 3, HIDDEN, 0))
    with pytest.raises(ValueError, match="NaN"):
        NMF(K, **MISSING).fit(sparse)


def test_whole_weights_of_samples_are_copies():
    counts = DRAWN.integers(0, 4, N)
    options = {"init": "custom", "max_iter": 15, "tol": 0}
    model = NMF(K, **options)
    W = model.fit_transform(X, **START, sample_weight=counts)
    copied = NMF(K, **options)
    start = {"W": START["W"].repeat(counts, 0), "H": START["H"]}
    codes = copied.fit_transform(X.repeat(counts, 0), **start)
    assert np.allclose(model.components_, copied.components_, rtol=1e-6)
    assert np.allclose(W.repeat(counts, 0), codes, atol=1e-6)
    assert model.reconstruction_err_ == pytest.approx(copied.reconstruction_err_, rel=1e-6)
    sparse = NMF(K, **options).fit(scipy.sparse.csr_array(X), **START, sample_weight=counts)
    assert sparse.reconstruction_err_ == pytest.approx(model.reconstruction_err_, rel=1e-6)


def test_weights_of_samples_go_with_missing_values():
    weights = DRAWN.random(N) + 0.1
    model = NMF(K, init="custom", max_iter=20, tol=0, **MISSING)
    W = model.fit_transform(HIDDEN, **START, sample_weight=weights)
    own = fastnmf.NMF(K, init=(START["W"], START["H"]), max_iter=20, tol=0, stop="error")
    Z, _ = own.fit(HIDDEN, weights=SEEN * weights[:, None])
    assert np.array_equal(W, Z.numpy())


@pytest.mark.parametrize("weights", [np.ones(N - 1), -np.ones(N), np.full(N, np.nan)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="sample_weight"):
        NMF(K).fit(X, sample_weight=weights)


def test_the_option_is_a_parameter():
    model = clone(NMF(K, **MISSING))
    assert np.isnan(model.get_params()["missing_values"])
    with pytest.raises(ValueError, match="missing_values"):
        NMF(K, missing_values=0).fit(X)
