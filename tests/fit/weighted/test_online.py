"""Online learning with weights; rows and features are tested in test_request.py."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF
from fastnmf.errors import InvalidInput


def test_weights_of_entries_are_refused_and_the_model_stays():
    nmf = NMF(2, seed=0).partial_fit(torch.rand(20, 5))
    before = nmf.D.clone()
    with pytest.raises(InvalidInput, match="partial_fit"):
        nmf.partial_fit(torch.rand(20, 5), weights=torch.ones(20, 5))
    assert torch.equal(nmf.D, before)
