"""Overcomplete's loops over concepts, transcribed so that a part of them can be timed."""

from __future__ import annotations

import torch


def overcomplete_loop(C, B, M, N, Z, D, concepts: int) -> None:
    """The loops of Overcomplete's _one_step_hals over the first concepts, in place.

    C, B, M, N: A Dᵀ, D Dᵀ, Zᵀ A, Zᵀ Z, as it computes them before.
    """
    for k in range(concepts):
        numerator = C[:, k] - Z @ B[:, k] + Z[:, k] * B[k, k]
        Z[:, k] = torch.relu(numerator / (B[k, k] + 1e-10))
    for k in range(concepts):
        numerator = M[k, :] - N[k, :] @ D + D[k, :] * N[k, k]
        D[k, :] = torch.relu(numerator / (N[k, k] + 1e-10))
