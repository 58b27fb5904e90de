"""The State of a start is that of its number: the first of several is that of a fit with one."""

from __future__ import annotations

import torch
from fits import rows_of_five_concepts

from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.fit.options import Options
from fastnmf.fit.starts.begin import first_state


def state_of(number, n_init=3):
    A = rows_of_five_concepts()
    options = Options(5, init="random", n_init=n_init)
    method = options.method(torch.device("cpu"))
    Z = InMemory(torch.empty(len(A), 5))
    return first_state(options, Data(A), method, Z, 11, number)


def test_starts_of_a_seed_differ_and_the_first_is_that_of_a_single_start():
    first, second = state_of(0), state_of(1)
    assert torch.equal(first.D, state_of(0, n_init=1).D)
    assert torch.equal(second.codes, state_of(1).codes)
    assert not torch.equal(first.D, second.D)
    assert first.seed == second.seed == 11
