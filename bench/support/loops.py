"""The loops over concepts of Overcomplete and nmf-torch, transcribed so that a part can be timed.

baselines.py checks that they give the libraries' own factors.
"""

from __future__ import annotations

import torch


def overcomplete_loop(C, B, M, N, Z, D, concepts: int) -> None:
    """The loops of Overcomplete's _one_step_hals over the first concepts, in place.

    C, B, M, N: A Dᵀ, D Dᵀ, Zᵀ A, Zᵀ Z, which it computes before the loops.
    """
    for k in range(concepts):
        numerator = C[:, k] - Z @ B[:, k] + Z[:, k] * B[k, k]
        Z[:, k] = torch.relu(numerator / (B[k, k] + 1e-10))
    for k in range(concepts):
        numerator = M[k, :] - N[k, :] @ D + D[k, :] * N[k, k]
        D[k, :] = torch.relu(numerator / (N[k, k] + 1e-10))


def nmf_torch_loop(XWT, WWT, HTX, HTH, H, W, concepts: int) -> None:
    """The loops of nmf-torch's NMFBatchHALS over the first concepts, in place."""
    # as in the library, including columns of row-major matrices, which take most of the time
    zero = torch.tensor(0.0)
    most = 0.0
    for k in range(concepts):
        numerator = XWT[:, k] - H @ WWT[:, k]
        new = H[:, k] + numerator / WWT[k, k]
        if torch.isnan(new).sum() > 0:
            new[:] = 0.0
        else:
            new = new.maximum(zero)
        most = max(most, torch.abs(H[:, k] - new).max())
        H[:, k] = new
    most = 0.0
    for k in range(concepts):
        numerator = HTX[k, :] - HTH[k, :] @ W
        new = W[k, :] + numerator / HTH[k, k]
        if torch.isnan(new).sum() > 0:
            new[:] = 0.0
        else:
            new = new.maximum(zero)
        most = max(most, torch.abs(W[k, :] - new).max())
        W[k, :] = new
