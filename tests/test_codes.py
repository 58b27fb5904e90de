"""What is said of codes and concepts, compared with plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.results import metrics as codes


def problem(n, d, K, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Z = (torch.rand(n, K, generator=generator, dtype=dtype) - 0.6).clamp(min=0)
    return Z, torch.rand(K, d, generator=generator, dtype=dtype)


@pytest.mark.parametrize("in_hand", [1, 50, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d", "K"), [(1, 1, 1), (30, 5, 7), (7, 3, 200)])
def test_account_follows_the_definitions(monkeypatch, n, d, K, dtype, in_hand):
    monkeypatch.setattr(codes, "_IN_HAND", in_hand)
    Z, D = problem(n, d, K, dtype)
    Z[0, 0] = 0.5
    told = codes.describe(Z, D)
    z, concepts = Z.double().numpy(), D.double().numpy()
    l0 = (z > 0).sum(1)
    assert told.mean_l0 == pytest.approx(l0.mean())
    assert told.l0_most == l0.max()
    assert sum(told.l0_histogram) == n
    energy = (z**2).sum(0) * (concepts**2).sum(1)
    np.testing.assert_allclose(told.energy, energy / energy.sum(), rtol=1e-5, atol=1e-12)
    some = z[l0 > 0]
    ratio = some.sum(1) / np.sqrt((some**2).sum(1))
    hoyer = (np.sqrt(K) - ratio) / (np.sqrt(K) - 1) if K > 1 else np.ones(len(some))
    assert told.hoyer == pytest.approx(hoyer.mean(), abs=1e-6)
    assert told.dead_concepts == ((z == 0).all(0) | (concepts == 0).all(1)).sum()


def test_histogram_counts_rows_by_their_active_concepts():
    Z = torch.tril(torch.ones(4, 4))[[0, 0, 3]]
    assert codes.describe(Z, torch.eye(4)).l0_histogram == (0, 2, 0, 0, 1)


@pytest.mark.parametrize(
    ("K", "width", "bars"), [(31, 1, 32), (32, 2, 17), (59, 2, 30), (96, 4, 25)]
)
def test_every_bar_holds_as_many_numbers(K, width, bars):
    """Bars of 1.9 numbers held one or two in turn, and a smooth histogram became a comb."""
    histogram = codes.describe(torch.tril(torch.ones(K, K)), torch.eye(K)).l0_histogram
    counted = np.bincount(np.arange(1, K + 1) // width)
    assert histogram == tuple(counted)
    assert len(histogram) == bars


@pytest.mark.parametrize("in_hand", [1, 12, 1 << 20])
def test_concepts_that_point_as_an_earlier_one_are_counted(monkeypatch, in_hand):
    monkeypatch.setattr(codes, "_IN_HAND", in_hand)
    D = torch.eye(6)
    D[3] = 7 * D[1]
    D[5] = 1e-20 * D[1] + 1e-22
    D[4] = 0
    told = codes.describe(torch.ones(3, 6), D)
    assert (told.near_duplicates, told.dead_concepts) == (2, 1)


def test_zero_factors_have_an_account():
    told = codes.describe(torch.zeros(3, 4), torch.zeros(4, 2))
    assert (told.mean_l0, told.hoyer, told.dead_concepts, told.near_duplicates) == (0, 0, 4, 0)
    assert told.energy == (0, 0, 0, 0)
    assert told.l0_histogram == (3,)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_account_does_not_depend_on_the_scale(scale):
    Z, D = problem(20, 6, 9)
    plain, scaled = codes.describe(Z, D), codes.describe(Z * scale, D * scale)
    assert scaled.hoyer == pytest.approx(plain.hoyer, rel=1e-5)
    assert scaled.energy == pytest.approx(plain.energy, rel=1e-5)
    assert scaled.near_duplicates == plain.near_duplicates


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_r_squared_is_that_of_the_mean_row_and_of_a_perfect_fit(offset):
    A = torch.rand(30, 4) + offset
    whole = float(A.double().square().sum())
    spread = float((A.double() - A.double().mean(0)).square().sum())
    assert codes.r_squared(A, spread, whole) == pytest.approx(0, abs=1e-5)
    assert codes.r_squared(A, spread / 4, whole) == pytest.approx(0.75, abs=1e-5)
    assert codes.r_squared(A, 0.0, whole) == 1


def test_r_squared_of_rows_that_are_alike_is_1_or_0():
    A = torch.full((7, 3), 0.1)
    whole = float(A.double().square().sum())
    assert codes.r_squared(A, 0.0, whole) == 1
    assert codes.r_squared(A, 1e-3, whole) == 0
    assert codes.r_squared(torch.zeros(5, 2), 0.0, 0.0) == 1
