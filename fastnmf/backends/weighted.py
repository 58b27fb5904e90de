"""Sweeps of HALS where each entry of the data has a weight, in plain torch: the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics import add_squares_, inner

# of sparse data, as in torch.py
Compressed = tuple[Tensor, Tensor, Tensor]
# rows X (m, p) and the weights W of their entries: both dense, X finite and W bool or in its dtype;
# or compressed rows and the weights of what they store, None for ones, where no other entry has any
Weighted = tuple[Tensor | Compressed, Tensor | None]
# concepts up to which weighted rows have Gram matrices; entries of these at a time, and of products
# of pairs of concepts
_PAIRED, _GRAMS, _PAIRS = 256, 1 << 22, 1 << 24
# entries of a residual at a time
_RESIDUAL = 1 << 22


def hals_each_(
    F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1, bounded: bool = True
) -> None:
    """hals_sweep_ with a Gram matrix for each column of F: G (K (K + 1) / 2, m), contiguous rows,
    holds their lower triangles row by row. 2 m K² flops a sweep, without a product of matrices."""
    K = len(F)
    of = triangle(K, F.device)
    for _ in range(sweeps):
        delta = torch.empty_like(F)
        for k in range(K):
            own = G[of[k]]
            R = C[k] - (own * F).sum(0)
            alive = own[k] >= torch.finfo(F.dtype).tiny
            best = F[k] + R / torch.where(alive, own[k], 1)
            best = best.clamp(min=0) if bounded else best
            delta[k] = torch.where(alive, best - F[k], 0)
            F[k] = torch.where(alive, best, F[k])
        add_squares_(sums, delta, F)


def triangle(K: int, device: torch.device) -> Tensor:
    """(K, K): where each entry of a symmetric matrix is in its lower triangle, row by row."""
    k = torch.arange(K, device=device)
    high, low = torch.maximum(k[:, None], k), torch.minimum(k[:, None], k)
    return high * (high + 1) // 2 + low


def hals_weighted_(
    F: Tensor,
    rows: Weighted,
    B: Tensor,
    penalty: tuple[float, Tensor] | None,
    sums: Tensor,
    sweeps: int = 1,
    bounded: bool = True,
    *,
    using: tuple[Callable, Callable],
) -> None:
    """hals_sweep_ where each entry has a weight: for column i of F, C = Σ_j w_ij x_ij b_j and
    G = Σ_j w_ij b_j b_jᵀ.

    F (K, m), B (K, p) with any strides; rows (m, p). penalty: None, or l1 and l2 (K), which is
    added to the diagonals; where l1 is all that is left there, 1 is, so that F becomes zero. sums:
    as for hals_block_, for all sweeps; with a third, Σ w (x − Bᵀ f)² is added to it. m p K² flops
    by a Gram matrix for each column; many concepts: 6 m p K a sweep. using: hals_each_ and
    sparse_dot_ of a backend.
    """
    K, m = F.shape
    X, _ = rows
    longest = X.shape[1] if isinstance(X, Tensor) else max(1, len(X[1]) // max(1, m))
    step = _GRAMS // (K * (K + 1) // 2) if K <= _PAIRED else _RESIDUAL // max(1, longest)
    for first in range(0, m, max(64, step)):
        part = slice(first, min(m, first + max(64, step)))
        tile = _rows_of(rows, part)
        if K <= _PAIRED:
            _sweep_grams_(F[:, part], tile, B, penalty, sums, sweeps, bounded, using)
        else:
            _sweep_residual_(F[:, part], tile, B, penalty, sums, sweeps, bounded)


def _rows_of(rows: Weighted, part: slice) -> Weighted:
    """These rows; W as numbers."""
    X, W = rows
    if isinstance(X, Tensor):
        assert W is not None
        return X[part], W[part].to(X.dtype)
    crow, col, values = X
    first, last = crow[[part.start, part.stop]].tolist()
    values = values[first:last]
    W = torch.ones_like(values) if W is None else W[first:last]
    return (crow[part.start : part.stop + 1] - first, col[first:last], values), W


def _sweep_grams_(F, rows, B, penalty, sums, sweeps, bounded, using) -> None:
    each, dot = using
    grams = Grams.empty(F)
    grams.take_(rows, B, dot=dot)
    grams.sweep_(F, penalty, sums, sweeps, bounded, each)


@dataclass
class Grams:
    """What a sweep reads of weighted rows, sums over their entries: C (K, m) = Σ_j w_ij x_ij b_j; G
    (K (K + 1) / 2, m), the lower triangles of Σ_j w_ij b_j b_jᵀ; squares = Σ w x², a scalar. pairs:
    the larger and the smaller concept of each row of G."""

    C: Tensor
    G: Tensor
    squares: Tensor | float
    pairs: tuple[Tensor, Tensor]

    @classmethod
    def empty(cls, F: Tensor) -> Grams:
        """For F (K, m); its numbers are any."""
        K, m = F.shape
        high, low = torch.tril_indices(K, K, device=F.device)
        return cls(F.new_empty(K, m), F.new_empty(len(high), m), 0.0, (high, low))

    def first(self, m: int) -> Grams:
        """The first m columns, in the same memory."""
        return replace(self, C=self.C[:, :m], G=self.G[:, :m])

    def take_(
        self, rows: Weighted, B: Tensor, *, adds: bool = False, dot: Callable | None = None
    ) -> None:
        """Take the sums over rows (m, p), W in numbers, with B (K, p), or add them. dot:
        sparse_dot_, for compressed rows, whose sums are not added to."""
        X, W = rows
        if isinstance(X, Tensor):
            V, squares = W * X, (W * X.square()).sum(dtype=torch.float64)
        else:
            V, W = (*X[:2], W * X[2]), (*X[:2], W)
            squares = (V[2] * X[2]).sum(dtype=torch.float64)
        self.squares = self.squares + squares if adds else squares
        high, low = self.pairs
        _products_(self.C, V, B, adds, dot)
        step = max(1, _PAIRS // B.shape[1])
        for first in range(0, len(high), step):
            some = slice(first, first + step)
            _products_(self.G[some], W, B[high[some]] * B[low[some]], adds, dot)

    def sweep_(
        self,
        F: Tensor,
        penalty: tuple[float, Tensor] | None,
        sums: Tensor,
        sweeps: int,
        bounded: bool,
        each: Callable,
    ) -> None:
        """The sweeps of hals_weighted_, by hals_each_ of a backend. What is here is used up."""
        (high, low), C, G = self.pairs, self.C, self.G
        diagonal = triangle(len(F), F.device).diagonal()
        l2 = None
        if penalty is not None:
            l1, l2 = penalty
            C -= l1
            G[diagonal] += curvature(l1, l2[:, None], G[diagonal])
        each(F, C, G, sums[:2], sweeps, bounded)
        if len(sums) > 2:
            G *= torch.where(high == low, 1.0, 2.0)[:, None].to(G)
            found = inner(G, F[high] * F[low]) - 2 * inner(C, F) + self.squares
            if penalty is not None:
                # a concept whose curvature is not l2 is zero
                found -= 2 * l1 * F.sum(dtype=torch.float64) + inner(l2[:, None] * F, F)
            sums[2] += found


def curvature(l1: float, l2: Tensor, diagonal: Tensor) -> Tensor:
    alone = diagonal + l2 < torch.finfo(diagonal.dtype).tiny
    return torch.where(alone, 1.0, l2) if l1 else l2.expand_as(diagonal)


def _products_(
    out: Tensor, X: Tensor | Compressed, B: Tensor, adds: bool, dot: Callable | None
) -> None:
    """out (g, m) ← B Xᵀ, or += it, for X (m, p) and B (g, p)."""
    if isinstance(X, Tensor):
        out.addmm_(B, X.T, beta=int(adds))
        return
    assert dot is not None
    found = B.new_empty(len(X[0]) - 1, len(B))
    dot(found, X, B.T.contiguous())
    out.copy_(found.T)


def _sweep_residual_(F, rows, B, penalty, sums, sweeps, bounded) -> None:
    X, W = rows
    dense = isinstance(X, Tensor)
    if not dense:
        crow, col, X = X
        row = torch.repeat_interleave(crow.diff())
        col = col.long()

    def of_entries(b: Tensor) -> Tensor:
        return b if dense else b[col]

    def spread(f: Tensor) -> Tensor:
        return f[:, None] if dense else f[row]

    def summed(V: Tensor) -> Tensor:
        return V.sum(1) if dense else F.new_zeros(F.shape[1]).index_add_(0, row, V)

    E = X.clone()
    for f, b in zip(F, B, strict=True):
        E -= spread(f) * of_entries(b)
    for _ in range(sweeps):
        delta = torch.empty_like(F)
        for k, b in enumerate(map(of_entries, B)):
            weighted = W * b
            own, slope = summed(weighted * b), summed(weighted * E)
            if penalty is not None:
                l1, l2 = penalty
                added = curvature(l1, l2[k], own)
                own, slope = own + added, slope - l1 - added * F[k]
            alive = own >= torch.finfo(F.dtype).tiny
            best = F[k] + slope / torch.where(alive, own, 1)
            best = best.clamp(min=0) if bounded else best
            delta[k] = torch.where(alive, best - F[k], 0)
            F[k] = torch.where(alive, best, F[k])
            E -= spread(delta[k]) * b
        add_squares_(sums[:2], delta, F)
    if len(sums) > 2:
        # of sparse data both are vectors
        sums[2] += inner(W.reshape(len(W), -1), E.square().reshape(len(E), -1))
