"""The two products with A that every iteration needs, and a square matrix product for scale."""

from __future__ import annotations

import pytest
import torch
from support.measure import Timing, called


def gemm(Q, P, name: str) -> Timing:
    """The product Q P, for Q (a, b) and P (b, c): 2 a b c flops."""
    out = Q.new_empty(Q.shape[0], P.shape[1])
    flops = 2 * Q.shape[0] * Q.shape[1] * P.shape[1]
    label = {"kind": "gemm", "contender": name, "solver": None, "backend": "torch", "flops": flops}
    return Timing(tuple, lambda: (torch.mm(Q, P, out=out), None)[1], label)


@pytest.mark.parametrize("product", ["codes", "dictionary", "square"])
@pytest.mark.parametrize("workload", ["concepts_50"])
def bench_gemm(bench, product):
    A, Z, D = bench.problem.A, bench.problem.Z, bench.problem.D
    square = torch.rand(2048, 2048)
    name, Q, P = {
        "codes": ("D Aᵀ", D, A.T),
        "dictionary": ("Zᵀ A", Z.T, A),
        "square": ("2048³", square, square),
    }[product]
    timing = gemm(Q, P, name)
    bench.record(timing, called(timing)[1:])
