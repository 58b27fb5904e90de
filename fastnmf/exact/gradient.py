"""The gradient of exact codes, by implicit differentiation: on the support of a row they solve a
linear system, whose matrix and right side are differentiated any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..backends.nnls.result import RANK_TOLERANCE
from ..backends.nnls.supports import padded_support
from ..isolation import without_autocast
from ..precision import products_in

# entries of the largest scratch array
_SCRATCH = 1 << 22
# how much larger the largest support of rows that are solved together may be than the smallest
_ALIKE, _MORE = 1.2, 4


def with_gradient(
    A: Tensor, D: Tensor, solve: Callable[[], Tensor], l2: float | Tensor = 0.0
) -> Tensor:
    """The codes Z (n, K) = solve(), differentiable with respect to A (n, d) and D (K, d).

    On the support S of a row Z_S = (D_S D_Sᵀ + l2 I)⁻¹ (D_S a − l1), with the derivative of these
    where S does not change. solve: without a gradient. For one in A alone D and the supports are
    kept, n K bytes; for one in D also A and Z.
    """
    return _Codes.apply(A, D, solve, l2)


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, A: Tensor, D: Tensor, solve: Callable[[], Tensor], l2: float | Tensor
    ) -> Tensor:
        Z = solve()
        # saved so, torch refuses a backward pass after one of them was changed in place
        kept = (A, Z) if ctx.needs_input_grad[1] else (None, None)
        ctx.save_for_backward(_savable(D), Z > 0, *kept)
        ctx.l2, ctx.dtype = l2, A.dtype
        return Z

    @staticmethod
    def backward(ctx, upstream: Tensor):
        D, used, A, Z = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            V, of_D = _Solved.apply(upstream, D, used, ctx.l2), None
            rebuilt = V @ D
            if ctx.needs_input_grad[1]:
                of_D = V.T @ (A.to(D.dtype) - Z @ D) - Z.T @ rebuilt
            of_A = rebuilt.to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return of_A, of_D, None, None


class _Solved(torch.autograd.Function):
    """X (n, K) with X_S = (D_S D_Sᵀ + l2 I)⁻¹ R_S on the support S of each row, zero elsewhere."""

    @staticmethod
    def forward(ctx, R: Tensor, D: Tensor, used: Tensor, l2: float | Tensor) -> Tensor:
        X = solve_on_supports(R, D, used, l2)
        ctx.save_for_backward(D, used, X)
        ctx.l2 = l2
        return X

    @staticmethod
    def backward(ctx, upstream: Tensor):
        D, used, X = ctx.saved_tensors
        with without_autocast(), products_in("highest"):
            U, of_D = _Solved.apply(upstream, D, used, ctx.l2), None
            if ctx.needs_input_grad[1]:
                of_D = -(U.T @ (X @ D) + X.T @ (U @ D))
        return U, of_D, None, None


def _savable(X: Tensor) -> Tensor:
    """X, or a copy of a tensor of inference mode, which autograd cannot save."""
    return X.clone() if X.is_inference() else X


@torch.no_grad()
def solve_on_supports(R: Tensor, D: Tensor, used: Tensor, l2: float | Tensor) -> Tensor:
    """X (n, K) with (D_S D_Sᵀ + l2 I) X_S = R_S for the support S of each row, used (n, K), and
    zero elsewhere; computed in float64. Where concepts of S depend on each other X_S is the
    solution of least norm. About q³ / 3 + q² d flops a row, for q concepts."""
    X, wide, (K, d) = torch.zeros_like(R), D.double(), D.shape
    counts, order = used.sum(1).sort()
    sizes = counts.tolist()
    most = sizes[-1] if sizes else 0
    G = wide @ wide.T if K * K <= max(len(R) * most**2, _SCRATCH) else None
    for part in _groups(sizes, d if G is None else 1):
        rows, q = order[part], sizes[part.stop - 1]
        if q == 0:
            continue
        index, real = padded_support(used[rows], q)
        if G is None:
            some = wide[index] * real[:, :, None]
            gram = some @ some.mT
        else:
            gram = G[index[:, :, None], index[:, None, :]]
            gram.mul_(real[:, :, None]).mul_(real[:, None, :])
        gram.diagonal(dim1=1, dim2=2).add_(
            torch.where(real, torch.as_tensor(l2, dtype=gram.dtype, device=gram.device), 1)
        )
        solved = _least(gram, R[rows].double().gather(1, index) * real)
        X[rows] = torch.zeros_like(R[rows]).scatter_add_(1, index, (solved * real).to(R.dtype))
    return X


def _groups(sizes: list[int], d: int) -> Iterator[slice]:
    """Slices of rows with supports of similar sizes, which are in order, that fit in the scratch
    array with d entries for each of their concepts."""
    first = 0
    while first < len(sizes):
        stop, limit = first, _ALIKE * sizes[first] + _MORE
        while stop < len(sizes) and sizes[stop] <= limit:
            entries = (stop + 1 - first) * sizes[stop] * max(sizes[stop], d)
            if stop > first and entries > _SCRATCH:
                break
            stop += 1
        yield slice(first, stop)
        first = stop


def _least(gram: Tensor, R: Tensor) -> Tensor:
    """The solutions (r, q) of gram (r, q, q) X = R (r, q), of least norm where gram is singular."""
    factor, info = torch.linalg.cholesky_ex(gram)
    # squared distance of a concept to those before it, relative to its squared norm
    apart = factor.diagonal(dim1=1, dim2=2).square() / gram.diagonal(dim1=1, dim2=2)
    dependent = (info > 0) | ~(apart.amin(1) > RANK_TOLERANCE[torch.float64])
    if dependent.any():
        factor = torch.where(
            dependent[:, None, None],
            torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device),
            factor,
        )
    solved = torch.cholesky_solve(R[:, :, None], factor)[:, :, 0]
    if dependent.any():
        tolerance = RANK_TOLERANCE[torch.float64]
        inverse = torch.linalg.pinv(gram[dependent], rtol=tolerance, hermitian=True)
        solved[dependent] = (inverse @ R[dependent, :, None])[:, :, 0]
    return solved
