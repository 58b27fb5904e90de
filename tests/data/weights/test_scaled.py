"""Rows and features that are scaled for their weights, whatever A is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import streams
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import NMF
from fastnmf.data.weights.given import read_weights
from fastnmf.data.weights.scaled import Scale, scaled
from fastnmf.errors import InvalidInput

A = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
R = torch.tensor([1.0, 0.0, 4.0] * 4)[:, None]
C = torch.tensor([[1.0, 2.0, 0.0, 1.0, 9.0]])
START = torch.rand(12, 2), torch.rand(2, 5)


def kinds(tmp_path):
    """A as all that a fit reads, with NaN where weights of rows are 0."""
    X = torch.where(R > 0, A, torch.nan)
    np.save(tmp_path / "A.npy", X.numpy())
    return {
        "tensor": X,
        "array": X.numpy(),
        "lists": X.tolist(),
        "path": tmp_path / "A.npy",
        "map": np.load(tmp_path / "A.npy", mmap_mode="r"),
        "loader": DataLoader(TensorDataset(X), batch_size=5),
        "batches": [*X.split(5)],
        "generator": iter(X.split(5)),
        "sparse": scipy.sparse.csr_array(X.numpy()),
        "sparse tensor": X.to_sparse_csr(),
    }


@pytest.mark.filterwarnings("ignore:.*rows? of A ha")
def test_every_kind_of_data_is_scaled(tmp_path):
    expected = NMF(2, init=(START[0] * R.sqrt(), START[1]), max_iter=3, tol=0)
    _, D = expected.fit(A * R.sqrt())
    for name, X in kinds(tmp_path).items():
        Z, other = NMF(2, init=START, max_iter=3, tol=0).fit(X, weights=R)
        assert torch.allclose(other.float(), D, atol=1e-5), name
        assert bool((Z[R[:, 0] == 0] == 0).all()), name
        assert bool((Z[R[:, 0] > 0] > 0).any()), name


def test_a_nan_that_has_a_weight_is_an_error(tmp_path):
    for name, X in kinds(tmp_path).items():
        with pytest.raises(InvalidInput, match="nan"):
            NMF(2, max_iter=1).fit(X, weights=torch.ones(1, 5))
        assert name


@pytest.mark.filterwarnings("ignore:.*rows? of A ha")
def test_passes_over_a_file_give_the_fit_in_memory(tmp_path):
    np.save(tmp_path / "A.npy", streams.A.numpy())
    weights = (torch.arange(streams.N) % 3)[:, None]
    how = {"init": "random", "seed": 0, "max_iter": 5, "tol": 0.0, "accelerate": False}
    whole = NMF(streams.K, **how)
    Z, D = whole.fit(streams.A, weights=weights)
    streamed = NMF(streams.K, **how, max_memory=streams.tight("file", "random"))
    Y, other = streamed.fit(tmp_path / "A.npy", weights=weights, codes=tmp_path / "Z.npy")
    assert streamed.fit_info_.passes > 1
    assert torch.allclose(D, other, atol=1e-5)
    assert torch.allclose(Z, Y, atol=1e-5)
    # rounding may tell a code or two from zero
    for name, most in (("relative_error", 1e-5), ("r_squared", 1e-5), ("mean_l0", 2 / streams.N)):
        here, there = (getattr(m.fit_info_, name) for m in (whole, streamed))
        assert here == pytest.approx(there, abs=most), name


@pytest.mark.parametrize("weights", [R[:7], C[:, :3]])
def test_weights_that_do_not_suit_the_data_are_refused(weights, tmp_path):
    scale = Scale.of_weights(read_weights(weights))
    given = kinds(tmp_path)
    for name in ("tensor", "path", "map", "sparse"):
        with pytest.raises(InvalidInput, match="weights have shape"):
            scaled(given[name], scale)
    with pytest.raises(InvalidInput, match="weights have shape"):
        list(scaled(given["batches"], scale))


def test_the_value_that_is_reported_is_that_of_the_data():
    X = A.clone()
    X[2, 1] = -0.25
    with pytest.raises(InvalidInput, match=r"row 2, column 1: −0\.25"):
        scaled(X, Scale.of_weights(read_weights(R)))


def test_a_pair_and_its_codes_return():
    scale = Scale(R[:, 0].sqrt().double(), C[0].sqrt().double())
    Z0, D0 = scale.of_pair(START)
    assert torch.allclose(Z0, START[0] * R.sqrt())
    assert torch.allclose(scale.dictionary_of(D0, START[1]), START[1])
    assert scale.of_pair((None, START[1][:, :3]))[1] is not None
