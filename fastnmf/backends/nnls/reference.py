"""Exact non-negative least squares by active sets, in plain torch: the reference.

Lawson & Hanson's method (1974) on the Gram matrix (Bro & de Jong, 1997), with several concepts that
enter at once, as in csrc/nnls/solver.h, for many columns at a time. It ends at any rank, so K > d
is safe."""

from __future__ import annotations

import torch
from torch import Tensor

from .active_sets import ActiveSets
from .result import RANK_TOLERANCE, TOLERANCE, NnlsInfo, most_steps, unit_gram

# entries of the largest scratch array
_SCRATCH = 1 << 23


def nnls_(
    F: Tensor,
    C: Tensor,
    G: Tensor,
    sums: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
    unit: tuple[Tensor, Tensor] | None = None,
) -> NnlsInfo:
    """F ← argmin ½ tr(Fᵀ G F) − tr(Fᵀ C) over F ≥ 0, in place, each column separately.

    F, C (K, m); G (K, K). Computed in float64, to the precision that C and G have. warm: start from
    F, which pays where F is an exact solution of a similar problem; else from zero. A concept with
    G_kk = 0 is left as it is. max_steps: how many times concepts may enter the support of a column,
    up to BLOCK at once; None: most_steps(K). unit: unit_gram(G), where it is known. sums (2,)
    float64 is increased by ‖Δ‖² and ‖F‖². About m q⁴ / 50 flops for supports of q concepts.
    Synchronises.
    """
    G, scale = unit_gram(G) if unit is None else unit
    G, alive = G.double(), scale > 0
    scale = torch.where(alive, 1 / scale, 1)
    K, m = F.shape
    max_steps = most_steps(K) if max_steps is None else max_steps
    width = max(1, _SCRATCH // max(K, min(K, 256) ** 2))
    infos = []
    for first in range(0, m, width):
        part = slice(first, first + width)
        c = torch.where(alive, C[:, part].T.double() / scale, 0)
        start = torch.where(alive, F[:, part].T.double() * scale, 0) if warm else None
        x, info = _solve(c, G, alive, (start, max_steps, C.dtype))
        infos.append(info)
        updated = torch.where(alive[:, None], (x / scale).T.to(F.dtype), F[:, part])
        sums[0] += (updated - F[:, part]).square().sum(dtype=torch.float64)
        sums[1] += updated.square().sum(dtype=torch.float64)
        F[:, part] = updated
    return NnlsInfo.join(infos)


def _solve(
    c: Tensor, G: Tensor, alive: Tensor, search: tuple[Tensor | None, int, torch.dtype]
) -> tuple[Tensor, NnlsInfo]:
    """x (r, K) and the info, for c (r, K) and G (K, K), or each row's own G (r, K, K), of unit
    concepts that are alive, (K,) or (r, K); float64.

    search: x to start from or None, max_steps, and the dtype whose tolerances hold.
    """
    start, max_steps, dtype = search
    # a power of two, so that the largest slope is from 1 to 2
    unit = torch.ldexp(torch.ones_like(c[:, :1]), 1 - c.amax(1, keepdim=True).frexp().exponent)
    state = ActiveSets(c * unit, G, alive, TOLERANCE[dtype], RANK_TOLERANCE[dtype])
    if start is not None:
        state.start_(start * unit)
    info = state.solve_(max_steps)
    # passed on: zeros would hide that numbers overflowed
    x = (state.x / unit).masked_fill_(~c.isfinite().all(1, keepdim=True), torch.nan)
    return x, info


def nnls_on_(
    F: Tensor,
    C: Tensor,
    unit: Tensor,
    scale: Tensor,
    index: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> tuple[NnlsInfo, Tensor]:
    """nnls_ with column i of F restricted to the concepts index[i], −1 behind the last; in place.

    F, C (K, m) have all concepts, but only those of index are read and written. unit (K, K) and
    scale (K,) as unit_gram returns them, or unit (m, q, q) on the concepts of index (m, q) int32.
    Returns the info, and the gain of each column, (m,) float64: ‖x‖² minus its squared residual.
    """
    m, q = index.shape
    dtype, tiny = C.dtype, torch.finfo(C.dtype).tiny
    max_steps_of = max_steps if max_steps is not None else most_steps(q)
    rows, infos = max(1, _SCRATCH // max(q, 1) ** 2), []
    gain = torch.zeros(m, dtype=torch.float64, device=F.device)
    for first in range(0, m, rows):
        part = slice(first, first + rows)
        used, concepts = index[part] >= 0, index[part].long().clamp(min=0)
        length = scale[concepts].clamp(min=tiny)
        used &= scale[concepts] > 0
        own = unit[part] if unit.dim() == 3 else unit[concepts[:, :, None], concepts[:, None]]
        G = torch.where(used[:, :, None] & used[:, None], own, 0).double()
        G, norm = _unit_grams(G)
        used &= norm > 0
        c = torch.where(used, (C.T[part].gather(1, concepts) * length).to(dtype).double() * norm, 0)
        x = torch.where(used, F.T[part].gather(1, concepts).double() / length / norm, 0)
        found, info = _solve(c, G, used, (x if warm else None, max_steps_of, dtype))
        infos.append(info)
        codes = (found * norm * length).to(F.dtype)
        row, place = used.nonzero(as_tuple=True)
        F[concepts[row, place], row + first] = codes[row, place]
        found = torch.where(used, found, 0)
        gain[part] = (found * (2 * c - (found[:, None] @ G)[:, 0])).sum(1)
    return NnlsInfo.join(infos), gain


def kkt_(out: Tensor, F: Tensor, C: Tensor, G: Tensor, penalty: tuple[float, float]) -> None:
    """out (2, m) ← the KKT residual of each column of F ≥ 0, for C and G, and how many of its
    entries are positive.

    F, C (K, m) of one dtype with any strides; G (K, K), symmetric; out in their dtype. penalty: l1,
    which is subtracted in C, and l2, which is on the diagonal of G. Slopes C − G F are relative to
    the largest of G F − l2 F + C + 2 l1, as for data of one sign. NaN where it is not finite. 2 m
    K² flops.
    """
    l1, l2 = penalty
    product = G @ F
    slope = C - product
    # the curvature belongs to the slope, not to the scale
    product = product.sub_(F, alpha=l2) if l2 else product
    scale = product.add_(C).amax(0) + 2 * l1
    active = F > 0
    worst = torch.where(active, slope.abs(), slope).amax(0).clamp(min=0)
    found = worst / scale.clamp(min=torch.finfo(C.dtype).tiny)
    torch.stack((torch.where(worst == 0, 0, found), active.sum(0).to(C.dtype)), out=out)


def _unit_grams(G: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices (r, q, q) of unit concepts, and 1 over the norms (r, q), 0 for zero ones."""
    diagonal = G.diagonal(dim1=1, dim2=2)
    norm = torch.where(diagonal > 0, torch.where(diagonal > 0, diagonal, 1).rsqrt(), 0)
    return G * norm[:, :, None] * norm[:, None], norm
