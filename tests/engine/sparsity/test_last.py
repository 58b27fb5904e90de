"""Half-steps of the codes at the end of a fit that missed the mean it asks for."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF, ConvergenceWarning, Tuning
from fastnmf.fit.sparsity import end
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.penalties import Penalties

K = 200


def planted(n=1500, d=40):
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(K, d, generator=generator)
    used = torch.rand(n, K, generator=generator) < 0.1
    noise = 0.1 * torch.rand(n, d, generator=generator)
    return (torch.rand(n, K, generator=generator) * used) @ D + noise


@pytest.fixture
def of_any_size(monkeypatch):
    """Also fits that are so small that exact codes take no time."""
    monkeypatch.setattr(end, "_SMALL", 0)


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_a_fit_that_missed_it_has_it_after_them(form, of_any_size):
    A = planted()
    # rounding decides which of these fits miss it, and by how much
    for iterations in range(20, 31):
        options = {"target_l0": 6, "seed": 0, "max_iter": iterations, "tol": 0}
        exact, model = (NMF(K, tuning=Tuning(form=form), **options) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(end, "_SMALL", float("inf"))
            exact.fit(A)
        if not exact.fit_info_.exact_codes:
            continue
        Z, D = model.fit(A)
        info = model.fit_info_
        if not info.exact_codes:
            break
    assert exact.fit_info_.exact_codes
    assert not info.exact_codes
    found = float((Z > 0).sum(1).double().mean())
    assert abs(found / 6 - 1) <= 0.025
    assert info.mean_l0 == pytest.approx(found)
    # with the penalty of exact codes, and near these
    assert info.alpha_Z == pytest.approx(exact.fit_info_.alpha_Z, rel=0.15)
    assert info.objective == pytest.approx(exact.fit_info_.objective, rel=0.05)
    assert torch.equal(D, exact.D)


# exact codes come nearer to the first; to the second those of the fit, with more than d = 40 active
@pytest.mark.parametrize(("target", "exact"), [(30, True), (80, False)])
def test_a_mean_that_no_penalty_gives_is_looked_for_once(target, exact, of_any_size, monkeypatch):
    searches, look = [], end.penalties_for
    monkeypatch.setattr(
        end, "penalties_for", lambda *_, **of: (searches.append(of), look(*_, **of))[1]
    )
    model = NMF(K, target_l0=target, seed=0, max_iter=5, tol=0)
    with pytest.warns(ConvergenceWarning, match=f"target_l0={target} is not reached"):
        model.fit(planted())
    assert len(searches) == 1
    assert model.fit_info_.exact_codes == exact


def test_where_they_do_not_reach_it_codes_are_exact(of_any_size):
    A = planted(200, 8)
    model = NMF(K, target_l0=4, seed=0, max_iter=1, tol=0)
    Z, D = model.fit(A)
    info = model.fit_info_
    assert info.exact_codes
    assert abs(info.mean_l0 / 4 - 1) <= 0.02
    penalty = Penalties(info.alpha_Z, 0, 1.0, True).of_codes(8)
    assert float(kkt_residual(A, D, Z, penalty).max()) <= 1e-6
