"""Alternating non-negative least squares (ANLS): active sets solve each half-step exactly.

In residual form each column is solved on a working set of concepts (supports/), without work
on all of C or G.
Sources: Lawson & Hanson (1974); on the Gram matrix: Bro & de Jong (1997).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.nnls.result import CAPPED, SOLVED, UNSOLVED, NnlsInfo, workspace_share
from ..errors import ConvergenceWarning, warn_once
from ..numerics import add_squares_, wide
from .base import Size, Solver, Work
from .constraints import FREE, NON_NEGATIVE
from .half_step import (
    FORMS,
    Compute,
    FixedFactor,
    HalfStepData,
    NormalData,
    ResidualData,
    fix_gram,
)
from .least_squares import ridge_of
from .penalties import Penalty
from .supports.working_set import (
    GROWTH,
    ROUNDS,
    Concepts,
    Search,
    prepare_concepts,
    scratch_share,
    working_set_,
)


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """Solve for F (K, m) in place; the cost depends on the supports. Warns where columns of F are
    left unsolved."""
    for _ in range(times):
        if isinstance(data, NormalData):
            C, G = (data.C, fixed.G) if not compute.fixed.signed else _near(F, data.C, fixed.G)
            info = compute.ops["nnls_"](F, C, G, sums, warm=data.swept)
        else:
            info = _on_working_sets_(F, data, fixed.concepts, compute, sums)
        _warn(info, UNSOLVED[F.dtype])


def _near(F: Tensor, C: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """C and G of the problem with the squared distance from F added, where signs differ: as much as
    keeps the rounding of C and G from being taken for a direction in which the loss falls without
    end. The distance, and with it what it changes, vanishes in the course of a fit."""
    near = ridge_of(F) * G.diagonal()
    # a row of zeros keeps no codes
    kept = F * (C != 0).any(0)
    return torch.addcmul(C, near[:, None], kept), G + near.diag()


def _on_working_sets_(
    F: Tensor, data: ResidualData, concepts: Concepts, compute: Compute, sums: Tensor
) -> NnlsInfo:
    search, X = Search.of(compute.ops), data.Xt
    if concepts.B.dtype == F.dtype:
        return working_set_(F, X, concepts, sums, search, warm=data.swept)
    exact, before = F.to(concepts.B.dtype), F.clone()
    # not the squared norms of what is rounded yet
    unread = torch.zeros_like(sums)
    given = exact, X.to(concepts.B.dtype), concepts, unread, search
    info = working_set_(*given, warm=data.swept)
    F.copy_(exact)
    add_squares_(sums, F - before, F)
    sums[2] += unread[2]
    return info


def _warn(info: NnlsInfo, exact: float) -> None:
    if not bool((info.status > SOLVED).any()):
        return
    left = (info.status == CAPPED) | ~(info.kkt <= exact)
    if not left.any():
        return
    kkt = float(info.kkt.max())
    warn_once(
        f"anls: {int(left.sum())} of {len(left)} least squares problems of a half-step are not "
        f"solved, the largest KKT residual is {kkt:.1e}: concepts nearly depend on each other; "
        "give A as float64, fewer concepts, or another solver",
        ConvergenceWarning,
    )


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor: with G in normal form; in residual form with the norms of its concepts."""
    if form == "normal":
        return fix_gram(B, G, penalty)
    # where signs differ, the search on Gram matrices would follow the rounding of float32; that of
    # rows in flight is by the concepts themselves
    follows = compute.fixed.signed and Search.of(compute.ops).nnls_rows_ is None
    concepts = prepare_concepts(B.to(wide(B.device)) if follows else B, m, penalty)
    return FixedFactor(B, concepts=concepts)


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them."""
    m, p, K, _ = size
    if form == "normal":
        gram, searched = 2 * p * K * K, times * 2 * m * K * K
        flops = 2 * m * p * K + gram + searched
        return Work(flops, flops, gram=gram, searched=searched)
    flops = times * (ROUNDS * m * (4 * p * K + 2 * p * (2 * GROWTH) ** 2))
    # a round takes 40 launches
    return Work(flops, flops, calls=(0, 0), fixed_calls=(times * ROUNDS * 40, 0))


SOLVER = Solver(
    "anls",
    "alternating non-negative least squares, exact",
    half_steps_,
    operations=("nnls_", "nnls_on_", "kkt_", "cross_", "solve_supports_"),
    fix=fix,
    work=work,
    workspace=lambda K, d, block: 4 * K,
    forms=FORMS,
    device_workspace=lambda total: workspace_share(total) + scratch_share(total),
    # a row on the GPU has half of a float64 matrix, and vectors: csrc/nnls/layout.h
    rows_at_once=lambda K, total: workspace_share(total) / (4 * K * (K + 1) + 80 * K),
    constraints=(NON_NEGATIVE, FREE),
    solves_free=True,
    exact=True,
    # a column of D takes time that grows with the cube of its support, a third of the concepts: 5
    # ms at K = 1,000, 25 ms at 2,000 (one thread, AVX2), so about 0.2 s at 4,000
    learns_up_to=4000,
)
