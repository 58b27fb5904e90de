"""The memory of a fit in passes with a weight for each entry."""

from __future__ import annotations

import pytest
import torch

from fastnmf.errors import InvalidInput
from fastnmf.planning import memory
from fastnmf.planning.weighted import with_weights

CPU, MB = torch.device("cpu"), 1 << 20
SIZES = 100_000, 1000, torch.float32


def test_gram_matrices_take_half_of_what_small_chunks_leave(monkeypatch):
    monkeypatch.setattr(memory, "_OVERHEAD", 0)
    K, limit = 300, 150 * MB
    budget, features = with_weights(memory.Budget(CPU, K, "file", limit), *SIZES)
    assert 0 < features < 1000
    needs = budget.needs(*SIZES, "random")
    rows = budget.rows(*SIZES, SIZES[0])
    assert rows >= memory.LEAST_ROWS
    assert 0.7 * limit < needs.streamed(rows) <= limit
    least = needs.least() - needs.grams
    assert needs.grams == pytest.approx((limit - least) / 2, rel=0.01)


def test_few_concepts_have_those_of_all_features_and_nothing_is_gathered():
    budget, features = with_weights(memory.Budget(CPU, 4, "file", 300 * MB), *SIZES)
    assert features == 1000
    assert not budget.holds(10, 10, torch.float32, 4, given=False)


def test_too_little_memory_says_how_much_is_needed():
    # one matrix takes 450 MB
    sizes = 1000, 20, torch.float32
    needs = memory.Budget(CPU, 15_000, "file", beside=16).needs(*sizes, "random")
    with pytest.raises(InvalidInput, match=r"at least .* are needed, of which the Gram matrix"):
        with_weights(memory.Budget(CPU, 15_000, "file", needs.least() + MB), *sizes)
