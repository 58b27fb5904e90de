"""What all solvers of exact non-negative least squares share: tolerances, unit concepts, and the
info about each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# a row is solved when no slope, relative to the largest of the row at zero, is above this
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
# a row whose KKT residual, from A and D, is above this is not solved, whatever the search reported
UNSOLVED = {torch.float32: 1e-5, torch.float64: 1e-9}
# a concept depends on the passive ones if its squared distance to their span is below this
RANK_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}
# entries of a Gram matrix that are converted to float64 at a time
_TILE = 1 << 22
# how a row ended
SOLVED, CAPPED, FLOORED = 0, 1, 2


@dataclass(frozen=True)
class NnlsInfo:
    """Report how `nnls` solved each row.

    Attributes
    ----------
    status : Tensor (n,), int32
        0 (solved): no slope above the tolerance, 1e-6 in float32 and 1e-12 in float64. 1 (capped):
        max_iter was reached; the codes are feasible but not the solution. 2 (floored): only
        rounding is left, or concepts that depend on those in use.
    kkt : Tensor (n,), float64
        The KKT residual of the codes, computed in float64 from A and D: the largest slope of a
        concept, or of the absolute slopes of those in use, relative to
        max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ| z_j). 0 is best; 1e-6 is usual in float32.
    support : Tensor (n,), int32
        How many concepts the row uses, from 0 to min(d, K).

    Examples
    --------
    >>> import torch
    >>> from fastnmf import nnls
    >>> Z, info = nnls(torch.eye(3), torch.eye(3), return_info=True)
    >>> info.support
    tensor([1, 1, 1], dtype=torch.int32)
    >>> info.capped
    0
    """

    status: Tensor
    kkt: Tensor
    support: Tensor

    @property
    def capped(self) -> int:
        """How many rows reached the cap; their codes are feasible but not the solution."""
        return int((self.status == CAPPED).sum())

    @classmethod
    def join(cls, parts: list[NnlsInfo]) -> NnlsInfo:
        """The info of all rows from those of parts, in order."""
        fields = ([getattr(part, name) for part in parts] for name in cls.__dataclass_fields__)
        return cls(*(torch.cat(field) for field in fields))

    def __str__(self) -> str:
        counts = [int((self.status == status).sum()) for status in (SOLVED, CAPPED, FLOORED)]
        return (
            f"{len(self.status):,} rows: {counts[0]:,} solved, {counts[1]:,} capped, "
            f"{counts[2]:,} at the rounding floor; largest KKT residual {self.kkt.max():.1e}, "
            f"mean support {self.support.double().mean():.4g}"
        )


def most_steps(K: int) -> int:
    """The searches for entering concepts after which a row of K concepts counts as capped."""
    return 3 * K + 30


def workspace_share(total_bytes: int) -> int:
    """The bytes of a device's memory that workspaces of exact half-steps may take."""
    return total_bytes // 8


def unit_gram(G: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of unit concepts, in the dtype of G, and 1 over the norms (K,) float64, 0 for
    zero concepts.

    A concept is zero or it counts, however small it is relative to the others.
    """
    diagonal = G.diagonal().double()
    alive = diagonal >= torch.finfo(G.dtype).tiny
    scale = torch.where(alive, torch.where(alive, diagonal, 1).rsqrt(), 0)
    if G.dtype == torch.float64:
        return G * scale[:, None] * scale, scale
    # a factor may be out of the range of float32 where the product is not
    parts = max(1, _TILE // G.shape[0])
    unit = torch.empty_like(G)
    for first in range(0, G.shape[0], parts):
        part = slice(first, first + parts)
        unit[part] = G[part].double() * scale[part, None] * scale
    return unit, scale
