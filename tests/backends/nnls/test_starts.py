"""Exact half-steps from a start, near the solution or not: `csrc/cpu/polish.h`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.backends.nnls.result import CAPPED, SOLVED

N, D, K = 12, 96, 96


def products(name):
    """C (N, K) and G (K, K) in float64 of rows and a dictionary of the kind named, whose products
    float32 holds."""
    rng = np.random.default_rng(5)
    A, B = rng.random((N, D)), np.maximum(rng.standard_normal((K, D)), 0) + 0.1
    if name == "nearly_dependent":
        # squared distances to the span of the others down to 1e-8
        B[K // 2 :] = B[: K // 2] + 10.0 ** rng.uniform(-4, -1, (K // 2, 1)) * rng.random(
            (K // 2, D)
        )
    elif name == "duplicates":
        B[K // 2 :] = B[: K // 2] * rng.uniform(0.5, 2, (K // 2, 1))
    elif name == "dead_concepts":
        B[::5] = 0
    elif name == "many_in_use":
        A = rng.random((N, K)) @ B
    A, B = (torch.from_numpy(X).float().double() for X in (A, B))
    return A @ B.T, (B @ B.T).float().double()


def solved(extension, C, G, start=None, max_steps=None):
    from fastnmf.backends.cpp import OPERATIONS

    Z = torch.zeros_like(C) if start is None else start.clone()
    sums = torch.zeros(3, dtype=torch.float64)
    warm = start is not None
    return Z, OPERATIONS["nnls_"](Z.T, C.T, G, sums, warm=warm, max_steps=max_steps)


def objective(Z, C, G):
    Z = Z.double()
    return ((Z @ G) * Z).sum(1) / 2 - (C * Z).sum(1)


def starts(best):
    """Starts by name: the solution with a few concepts too many and without a few, and others."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.rand(best.shape, generator=generator)
    mean = best[best > 0].mean()
    yield "near", torch.where(drawn < 0.05, 0, best + (drawn > 0.9) * 0.01 * mean)
    yield "far", torch.where(drawn < 0.5, drawn * mean, 0)
    yield "all", drawn * mean
    yield "huge", best * 1e20
    yield "not_finite", torch.where(drawn < 0.02, torch.nan, best)
    yield "none", torch.zeros_like(best)


@pytest.mark.parametrize(
    "name", ["plain", "nearly_dependent", "duplicates", "dead_concepts", "many_in_use"]
)
def test_any_start_leads_to_the_optimum(extension, name):
    C, G = products(name)
    best, _ = solved(extension, C, G)
    least, scale = objective(best, C, G), (C @ torch.linalg.pinv(G) * C).sum(1)
    for kind, start in starts(best):
        Z, info = solved(extension, C.float(), G.float(), start.float())
        alive = G.diagonal() > 0
        assert (info.status == SOLVED).all(), kind
        assert (Z[:, alive] >= 0).all(), kind
        assert Z.isfinite()[:, alive].all(), kind
        Z = torch.where(alive, Z, 0)
        assert (objective(Z, C, G) - least <= 1e-6 * scale).all(), kind
        assert (info.support == (Z > 0).sum(1)).all(), kind


def test_one_of_two_equal_concepts_is_used(extension):
    C, G = products("duplicates")
    start = torch.ones_like(C).float()
    Z, _ = solved(extension, C.float(), G.float(), start)
    assert not ((Z[:, : K // 2] > 0) & (Z[:, K // 2 :] > 0)).any()


def test_a_start_is_capped_as_zero_is(extension):
    C, G = products("plain")
    best, _ = solved(extension, C, G)
    start = torch.where(
        torch.rand(best.shape, generator=torch.Generator().manual_seed(0)) < 0.3, 0, best
    )
    Z, info = solved(extension, C.float(), G.float(), start.float(), max_steps=0)
    assert (info.iterations == 0).all()
    assert (info.status == CAPPED).any()
    assert (Z >= 0).all()
