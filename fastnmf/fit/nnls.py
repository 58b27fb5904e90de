"""Exact non-negative least squares with a given dictionary: the function fastnmf.nnls."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..backends.nnls.residual import Measure, solve_by_residual
from ..backends.nnls.result import (
    CAPPED,
    FLOORED,
    SOLVED,
    TOLERANCE,
    UNSOLVED,
    NnlsInfo,
)
from ..backends.nnls.scaled import ScaledRows, name_of
from ..backends.registry import select
from ..data.arrays import Expected, as_matrix, read_matrix
from ..errors import ConvergenceWarning, InvalidInput, warn
from ..exact.gradient import with_gradient
from ..exact.rows import ExactRows
from ..isolation import isolated
from ..numerics import compute_dtype
from ..planning.memory import refuse_too_large
from ..precision import products_in
from ..solvers import anls
from ..solvers.half_step import Operations
from ..solvers.penalties import Penalty
from ..solvers.supports.pursuit import pursue_, support_kkt
from ..solvers.supports.working_set import prepare_concepts, rows_together
from .refusals import refuse_derivatives, refuse_tangent

# entries of the largest scratch array on a CPU; each chunk of rows scales the Gram matrix again
_SCRATCH = 1 << 24
# of the squared norm of a concept: ridges that bound codes which float32 cannot hold
_RIDGES = (1e-14, 1e-12, 1e-10, 1e-8)
# the ridge with which rows that were not solved are searched again
_BOUND = 1e-10
# KKT residual, and share of ‖a‖² by which the squared error may be too large, of float64 codes
# above which a row is solved again, by its residual
_EXACT, _GAP = 1e-11, 1e-10
# the same share, by which rounding the codes to their dtype may raise the squared error
_RISE = {torch.float32: 1e-5, torch.float64: 1e-9}
# largest max_iter that has a meaning
_MOST = 1 << 30


@isolated
def nnls(
    A: Tensor | np.ndarray,
    D: Tensor | np.ndarray,
    Z0: Tensor | np.ndarray | None = None,
    *,
    top_k: int | None = None,
    max_iter: int | None = None,
    backend: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, NnlsInfo]:
    """Solve min ‖a − z D‖² over z ≥ 0 exactly, for each row a of A; or with few concepts for each.

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
    top_k : int, optional
        At most that many concepts for each row, found by orthogonal matching pursuit: the concept
        with the steepest slope, relative to its norm, enters, and the codes become the exact
        solution on the support. The error does not rise with top_k. From the support of the
        solution on, the codes are the solution, unless the search needs more than
        2 top_k + 16 concepts on its way. Not with Z0.
    max_iter : int, optional
        How many times concepts may enter the support of a row, up to 16 of them at once, with any
        backend. The default, 3 K + 30, is more than was ever observed. Rows that reach it are
        feasible but not solved. 0: the codes are zero, or solve for the concepts that Z0 uses. With
        top_k concepts enter one by one until there are as many as that.
    backend : {'auto', 'cpp', 'cuda', 'torch'}, default 'auto'
        What computes, see `available_backends`.
    return_info : bool, default False
        Whether to return the info of all rows too.

    Returns
    -------
    Z : Tensor (n, K)
        The codes, float64 if A or D is, else float32. A zero row has zero codes, and a zero
        concept is not used; no rows, or no concepts, have codes without entries. They are
        differentiable with respect to A and D, any number of times, where one of these requires a
        gradient. Where concepts in use depend on each other, the gradient is that of the solution
        of least norm.
    info : NnlsInfo
        Status, KKT residual and support of each row; only with return_info=True. With top_k status
        and KKT residual are those of the problem on the support.

    Raises
    ------
    InvalidInput
        For wrong shapes, entries that are not finite, or a wrong max_iter or top_k.
    ArithmeticError
        Where codes are out of the range of their dtype.
    BackendUnavailable
        If the backend cannot be used on the device of A.

    Warns
    -----
    ConvergenceWarning
        If rows are not solved, with their number and the reason.

    Notes
    -----
    The products of A and D are computed in the dtype of Z, whatever
    torch's settings of precision or autocast allow, and the search is in float64. Rows
    and concepts are first scaled by powers of two, so the result does not depend on their scale.

    Where D has negative entries everything is computed in float64, the codes are checked from A and
    D, and rows that the search left unsolved are solved again from their residual. Codes are never
    worse than zero codes. Where D has none, no concepts cancel each other: a slope is wrong by no
    more than the rounding of ‖D_k‖ ‖a‖. So what the search reports holds, except where A is nearly
    orthogonal to all concepts; such rows are checked too. Other codes are measured from A and D
    only for the info.

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
    >>> nnls(A, D, top_k=1)
    tensor([[0.0000, 4.0000],
            [0.5000, 0.0000]])
    """
    max_iter = checks.whole("max_iter", max_iter, at_least=0, optional=True)
    top_k = checks.whole("top_k", top_k, at_least=1, optional=True)
    if top_k is not None and Z0 is not None:
        raise InvalidInput(
            "top_k and Z0 cannot be combined: a pursuit starts from no concept; leave Z0 out"
        )
    refuse_derivatives("nnls", Z0=Z0)
    for name, given in (("A", A), ("D", D)):
        refuse_tangent("nnls", name, given)
    of_A, of_D = A, D
    # what cannot be read has no device to go to
    as_matrix(A, "A")
    device = A.device if isinstance(A, Tensor) else torch.device("cpu")
    if (empty := _empty_codes(A, D, device)) is not None:
        return (empty, NnlsInfo.of_none(len(empty), device)) if return_info else empty
    D = read_matrix(D, device, Expected("D", signed=True))
    A = read_matrix(A, device, Expected(features=D.shape[1], signed=True))
    Z0 = None if Z0 is None else read_matrix(Z0, device, Expected("Z0", len(D), "concepts"))
    if Z0 is not None and len(Z0) != len(A):
        raise InvalidInput(f"Z0 has {len(Z0)} rows, A has {len(A)}; they must agree")
    sizes = {"the codes": len(A) * len(D) * torch.promote_types(A.dtype, D.dtype).itemsize}
    refuse_too_large(sizes, device, "give fewer rows at a time")
    _, ops = select(anls.SOLVER.operations, device, backend)
    # exact whatever torch allows
    with torch.no_grad(), products_in("highest"):
        rows = ScaledRows.of(A, D)
        start = None if Z0 is None else rows.scaled(Z0)
        limit = None if max_iter is None else min(max_iter, _MOST)
        # no solution needs more concepts than there are, or than features
        if top_k is None or top_k >= min(D.shape):
            Z, info = _solve(rows, ops, limit, start, measures=return_info)
        else:
            Z, info = _pursue(rows, ops, limit, top_k, measures=return_info)
        Z = rows.unscaled(Z)
    _warn(info, Z.dtype)
    if torch.is_grad_enabled() and (_differentiates(of_A) or _differentiates(of_D)):
        A, D = of_A if _differentiates(of_A) else A, of_D if _differentiates(of_D) else D
        Z = with_gradient(A.to(Z.dtype), D.to(Z), lambda Z=Z: Z)
    return (Z, info) if return_info else Z


def _empty_codes(A: Tensor | np.ndarray, D: Tensor | np.ndarray, device: torch.device) -> Any:
    """The codes (n, K) where n or K is zero, with gradients of nothing; else None."""
    as_matrix(D, "D")
    if A.ndim != 2 or D.ndim != 2 or A.shape[1] != D.shape[1] or (len(A) and len(D)):
        return None
    if len(A):
        read_matrix(A, device, Expected(features=D.shape[1], signed=True))
    if len(D):
        read_matrix(D, device, Expected("D", signed=True))
    dtype = torch.promote_types(compute_dtype(A), compute_dtype(D))
    A, D = (torch.as_tensor(X, dtype=dtype, device=device) for X in (A, D))
    return A @ D.T


def _differentiates(X: Tensor | np.ndarray) -> TypeGuard[Tensor]:
    return isinstance(X, Tensor) and X.requires_grad


def _pursue(
    rows: ScaledRows, ops: Operations, max_iter: int | None, top_k: int, *, measures: bool
) -> tuple[Tensor, NnlsInfo]:
    """The codes (n, K) of the scaled problem with at most top_k concepts for each row, and their
    info: the KKT residual is that of the problem on the support. Computed as by _solve: in float64
    where D has negative entries."""
    dtype, A, D = rows.A.dtype, rows.A, rows.D
    if bool(D.amin() < 0):
        A, D = A.double(), D.double()
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    norms = torch.where(norms > 0, norms, 1)
    concepts = prepare_concepts((D / norms[:, None]).to(D.dtype), 0)
    Z = A.new_zeros(len(A), len(D))
    info = pursue_(Z.T, A, concepts, top_k, ops, max_iter)
    Z = (Z / norms).to(dtype)
    # what the search reports is from the residual in float64 too, before codes are rounded
    kkt = support_kkt(rows.A, rows.D, Z) if measures else info.kkt
    status = torch.where(kkt <= UNSOLVED[dtype], SOLVED, FLOORED)
    status = torch.where(info.status == CAPPED, CAPPED, status).int()
    return Z, replace(info, status=status, kkt=kkt, support=(Z > 0).sum(1).int())


def _solve(
    rows: ScaledRows, ops: Operations, max_iter: int | None, start: Tensor | None, *, measures: bool
) -> tuple[Tensor, NnlsInfo]:
    """The codes (n, K) of the scaled problem, and their info. measures: whether its KKT residual
    must be that of A and D."""
    dtype = rows.A.dtype
    if bool(rows.D.amin() < 0):
        return _exactly(rows, ops, max_iter, start)
    Z, info = _search(rows, ops, max_iter, start)
    left = (info.kkt > UNSOLVED[dtype]) | rows.cancels()
    if max_iter is not None:
        left &= info.status != CAPPED
    if left.any():
        again, info_again = _exactly(rows[left], ops, None, None)
        Z[left] = again
        for name in ("status", "kkt", "support"):
            getattr(info, name)[left] = getattr(info_again, name)
    if measures:
        info = replace(info, kkt=rows.measure(Z).kkt)
    # what is left above the tolerance of the search is rounding
    status = torch.where(info.kkt <= UNSOLVED[dtype], SOLVED, FLOORED)
    status = torch.where(info.status == SOLVED, status, info.status)
    solved = (info.status == FLOORED) & (info.kkt <= UNSOLVED[dtype]) & ~left
    return Z, replace(info, status=torch.where(solved, SOLVED, status).int())


def _search(
    rows: ScaledRows,
    ops: Operations,
    max_iter: int | None,
    start: Tensor | None,
    ridge: float = 0.0,
) -> tuple[Tensor, NnlsInfo]:
    """The codes (n, K) in the dtype of A and D, and the info of the search. ridge: what is added to
    the diagonal of the Gram matrix of unit concepts."""
    A, D = rows.A, rows.D
    (n, _), K = A.shape, len(D)
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    # a zero concept would keep the value it starts from
    Z = A.new_zeros(n, K) if start is None else (start * norms).to(D.dtype)
    # a concept is zero or it counts, however small it is relative to the others
    norms = torch.where(norms > 0, norms, 1)
    unit = (D / norms[:, None]).to(D.dtype)
    infos, height = [], max(1, _SCRATCH // max(D.shape))
    if D.device.type != "cpu":
        height = rows_together(len(D), D.shape[1], D)
    solver = ExactRows(unit, n, ops, Penalty(l2=ridge), max_steps=max_iter)
    for first in range(0, n, height):
        chunk = slice(first, first + height)
        infos.append(solver.solve_(Z[chunk], A[chunk], warm=start is not None))
    Z /= norms
    return Z, NnlsInfo.join(infos)


def _exactly(
    rows: ScaledRows, ops: Operations, max_iter: int | None, start: Tensor | None
) -> tuple[Tensor, NnlsInfo]:
    """The codes (n, K), by a search in float64, and their info, measured from A and D. Rows that
    the search left unsolved are solved by their residual, unless they reached max_iter: these
    become zero where zero codes are better."""
    dtype, wide = rows.A.dtype, replace(rows, A=rows.A.double(), D=rows.D.double())
    Z, info = _search(wide, ops, max_iter, start)
    found = wide.measure(Z)
    capped = (info.status == CAPPED) & (max_iter is not None)
    again = (found.kkt > _EXACT) | (found.excess > _GAP) | (found.change > 0)
    if again.any():
        Z[capped & (found.change > 0)] = 0
        worse = again & ~capped
        if worse.any():
            # a ridge bounds the codes, so that their support is a good start
            near = _search(wide[worse], ops, None, None, _BOUND)[0]
            better = wide[worse].measure(near).change < found.change[worse]
            Z[worse] = torch.where(better[:, None], near, Z[worse])
            _solve_rows_(Z, worse, wide)
        found.replace_(again, wide[again].measure(Z[again]))
        _solve_from_zero_(Z, (found.excess > _GAP) & worse, wide, found)
    least, unsure = found.change.clone(), found.excess > _RISE[dtype]
    if dtype != torch.float64:
        Z, found = _rounded(Z, wide, dtype, least)
    floored = unsure | (found.kkt > UNSOLVED[dtype]) | (found.change - least > _RISE[dtype])
    status = torch.where(capped, CAPPED, torch.where(floored, FLOORED, SOLVED)).int()
    return Z, NnlsInfo(status, found.kkt, (Z > 0).sum(1).int(), info.iterations)


def _solve_from_zero_(Z: Tensor, which: Tensor, rows: ScaledRows, found: Measure) -> None:
    """Z_i and its Measure ← those of the codes by its residual from zero, where these are better,
    for the rows that are true (n,)."""
    if not which.any():
        return
    some, codes = rows[which], torch.zeros_like(Z[which])
    _solve_rows_(codes, torch.ones_like(which[which]), some)
    other = some.measure(codes)
    better = other.change < found.change[which]
    place = which.nonzero()[:, 0][better]
    Z[place] = codes[better]
    found.replace_(place, Measure(*(one[better] for one in other)))


def _rounded(
    Z: Tensor, rows: ScaledRows, dtype: torch.dtype, least: Tensor
) -> tuple[Tensor, Measure]:
    """Z (n, K) in dtype and its Measure. Rows whose codes are too large to be rounded get smaller
    ones, by ridges, where these are better; zero codes at worst. least (n,): the change of Z."""
    Z = Z.to(dtype)
    found = rows.measure(Z)
    worse = (found.change - least > _RISE[dtype] / 10) | (found.change > 0)
    if worse.any():
        some, best, codes = rows[worse], found.change[worse], Z[worse]
        everyone = torch.ones_like(best, dtype=torch.bool)
        for ridge in _RIDGES:
            other = codes.clone()
            _solve_rows_(other, everyone, some, ridge)
            change = some.measure(other).change
            codes[change < best] = other[change < best]
            best = torch.minimum(best, change)
        codes[best > 0] = 0
        Z[worse] = codes
        found.replace_(worse, some.measure(codes))
    return Z, found


def _solve_rows_(Z: Tensor, which: Tensor, rows: ScaledRows, ridge: float = 0.0) -> None:
    """Z_i ← the codes of A_i by its residual, from Z_i, for the rows that are true (n,)."""
    if not which.any():
        return
    A, D = rows.A.cpu(), rows.D.cpu()
    for i in which.nonzero()[:, 0].tolist():
        start = Z[i].double().cpu()
        Z[i] = solve_by_residual(A[i], D, TOLERANCE[torch.float64], ridge, start).to(Z)


def _warn(info: NnlsInfo, dtype: torch.dtype) -> None:
    """Warn of rows that are not solved."""
    capped, floored = (int((info.status == status).sum()) for status in (CAPPED, FLOORED))
    why = []
    if capped:
        why.append(
            f"{capped} reached max_iter, and their codes are feasible but not the solution: raise "
            "max_iter, or leave it None"
        )
    if floored:
        advice = "concepts of D nearly depend on each other; leave such concepts out"
        if dtype == torch.float32:
            advice += ", or give A and D as float64"
        why.append(f"{floored} stopped at the limit of {name_of(dtype)}: {advice}")
    if why:
        message = f"nnls: {capped + floored} of {len(info.status)} rows are not solved. "
        message += f"{'; '.join(why)}. The largest KKT residual is {float(info.kkt.max()):.1e}; "
        warn(f"{message}return_info=True tells which rows", ConvergenceWarning)
