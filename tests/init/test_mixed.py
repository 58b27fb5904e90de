"""Starts of mixtures of rows: D = W A, whatever the start; and pairs that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.errors import InvalidInput
from fastnmf.init import mixed
from fastnmf.init.signed import cold_start

A = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def start(A, K, init, **kind):
    data = Data(A)
    codes = InMemory(A.new_empty(len(A), K))
    D, mixture = mixed.start(data, codes, K, init, torch.Generator().manual_seed(1), **kind)
    return codes.Z, D, mixture.sparse(len(A), torch.float32).to_dense()


@pytest.mark.parametrize("init", mixed.STARTS)
@pytest.mark.parametrize("K", [1, 5, 60])
def test_dictionary_is_a_convex_mixture_of_rows(init, K):
    Z, D, W = start(A, K, init)
    assert (Z >= 0).all()
    assert Z.any()
    assert torch.allclose(D, W @ A, atol=1e-5)
    assert torch.allclose(W.sum(1), torch.ones(K))


def test_zero_rows_are_no_concepts_where_there_are_others():
    data = A.clone()
    data[1:38] = 0
    _, _, W = start(data, 5, "rows")
    assert set(W.argmax(1).tolist()) == {0, 38, 39}
    Z, D, _ = start(torch.zeros(4, 3), 2, "auto")
    assert not Z.any()
    assert not D.any()


def test_pair_is_taken_as_it_is():
    Z0 = torch.rand(40, 2)
    W0 = torch.zeros(2, 40)
    W0[0, 3], W0[1, 5], W0[1, 9] = 2.0, 0.25, 0.75
    for given in (W0, W0.numpy(), W0.to_sparse()):
        Z, D, W = start(A, 2, (Z0, given))
        assert torch.equal(Z, Z0)
        assert torch.allclose(W, W0)
        assert torch.allclose(D, W0 @ A, atol=1e-6)


def test_codes_that_are_not_given_are_of_the_mixtures():
    W0 = torch.zeros(2, 40)
    W0[0, 3], W0[1, 5] = 1.0, 1.0
    Z, D, _ = start(A, 2, (None, W0))
    assert torch.allclose(Z, cold_start(A, D))
    assert Z.any()


REFUSED = [
    (torch.ones(2, 39), {}, r"W0 is torch.float32 of shape \(2, 39\)"),
    (-torch.ones(2, 40), {}, "W0 has 80 entries that are negative or"),
    (2 * torch.eye(2, 40), {"convex": True}, "sums to 2, and strict_convex=True needs sums of 1"),
]


@pytest.mark.parametrize(("W0", "kind", "message"), REFUSED)
def test_pairs_that_do_not_fit_are_refused(W0, kind, message):
    with pytest.raises(InvalidInput, match=message):
        start(A, 2, (torch.ones(40, 2), W0), **kind)


def test_concepts_of_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(mixed, "MOST_GIVEN", 10)
    with pytest.raises(InvalidInput, match="give at most 10"):
        start(A, 2, (torch.ones(40, 2), np.ones((2, 40))))
