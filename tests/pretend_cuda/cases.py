"""What several tests on a pretended device need: data, models, and fits on both devices."""

from __future__ import annotations

import torch
from oracle import relative_difference

from fastnmf import NMF, Tuning
from pretend_cuda import Device, on_cuda, on_host, pretend


def drawn(n: int = 30, d: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def model(device: str, K: int = 4, *, tuning: dict | None = None, **options) -> NMF:
    options = {"seed": 0, "tol": 0, "backend": "torch", **options}
    return NMF(K, device=device, tuning=Tuning(**(tuning or {})), **options)


def assert_alike(given, expected, most: float = 1e-6) -> None:
    """Tensors of the pretended device are those of the CPU."""
    for F, known in zip(given, expected, strict=True):
        assert on_host(F).shape == known.shape
        assert on_host(F).dtype == known.dtype
        assert relative_difference(on_host(F), known) <= most


def assert_same_on_device(run, A: torch.Tensor | None = None, most: float = 1e-6) -> Device:
    """run(device, A) gives the same tensors on the CPU and on a pretended device."""
    A = drawn() if A is None else A
    expected = run("cpu", A)
    with pretend() as device:
        given = run("cuda", on_cuda(A))
        assert_alike(given, expected, most)
    return device
