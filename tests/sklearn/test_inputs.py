"""Inputs of the estimators that scikit-learn's checks do not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
sparse = pytest.importorskip("scipy.sparse", reason="scipy is an extra")

from fastnmf.sklearn import NMF, MiniBatchNMF, non_negative_factorization  # noqa: E402
from fastnmf.sklearn.inputs import readable  # noqa: E402

OPTIONS = {"n_components": 3, "random_state": 0, "max_iter": 10, "tol": 0}


def numbers(n=40, d=12):
    X = np.random.default_rng(0).random((n, d))
    return np.where(X > 0.6, X, 0)


class OfAnotherLibrary:
    """An array that has DLPack alone."""

    def __init__(self, X):
        self._X = torch.from_numpy(X)

    def __dlpack__(self, **options):
        return self._X.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._X.__dlpack_device__()


class OfCells:
    """What an AnnData has, as fastnmf knows it."""

    obs = var = layers = None

    def __init__(self, X):
        self.X = X


FORMS = {
    "csr": lambda X: torch.from_numpy(X).to_sparse_csr(),
    "csc": lambda X: torch.from_numpy(X).to_sparse_csc(),
    "coo": lambda X: torch.from_numpy(X).to_sparse_coo(),
    "gradient": lambda X: torch.from_numpy(X).clone().requires_grad_(),
    "dlpack": OfAnotherLibrary,
    "cells": lambda X: OfCells(sparse.csr_matrix(X)),
}


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support:UserWarning")
@pytest.mark.parametrize("kind", [NMF, MiniBatchNMF])
@pytest.mark.parametrize("form", FORMS)
def test_results_are_those_of_the_array(form, kind):
    X = numbers()
    given = FORMS[form](X)
    expected, model = (kind(**OPTIONS).fit(each) for each in (X, given))
    np.testing.assert_allclose(model.components_, expected.components_, atol=1e-9)
    np.testing.assert_allclose(model.transform(given), expected.transform(X), atol=1e-9)
    assert isinstance(model.transform(given), np.ndarray)


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support:UserWarning")
def test_function_takes_them():
    X = numbers()
    for form in ("csr", "gradient"):
        W, H, _ = non_negative_factorization(FORMS[form](X), **OPTIONS)
        expected, *_ = non_negative_factorization(X, **OPTIONS)
        np.testing.assert_allclose(W, expected, atol=1e-9)
        again, *_ = non_negative_factorization(FORMS[form](X), H=H, update_H=False, **OPTIONS)
        assert again.shape == W.shape


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support:UserWarning")
def test_dtypes_are_those_that_scikit_learn_computes_in():
    X = torch.tensor([[1, 0, 2], [0, 3, 0]])
    assert readable(X.to_sparse_csr()).dtype == np.float64
    assert readable(X.bfloat16()).dtype == np.float32
    assert readable(X.float().to_sparse_coo()).dtype == np.float32
    np.testing.assert_array_equal(readable(X.to_sparse_coo()).toarray(), X.numpy())


def test_bad_values_of_a_sparse_tensor_are_named_as_those_of_an_array():
    X = torch.from_numpy(-numbers()).to_sparse_coo()
    with pytest.raises(ValueError, match="Negative values"):
        NMF(3).fit(X)


def test_codes_that_are_a_tensor_are_decoded():
    model = NMF(**OPTIONS).fit(numbers())
    W = model.transform(numbers())
    found = model.inverse_transform(torch.from_numpy(W).requires_grad_())
    np.testing.assert_array_equal(found, model.inverse_transform(W))
