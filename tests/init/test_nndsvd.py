"""NNDSVD, and with zeros filled: scikit-learn's, of zeros, of any scale and rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from starts import activations, leading_svd, loss, low_rank, seeded, started

from fastnmf import NMF
from fastnmf.errors import FastnmfWarning, InvalidInput
from fastnmf.init import svd
from fastnmf.init.nndsvd import EPS
from fastnmf.init.start import nndsvda

# entries of one start computed twice with different orders of summation, relative to the largest
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}


@pytest.mark.parametrize(
    ("n", "d", "K", "dtype"),
    [
        (60, 20, 7, torch.float32),
        (60, 20, 7, torch.float64),
        (20, 60, 20, torch.float64),
        (500, 40, 40, torch.float32),
    ],
)
def test_nndsvda_equals_sklearn_given_the_same_svd(monkeypatch, n, d, K, dtype):
    module = pytest.importorskip("sklearn.decomposition._nmf", reason="scikit-learn is an extra")
    A = activations(n, d, dtype)
    arrays = [F.contiguous().numpy() for F in leading_svd(A, K, seeded())]
    monkeypatch.setattr(module, "_randomized_svd", lambda *_, **__: arrays)
    expected = module._initialize_nmf(A.numpy(), K, init="nndsvda")

    for F, F_expected in zip(nndsvda(A, K, seeded()), expected, strict=True):
        torch.testing.assert_close(
            F, torch.from_numpy(F_expected), rtol=0, atol=ROUNDING[dtype] * F_expected.max()
        )


@pytest.mark.parametrize("init", ["nndsvd", "nndsvdar"])
@pytest.mark.parametrize(("n", "d", "K"), [(60, 20, 7), (20, 60, 7)], ids=["tall", "wide"])
def test_start_equals_sklearn_given_the_same_svd(monkeypatch, init, n, d, K):
    module = pytest.importorskip("sklearn.decomposition._nmf", reason="scikit-learn is an extra")
    A = activations(n, d, torch.float64)
    A /= A.mean()
    arrays = [F.contiguous().numpy() for F in leading_svd(A, K, seeded())]
    monkeypatch.setattr(module, "_randomized_svd", lambda *_, **__: arrays)
    expected = module._initialize_nmf(A.numpy(), K, init="nndsvd")

    for F, F_expected in zip(started(A, K, init, seeded()), expected, strict=True):
        # ours is scaled to the data
        F, zero = F.numpy() * (F_expected.max() / F.max().item()), F_expected == 0
        np.testing.assert_allclose(F[~zero], F_expected[~zero], atol=1e-12)
        assert zero.sum() > 20
        size = 0 if init == "nndsvd" else 0.01
        assert np.sqrt(np.mean(F[zero] ** 2)) == pytest.approx(size, rel=0.3)
        assert bool((F >= 0).all())


def test_zeros_of_nndsvd_stay_zero_in_mu_which_warns():
    A = activations(60, 20)
    Z0, D0 = started(A, 5, "nndsvd", seeded())
    assert int((D0 == 0).sum()) > 5
    with pytest.warns(FastnmfWarning, match=r"'mu' cannot change .* init='nndsvda'"):
        Z, D = NMF(5, solver="mu", init="nndsvd", seed=0, max_iter=5, tol=0).fit(A)
    assert not D[D0 == 0].any()
    assert not Z[Z0 == 0].any()


def test_nndsvda_fills_small_entries_with_the_mean():
    A = activations(30, 10) * 1e-9
    Z, D = nndsvda(A, 4)
    assert bool((D == A.mean()).any())
    assert not bool(((Z > 0) & (Z < EPS) & (Z != A.mean())).any())


def test_nndsvda_is_near_sklearns_own():
    module = pytest.importorskip("sklearn.decomposition._nmf", reason="scikit-learn is an extra")
    A = low_rank(300, 80, 6, torch.float64) + 0.01 * activations(300, 80, torch.float64)
    expected = module._initialize_nmf(A.numpy(), 4, init="nndsvda", random_state=0)
    for F, F_expected in zip(nndsvda(A, 4), expected, strict=True):
        assert np.abs(F.numpy() - F_expected).max() < 1e-4 * F_expected.max()


@pytest.mark.parametrize(
    ("n", "d", "K", "dtype"),
    [
        (1, 1, 1, torch.float32),
        (9, 1, 1, torch.float32),
        (300, 200, 3, torch.float32),
        (200, 300, 3, torch.float64),
    ],
)
def test_nndsvda_has_shape_dtype_and_contiguous_rows(n, d, K, dtype):
    Z, D = nndsvda(activations(n, d, dtype) + 0.1, K)
    assert Z.shape == (n, K)
    assert D.shape == (K, d)
    for F in (Z, D):
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert bool((F >= 0).all())
        assert bool(F.isfinite().all())


def test_nndsvda_of_zero_is_exactly_zero():
    for n, d in ((40, 6), (6, 40), (300, 200)):
        Z, D = nndsvda(torch.zeros(n, d), 3)
        assert not Z.any()
        assert not D.any()


def test_nndsvda_of_zero_is_zero_whatever_is_drawn(monkeypatch):
    """A normal number above 4, once in 16,000 draws, became infinite and 0 · ∞ ended the fit."""
    monkeypatch.setattr(svd, "normal", lambda shape, like, generator: torch.full(shape, 6.0))
    for F in nndsvda(torch.zeros(300, 200), 3):
        assert not F.any()


@pytest.mark.parametrize(("n", "dtype"), [(50, torch.float32), (400, torch.float64)])
def test_nndsvda_is_finite_when_rank_is_below_K(n, dtype):
    A = low_rank(n, 300, 1, dtype)
    A[:, 17] = 0
    Z, D = nndsvda(A, 5)
    assert bool(Z.isfinite().all())
    assert bool(D.isfinite().all())
    # the leading pair is all of A, but for the column of zeros that was filled
    A[:, 17] = D[0, 17] * Z[:, 0]
    assert loss(A, Z[:, :1], D[:1]) < 1e-6 * A.double().square().sum().item()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_nndsvda_is_finite_far_from_one(scale):
    for n, d in ((40, 12), (600, 300)):
        A = activations(n, d) * scale
        for F in started(A, 4, "nndsvda", seeded()):
            assert bool(F.isfinite().all())


def test_nndsvda_refuses_more_concepts_than_the_smaller_side():
    with pytest.raises(InvalidInput, match=r"nb_concepts=11 .*use init='random'"):
        nndsvda(torch.rand(20, 10), 11)


def test_nndsvda_takes_any_strides():
    A = activations(300, 200)
    expected = nndsvda(A, 4, seeded())
    strided = torch.empty(200, 300).T.copy_(A)
    for F, F_expected in zip(nndsvda(strided, 4, seeded()), expected, strict=True):
        torch.testing.assert_close(F, F_expected, rtol=0, atol=1e-4 * F_expected.max().item())


@pytest.mark.parametrize(("n", "d"), [(40, 9), (9, 40)])
def test_nndsvda_goes_on_with_rows_beyond_the_smaller_side(n, d):
    A = torch.rand(n, d, generator=seeded(1))
    Z, D = started(A, 15, "nndsvda", seeded())
    _, few = started(A, 9, "nndsvda", seeded())
    rays, others = (torch.nn.functional.normalize(F) for F in (D, few))
    torch.testing.assert_close(rays[:9], others, rtol=0, atol=1e-4)
    assert bool(D.any(1).all())
    assert Z.shape == (n, 15)


def test_rows_beside_nndsvda_are_as_long_as_its_concepts():
    A = torch.rand(300, 9, generator=seeded(1)) * 40
    _, D = started(A, 200, "nndsvda", seeded())
    squares = D.double().square().sum(1)
    assert squares[:9].mean().item() == pytest.approx(squares[9:].mean().item(), rel=0.1)
