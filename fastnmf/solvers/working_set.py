"""Exact non-negative least squares with many concepts, on working sets: each row is solved on the
few concepts that it may use, and the set grows until no other concept would lower its error.

A round computes the slopes of all concepts from the residual, two products with the fixed factor,
then solves each row on the concepts that it uses and those with the steepest slopes. Each round
lowers the error of a row, so the rounds end, at the solution on all concepts. Neither C (K, m) nor
work on all of G is needed; G is formed only where it pays and fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.nnls.result import CAPPED, FLOORED, SOLVED, TOLERANCE, NnlsInfo
from ..numerics import widened
from .penalties import NO_PENALTY, Penalty

# concepts that may join the working set of a row in a round
GROWTH = 128
# rounds that a row needs: 5 to 8 measured at K = 10,000
ROUNDS = 6
# bytes of a Gram matrix of all concepts at most
GRAM_BYTES = 2 << 30
# rows that are solved together, and entries of their own Gram matrices, at most
_ROWS = 512
_SCRATCH = 1 << 24


@dataclass(frozen=True)
class Concepts:
    """The fixed factor B (K, p), and what all rows need of it.

    scale (K,) float64: 1 over the norms of the concepts, 0 for zero concepts. unit (K, K): the Gram
    matrix of unit concepts, or None where each row forms its own. l1, curvature (K,): of a penalty,
    or zero and None; norms and unit include the curvature.
    """

    B: Tensor
    scale: Tensor
    unit: Tensor | None
    l1: float = 0.0
    curvature: Tensor | None = None


class Search(NamedTuple):
    """How rows are solved on working sets: by the operation nnls_on_. max_steps: how many times
    concepts may enter a support, in all rounds; None: in each as often as is the default."""

    nnls_on_: Callable
    max_steps: int | None = None


def prepare_concepts(B: Tensor, rows: int, penalty: Penalty = NO_PENALTY) -> Concepts:
    """The Concepts of B (K, p), with the Gram matrix where it pays for that number of rows."""
    norms, curvature = torch.linalg.vector_norm(B, dim=1, dtype=torch.float64), None
    if penalty:
        squares = norms.square()
        added = penalty.curvature(squares)
        norms, curvature = (squares + added).sqrt(), added.to(B.dtype)
    scale = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1), 0)
    K = B.shape[0]
    # K² p flops once, or (2 GROWTH)² p for every row and round
    pays = rows * ROUNDS * (2 * GROWTH) ** 2 > K**2
    unit = None
    if pays and K**2 * B.element_size() <= GRAM_BYTES:
        unit = B.new_empty(K, K)
        for part in torch.arange(K, device=B.device).split(1024):
            part = slice(int(part[0]), int(part[-1]) + 1)
            torch.mm(_scaled(B[part], scale[part]), B.T, out=unit[part])
            unit[part] *= scale.to(B.dtype)
        if penalty:
            unit.diagonal().copy_(scale > 0)
    return Concepts(B, scale, unit, penalty.l1, curvature)


def working_set_(
    F: Tensor, Xt: Tensor, concepts: Concepts, sums: Tensor, search: Search, *, warm: bool
) -> NnlsInfo:
    """F ← argmin ½ ‖X − Fᵀ B‖² plus the penalty, over F ≥ 0, in place, each column separately.

    F (K, m), Xt (p, m) = Xᵀ, in F's dtype or one of numerics.NARROW. warm: start from F, else from
    zero; zero concepts keep their F_k. sums (3,) float64 is increased by ‖Δ‖², ‖F‖² and the squared
    residual. Synchronises.
    """
    infos = []
    for first in range(0, F.shape[1], _ROWS):
        part = slice(first, first + _ROWS)
        before = F[:, part].T
        # row-major, as the products and the search for steep slopes want it
        Z = before.clone(memory_format=torch.contiguous_format)
        if not warm:
            Z[:, concepts.scale > 0] = 0
        X = widened(Xt[:, part].T)
        infos.append(_solve_(Z, X, concepts, sums, search))
        sums[0] += (Z - before).square().sum(dtype=torch.float64)
        sums[1] += Z.square().sum(dtype=torch.float64)
        F[:, part] = Z.T
    return NnlsInfo.join(infos)


def _solve_(Z: Tensor, X: Tensor, concepts: Concepts, sums: Tensor, search: Search) -> NnlsInfo:
    """Solve for all rows of Z (r, K) in place, given X (r, p); sums[2] is increased by the squared
    residual."""
    B, tolerance = concepts.B, TOLERANCE[Z.dtype]
    scale = concepts.scale.to(Z.dtype)
    C = X @ B.T
    reference = (C * scale).amax(1).clamp(min=torch.finfo(Z.dtype).tiny)
    C.sub_(concepts.l1)
    status = torch.full((len(Z),), SOLVED, dtype=torch.int32, device=Z.device)
    kkt = torch.zeros(len(Z), dtype=torch.float64, device=Z.device)
    taken = torch.zeros_like(status)
    gain = torch.full_like(kkt, -torch.inf)
    going = torch.arange(len(Z), device=Z.device)
    stuck = torch.zeros_like(going, dtype=torch.bool)
    z, x, c = Z, X, C
    while True:
        E = torch.addmm(x, z, B, alpha=-1)
        slope = torch.mm(E, B.T)
        if concepts.curvature is not None:
            slope.sub_(concepts.l1).addcmul_(concepts.curvature, z, value=-1)
        slope.mul_(scale).div_(reference[going, None])
        used = (z > 0) & (scale > 0)
        violation = torch.where(used, slope.abs(), slope).amax(1).clamp_(min=0).double()
        slope.masked_fill_(used, torch.inf)
        steep = torch.where(used, 0, slope).amax(1)
        # a start may be far from the solution on the concepts that it uses
        solved = (violation <= tolerance) | (gain[going] > -torch.inf)
        done = ((steep <= tolerance) & solved) | stuck
        ended = going[done]
        Z[ended], kkt[ended] = z[done], violation[done]
        floored = (status[ended] == SOLVED) & ~(kkt[ended] <= tolerance)
        status[ended] = torch.where(floored, FLOORED, status[ended])
        sums[2] += E[done].square().sum(dtype=torch.float64)
        going = going[~done]
        if not len(going):
            return NnlsInfo(status, kkt.nan_to_num(torch.inf), (Z > 0).sum(1).int(), taken)
        z, x, c = z[~done], x[~done], c[~done]
        index = _index(slope[~done], used[~done].sum(1), tolerance)
        info, after = _continue(z, c, concepts, index, search, taken[going])
        taken[going] += info.iterations
        status[going] = torch.where(info.status == CAPPED, CAPPED, SOLVED).int()
        # only rounding is left where no concept outside the set gains anything
        stuck = ~(after > gain[going] * (1 + 1e-15)) | (info.status == CAPPED)
        gain[going] = after


def _index(slope: Tensor, used: Tensor, tolerance: float) -> Tensor:
    """The working set of each row, in order, −1 after the last: the concepts in use, whose slope is
    ∞, and the GROWTH steepest of the others above the tolerance."""
    most = min(slope.shape[1], int(used.max()) + GROWTH)
    steepest, index = slope.topk(most, dim=1)
    place = torch.arange(most, device=slope.device)
    joining = (steepest > tolerance) & (place < used[:, None] + GROWTH)
    index = torch.where(joining, index, slope.shape[1]).sort(dim=1).values
    return torch.where(index < slope.shape[1], index, -1).int()


def _continue(
    z: Tensor, c: Tensor, concepts: Concepts, index: Tensor, search: Search, taken: Tensor
) -> tuple[NnlsInfo, Tensor]:
    """_solve_on for rows in whose support concepts have entered `taken` (r,) times before."""
    if search.max_steps is None:
        return _solve_on(z, c, concepts, index, search)
    order = taken.argsort(stable=True)
    infos, gains = [], []
    for rows in order.split(taken.unique(return_counts=True)[1].tolist()):
        some, left = z[rows], search.max_steps - int(taken[rows[0]])
        search_on = search._replace(max_steps=left)
        info, gain = _solve_on(some, c[rows], concepts, index[rows], search_on)
        z[rows] = some
        infos.append(info)
        gains.append(gain)
    back = order.argsort()
    return NnlsInfo.join(infos)[back], torch.cat(gains)[back]


def _solve_on(
    z: Tensor, c: Tensor, concepts: Concepts, index: Tensor, search: Search
) -> tuple[NnlsInfo, Tensor]:
    """nnls_on_ for the rows z (r, K) and c = B x (r, K), z in place. Without a Gram matrix of all
    concepts each row forms that of its own, some rows at a time."""
    limits = {"warm": True, "max_steps": search.max_steps}
    B, scale = concepts.B, concepts.scale
    if concepts.unit is not None:
        return search.nnls_on_(z.T, c.T, concepts.unit, scale, index, **limits)
    infos, gains = [], []
    q, p = index.shape[1], B.shape[1]
    rows = max(1, _SCRATCH // (q * max(q, p)))
    for first in range(0, len(z), rows):
        part = slice(first, first + rows)
        used = index[part].long().clamp(min=0)
        own = _scaled(B[used], scale[used])
        unit = own @ own.mT
        if concepts.curvature is not None:
            unit.diagonal(dim1=1, dim2=2).copy_(scale[used] > 0)
        info, gain = search.nnls_on_(z[part].T, c[part].T, unit, scale, index[part], **limits)
        infos.append(info)
        gains.append(gain)
    return NnlsInfo.join(infos), torch.cat(gains)


def _scaled(B: Tensor, scale: Tensor) -> Tensor:
    """The concepts B (…, K, p), each times its scale (…, K)."""
    return B * scale[..., None].to(B.dtype)
