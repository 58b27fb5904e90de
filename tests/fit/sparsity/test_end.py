"""Fits that ask for a mean number of active concepts end with it."""

from __future__ import annotations

import pytest
import torch

import fastnmf
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


def test_advice_on_a_fit_with_a_target_is_another_target():
    """It was smaller penalties, which a fit with target_l0 finds by itself."""
    A = 1 + torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) / 10
    with pytest.warns(fastnmf.FastnmfWarning, match="another start, or a larger target_l0"):
        NMF(4, target_l0=0.2, seed=0, max_iter=40, tol=0).fit(A)
