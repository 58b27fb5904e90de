"""The gradient of exact codes of rows whose entries have weights, as in ../gradient.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.storage import row_blocks
from ...isolation import without_autocast
from ...precision import products_in

# entries of the largest scratch array
_SCRATCH = 1 << 22


def with_gradient(A: Tensor, D: Tensor, W: Tensor, Z: Tensor, l2: float | Tensor = 0.0) -> Tensor:
    """The codes Z (n, K), differentiable with respect to A (n, d), finite also where W is 0, and D
    (K, d), any number of times. W (n, d): the weights.

    On the support S of a row Z_S = (D_S diag(w) D_Sᵀ + l2 I)⁻¹ (D_S (w ∘ a) − l1), with the
    derivative of these where S does not change.
    """
    return _Codes.apply(A, D, W, Z.detach(), l2)


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A: Tensor, D: Tensor, W: Tensor, Z: Tensor, l2: float | Tensor) -> Tensor:
        Z = Z.clone()
        ctx.save_for_backward(A, D, W, Z)
        ctx.l2 = l2
        return Z

    @staticmethod
    def backward(ctx, upstream: Tensor):
        A, D, W, Z = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            V, of_A, of_D = _Solved.apply(upstream, D, W, Z > 0, ctx.l2), None, None
            weighted = W * (V @ D)
            if ctx.needs_input_grad[0]:
                of_A = weighted.to(A.dtype)
            if ctx.needs_input_grad[1]:
                of_D = V.T @ (W * (A.to(D.dtype) - Z @ D)) - Z.T @ weighted
        return of_A, of_D, None, None, None


class _Solved(torch.autograd.Function):
    """X (n, K) with X_S = (D_S diag(w) D_Sᵀ + l2 I)⁻¹ R_S on the support S of each row, zero
    elsewhere."""

    @staticmethod
    def forward(ctx, R: Tensor, D: Tensor, W: Tensor, used: Tensor, l2: float | Tensor) -> Tensor:
        X = solve_on_supports(R, D, W, used, l2)
        ctx.save_for_backward(D, W, used, X)
        ctx.l2 = l2
        return X

    @staticmethod
    def backward(ctx, upstream: Tensor):
        D, W, used, X = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            U, of_D = _Solved.apply(upstream, D, W, used, ctx.l2), None
            if ctx.needs_input_grad[1]:
                of_D = -(U.T @ (W * (X @ D)) + X.T @ (W * (U @ D)))
        return U, of_D, None, None, None


@torch.no_grad()
def solve_on_supports(R: Tensor, D: Tensor, W: Tensor, used: Tensor, l2: float | Tensor) -> Tensor:
    """X (n, K) with (D_S diag(w) D_Sᵀ + l2 I) X_S = R_S for the support S of each row, used (n, K),
    and zero elsewhere; computed in float64. Where concepts of S depend on each other on what is
    observed, X_S is the solution of least norm."""
    X, wide, (K, d) = torch.zeros_like(R), D.double(), D.shape
    q = int(used.sum(1).max()) if used.numel() else 0
    if q == 0:
        return X
    for part in row_blocks(len(R), max(1, _SCRATCH // max(K, q * max(q, d)))):
        index = used[part].int().argsort(dim=1, descending=True, stable=True)[:, :q]
        real = used[part].gather(1, index)
        some = wide[index] * real[:, :, None]
        gram = (some * W[part].double()[:, None]) @ some.mT
        gram.diagonal(dim1=1, dim2=2).add_(
            real * torch.as_tensor(l2, dtype=gram.dtype, device=gram.device)
        )
        right = (R[part].gather(1, index) * real).double()
        found = (torch.linalg.pinv(gram, hermitian=True) @ right[:, :, None])[:, :, 0]
        X[part] = torch.zeros_like(X[part]).scatter_(1, index, (found * real).to(X.dtype))
    return X
