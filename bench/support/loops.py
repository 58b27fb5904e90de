"""Iterations of Overcomplete and nmf-torch in plain torch: loops over concepts, transcribed so that
a part can be timed, and what stands in for Overcomplete where it is not installed.

baselines.py and tests/test_bench_loops.py check that they give the libraries' own factors.
"""

from __future__ import annotations

import torch


def overcomplete_loop(C, B, M, N, Z, D, concepts: int) -> None:
    """The loops of Overcomplete's _one_step_hals over the first concepts, in place.

    C, B, M, N: A Dᵀ, D Dᵀ, Zᵀ A, Zᵀ Z, which it computes before the loops.
    """
    _codes(C, B, Z, concepts)
    _dictionary(M, N, D, concepts)


def _codes(C, B, Z, concepts: int) -> None:
    for k in range(concepts):
        numerator = C[:, k] - Z @ B[:, k] + Z[:, k] * B[k, k]
        Z[:, k] = torch.relu(numerator / (B[k, k] + 1e-10))


def _dictionary(M, N, D, concepts: int) -> None:
    for k in range(concepts):
        # N[k, :] @ D, as torch computes it
        numerator = M[k, :] - (N[k : k + 1, :] @ D)[0] + D[k, :] * N[k, k]
        D[k, :] = torch.relu(numerator / (N[k, k] + 1e-10))


def overcomplete_hals(A, Z, D) -> tuple:
    """Overcomplete's _one_step_hals, in place."""
    K = Z.shape[1]
    _codes(A @ D.T, D @ D.T, Z, K)
    _dictionary(Z.T @ A, Z.T @ Z, D, K)
    return Z, D


def overcomplete_mu(A, Z, D) -> tuple:
    """Overcomplete's _one_step_multiplicative_rule."""
    Z = Z * ((A @ D.T) / (Z @ D @ D.T + 1e-10))
    return Z, D * ((Z.T @ A) / (Z.T @ Z @ D + 1e-10))


def overcomplete_adam(A, Z, D, max_iter: int) -> tuple:
    """Overcomplete's projected_gradient_descent with tol=0: Adam on both factors, in place.

    The gradient of mean((A − Z D)²) is written out, by the three products of autograd.
    """
    optimizer = torch.optim.Adam([Z, D], lr=5e-2, weight_decay=1e-5)
    for _ in range(max_iter):
        # for its stopping criterion, which tol=0 leaves out
        Z.clone()
        residual = (A - Z @ D).mul_(-2 / A.numel())
        Z.grad, D.grad = residual @ D.T, Z.T @ residual
        optimizer.step()
        Z.clamp_(min=0)
        D.clamp_(min=0)
    Z.grad = D.grad = None
    return Z, D


def overcomplete_fit(step, A, Z, D, max_iter: int) -> tuple:
    """The loop of Overcomplete's solvers hals and mu, with tol=0."""
    for _ in range(max_iter):
        # for its stopping criterion, which tol=0 leaves out
        Z.clone()
        Z, D = step(A, Z, D)
    return Z, D


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
