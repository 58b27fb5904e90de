"""What all solvers of exact non-negative least squares share: tolerances, unit concepts, and the
info about each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...notebook import folded

# a row is solved when no slope, relative to the largest of the row at zero, is above this
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
# a row whose KKT residual, from A and D, is above this is not solved, whatever the search reported
UNSOLVED = {torch.float32: 1e-5, torch.float64: 1e-9}
# a concept depends on the passive ones if its squared distance to their span is below this
RANK_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}
# concepts that enter a support together, at most: 0.7 to 1.3 of the time that 8 take, 1.3 to 4.7
# times faster than one by one (AVX-512, K = 64 to 2,000)
BLOCK = 16
# entries of a Gram matrix that are converted to float64 at a time
_TILE = 1 << 22
# how a row ended
SOLVED, CAPPED, FLOORED = 0, 1, 2


@dataclass(frozen=True)
class NnlsInfo:
    """Report how `nnls` or `nnls_gram` solved each row.

    Attributes
    ----------
    status : Tensor (n,), int32
        0 (solved): kkt is at most 1e-5 in float32 or 1e-9 in float64, and so is the share of ‖a‖²
        by which the objective is above the least one. 1 (capped): max_iter was reached; the
        codes are feasible but not the solution. 2 (floored): rounding prevented more, as where
        codes are needed that the dtype cannot hold precisely enough.
    kkt : Tensor (n,), float64
        The KKT residual of the codes, computed in float64 from A and D: the largest slope of a
        concept, or of the absolute slopes of those in use, relative to
        max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ| z_j) + l1. 0 is best; 1e-7 is usual in float32, 1e-15 in
        float64.
    support : Tensor (n,), int32
        How many concepts the row uses, from 0 to min(d, K).
    iterations : Tensor (n,), int32
        How many times concepts entered the support of the row, up to 16 at once; max_iter at most,
        and 0 where sweeps over all concepts found the solution.

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
    iterations: Tensor

    @property
    def capped(self) -> int:
        """How many rows reached the cap; their codes are feasible but not the solution."""
        return int((self.status == CAPPED).sum())

    def _repr_html_(self) -> str:
        n, solved = len(self.status), int((self.status == SOLVED).sum())
        floored = n - solved - self.capped
        lines = {
            "rows": f"{n:,}",
            "solved": f"{solved:,}",
            "capped by max_iter": f"{self.capped:,}",
            "floored by rounding": f"{floored:,}",
        }
        if n:
            lines["largest KKT residual"] = f"{float(self.kkt.max()):.1e}"
            lines["mean support"] = f"{float(self.support.double().mean()):.4g} concepts"
            lines["most iterations"] = f"{int(self.iterations.max())}"
        return folded(f"Least squares: {solved:,} of {n:,} rows solved", lines)

    def __getitem__(self, rows: Tensor) -> NnlsInfo:
        """The info of some rows."""
        return NnlsInfo(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, parts: list[NnlsInfo]) -> NnlsInfo:
        """The info of all rows from those of parts, in order."""
        fields = ([getattr(part, name) for part in parts] for name in cls.__dataclass_fields__)
        return cls(*(torch.cat(field) for field in fields))

    @classmethod
    def of_none(cls, n: int, device: torch.device) -> NnlsInfo:
        """The info of n rows without a concept: they are solved."""
        none = torch.zeros(n, dtype=torch.int32, device=device)
        return cls(none, none.double(), none.clone(), none.clone())

    def __str__(self) -> str:
        if not len(self.status):
            return "0 rows"
        counts = [int((self.status == status).sum()) for status in (SOLVED, CAPPED, FLOORED)]
        return (
            f"{len(self.status):,} rows: {counts[0]:,} solved, {counts[1]:,} capped, "
            f"{counts[2]:,} at the rounding floor; largest KKT residual {self.kkt.max():.1e}, "
            f"mean support {self.support.double().mean():.4g}"
        )


def most_steps(K: int) -> int:
    """How many times concepts may enter the support of a row of K concepts by default."""
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
