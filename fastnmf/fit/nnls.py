"""Exact non-negative least squares with a given dictionary: the function fastnmf.nnls."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..backends.nnls.residual import solve_by_residual, violation
from ..backends.nnls.result import (
    CAPPED,
    FLOORED,
    SOLVED,
    TOLERANCE,
    UNSOLVED,
    NnlsInfo,
)
from ..backends.registry import select
from ..data.arrays import Expected, read_matrix
from ..isolation import isolated
from ..numerics import products_in
from ..planning.plan import Problem, choose
from ..solvers import anls
from ..solvers.half_step import Operations
from ..solvers.working_set import GRAM_BYTES, Search, prepare_concepts, working_set_
from .gradient import refuse_derivatives

log = logging.getLogger(__name__)

# entries of the largest scratch array; each chunk of rows scales the Gram matrix again
_SCRATCH = 1 << 24
# of the squared norm of a concept: the ridge that bounds codes which float32 cannot hold
_RIDGE = 1e-8
# KKT residual of float64 codes above which a row is solved again, by its residual
_EXACT = 1e-11


@isolated
# exact whatever torch.set_float32_matmul_precision allows
@products_in("highest")
def nnls(
    A: Tensor | np.ndarray,
    D: Tensor | np.ndarray,
    Z0: Tensor | np.ndarray | None = None,
    *,
    max_iter: int | None = None,
    backend: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, NnlsInfo]:
    """Solve min ‖a − z D‖² over z ≥ 0 exactly, for each row a of A.

    It is computed on the device of A.

    Parameters
    ----------
    A : Tensor or ndarray (n, d)
        Rows a, with entries of any sign.
    D : Tensor or ndarray (K, d)
        The dictionary, with entries of any sign.
    Z0 : Tensor or ndarray (n, K), optional
        Codes to start from. They change the time, not the loss, and save time only where they
        solve nearly the same problem.
    max_iter : int, optional
        The most searches for concepts to enter the support of a row. The default, 3 K + 30, is
        more than was ever observed. Rows that reach it are feasible but not solved; a warning is
        logged.
    backend : {'auto', 'cpp', 'cuda', 'torch'}, default 'auto'
        What computes, see `available_backends`.
    return_info : bool, default False
        Whether to return the info of all rows too.

    Returns
    -------
    Z : Tensor (n, K)
        The codes, float64 if A or D is, else float32. A zero row has zero codes, and a zero
        concept is not used.
    info : NnlsInfo
        Status, KKT residual and support of each row; only with return_info=True.

    Raises
    ------
    InvalidInput
        For wrong shapes, entries that are not finite, a wrong max_iter, or A or D that require a
        gradient, which there is none of: ``NMF.encode`` with ``solver='anls'`` has one for A.
    BackendUnavailable
        If the backend cannot be used on the device of A.

    Notes
    -----
    The products of A and D are computed in the dtype of Z, whatever
    ``torch.set_float32_matmul_precision`` allows, and the search is in float64: the KKT residual is
    about 1e-6 in float32 and 1e-12 in float64. Where D has negative entries all is computed in
    float64, the codes are checked from A and D, and rows that the search left unsolved are solved
    again from their residual. Codes are finite and never worse than zero codes.

    References
    ----------
    Lawson & Hanson (1974), Solving Least Squares Problems. Bro & de Jong (1997), A fast
    non-negativity-constrained least squares algorithm, on the Gram matrix.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import nnls
    >>> D = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> A = torch.tensor([[2.0, 3.0, 5.0], [1.0, -1.0, 0.0]])
    >>> Z, info = nnls(A, D, return_info=True)
    >>> Z
    tensor([[2.0000, 3.0000],
            [0.5000, 0.0000]])
    >>> info.support
    tensor([2, 1], dtype=torch.int32)
    """
    max_iter = checks.whole("max_iter", max_iter, at_least=0, optional=True)
    refuse_derivatives("nnls", A=A, D=D)
    device = A.device if isinstance(A, Tensor) else torch.device("cpu")
    D = read_matrix(D, device, Expected("D", signed=True))
    A = read_matrix(A, device, Expected(features=D.shape[1], signed=True))
    dtype = torch.promote_types(A.dtype, D.dtype)
    n, K = A.shape[0], D.shape[0]
    # with concepts of both signs the rounded Gram matrix of float32 may have no minimum over x ≥ 0
    signed = bool((D < 0).any())
    computed = torch.float64 if signed else dtype
    Z = torch.zeros(n, K, dtype=computed, device=device)
    _, ops = select(anls.SOLVER.operations, device, backend)
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    # a concept is zero or it counts, however small it is relative to the others
    alive = norms > 0
    unit = (D / torch.where(alive, norms, 1)[:, None]).to(computed)
    if Z0 is not None:
        start = read_matrix(Z0, device, Expected("Z0", K, "concepts"))
        # a zero concept would keep the value it starts from
        Z.copy_(start * norms)
    infos = []
    chunk_rows = max(1, _SCRATCH // max(D.shape))
    solve = _solver(unit, n, ops, max_iter, warm=Z0 is not None)
    for first in range(0, n, chunk_rows):
        chunk = slice(first, first + chunk_rows)
        infos.append(solve(Z[chunk], A[chunk].to(computed)))
    Z /= torch.where(alive, norms, 1)
    info = NnlsInfo.join(infos)
    if signed:
        Z, info = _repaired(Z, A, D, info, dtype, limited=max_iter is not None)
    elif return_info:
        info = replace(info, kkt=violation(A, D, Z)[0])
    wrong = (info.kkt > UNSOLVED[dtype]) & (info.status == SOLVED)
    info = replace(info, status=torch.where(wrong, FLOORED, info.status).int())
    left = (info.status == CAPPED) | (info.kkt > UNSOLVED[dtype])
    if left.any():
        log.warning("nnls: %d of %d rows are not solved: %s", int(left.sum()), n, info)
    return (Z, info) if return_info else Z


def _repaired(
    Z: Tensor, A: Tensor, D: Tensor, info: NnlsInfo, dtype: torch.dtype, *, limited: bool
) -> tuple[Tensor, NnlsInfo]:
    """The codes in dtype and their info, measured from A and D, where rows of Z (n, K) float64 that
    the search left unsolved are solved by their residual; those too large for dtype get smaller
    codes. limited: rows that reached max_iter stay, or become zero where zero codes are better."""
    kkt, above_zero = violation(A, D, Z)
    capped = (info.status == CAPPED) & limited
    Z[capped & (above_zero > 0)] = 0
    rows = ((kkt > _EXACT) | (above_zero > 0)) & ~capped
    _solve_rows_(Z, rows, A, D, TOLERANCE[torch.float64])
    # what the search reported of these rows is no longer true
    status = torch.where(rows, SOLVED, info.status).int()
    Z = Z.to(dtype)
    kkt, above_zero = violation(A, D, Z)
    rows = (above_zero > 0) | ((kkt > UNSOLVED[dtype]) & (status == SOLVED))
    if rows.any():
        _solve_rows_(Z, rows, A, D, TOLERANCE[dtype], _RIDGE)
        some = Z[rows]
        some[violation(A[rows], D, some)[1] > 0] = 0
        Z[rows], kkt[rows] = some, violation(A[rows], D, some)[0]
    return Z, NnlsInfo(status, kkt, (Z > 0).sum(1).int())


def _solve_rows_(
    Z: Tensor, rows: Tensor, A: Tensor, D: Tensor, tolerance: float, ridge: float = 0.0
) -> None:
    """Z_i ← the codes of A_i by its residual, for the rows that are true (n,)."""
    if not rows.any():
        return
    D = D.double().cpu()
    for i in rows.nonzero()[:, 0].tolist():
        Z[i] = solve_by_residual(A[i].double().cpu(), D, tolerance, ridge).to(Z)


def _solver(
    D: Tensor, n: int, ops: Operations, max_steps: int | None, *, warm: bool
) -> Callable[[Tensor, Tensor], NnlsInfo]:
    """solve(Z, A) for some rows of n: with the Gram matrix of all concepts where n rows are enough
    for it, else on working sets."""
    sums = torch.zeros(3, dtype=torch.float64, device=D.device)
    K, d = D.shape
    problem = Problem(n, d, K, D.element_size(), anls.SOLVER, learns=False)
    form = choose(problem).codes
    if form == "normal" and K * K * D.element_size() <= GRAM_BYTES:
        G, limits = D @ D.T, {"warm": warm, "max_steps": max_steps}
        return lambda Z, A: ops["nnls_"](Z.T, (A @ D.T).T, G, sums, **limits)
    concepts, search = prepare_concepts(D, n), Search(ops["nnls_on_"], max_steps)
    return lambda Z, A: working_set_(Z.T, A.T, concepts, sums, search, warm=warm)
