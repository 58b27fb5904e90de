"""Fits that ask for a mean number of active concepts end with it."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.penalties import Penalties

A = torch.rand(200, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("target", [1.5, 4])
def test_a_fit_that_missed_it_ends_with_exact_codes_that_have_it(target):
    model = NMF(20, target_l0=target, seed=0, max_iter=1, tol=0)
    Z, D = model.fit(A)
    info = model.fit_info_
    assert info.exact_codes
    assert abs(info.mean_l0 / target - 1) <= 0.01
    penalty = Penalties(info.alpha_Z, 0, 1.0, True).of_codes(8)
    assert float(kkt_residual(A, D, Z, penalty).max()) <= 1e-6


def test_a_start_is_left_as_it_is():
    model = NMF(20, target_l0=4, seed=0, max_iter=0)
    Z, _ = model.fit(A)
    assert not model.fit_info_.exact_codes
    assert float((Z > 0).sum(1).double().mean()) > 10
