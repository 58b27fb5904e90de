"""Exact non-negative least squares with many concepts, on working sets: each row is solved on the
few concepts that it may use, and the set grows until no other concept would lower its error.

A round computes the slopes of all concepts from the residual, two products with the fixed factor,
then solves each row on the concepts that it uses and those with the steepest slopes. Each round
lowers the error of a row, so the rounds end, at the solution on all concepts. Neither C (K, m) nor
work on all of G is needed; G is formed only where it pays and fits. The host waits for a device
once in a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ...backends.nnls.result import CAPPED, FLOORED, SOLVED, TOLERANCE, NnlsInfo
from ...backends.nnls.supports import first_true
from ...numerics import widened
from ..penalties import NO_PENALTY, Penalty

# concepts that may join the working set of a row in a round
GROWTH = 128
# rounds that a row needs: 5 to 8 measured at K = 10,000
ROUNDS = 6
# bytes of a Gram matrix of all concepts at most
GRAM_BYTES = 2 << 30
# on a CPU, rows that are solved together, and entries of their own Gram matrices, at most
_ROWS = 512
_SCRATCH = 1 << 24
# matrices (rows, K) that are in memory at once, and (rows, q, max(p, q)) for their Gram matrices
_MATRICES, _GRAM_MATRICES = 10, 3
# bytes of workspaces on devices that do not report their memory
_DEVICE_BYTES = 1 << 28


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
    """How rows are solved on working sets: by the operation nnls_on_; or without them by nnls_rows_
    of a backend that has it. max_steps: how many times concepts may enter a support, in all rounds;
    None: in each as often as is the default."""

    nnls_on_: Callable
    max_steps: int | None = None
    nnls_rows_: Callable | None = None

    @classmethod
    def of(cls, ops: dict[str, Callable], max_steps: int | None = None) -> Search:
        """The search by these operations."""
        return cls(ops["nnls_on_"], max_steps, ops.get("nnls_rows_"))


class Round(NamedTuple):
    """What the host reads of a round, all at once.

    left: rows that are not solved. widest: concepts that one of them uses, at most. entered: for
    each of them how many times concepts entered its support; empty unless there is a limit.
    """

    left: int
    widest: int
    entered: list[int]


def scratch_share(total_bytes: int) -> int:
    """The bytes of a device's memory that rows on working sets may take."""
    return total_bytes // 64


