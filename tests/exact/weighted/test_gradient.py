"""Systems on the supports of rows whose entries have weights. Gradients of codes are tested in
tests/fit/weighted/test_codes.py."""

from __future__ import annotations

import torch

from fastnmf.exact.weighted import gradient
from fastnmf.exact.weighted.gradient import solve_on_supports

DRAWN = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=DRAWN, dtype=torch.float64)


D, W, R, USED = rand(6, 9), rand(8, 9), rand(8, 6), rand(8, 6) > 0.5
USED[2] = False


def test_each_row_solves_its_own_system(monkeypatch):
    X = solve_on_supports(R, D, W, USED, 0.1)
    for i, used in enumerate(USED):
        B = D[used]
        gram = (B * W[i]) @ B.T + 0.1 * torch.eye(len(B))
        torch.testing.assert_close(X[i, used], torch.linalg.solve(gram, R[i, used]))
    assert not X[~USED].any()
    # some rows at a time
    monkeypatch.setattr(gradient, "_SCRATCH", 100)
    torch.testing.assert_close(solve_on_supports(R, D, W, USED, 0.1), X)


def test_concepts_that_depend_on_each_other_have_the_solution_of_least_norm():
    B, used = D[[0, 0]], torch.ones(8, 2, dtype=torch.bool)
    right = R[:, :1].expand(8, 2)
    X = solve_on_supports(right, B, W, used, 0.0)
    expected = right / (2 * (W * D[0].square()).sum(1, keepdim=True))
    torch.testing.assert_close(X, expected)


def test_no_concept_in_use_is_no_system():
    assert not solve_on_supports(R, D, W, torch.zeros_like(USED), 0.0).any()
