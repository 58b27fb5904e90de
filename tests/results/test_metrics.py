"""Statistics of codes and concepts, compared with plain definitions."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from fits import method

from fastnmf import NMF
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.state import State
from fastnmf.results import metrics


def problem(n, d, K, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Z = (torch.rand(n, K, generator=generator, dtype=dtype) - 0.6).clamp(min=0)
    return Z, torch.rand(K, d, generator=generator, dtype=dtype)


# one number; a row at a time, some at a time, all at once; few concepts and many
@pytest.mark.parametrize(
    ("n", "d", "K", "dtype", "entries"),
    [
        (1, 1, 1, torch.float32, 1 << 20),
        (30, 5, 7, torch.float64, 1),
        (30, 5, 7, torch.float32, 50),
        (7, 3, 200, torch.float32, 50),
        (7, 3, 200, torch.float64, 1 << 20),
    ],
)
def test_statistics_follow_the_definitions(monkeypatch, n, d, K, dtype, entries):
    monkeypatch.setattr(metrics, "_ENTRIES", entries)
    Z, D = problem(n, d, K, dtype)
    Z[0, 0] = 0.5
    found = metrics.describe([Z], D)
    z, concepts = Z.double().numpy(), D.double().numpy()
    l0 = (z > 0).sum(1)
    assert found.mean_l0 == pytest.approx(l0.mean())
    assert found.l0_most == l0.max()
    assert sum(found.l0_histogram) == n
    energy = (z**2).sum(0) * (concepts**2).sum(1)
    np.testing.assert_allclose(found.energy, energy / energy.sum(), rtol=1e-5, atol=1e-12)
    some = z[l0 > 0]
    ratio = some.sum(1) / np.sqrt((some**2).sum(1))
    hoyer = (np.sqrt(K) - ratio) / (np.sqrt(K) - 1) if K > 1 else np.ones(len(some))
    assert found.hoyer == pytest.approx(hoyer.mean(), abs=1e-6)
    assert found.dead_concepts == ((z == 0).all(0) | (concepts == 0).all(1)).sum()


def test_histogram_counts_rows_by_their_active_concepts():
    Z = torch.tril(torch.ones(4, 4))[[0, 0, 3]]
    assert metrics.describe([Z], torch.eye(4)).l0_histogram == (0, 2, 0, 0, 1)


@pytest.mark.parametrize(
    ("K", "width", "bars"), [(31, 1, 32), (32, 2, 17), (59, 2, 30), (96, 4, 25)]
)
def test_every_bar_holds_as_many_numbers(K, width, bars):
    """Bars of 1.9 numbers held one or two in turn, and a smooth histogram became a comb."""
    histogram = metrics.describe([torch.tril(torch.ones(K, K))], torch.eye(K)).l0_histogram
    counted = np.bincount(np.arange(1, K + 1) // width)
    assert histogram == tuple(counted)
    assert len(histogram) == bars


@pytest.mark.parametrize("entries", [1, 12, 1 << 20])
def test_concepts_that_point_as_an_earlier_one_are_counted(monkeypatch, entries):
    monkeypatch.setattr(metrics, "_ENTRIES", entries)
    D = torch.eye(6)
    D[3] = 7 * D[1]
    D[5] = 1e-20 * D[1] + 1e-22
    D[4] = 0
    found = metrics.describe([torch.ones(3, 6)], D)
    assert (found.near_duplicates, found.dead_concepts) == (2, 1)


def test_zero_factors_have_statistics():
    found = metrics.describe([torch.zeros(3, 4)], torch.zeros(4, 2))
    assert (found.mean_l0, found.hoyer, found.dead_concepts, found.near_duplicates) == (0, 0, 4, 0)
    assert found.energy == (0, 0, 0, 0)
    assert found.l0_histogram == (3,)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_statistics_do_not_depend_on_the_scale(scale):
    Z, D = problem(20, 6, 9)
    plain, scaled = metrics.describe([Z], D), metrics.describe([Z * scale], D * scale)
    assert scaled.hoyer == pytest.approx(plain.hoyer, rel=1e-5)
    assert scaled.energy == pytest.approx(plain.energy, rel=1e-5)
    assert scaled.near_duplicates == plain.near_duplicates


def measured(A, Z, D, rows=7):
    state = State(InMemory(Z.to(A)), D.to(A))
    return metrics.measure(Data(A), state, method("hals"), rows)


# far from zero the spread is a difference of nearly equal numbers
@pytest.mark.parametrize(
    ("offset", "dtype"), [(0.0, torch.float32), (100.0, torch.float32), (100.0, torch.float64)]
)
def test_r_squared_is_that_of_the_mean_row_and_of_a_perfect_fit(offset, dtype):
    A = torch.rand(30, 4, dtype=dtype) + offset
    mean = A.double().mean(0, keepdim=True)
    exact, average = torch.eye(30), torch.full((30, 30), 1 / 30)
    assert measured(A, torch.ones(30, 1), mean).r_squared == pytest.approx(0, abs=1e-5)
    assert measured(A, exact, A).r_squared == 1
    # a quarter of the spread is left
    half = measured(A, exact / 2 + average / 2, A)
    assert half.r_squared == pytest.approx(0.75, abs=1e-4 if offset else 1e-5)


def test_r_squared_of_rows_that_are_alike_is_1_or_0():
    A = torch.full((7, 3), 0.1)
    ones = torch.ones(7, 1)
    assert measured(A, ones, A[:1]).r_squared == 1
    assert measured(A, ones, 1.01 * A[:1]).r_squared == 0
    assert measured(torch.zeros(5, 2), torch.zeros(5, 1), torch.zeros(1, 2)).r_squared == 1


def test_measured_error_is_that_of_the_residual():
    Z, D = problem(30, 5, 7)
    A = torch.rand(30, 5)
    found = measured(A, Z, D)
    error = (A.double() - Z.double() @ D.double()).square().sum()
    assert found.squared_error == pytest.approx(float(error), rel=1e-5)
    assert found.squared_norm == pytest.approx(float(A.double().square().sum()), rel=1e-5)
    assert found.penalty == 0
    in_one = measured(A, Z, D, rows=30)
    assert in_one.codes == metrics.describe([Z], D)
    assert in_one.codes.energy == pytest.approx(found.codes.energy)
    assert in_one.squared_error == pytest.approx(found.squared_error)


def test_concept_whose_squares_vanish_is_not_dead():
    Z, D = problem(9, 4, 3, torch.float64)
    Z[:, 0], D[1] = 1.0, D[1] * 1e-200
    assert metrics.describe([Z], D).dead_concepts == int((Z == 0).all(0).sum())
    D[1] = 0
    assert metrics.describe([Z], D).dead_concepts == int((Z == 0).all(0).sum()) + 1


def test_plain_values_of_a_summary_are_those_of_asdict():
    model = NMF(3, seed=0, max_iter=4, tol=0)
    model.fit(torch.rand(20, 6, generator=torch.Generator().manual_seed(0)))
    assert metrics.as_plain(model.fit_info_) == asdict(model.fit_info_)
