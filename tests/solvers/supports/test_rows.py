"""Which rows enter a mixture, however the rows are divided, and W as a sparse matrix."""

from __future__ import annotations

import torch

from fastnmf.data.dataset import Data
from fastnmf.solvers.supports import rows
from fastnmf.solvers.supports.rows import Mixing, Mixture, packed


def test_steepest_rows_are_those_of_all_tiles(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5000, 6, generator=generator)
    A[7] = 0
    mixture = Mixture.of_single(torch.tensor([3, 4000]), torch.float64)
    slopes = torch.randn(2, 6, generator=generator)
    unit = A / A.norm(dim=1, keepdim=True).clamp(min=1e-30)
    for convex, S in ((False, slopes @ unit.T), (True, slopes @ A.T)):
        S[0, 3] = S[1, 4000] = -torch.inf
        expected = S.topk(6, dim=1).indices.sort(1).values
        monkeypatch.setattr(rows, "_SLOPES", 1)
        found, falls = Mixing(Data(A), mixture, convex).steepest(slopes, torch.zeros(2))
        assert torch.equal(found.sort(1).values, expected)
        assert falls.all()
    _, falls = Mixing(Data(A), mixture, True).steepest(slopes, torch.full((2,), 100.0))
    assert not falls.any()


def test_fewer_rows_than_may_enter():
    mixture = Mixture.of_single(torch.tensor([0]), torch.float64)
    found, falls = Mixing(Data(torch.eye(2)), mixture).steepest(torch.ones(1, 2), torch.zeros(1))
    assert found[falls].tolist() == [1]


def test_packed_rows_are_first_and_in_order():
    numbers = torch.tensor([[5, 6, 7], [8, 9, 1]])
    weights = torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    numbers, weights, counts = packed(numbers, weights, weights > 0)
    assert counts == [2, 0]
    assert numbers[0].tolist() == [6, 7]
    assert weights.tolist() == [[2, 3], [0, 0]]


def test_sparse_matrix_of_a_mixture():
    mixture = Mixture(torch.tensor([[2, 0], [1, 3]]), torch.tensor([[0.5, 0.25], [0.0, 1.0]]))
    W = mixture.sparse(4, torch.float32)
    assert W.is_coalesced()
    assert W.to_dense().tolist() == [[0.25, 0, 0.5, 0], [0, 0, 0, 1]]
