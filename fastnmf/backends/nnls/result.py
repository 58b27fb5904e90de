"""What the solvers of exact non-negative least squares share: tolerances, unit concepts, and the
account of every row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# a row is solved when no concept's slope, relative to the row's largest, is above this
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
# a concept nearer than this, squared, to the span of the passive ones depends on them
RANK_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}
# numbers of a Gram matrix in float64 at a time
_PIECE = 1 << 22
# how a row ended
SOLVED, CAPPED, FLOORED = 0, 1, 2


@dataclass(frozen=True)
class NnlsInfo:
    """How every row was solved.

    status (n,) int32: SOLVED = 0, no slope above the tolerance; CAPPED = 1, max_steps met; FLOORED
    = 2, what is left is rounding, or concepts that depend on those in use. kkt (n,) float64: the
    largest violation of the KKT conditions over the row's largest slope at zero, for unit concepts,
    as the solver saw it. support (n,) int32: how many concepts the row uses.
    """

    status: Tensor
    kkt: Tensor
    support: Tensor

    @property
    def capped(self) -> int:
        """How many rows met max_steps; their codes are feasible but not the solution."""
        return int((self.status == CAPPED).sum())

    @classmethod
    def join(cls, parts: list[NnlsInfo]) -> NnlsInfo:
        """The account of all rows from those of pieces, in order."""
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
    """The searches for concepts to enter after which a row of K concepts is given up."""
    return 3 * K + 30


def workspace_share(total_bytes: int) -> int:
    """The bytes of a device's memory that the workspaces of exact half-steps may take."""
    return total_bytes // 8


def unit_gram(G: Tensor) -> tuple[Tensor, Tensor]:
    """G of unit concepts, in G's dtype, and 1 over their norms (K,) float64: 0 where G_kk is.

    The test is absolute: a concept is zero or it counts, however small beside the others.
    """
    diagonal = G.diagonal().double()
    alive = diagonal >= torch.finfo(G.dtype).tiny
    scale = torch.where(alive, torch.where(alive, diagonal, 1).rsqrt(), 0)
    if G.dtype == torch.float64:
        return G * scale[:, None] * scale, scale
    # a factor may be beyond float32 where the product is not
    parts = max(1, _PIECE // G.shape[0])
    unit = torch.empty_like(G)
    for first in range(0, G.shape[0], parts):
        part = slice(first, first + parts)
        unit[part] = G[part].double() * scale[part, None] * scale
    return unit, scale
