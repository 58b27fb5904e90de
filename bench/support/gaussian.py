"""Rectified Gaussian data and factors, on any device; needs torch alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rectified_gaussian(n: int, d: int, generator: torch.Generator | None = None) -> Tensor:
    """max(0, N(0, 1)), (n, d), float32, on the generator's device; None: on the CPU, seed 0."""
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, device=generator.device).clamp_(min=0)


def draw(n: int, d: int, K: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A (n, d), Z (n, K), D (K, d), with Z D scaled to A; on "meta" without numbers."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
    A = torch.randn(n, d, device=device, generator=generator).clamp_(min=0)
    Z, D = (
        torch.randn(*size, device=device, generator=generator).abs_() for size in ((n, K), (K, d))
    )
    ZD = Z[:1000] @ D
    return A, Z, D.mul_((A[:1000] * ZD).sum() / ZD.square().sum())
