"""Starts whose concepts are rows of the data."""

from __future__ import annotations

import pytest
import torch
from starts import seeded, started

from fastnmf import NMF
from fastnmf.data.dataset import Data
from fastnmf.init.rows import any_rows, spread_rows, take_rows

DRAWS = pytest.mark.parametrize("draw", [any_rows, spread_rows])


def rows(n, d, dtype=torch.float32):
    return torch.rand(n, d, generator=seeded(1), dtype=dtype)


@DRAWS
@pytest.mark.parametrize(("n", "d", "K"), [(100, 5, 40), (9, 4, 20)])
def test_rows_are_drawn_without_replacement(draw, n, d, K):
    drawn = draw(Data(rows(n, d) + 0.1), K, seeded())
    assert len(drawn) == min(n, K) == len(drawn.unique())
    assert drawn.min() >= 0
    assert drawn.max() < n


@DRAWS
def test_rows_of_zeros_are_not_drawn(draw):
    A = rows(20, 4) + 0.1
    A[::2] = 0
    assert sorted(draw(Data(A), 15, seeded()).tolist()) == list(range(1, 20, 2))
    assert len(draw(Data(torch.zeros(5, 3)), 2, seeded())) == 0


@DRAWS
def test_one_seed_draws_the_same_rows_and_another_others(draw):
    A = Data(rows(200, 6))
    first = draw(A, 30, seeded(3))
    torch.manual_seed(3)
    assert torch.equal(first, draw(A, 30, seeded(3)))
    assert torch.equal(first, draw(A, 30))
    assert not torch.equal(first, draw(A, 30, seeded(4)))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_spread_takes_a_row_of_every_direction(scale):
    """990 rows point one way and ten others each their own: all eleven are wanted."""
    A = torch.zeros(1000, 11)
    A[:990, 0] = 1 + torch.rand(990, generator=seeded())
    A[torch.arange(990, 1000), torch.arange(1, 11)] = 1.0
    shuffled = A[torch.randperm(1000, generator=seeded())] * scale
    spread = shuffled[spread_rows(Data(shuffled), 60, seeded())].argmax(1).unique()
    alike = shuffled[any_rows(Data(shuffled), 60, seeded())].argmax(1).unique()
    assert len(spread) == 11
    assert len(alike) < 6


def test_rows_are_taken_in_their_order_from_any_chunk():
    A = rows(20, 4)
    data = Data(A)
    data.limit_chunks(6)
    numbers = torch.tensor([19, 0, 5, 6, 6, 11])
    assert torch.equal(take_rows(data, numbers), A[numbers])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("rows", torch.float32), ("spread", torch.float64)],
)
def test_concepts_start_as_rows_of_the_data(name, dtype):
    A = rows(50, 8, dtype)
    Z, D = started(A, 20, name, seeded())
    assert (Z.shape, D.shape, Z.dtype, D.dtype) == ((50, 20), (20, 8), dtype, dtype)
    # they are scaled with the codes
    rays = torch.nn.functional.normalize(D)
    nearest = (rays @ torch.nn.functional.normalize(A).T).amax(1)
    torch.testing.assert_close(nearest, torch.ones_like(nearest))
    assert Z.is_contiguous()
    assert D.is_contiguous()


def test_what_rows_cannot_supply_is_random():
    A = rows(6, 4) + 0.1
    A[2] = 0
    _, D = started(A, 12, "rows", seeded())
    assert bool((D > 0).any(1).all())
    assert len(D.unique(dim=0)) == 12
    assert not any(F.any() for F in started(torch.zeros(6, 4), 3, "rows", seeded()))


@pytest.mark.parametrize(("name", "solver"), [("rows", "hals"), ("spread", "anls")])
def test_fit_from_rows_lowers_the_error(name, solver):
    A = rows(40, 6)
    model = NMF(10, solver=solver, init=name, seed=0, tol=0)
    model.fit(A, 3)
    early = model.fit_info_.relative_error
    model.fit(A, 30)
    assert model.fit_info_.init == name
    assert model.fit_info_.relative_error < early < 0.5
