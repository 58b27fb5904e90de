"""Exact codes of rows whose entries have weights."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from fastnmf.backends.torch import REFERENCE
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.exact.weighted.rows import WeightedCodes
from fastnmf.solvers.penalties import NO_PENALTY, Penalty

DRAWN = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=DRAWN, dtype=torch.float64)


A, D = rand(12, 9) - 0.2, rand(5, 9) - 0.1
W = torch.where(rand(12, 9) > 0.4, 2 * rand(12, 9), 0)


@pytest.mark.parametrize("start", [None, rand(12, 5)])
def test_codes_are_those_of_each_row_by_itself(start):
    Z, info = WeightedCodes(D, NO_PENALTY, REFERENCE)(EntryWeights(A, W), start)
    roots = W.sqrt()
    expected = [
        scipy.optimize.nnls((D * r).T.numpy(), (a * r).numpy())[0]
        for a, r in zip(A, roots, strict=True)
    ]
    assert np.allclose(Z, expected, atol=1e-9)
    assert bool((info.status == 0).all())
    assert float(info.kkt.max()) < 1e-12


def test_the_penalty_is_that_of_each_row():
    Z, _ = WeightedCodes(D, Penalty(0.1, 0.2), REFERENCE)(EntryWeights(A, W))
    slope = (W * (A - Z @ D)) @ D.T - 0.1 - 0.2 * Z
    assert float(slope.max()) < 1e-9
    assert float((slope.abs() * (Z > 0)).max()) < 1e-9


def test_rows_without_weight_and_concepts_that_are_not_seen_are_not_used():
    some = W.clone()
    some[0] = 0
    concept = D.clone()
    concept[2] = 0
    concept[2, 4] = 1
    some[1] = 1
    some[1, 4] = 0
    Z, _ = WeightedCodes(concept, NO_PENALTY, REFERENCE)(EntryWeights(A, some))
    assert not Z[0].any()
    assert Z[1, 2] == 0


def test_more_concepts_than_observed_features():
    many = rand(20, 9)
    _, info = WeightedCodes(many, NO_PENALTY, REFERENCE)(EntryWeights(A, W))
    assert bool((info.status == 0).all())
    assert float(info.kkt.max()) < 1e-9
