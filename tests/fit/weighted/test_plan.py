"""The plan of a fit in which each entry has a weight."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF

DRAWN = torch.Generator().manual_seed(0)
A, W = torch.rand(40, 12, generator=DRAWN), torch.rand(40, 12, generator=DRAWN) > 0.2


@pytest.mark.parametrize(
    ("options", "accelerated"),
    [({}, True), ({"accelerate": False}, False), ({"alpha_Z": 0.1}, False)],
)
def test_it_extrapolates_where_nothing_is_penalised(options, accelerated):
    nmf = NMF(3, seed=0, max_iter=2, tol=0, **options)
    nmf.fit(A, weights=W)
    assert nmf.fit_info_.accelerated is accelerated
    assert nmf.fit_info_.form == "weighted"
    assert nmf.fit_info_.weights == "entries"


def test_many_concepts_need_no_gram_matrices():
    nmf = NMF(3000, init="random", seed=0, max_iter=2, tol=0)
    Z, _ = nmf.fit(A, weights=W)
    assert Z.shape == (40, 3000)
    assert nmf.fit_info_.relative_error < 1e-3
