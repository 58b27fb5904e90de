"""The plan whose factors and workspaces fit beside A on a device; whether a sparse A had better be
made dense."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.products import Matrix
from ..numerics import NARROW, NORM_BYTES, WIDENED_BYTES
from .hardware import Machine, machine_of, sparse_seconds
from .memory import Budget
from .plan import Candidate, Plan, Problem, Tuning, choose, predict

log = logging.getLogger(__name__)

# the share that is left after rounding of allocations, and the workspaces of cuBLAS
_USABLE = 0.92
# of the rates of products and of memory: what products with a dense A reach, so that the time of an
# iteration with 10 to 100 concepts is met within a tenth (3,000 × 2,000, AVX-512); and how many
# times as fast as those with a sparse A they must be for a copy. They are as fast at 25 to 30 %
_OF_GEMM, _OF_FAR, _WORTH_A_COPY = 0.64, 1.75, 1.2


def plan_beside(
    A: Matrix, problem: Problem, backend: str, tuning: Tuning, free: int | None
) -> Plan:
    """The fastest Plan whose factors and workspaces fit beside A. 16-bit numbers are widened in
    tiles of WIDENED_BYTES at most.

    free: the bytes that may be used, or None. Raises torch.cuda.OutOfMemoryError, with the rows
    that would fit, if the requested chunk_rows do not fit, or nothing does.
    """
    n, d, on = problem.n, problem.d, machine_of(A, backend)
    wanted, most, widened = tuning.chunk_rows, n, 0
    if A.dtype in NARROW:
        most, widened = max(1, WIDENED_BYTES // (d * problem.itemsize)), WIDENED_BYTES
        tuning = replace(tuning, chunk_rows=min(most, wanted or most))

    def rows_that_fit(chosen: Plan) -> int:
        fixed, a_row = needed_bytes(problem, chosen)
        return int((_USABLE * free - fixed - widened) // a_row)

    if free is not None and problem.solver.device_workspace and A.device.type == "cuda":
        total = torch.cuda.get_device_properties(A.device).total_memory
        free -= problem.solver.device_workspace(total)
    chosen = choose(problem, on, tuning)
    if free is None or chosen.tile_rows <= rows_that_fit(chosen):
        return chosen
    # fewer rows at a time, by the plan that is best for all rows
    chosen = choose(problem, on, replace(tuning, chunk_rows=most))
    rows = min(most, rows_that_fit(chosen))
    if rows < min(most, wanted or 1):
        fixed, a_row = needed_bytes(problem, chosen)
        whole = fixed + widened + a_row * (wanted or chosen.tile_rows)
        raise torch.cuda.OutOfMemoryError(_message(problem, wanted, rows, whole, free))
    rows = min(rows, wanted or rows)
    log.info("%d rows at a time, for memory", rows)
    return predict(problem, Candidate(chosen.codes, chosen.dictionary, chosen.block, rows), on)


def _message(problem: Problem, wanted: int | None, rows: int, whole: int, free: int) -> str:
    n, K = problem.n, problem.K
    advice = (
        f"chunk_rows={rows} would fit"
        if rows >= 1
        else "no chunk_rows would: give fewer rows or concepts, or more memory"
    )
    codes = n * K * problem.itemsize
    return (
        f"{n:,} rows and {K:,} concepts with chunk_rows={wanted} need {whole / 1e9:.3g} GB beside "
        f"A, of which the codes take {codes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free: {advice}"
    )


def needed_bytes(problem: Problem, chosen: Plan) -> tuple[int, int]:
    """(fixed bytes, bytes for each row of a tile) that a fit needs beside A.

    An upper bound for all backends and precisions: both factors, the residual, statistics, and
    all workspaces of the half-steps.
    """
    n, d, K, learns = problem.n, problem.d, problem.K, problem.learns
    s = min(chosen.block, K)
    kept = n * d if learns and chosen.dictionary == "residual" else 0
    fixed = n * K + 5 * K * d + K * s + kept
    if "normal" in chosen.form:
        fixed += 3 * K * K
    if chosen.form == "normal" and learns:
        # an extrapolation keeps two copies of the codes
        fixed += 2 * n * K
    if chosen.dictionary == "residual" and learns:
        # one block of the codes is rounded; other solvers need a second residual for a moment
        fixed += n * s + (0 if problem.solver.keeps_residual else n * d)
    a_row = problem.solver.workspace(K, d, s)
    a_row += 3 * K if chosen.codes == "normal" else d
    return fixed * problem.itemsize + NORM_BYTES, a_row * problem.itemsize


def dense_copy_pays(problem: Problem, like: Tensor, backend: str, budget: Budget) -> bool:
    """Whether a dense copy of a sparse A fits, and an iteration takes less time on it. like: a
    tensor of its dtype on its device."""
    on, size = machine_of(like, backend), (problem.n, problem.d, like.dtype, like.itemsize)
    return dense_is_faster(problem, on) and budget.holds(*size, given=False)


def dense_is_faster(problem: Problem, on: Machine) -> bool:
    """Whether products with a dense copy of a sparse A take so much less time that it pays."""
    if on.gpu is not None:
        return False
    K, itemsize, entries = problem.K, problem.itemsize, problem.n * problem.d
    each = 2 * K * itemsize / (4 * _OF_GEMM * on.gemm) + itemsize / (_OF_FAR * on.far)
    dense = entries * each / on.threads
    return _WORTH_A_COPY * dense < sparse_seconds(on, problem.stored * entries, K, itemsize)
