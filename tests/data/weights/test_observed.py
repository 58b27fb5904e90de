"""What is observed of data, and what takes the place of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from fastnmf.data.arrays import Expected
from fastnmf.data.weights.given import read_weights
from fastnmf.data.weights.observed import observed
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
A = torch.rand(10, 4, generator=DRAWN)
W = torch.rand(10, 4, generator=DRAWN) > 0.3
HIDDEN = torch.where(W, A, torch.nan)
CPU = torch.device("cpu")


def test_what_is_observed_stays_and_the_rest_is_finite(tmp_path):
    np.save(tmp_path / "A.npy", HIDDEN.numpy())
    kinds = [HIDDEN, HIDDEN.numpy(), tmp_path / "A.npy", [*HIDDEN.split(3)], HIDDEN.tolist()]
    kinds.append(np.load(tmp_path / "A.npy", mmap_mode="r"))
    for given in kinds:
        X, weights = observed(given, read_weights(W), Expected(), CPU)
        assert torch.equal(X[W].float(), A[W])
        assert bool((X[~W] >= 0).all())
        assert weights.dtype == torch.bool


def test_estimates_are_means_of_rows_and_features():
    rank_one = torch.arange(1.0, 6)[:, None] + torch.arange(4.0)
    seen = torch.ones(5, 4, dtype=torch.bool)
    seen[2, 1] = False
    X, _ = observed(rank_one.masked_fill(~seen, torch.inf), read_weights(seen), Expected(), CPU)
    assert abs(float(X[2, 1] - rank_one[2, 1])) < 0.5


def test_values_that_have_a_weight_are_checked():
    X = A.clone()
    X[4, 1] = -1
    with pytest.raises(InvalidInput, match="row 4, column 1: −1"):
        observed(X, read_weights(torch.ones(10, 4)), Expected(), CPU)
    some = torch.ones(10, 4)
    some[4, 1] = 0
    assert observed(X, read_weights(some), Expected(), CPU)[0][4, 1] >= 0


def test_weights_of_rows_and_features_are_expanded():
    _, weights = observed(A, read_weights(torch.arange(10.0)[:, None]), Expected(), CPU)
    assert torch.equal(weights, torch.arange(10.0)[:, None].expand(10, 4))
    with pytest.raises(InvalidInput, match=r"\(3, 1\)"):
        observed(A, read_weights(torch.ones(3, 1)), Expected(), CPU)


def test_sparse_data_are_refused():
    with pytest.raises(InvalidInput, match="sparse"):
        observed(scipy.sparse.csr_array(A.numpy()), read_weights(W), Expected(), CPU)
