"""The half-step of a dictionary whose concepts are mixtures of rows of the data, D = W A with W ≥
0: concept by concept exact, on the rows of its mixture and some that would lower the loss.

With all else fixed, the loss of concept k is ½ G_kk ‖D_k − t_k‖² for the target
t_k = D_k + (C − G D)_k / G_kk: non-negative least squares on rows of the data. A Aᵀ (n × n) is
never formed; slopes of all rows are one product with A. Source of the model: Ding, Li & Jordan
(2010).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...numerics import add_squares_, wide
from ..base import Size, Solver, Work
from ..constraints import CONVEX, MIXED
from ..half_step import Compute, FixedFactor, HalfStepData, NormalData
from .rows import Mixing, Mixture, packed

# entries of the rows of a block of concepts, and its concepts
_GATHERED, _BLOCK = 1 << 21, 64
Nnls = Callable[..., Any]


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """Each concept F_k ← w A of least loss given the others, in turn, over weights w ≥ 0 of the
    rows of its mixture and those that enter; weights that sum to 1 where the mixture is convex. A
    concept without codes keeps its rows.

    The loss never rises: the weights before are among those to choose from. A mixture is replaced
    in compute.mixing. 2 n d K flops, and K of s² d for mixtures of s rows, in float64.
    """
    assert isinstance(data, NormalData)
    assert compute.mixing is not None
    for _ in range(times):
        before = F.clone()
        _update_(F, data.C, fixed.G, compute.mixing, compute.ops["nnls_"])
        add_squares_(sums, F - before, F)


def _update_(F: Tensor, C: Tensor, G: Tensor, mixing: Mixing, nnls_: Nnls) -> None:
    D, C, G = (M.to(wide(F.device)) for M in (F, C, G))
    slopes = C - G @ D
    # where weights sum to 1, the loss falls along a row if its slope is above the mixture's own
    least = (slopes * D).sum(1) if mixing.convex else slopes.new_zeros(len(D))
    entering, falls = mixing.steepest(slopes.to(F.dtype), least.to(F.dtype))
    mixture = mixing.mixture
    numbers = torch.cat((mixture.numbers, entering), 1)
    weights = torch.cat((mixture.weights, mixture.weights.new_zeros(entering.shape)), 1)
    numbers, weights, counts = packed(numbers, weights, torch.cat((mixture.weights > 0, falls), 1))
    size = max(1, min(_BLOCK, _GATHERED // (numbers.shape[1] * D.shape[1])))
    for first in range(0, len(D), size):
        S = slice(first, first + size)
        rows = mixing.data.take(numbers[S].flatten()).to(D.dtype).unflatten(0, numbers[S].shape)
        _update_block_(D, C, G, S, rows, weights, counts[S], (nnls_, mixing.convex))
    numbers, weights, _ = packed(numbers, weights, weights > 0)
    mixing.mixture.numbers, mixing.mixture.weights = numbers, weights
    F.copy_(D)


def _update_block_(
    D: Tensor,
    C: Tensor,
    G: Tensor,
    S: slice,
    rows: Tensor,
    weights: Tensor,
    counts: list[int],
    how: tuple[Nnls, bool],
) -> None:
    """Update the concepts S of D, and their weights, in place; rows (s, c, d)."""
    nnls_, convex = how
    slopes, grams = C[S] - G[S] @ D, rows @ rows.transpose(1, 2)
    own = G[S, S]
    scale = _scale_of(grams)
    if not convex:
        # rows of zeros, which a start may have
        weights[S] *= scale > 0
        grams *= scale[:, :, None] * scale[:, None]
    for k, (square, count) in enumerate(zip(own.diagonal().tolist(), counts, strict=True)):
        if not square > 0 or not count:
            continue
        at, X = S.start + k, rows[k, :count]
        target = torch.add(D[at], slopes[k], alpha=1 / square)
        w, gram = weights[at, :count, None], grams[k, :count, :count]
        if convex:
            _solve_convex_(w, X, gram, target, nnls_)
        else:
            cross, unit = torch.mv(X, target)[:, None], (gram, scale[k, :count])
            nnls_(w, cross, gram, _unread(w), warm=True, unit=unit)
        found = torch.mv(X.T, w[:, 0])
        slopes.addr_(own[:, k], found - D[at], alpha=-1)
        D[at] = found


def _scale_of(grams: Tensor) -> Tensor:
    """1 over the norms (s, c) of the rows of Gram matrices (s, c, c), 0 for those of zeros."""
    squares = grams.diagonal(dim1=1, dim2=2)
    alive = squares >= torch.finfo(grams.dtype).tiny
    return torch.where(alive, torch.where(alive, squares, 1).rsqrt(), 0)


def _solve_convex_(w: Tensor, X: Tensor, gram: Tensor, target: Tensor, nnls_: Nnls) -> None:
    """w (c, 1) ← argmin ‖target − wᵀ X‖² over w ≥ 0 that sum to 1, in place, for gram = X Xᵀ.

    With B = X − target, the w of least ‖wᵀ B‖² is x / Σ x for the x ≥ 0 of least ‖xᵀ B‖² + μ (1 − Σ
    x)²: of all s w on a ray, the best has μ ‖wᵀ B‖² / (μ + ‖wᵀ B‖²), which grows with ‖wᵀ B‖².
    """
    cross = X @ target
    apart = gram - cross[:, None] - cross + target @ target
    weight = apart.diagonal().amax()
    if not weight > 0:
        # all rows are the target
        return
    C = weight.expand(len(w), 1).contiguous()
    nnls_(w, C, apart + weight, _unread(w), warm=True)
    w /= w.sum()


def _unread(like: Tensor) -> Tensor:
    return torch.zeros(4, dtype=torch.float64, device=like.device)


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them; p rows of the data, m features."""
    m, p, K, _ = size
    products = 2 * m * p * K + 2 * p * K * K + times * 2 * (m * p * K + m * K * K)
    # a concept takes some 20 launches
    return Work(products, products, gram=2 * p * K * K, calls=(0, 0), fixed_calls=(20 * K, 0))


SOLVER = Solver(
    "rows",
    "non-negative least squares on rows of the data",
    half_steps_,
    operations=("nnls_",),
    work=work,
    constraints=(MIXED, CONVEX),
    exact=True,
)
__all__ = ["SOLVER", "Mixture"]
