"""Data with concepts that are known."""

import torch


def planted(n, d, K, noise, seed):
    """Rows of K sparse concepts with noise, a share of the size of the signal; and the concepts."""
    drawn = torch.Generator().manual_seed(seed)
    D = torch.rand(K, d, generator=drawn) * (torch.rand(K, d, generator=drawn) < 0.3)
    Z = torch.rand(n, K, generator=drawn) * (torch.rand(n, K, generator=drawn) < 0.4)
    signal = Z @ D
    spread = noise * signal.square().mean().sqrt()
    return (signal + spread * torch.randn(n, d, generator=drawn)).clamp(min=0), D
