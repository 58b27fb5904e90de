"""The gradient of exact codes, by implicit differentiation: on the support of a row they solve a
linear system, whose matrix and right side are differentiated any number of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.nnls.on_supports import fits, solve_groups_
from ..isolation import without_autocast
from ..precision import products_in
from ..solvers.half_step import Operations


def with_gradient(
    A: Tensor, D: Tensor, solve: Callable[[], Tensor], ops: Operations, l2: float | Tensor = 0.0
) -> Tensor:
    """The codes Z (n, K) = solve(), differentiable with respect to A (n, d) and D (K, d).

    On the support S of a row Z_S = (D_S D_Sᵀ + l2 I)⁻¹ (D_S a − l1), with the derivative of these
    where S does not change. solve: without a gradient. ops: of solver anls. For one in A alone D
    and the supports are kept, n K bytes; for one in D also A and Z.
    """
    return _Codes.apply(A, D, solve, ops, l2)


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        A: Tensor,
        D: Tensor,
        solve: Callable[[], Tensor],
        ops: Operations,
        l2: float | Tensor,
    ) -> Tensor:
        Z = solve()
        # saved so, torch refuses a backward pass after one of them was changed in place
        kept = (A, Z) if ctx.needs_input_grad[1] else (None, None)
        ctx.save_for_backward(_savable(D), Z > 0, *kept)
        ctx.l2, ctx.ops, ctx.dtype = l2, ops, A.dtype
        return Z

    @staticmethod
    def backward(ctx, upstream: Tensor):
        D, used, A, Z = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            V, of_D = _Solved.apply(upstream, D, used, ctx.l2, ctx.ops), None
            rebuilt = V @ D
            if ctx.needs_input_grad[1]:
                of_D = V.T @ (A.to(D.dtype) - Z @ D) - Z.T @ rebuilt
            of_A = rebuilt.to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return of_A, of_D, None, None, None


class _Solved(torch.autograd.Function):
    """X (n, K) with X_S = (D_S D_Sᵀ + l2 I)⁻¹ R_S on the support S of each row, zero elsewhere."""

    @staticmethod
    def forward(
        ctx, R: Tensor, D: Tensor, used: Tensor, l2: float | Tensor, ops: Operations
    ) -> Tensor:
        X = solve_on_supports(R, D, used, l2, ops)
        ctx.save_for_backward(D, used, X)
        ctx.l2, ctx.ops = l2, ops
        return X

    @staticmethod
    def backward(ctx, upstream: Tensor):
        D, used, X = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            U, of_D = _Solved.apply(upstream, D, used, ctx.l2, ctx.ops), None
            if ctx.needs_input_grad[1]:
                of_D = -(U.T @ (X @ D) + X.T @ (U @ D))
        return U, of_D, None, None, None


def _savable(X: Tensor) -> Tensor:
    """X, or a copy of a tensor of inference mode, which autograd cannot save."""
    return X.clone() if X.is_inference() else X


@torch.no_grad()
def solve_on_supports(
    R: Tensor, D: Tensor, used: Tensor, l2: float | Tensor, ops: Operations
) -> Tensor:
    """X (n, K) with (D_S D_Sᵀ + l2 I) X_S = R_S for the support S of each row, used (n, K), and
    zero elsewhere; computed in float64. Where concepts of S depend on each other X_S is the
    solution of least norm. ops: with solve_supports_. About q³ / 3 + q² d flops a row, for q
    concepts."""
    X, wide, (K, d) = torch.empty_like(R), D.double(), D.shape
    most = int(used.sum(1).max()) if used.numel() else 0
    if fits(K, len(R), most):
        G = wide @ wide.T
        G.diagonal().add_(l2)
        ops["solve_supports_"](X, R, G, used)
        return X

    def gram_of(index: Tensor, real: Tensor) -> Tensor:
        some = wide[index] * real[:, :, None]
        gram = some @ some.mT
        added = torch.as_tensor(l2, dtype=gram.dtype, device=gram.device)
        gram.diagonal(dim1=1, dim2=2).add_(torch.where(real, added, 1))
        return gram

    solve_groups_(X, R, used, gram_of, d)
    return X
