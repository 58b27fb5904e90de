"""Starts of free dictionaries: where they begin, in memory and in passes, and codes to encode
from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf import SemiNMF, Tuning
from fastnmf.init import signed
from fastnmf.init.start import cold_start
from fastnmf.planning.memory import Needs


def draw(n=60, d=12, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)))


def begin(A, K, init, **options):
    return SemiNMF(K, init=init, seed=0, **options).fit(A, max_iter=0)


def error(A, Z, D):
    return float((A - Z @ D).norm() / A.norm())


@pytest.mark.parametrize("init", [name for name in signed.STARTS if name != "auto"])
@pytest.mark.parametrize(("n", "K"), [(60, 5), (60, 1), (7, 5), (60, 15), (8, 20)], ids=str)
def test_starts_are_finite_and_keep_their_signs(n, K, init):
    A = draw(n)
    A[3] = 0
    Z, D = begin(A, K, init)
    assert Z.shape == (n, K)
    assert (Z >= 0).all()
    assert Z.isfinite().all()
    assert D.isfinite().all()
    assert (D < 0).any()
    # a fit learns from it
    Z, D = SemiNMF(K, init=init, seed=0, tol=0).fit(A, max_iter=20)
    assert error(A, Z, D) < 1
    assert (Z[3] <= 1e-3 * Z.max()).all()


def test_start_from_singular_vectors_has_the_larger_part_of_each():
    A = draw()
    Z, D = begin(A, 4, "svd")
    _, _, V = torch.linalg.svd(A)
    assert torch.allclose((D @ V[:4].T).abs(), torch.eye(4, dtype=D.dtype), atol=1e-6)
    product = A @ D.T
    positive, negative = product.clamp(min=0).norm(dim=0), product.clamp(max=0).norm(dim=0)
    assert (positive >= negative).all()
    assert torch.allclose(Z.clamp(min=0)[product > 1], product[product > 1])


@pytest.mark.parametrize("solver", ["hals", "pgd", "mu", "anls"])
@pytest.mark.parametrize("shape", [(200, 30), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("K", [2, 4])
def test_data_of_less_rank_are_fitted_from_singular_vectors(solver, shape, K):
    """Rank 1 with codes of both signs takes two concepts; a second vector that explains nothing
    would keep pgd at half of the energy."""
    z, d = draw(shape[0])[:, :1], draw(shape[1])[:, 1:2].T
    A = z @ d
    Z, D = SemiNMF(K, solver=solver, init="svd", seed=0).fit(A, max_iter=500)
    assert error(A, Z, D) < 1e-4
    Z, D = begin(A, K, "svd")
    assert torch.allclose(D[1], -D[0])
    assert (Z[:, :2] > 0).all()


@pytest.mark.parametrize("K", [60, 90])
def test_random_start_of_many_concepts_is_the_least_one(K):
    A = draw()
    A[[3, 40]] = 0
    Z, D = begin(A, K, "random")
    assert (Z[[3, 40]] == 0).all()
    expected = torch.linalg.pinv(Z) @ A
    # float64, for codes that are nearly dependent where K = n
    assert torch.allclose(D, expected, atol=1e-6 * float(expected.abs().max()))
    in_passes = SemiNMF(K, init="random", seed=0, tuning=Tuning(chunk_rows=16))
    _, by_passes = in_passes.fit(A, max_iter=0)
    assert torch.allclose(D, by_passes, atol=1e-6 * float(expected.abs().max()))


def test_random_start_of_many_concepts_takes_all_tiles(monkeypatch):
    from fastnmf.data import dataset

    A = draw()
    _, expected = begin(A, 90, "random", offset=True)
    # seven rows at a time are copied without the offset
    monkeypatch.setattr(dataset, "WIDENED_BYTES", 7 * 8 * A.shape[1])
    _, D = begin(A, 90, "random", offset=True)
    assert torch.allclose(D, expected, atol=1e-6 * float(expected.abs().max()))


def test_random_start_has_the_least_squares_dictionary():
    A = draw()
    Z, D = begin(A, 5, "random")
    assert float((Z.T @ (A - Z @ D)).norm()) < 1e-6 * float((Z.T @ A).norm())
    assert float(Z.mean()) == pytest.approx(0.8 * float(A.abs().mean() / 5) ** 0.5, rel=0.1)


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("init", ["random", "svd", "rows", "spread"])
def test_starts_of_data_read_in_passes_are_the_same(init, tmp_path):
    A = draw(900)
    np.save(tmp_path / "A.npy", A.numpy())
    expected = begin(A, 4, init)
    most = Needs(900, 12, 4, 8, "memory", "spread").streamed(70)
    model = SemiNMF(4, init=init, seed=0, max_memory=most)
    found = model.fit(tmp_path / "A.npy", max_iter=0)
    assert model.fit_info_.chunk_rows < 300
    for F, same in zip(found, expected, strict=True):
        assert torch.allclose(F, same, atol=1e-8)


def test_zero_data_give_zero_factors():
    for init in ("random", "svd", "rows", "spread"):
        Z, D = begin(torch.zeros(9, 4), 2, init)
        assert not Z.any()
        assert not D.any()


def test_cold_start_is_the_best_multiple_and_zero_where_nothing_helps():
    A, D = draw(20), draw(5, seed=1)
    A[0] = -D.sum(0)
    A[1] = 0
    Z = cold_start(A, D, free=True)
    assert (Z >= 0).all()
    assert not Z[1].any()
    used = Z.any(1)
    assert (((A - Z @ D).norm(dim=1) < A.norm(dim=1)) | ~used).double().mean() > 0.9
    helps = (A @ D.T > 0).any(1)
    assert (used == helps).all()
