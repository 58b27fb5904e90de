"""Pursuits of rows that each have a Gram matrix of their own."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.optimize
import torch

from fastnmf.backends.torch import REFERENCE
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.exact.weighted.pursuit import Rows, pursue
from fastnmf.exact.weighted.rows import Asked, WeightedCodes
from fastnmf.solvers.penalties import NO_PENALTY, Penalty

DRAWN = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=DRAWN, dtype=torch.float64)


A, D = rand(15, 9) - 0.2, rand(6, 9) - 0.1
W = torch.where(rand(15, 9) > 0.3, 2 * rand(15, 9), 0)


def losses(Z):
    return (W * (A - Z @ D).square()).sum(1)


def codes(most, **how):
    asked = Asked(most, **how)
    return WeightedCodes(D, NO_PENALTY, REFERENCE, asked)(EntryWeights(A, W))[0]


def least(most):
    """The least losses, by all supports."""
    found = []
    for a, w in zip(A.numpy(), W.sqrt().numpy(), strict=True):
        supports = itertools.combinations(range(6), most)
        each = [scipy.optimize.nnls((D.numpy()[[*s]] * w).T, a * w)[1] for s in supports]
        found.append(min(each) ** 2)
    return np.array(found)


def test_one_concept_is_the_best_one():
    assert np.allclose(losses(codes(1)), least(1), atol=1e-12)


def test_error_does_not_rise_with_the_number_and_ends_at_the_solution():
    before = losses(codes(1))
    for most in range(2, 7):
        Z = codes(most)
        assert int((Z > 0).sum(1).max()) <= most
        assert bool((losses(Z) <= before + 1e-12).all())
        before = losses(Z)
    assert np.allclose(before, least(6), atol=1e-12)


def test_exchanges_lower_the_loss_to_nearly_the_least():
    pursued, exchanged = losses(codes(2)), losses(codes(2, exchanges=True))
    assert bool((exchanged <= pursued + 1e-12).all())
    assert float(exchanged.sum()) <= 1.02 * least(2).sum()


def test_penalty_holds_on_the_support():
    penalty = Penalty(0.05, 0.1)
    Z, info = WeightedCodes(D, penalty, REFERENCE, Asked(2))(EntryWeights(A, W))
    slope = (W * (A - Z @ D)) @ D.T - 0.05 - 0.1 * Z
    assert float((slope.abs() * (Z > 0)).max()) < 1e-9
    assert float(info.kkt.max()) < 1e-12


def test_concepts_that_depend_on_each_other_end():
    G = torch.ones(1, 4, 4, dtype=torch.float64)

    def solve(C, G):
        return torch.where(torch.arange(C.shape[1]) == 0, C / G.diagonal(dim1=1, dim2=2), 0)

    Z, entered = pursue(Rows(torch.ones(1, 4, dtype=torch.float64), G, solve), 3)
    assert Z[0].tolist() == [1, 0, 0, 0]
    assert int(entered) <= 4
