"""Options that ask for a number of active concepts."""

import pytest
import torch

from fastnmf import NMF, InvalidInput


def test_at_most_k_concepts_take_the_place_of_a_mean_number():
    A = torch.rand(60, 10, generator=torch.Generator().manual_seed(0))
    D = torch.rand(8, 10, generator=torch.Generator().manual_seed(1))
    with_target = NMF(8, target_l0=3).load_dictionary(D).encode(A, top_k=2)
    plain = NMF(8).load_dictionary(D).encode(A, top_k=2)
    assert torch.equal(with_target, plain)


def test_online_learning_refuses_a_target():
    with pytest.raises(InvalidInput, match="partial_fit has no penalty"):
        NMF(3, target_l0=2).partial_fit(torch.rand(20, 5))
