"""The plan of a fit in which each entry has a weight."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF
from fastnmf.errors import InvalidInput

A = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
W = torch.rand(40, 12) > 0.2


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


def test_too_many_concepts_are_refused():
    with pytest.raises(InvalidInput, match="Gram matrices"):
        NMF(60_000, init="random", max_iter=1).fit(A, weights=W)
