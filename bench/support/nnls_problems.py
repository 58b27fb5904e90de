"""Problems for exact non-negative least squares, for the CPU bench and for the GPU study."""

from __future__ import annotations

import functools

import numpy as np

KINDS = ("rectified", "lowrank", "dependent")


# as large as the rest of a timing, and the same for each contender
@functools.cache
def draw(kind: str, n: int, d: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """A (n, d) and D (K, d), float64, non-negative.

    rectified: Gaussian rows, sparser Gaussian concepts. lowrank: 32 positive factors and noise,
    concepts drawn from the rows. dependent: as rectified, but half of the concepts nearly equal
    the other half, and some rows and concepts are zero.
    """
    rng = np.random.default_rng(1)
    if kind == "lowrank":
        A = rng.gamma(1, 1, (n, 32)) @ rng.gamma(1, 1, (32, d)) / 32
        A += 0.1 * np.abs(rng.standard_normal((n, d)))
        return A, A[rng.integers(0, n, K)] * rng.random((K, d))
    A = np.maximum(rng.standard_normal((n, d)), 0)
    D = np.maximum(rng.standard_normal((K, d)) - 0.5, 0)
    if kind == "dependent":
        half = K // 2
        D[half:] = D[: K - half] * (1 + 1e-5 * rng.standard_normal((K - half, d)))
        D[::7], A[::7] = 0, 0
    return A, D
