"""Data on which float32 loses the error, or iterations swing: an offset, exact rank, a huge row,
concepts that are alike."""

from __future__ import annotations

import numpy as np
import torch


def _made() -> dict[str, tuple[np.ndarray, int]]:
    random = np.random.RandomState(0)
    uniform = random.rand(200, 30)
    huge = random.rand(200, 30)
    huge[0] *= 1e6
    return {
        "offset 1e4": (1e4 + uniform, 6),
        "offset 1e6": (1e6 + uniform, 5),
        "rank 6": (np.abs(random.randn(300, 6)) @ np.abs(random.randn(6, 40)), 6),
        "one huge row": (huge, 6),
        "few features": (np.abs(np.random.RandomState(0).randn(50, 7)), 7),
    }


# name → the data (n, d) in float64, and concepts
DATA = _made()


def true_error(A, Z, D) -> float:
    """‖A − Z D‖ / ‖A‖ in float64."""
    A, Z, D = (np.asarray(M, dtype=np.float64) for M in (A, Z, D))
    return float(np.linalg.norm(A - Z @ D) / np.linalg.norm(A))


def similar_concepts(seed, dtype):
    """Rows of concepts whose condition number is up to 1e4."""
    generator = torch.Generator().manual_seed(seed)
    K, d = [(50, 256), (20, 64), (30, 35), (40, 23)][seed % 4]
    D = torch.rand(K, d, generator=generator, dtype=torch.float64)
    D = [1.0, 0.02, 1e-3][seed % 3] * D + [0, 3, 1][seed % 3] * D.mean(0)
    Z = torch.rand(40, K, generator=generator, dtype=torch.float64)
    noise = torch.rand(40, d, generator=generator, dtype=torch.float64)
    return (Z @ D + 0.01 * noise).to(dtype), D.to(dtype)
