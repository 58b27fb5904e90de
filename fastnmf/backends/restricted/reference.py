"""HALS restricted to few concepts of each row, in plain torch: the reference of the operations that
compute the candidates of each row, sweep them, and sweep the dictionary over codes that are not
zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics import add_squares_

# of a sparse matrix X (m, d) in compressed rows: crow (m + 1,), col (nnz,), values (nnz,)
Compressed = tuple[Tensor, Tensor, Tensor]


def candidates_(S: Tensor, codes: Compressed, bound: float) -> Compressed:
    """The entries of the codes (m, K), and zeros where else S (m, K) is above the bound.

    S: slopes, rows contiguous. codes: as X of sparse_dot_.
    """
    crow, col, values = codes
    dense = torch.zeros_like(S)
    entries = torch.repeat_interleave(crow.diff()), col
    wanted = S > bound
    wanted[entries] = True
    dense[entries] = values
    row, found = wanted.nonzero().unbind(1)
    counts = torch.bincount(row, minlength=len(S))
    bounds = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(crow.dtype)
    return bounds, found.to(col.dtype), dense[row, found]


def hals_candidates_(
    codes: Compressed,
    E: Tensor,
    B: Tensor,
    penalty: tuple[float, Tensor, Tensor],
    sweeps: int,
    sums: Tensor,
) -> None:
    """z_k ← max(0, z_k + (b_kᵀ e − l1 − curvature_k z_k) inverse_k), then e ← e − Δ b_k, for the
    entries z_k of each row of the codes in order, at most `sweeps` times, in place.

    codes: as X of sparse_dot_; only their entries change. E (m, p): their residual; B (K, p): the
    dictionary; both with contiguous rows. penalty = (l1, curvature, inverse), both (K,): inverse is
    1 over ‖b_k‖² + curvature_k, and a concept where it is zero keeps its codes. sums (2,) float64
    is increased by the squared norms of the change by all sweeps, and of the codes. 4 nnz p flops a
    sweep.
    """
    crow, col, values = codes
    l1, curvature, inverse = penalty
    before = values.clone()
    counts = crow.diff()
    for _ in range(sweeps if len(values) else 0):
        for j in range(int(counts.amax())):
            # the j-th entries of all rows that have as many
            (rows,) = (counts > j).nonzero(as_tuple=True)
            places = crow[rows].long() + j
            k = col[places].long()
            b, z, scale = B[k], values[places], inverse[k]
            slope = (b * E[rows]).sum(1) - l1 - curvature[k] * z
            new = torch.where(scale > 0, (z + slope * scale).clamp(min=0), z)
            values[places] = new
            E.index_add_(0, rows, b * (z - new)[:, None])
    add_squares_(sums, (values - before)[None], values[None])


def hals_concepts_(
    F: Tensor,
    E: Tensor,
    codes: Compressed,
    curvature: Tensor | None,
    sums: Tensor,
    bounded: bool = True,
) -> None:
    """F_k ← max(0, F_k + (Eᵀ z_k − curvature_k F_k) / (‖z_k‖² + curvature_k)), then E ← E − z_k Δᵀ,
    for k = 0 … K−1, in place; without the maximum unless `bounded`.

    F (K, p), E (m, p): the dictionary and the residual, with contiguous rows. codes: the transpose
    (K, m) of the codes, as X of sparse_dot_. curvature (K,): of a penalty, or None. A concept
    without codes, and without curvature, stays. sums (2,) float64 is increased by ‖ΔF‖² and ‖F‖².
    4 nnz p flops.
    """
    crow, row, values = codes
    before, tiny = F.clone(), torch.finfo(F.dtype).tiny
    bounds = crow.tolist()
    for k in range(len(F)):
        rows, z = row[bounds[k] : bounds[k + 1]].long(), values[bounds[k] : bounds[k + 1]]
        curved = 0.0 if curvature is None else float(curvature[k])
        gram = float(z.square().sum()) + curved
        if gram < tiny:
            continue
        new = F[k] + (z @ E[rows] - curved * F[k]) / gram
        new = new.clamp_(min=0) if bounded else new
        E.index_add_(0, rows, torch.outer(z, F[k] - new))
        F[k] = new
    add_squares_(sums, F - before, F)


OPERATIONS = {
    "candidates_": candidates_,
    "hals_candidates_": hals_candidates_,
    "hals_concepts_": hals_concepts_,
}
