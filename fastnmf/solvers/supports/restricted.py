"""Half-steps of HALS restricted to few concepts of each row: sweeps of the codes over the concepts
that a row has and those whose slope is above the penalty, and of the dictionary over codes that are
not zero. A fixed point of these is one of the whole sweeps, since all slopes are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix, transpose_of
from ...backends.torch import inverse_or_zero
from ..penalties import Penalty

if TYPE_CHECKING:
    from ..half_step import Compute

# sweeps of the candidates of a row, whose slopes are computed once, at most
SWEEPS = 3


@dataclass(frozen=True)
class Dictionary:
    """D (K, d), fixed, and what sweeps of the candidates need of it: the penalty l1 > 0 of the
    codes, its curvature (K,), and 1 over ‖D_k‖² + curvature_k, 0 for concepts that keep theirs."""

    D: Tensor
    l1: float
    curvature: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, D: Tensor, penalty: Penalty) -> Dictionary:
        squares = torch.linalg.vector_norm(D, dim=1).square()
        curvature = penalty.curvature(squares)
        return cls(D, penalty.l1, curvature, inverse_or_zero(squares + curvature))


def sweep_codes_(
    codes: SparseMatrix, X: Tensor, E: Tensor, fixed: Dictionary, compute: Compute, sums: Tensor
) -> SparseMatrix:
    """The codes (m, K) after the half-step, given those before it; X (m, d), of any dtype.

    E (m, d): receives the residual of the new codes. sums (2,) is increased by ‖Δ‖² and ‖F‖².
    2 m K d flops for the slopes, which take m K entries of scratch.
    """
    ops, parts = compute.ops, (codes.crow, codes.col, codes.values)
    residual_of_codes_(E, X, codes.using(ops), fixed.D)
    S = torch.mm(E, fixed.D.T, out=compute.scratch("slopes", *codes.shape))
    found = ops["candidates_"](S, parts, fixed.l1)
    of_penalty = fixed.l1, fixed.curvature, fixed.inverse
    ops["hals_candidates_"](found, E, fixed.D, of_penalty, SWEEPS, sums)
    return SparseMatrix(*found, codes.shape, codes.operations).without_zeros()


def residual_of_codes_(E: Tensor, X: Tensor, codes: SparseMatrix, D: Tensor) -> None:
    """E (m, d) ← X − Z D for the codes (m, K); X of any dtype. 2 nnz d flops."""
    codes.dot(D, out=E)
    torch.sub(X, E, out=E)


def sweep_concepts_(
    D: Tensor,
    E: Tensor,
    codes: Sequence[SparseMatrix],
    penalty: Penalty,
    compute: Compute,
    sums: Tensor,
) -> None:
    """The half-step of the dictionary D (K, d), and its residual E (n, d), for the codes (n, K),
    whose rows are in parts: the iterates of the whole sweep. compute: of the dictionary."""
    by_concept = transpose_of(codes)
    curvature = D.new_zeros(len(D)) + penalty.l2 if penalty else None
    parts = by_concept.crow, by_concept.col, by_concept.values
    compute.ops["hals_concepts_"](D, E, parts, curvature, sums, compute.bounded)