def rows_together(K: int, p: int, like: Tensor) -> int:
    """Rows that are solved together, with K concepts of p entries: on a GPU as many as fit in
    scratch_share, since each round launches some 40 kernels whatever the rows."""
    if like.device.type == "cpu":
        return _ROWS
    return max(1, _device_entries(like) // (_MATRICES * K + 3 * p))


def _device_entries(like: Tensor) -> int:
    """Entries of workspaces on the GPU of `like`, in its dtype."""
    if like.device.type != "cuda":
        return _DEVICE_BYTES // like.element_size()
    total = torch.cuda.get_device_properties(like.device).total_memory
    return scratch_share(total) // like.element_size()


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
        for first in range(0, K, 1024):
            part = slice(first, first + 1024)
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
    residual. Synchronises, once in a round of each part of the rows.
    """
    # the codes of a dictionary half-step are a transposed view, and take no second copy
    if search.nnls_rows_ and concepts.B.stride(1) == 1:
        return _in_flight_(F, Xt.T, concepts, sums, search, warm=warm)
    infos, rows = [], rows_together(len(concepts.B), concepts.B.shape[1], F)
    for first in range(0, F.shape[1], rows):
        part = slice(first, first + rows)
        before = F[:, part].T
        # row-major, as the products and the search for steep slopes want it
        Z = before.clone(memory_format=torch.contiguous_format)
        if not warm:
            Z.masked_fill_(concepts.scale > 0, 0)
        X = widened(Xt[:, part].T)
        infos.append(_solve_(Z, X, concepts, sums, search))
        sums[0] += (Z - before).square().sum(dtype=torch.float64)
        sums[1] += Z.square().sum(dtype=torch.float64)
        F[:, part] = Z.T
    return NnlsInfo.join(infos)


def on_supports_(Z: Tensor, X: Tensor, concepts: Concepts, ops: dict[str, Callable]) -> None:
    """Z (m, K) ← the codes of X (m, p) on the concepts that each row uses already, from Z. A
    concept may leave, and none enters."""
    index = first_true(Z > 0, max(1, int((Z > 0).sum(1).max()))).int()
    c = X @ concepts.B.T
    c = c.sub_(concepts.l1) if concepts.l1 else c
    on_sets_(Z, c, concepts, index, ops)


def on_sets_(
    Z: Tensor, c: Tensor, concepts: Concepts, index: Tensor, ops: dict[str, Callable]
) -> None:
    """Z (m, K) ← the codes of rows with the slopes c (m, K) = X Bᵀ − l1 at zero, from Z, on the
    concepts `index` (m, q) int32 of each row, in order, −1 after the last; those in use among
    them."""
    _solve_on(Z, c, concepts, index, Search.of(ops))


def _in_flight_(
    F: Tensor, X: Tensor, concepts: Concepts, sums: Tensor, search: Search, *, warm: bool
) -> NnlsInfo:
    """working_set_ by nnls_rows_, some rows of X (m, p) at a time where they must be copied."""
    assert search.nnls_rows_ is not None
    m, p = X.shape
    as_it_is = X.dtype == F.dtype and X.stride(1) == 1
    rows = max(1, m) if as_it_is else max(_ROWS, _SCRATCH // p)
    fixed = concepts.B, concepts.scale, concepts.unit, concepts.l1, concepts.curvature
    limits = {"warm": warm, "max_steps": search.max_steps}
    infos = []
    for first in range(0, max(1, m), rows):
        part = slice(first, first + rows)
        tile = X[part] if as_it_is else widened(X[part]).contiguous()
        infos.append(search.nnls_rows_(F[:, part], tile, fixed, sums, **limits))
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
        count = used.sum(1)
        now = _read(done, count, taken[going], search)
        # the rows that stay, in order, then those that end
        order = done.argsort(stable=True)
        stay, end = order[: now.left], order[now.left :]
        ended = going[end]
        Z[ended], kkt[ended] = z[end], violation[end]
        floored = (status[ended] == SOLVED) & ~(kkt[ended] <= tolerance)
        status[ended] = torch.where(floored, FLOORED, status[ended])
        sums[2] += E[end].square().sum(dtype=torch.float64)
        if not now.left:
            return NnlsInfo(status, kkt.nan_to_num(torch.inf), (Z > 0).sum(1).int(), taken)
        going = going[stay]
        z, x, c = z[stay], x[stay], c[stay]
        index = _index(slope[stay], count[stay], now.widest, tolerance)
        info, after = _continue(z, c, concepts, index, search, (taken[going], now.entered))
        taken[going] += info.iterations
        status[going] = torch.where(info.status == CAPPED, CAPPED, SOLVED).int()
        # only rounding is left where no concept outside the set gains anything
        stuck = ~(after > gain[going] * (1 + 1e-15)) | (info.status == CAPPED)
        gain[going] = after


def _read(done: Tensor, count: Tensor, taken: Tensor, search: Search) -> Round:
    """The Round, of rows that are done or not, use `count` concepts, and in whose supports concepts
    have entered `taken` times; all (r,). The only wait for a device."""
    numbers = [(~done).sum(), torch.where(done, 0, count).amax()]
    if search.max_steps is None:
        left, widest = torch.stack(numbers).tolist()
        return Round(left, widest, [])
    left, widest, *entered = torch.cat(
        [torch.stack(numbers), torch.where(done, -1, taken)]
    ).tolist()
    return Round(left, widest, [times for times in entered if times >= 0])


def _index(slope: Tensor, used: Tensor, widest: int, tolerance: float) -> Tensor:
    """The working set of each row, in order, −1 after the last: the concepts in use, whose slope is
    ∞, and the GROWTH steepest of the others above the tolerance. used (r,): how many are in use,
    `widest` at most."""
    most = min(slope.shape[1], widest + GROWTH)
    steepest, index = slope.topk(most, dim=1)
    place = torch.arange(most, device=slope.device)
    joining = (steepest > tolerance) & (place < used[:, None] + GROWTH)
    index = torch.where(joining, index, slope.shape[1]).sort(dim=1).values
    return torch.where(index < slope.shape[1], index, -1).int()


def _continue(
    z: Tensor,
    c: Tensor,
    concepts: Concepts,
    index: Tensor,
    search: Search,
    taken: tuple[Tensor, list[int]],
) -> tuple[NnlsInfo, Tensor]:
    """_solve_on for rows in whose support concepts have entered `taken` times before: (r,), and the
    same on the host, empty unless there is a limit."""
    if search.max_steps is None:
        return _solve_on(z, c, concepts, index, search)
    order = taken[0].argsort(stable=True)
    infos, gains, first = [], [], 0
    for times, group in groupby(sorted(taken[1])):
        rows = order[first : first + len(list(group))]
        first += len(rows)
        some, search_on = z[rows], search._replace(max_steps=search.max_steps - times)
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
    entries = _SCRATCH if z.device.type == "cpu" else _device_entries(z) // _GRAM_MATRICES
    rows = max(1, entries // (q * max(q, p)))
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
