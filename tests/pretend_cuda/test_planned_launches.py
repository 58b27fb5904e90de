"""The launches of an iteration are about as many as the cost model counts (planning/gpu.py)."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF, Tuning
from fastnmf.planning.gpu import launches
from fastnmf.solvers.base import Size
from fastnmf.solvers.registry import SOLVERS
from pretend_cuda import Device, on_cuda

N, D = 12, 8
slow = pytest.mark.compiles


def launched(device: Device, iterations: int, **options) -> tuple[int, int]:
    """Launches of torch and of Triton in a fit."""
    A = torch.rand(N, D, generator=torch.Generator().manual_seed(0))
    device.launched.clear()
    model = NMF(device="cuda", backend="triton", tol=0, init="random", seed=0, **options)
    model.fit(on_cuda(A), max_iter=iterations)
    of_triton = sum(name.endswith("_kernel") for name in device.launched)
    return len(device.launched) - of_triton, of_triton


# solver, form, K, block, precision
@pytest.mark.parametrize(
    ("solver", "form", "K", "block", "precision"),
    [
        ("hals", "normal", 6, 6, "highest"),
        ("mu", "normal", 6, 6, "highest"),
        ("pgd", "normal", 6, 6, "highest"),
        # three blocks
        pytest.param("hals", "normal", 24, 8, "highest", marks=slow),
        pytest.param("hals", "residual", 24, 8, "highest", marks=slow),
        pytest.param("hals", "residual", 24, 8, "high", marks=slow),
        pytest.param("mu", "residual", 24, 8, "high", marks=slow),
        pytest.param("pgd", "residual", 24, 8, "high", marks=slow),
    ],
)
def test_launches_of_an_iteration_are_those_of_the_plan(solver, form, K, block, precision, device):
    torch.set_float32_matmul_precision(precision)
    try:
        tuning = Tuning(form=form, block=block, cuda_graph=False)
        given = {"nb_concepts": K, "solver": solver, "tuning": tuning, "accelerate": False}
        counts = [launched(device, iterations, **given) for iterations in (1, 2)]
    finally:
        torch.set_float32_matmul_precision("highest")
    of_torch, of_triton = (after - before for before, after in zip(*counts, strict=True))
    halves = [Size(N, D, K, block), Size(D, N, K, block)]
    planned = [
        launches(SOLVERS[solver].work(form, size, 1), size, 1, 1, tf32=precision == "high")
        for size in halves
    ]
    expected = tuple(map(sum, zip(*planned, strict=True)))
    assert (of_torch, of_triton) == pytest.approx(expected, rel=0.1)
