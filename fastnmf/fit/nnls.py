"""Exact non-negative least squares: the functions fastnmf.nnls, with a given dictionary, and
fastnmf.nnls_gram, from cross products and a Gram matrix."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..backends.nnls.result import CAPPED, FLOORED, SOLVED, UNSOLVED, NnlsInfo
from ..backends.nnls.scaled import name_of
from ..backends.products import Matrix, dense
from ..backends.registry import choice_of, select, select_each
from ..data.arrays import Expected, as_matrix, read_matrix, two_dimensional
from ..data.opening.opened import opened
from ..data.sparse.arrays import is_sparse
from ..data.weights.given import Weights
from ..errors import ConvergenceWarning, InvalidInput, warn
from ..exact.gradient import with_gradient
from ..exact.gram import GramLeastSquares, checked_gram
from ..exact.kept import Means, codes_of_few
from ..exact.least_squares import LeastSquares, Limits
from ..isolation import isolated
from ..numerics import compute_dtype
from ..planning.memory import Budget, bytes_of, refuse_too_large
from ..results.encoding import kkt_residual
from ..solvers import anls, hals
from ..solvers.half_step import Operations
from ..solvers.penalties import Penalty
from .options import destination
from .refusals import refuse_derivatives, refuse_overwriting, refuse_tangent
from .rows import (
    as_rows,
    given_codes,
    has_no_rows,
    kind_of,
    locked,
    no_rows,
    refuse_leading,
    through,
)
from .weighted.codes import nnls_of_entries, weighted_inputs

# largest max_iter that has a meaning
_MOST = 1 << 30


@isolated
def nnls(
    A: Any,
    D: Tensor | np.ndarray,
    Z0: Tensor | np.ndarray | None = None,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    weights: Any = None,
    top_k: int | None = None,
    max_iter: int | None = None,
    codes: str | os.PathLike[str] = "memory",
    max_memory: int | str | None = None,
    backend: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, NnlsInfo]:
    """Solve min ½‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0 exactly, for each row a of A.

    It is computed on the device of A, or where A is no tensor on that of D.

    Parameters
    ----------
    A : (…, d), of any sign
        Rows a: what `NMF.encode` takes. A tensor or an array may have any number of leading
        dimensions, and no rows. Files, and batches that can be iterated over repeatedly, are read
        in chunks where they do not fit in memory.
    D : Tensor or ndarray (K, d)
        The dictionary, with entries of any sign.
    Z0 : Tensor, ndarray or sparse matrix (n, K), optional
        Codes to start from. They change the time, not the loss, and save time only where they
        solve nearly the same problem.
    l1 : float, default 0
        Weight of the sum of the codes, in the units of D aᵀ: codes are zero from its largest entry
        on. Larger weights leave fewer concepts in use.
    l2 : float, default 0
        Weight of half their sum of squares, in the units of D Dᵀ: it is added to the diagonal of
        that matrix, and makes the solution unique. ``NMF(alpha_Z=alpha, l1_ratio=r)`` encodes with
        l1 = d alpha r and l2 = d alpha (1 − r).
    weights : matrix, optional
        Weights w ≥ 0 of the squared errors, ½ Σ w (a − z D)²: (n, 1) for rows, (1, d) for
        features or (n, d) for entries, bool or numbers; of entries they may be sparse, 0 where
        nothing is stored, and of A (…, d) of rows or entries they may have its leading dimensions.
        'stored': of a sparse A only the entries that it stores. What has the weight 0 is ignored,
        and may be NaN; rows without any weight get zero codes. max_iter does not go with weights
        of entries, and gradients with sparse ones.
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
    codes : 'memory', 'sparse' or path, default 'memory'
        Where the codes go: to memory; to memory in compressed rows, as a CSR tensor of torch; to
        this .npy file, then Z is a map of it on the CPU; or to this .npz file of scipy.sparse, then
        Z is a CSR tensor on the CPU.
    max_memory : int or str, optional
        Bytes that the call may use besides A and codes in memory, such as '2GB'; by default what is
        available.
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
        gradient; then A and the codes must be in memory. Where concepts in use depend on each
        other, the gradient is that of the solution of least norm.
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
    limits = _limits(max_iter, top_k, Z0)
    penalty = Penalty(checks.penalty("l1", l1), checks.penalty("l2", l2))
    place = destination(codes, optional=False)
    refuse_overwriting((A, Z0, D, weights), place)
    refuse_derivatives("nnls", Z0=Z0)
    refuse_tangent("nnls", "A", A)
    refuse_tangent("nnls", "D", D)
    measures = checks.flag("return_info", return_info)
    A, D, entries, leading = weighted_inputs(A, D, weights, penalty)
    plain = place == "memory" and limits == Limits()
    plain = plain and all(given is None for given in (entries, leading, Z0, max_memory))
    if plain and (few := _codes_of_few(A, D, penalty, backend)) is not None:
        return (few[0], _measured(A, D, *few, penalty)) if measures else few[0]
    # what cannot be read has no device to go to
    if isinstance(A, Tensor) and not is_sparse(A):
        as_matrix(A, "A")
    D = _matrix(D, "D")
    width = two_dimensional(D, "D").shape[1]
    tensors = (X.device for X in (A, D) if isinstance(X, Tensor))
    device = next(tensors, torch.device("cpu"))
    if leading is None:
        A, leading = as_rows(A, width)
    refuse_leading(place, leading, width)
    operations = _operations(device, backend)
    call = _Call(
        device, place, bytes_of(max_memory), *operations, penalty, limits, measures, entries
    )
    Z, info = call.codes(A, D, Z0)
    _warn(info, Z.dtype)
    Z = Z if leading is None else Z.reshape(*leading, Z.shape[1])
    return (Z, info) if measures else Z


def _codes_of_few(A: Any, D: Any, penalty: Penalty, backend: str) -> tuple[Tensor, NnlsInfo] | None:
    """The codes of a few rows in memory, without what many rows need, and the info of the search;
    None where that may make a difference."""
    if _differentiates(A) or _differentiates(D):
        return None

    def means() -> Means:
        name, ops = _operations(torch.device("cpu"), backend)
        return Means(ops, name or "torch", penalty)

    made_for = "nnls", penalty, torch.get_num_threads(), *choice_of(backend)
    return codes_of_few(A, D, means, made_for, sweeps=True)


def _measured(A: Any, D: Any, Z: Tensor, info: NnlsInfo, penalty: Penalty) -> NnlsInfo:
    """The info of codes Z (m, K) that are exact, with the KKT residual of A (m, d) and D (K, d)."""
    kkt = kkt_residual(A, D, Z, penalty)
    status = torch.where(kkt <= UNSOLVED[Z.dtype], SOLVED, FLOORED).int()
    return NnlsInfo(status, kkt, (Z > 0).sum(1).int(), info.iterations)


@dataclass(frozen=True)
class _Call:
    """The arguments of nnls that say how, checked; backend, ops: of `_operations`."""

    device: torch.device
    place: Path | str
    max_memory: int | None
    backend: str | None
    ops: Operations
    penalty: Penalty
    limits: Limits
    measures: bool
    entries: Weights | None = None

    def codes(self, A: Any, D: Any, Z0: Any) -> tuple[Tensor, NnlsInfo]:
        """The codes (n, K) of A (n, d), differentiable where they should be, and their info."""
        device, place = self.device, self.place
        K = len(D)
        budget = Budget(device, max(1, K), kind_of(place), self.max_memory)
        if self.entries is not None:
            how = place, budget, self.limits
            return nnls_of_entries(A, D, Z0, self.entries, (self.penalty, self.ops), how)
        expected = Expected(features=D.shape[1], dtype=compute_dtype(D), signed=True)
        if place == "memory" and (empty := _empty_codes(A, D, device)) is not None:
            return empty, NnlsInfo.of_none(len(empty), device)
        gradients = {"A": _differentiates(A), "D": _differentiates(D)}
        with ExitStack() as stack:
            to = locked(place, stack)
            given, D = D, _dictionary(D, device)
            if has_no_rows(A, expected):
                empty = no_rows(A, expected, K, to)
                return empty, NnlsInfo.of_none(0, device)
            data = stack.enter_context(opened(A, expected, budget))
            if place == "memory":
                sizes = {"the codes": data.n * K * data.dtype.itemsize}
                advice = "give fewer rows, or codes='Z.npy'"
                refuse_too_large(sizes, device, advice, self.max_memory)
            Z0 = None if Z0 is None else given_codes(Z0, data, K)
            how = self.ops, self.penalty, self.limits, self.measures, self.backend
            solver = LeastSquares(D, data.n, *how)
            if K and isinstance(data.A, Tensor) and data.in_memory_here and place == "memory":
                Z, info = solver(data.A, None if Z0 is None else dense(Z0))
                if torch.is_grad_enabled() and any(gradients.values()):
                    A = A if gradients["A"] else data.A
                    A, D = A.to(Z), (given if gradients["D"] else D).to(Z)
                    Z = with_gradient(A, D, lambda Z=Z: Z, self.ops, self.penalty.l2)
                return Z, info
            for name, wanted in gradients.items():
                checks.no_gradient(name, wanted)
            data.limit_chunks(solver.tile_rows)
            infos = []

            def made(part: slice, X: Matrix) -> Tensor:
                start = None if Z0 is None else dense(Z0[part])
                Z, info = solver(dense(X), start, part.start)
                infos.append(info)
                return Z

            Z = through(data, made, K, to)
            return Z, NnlsInfo.join(infos)


def _operations(device: torch.device, backend: str) -> tuple[str | None, Operations]:
    """The backend by whose sweeps rows may be solved, or None, and all operations."""
    if device.type != "cpu":
        # sweeps were not measured on a GPU
        return None, select(anls.SOLVER.operations, device, backend)[1]
    groups = hals.SOLVER.operations + hals.SOLVER.fused, anls.SOLVER.operations
    return select_each(groups, device, backend)


def _dictionary(D: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """D (K, d), checked; K may be 0."""
    if D.ndim == 2 and not len(D):
        return torch.zeros(0, D.shape[1], dtype=compute_dtype(D), device=device)
    return read_matrix(D, device, Expected("D", signed=True))


def _matrix(X: Any, name: str) -> Tensor | np.ndarray:
    """A tensor itself, or as an array what is one."""
    matrix = as_matrix(X, name)
    if matrix is None:
        raise TypeError(f"{name} is a {type(X).__name__}; it must be a tensor or an array")
    return X if isinstance(X, Tensor) else matrix


def _limits(max_iter: int | None, top_k: int | None, Z0: Any = None) -> Limits:
    """Both, checked; a start Z0 does not go with top_k."""
    most = checks.whole("max_iter", max_iter, at_least=0, optional=True)
    top_k = checks.whole("top_k", top_k, at_least=1, optional=True)
    if top_k is not None and Z0 is not None:
        raise InvalidInput(
            "top_k and Z0 cannot be combined: a pursuit starts from no concept; leave Z0 out"
        )
    return Limits(None if most is None else min(most, _MOST), top_k)


@isolated
def nnls_gram(
    C: Tensor | np.ndarray,
    G: Tensor | np.ndarray,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    max_iter: int | None = None,
    backend: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, NnlsInfo]:
    """Solve min ½ z G zᵀ − c zᵀ + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0 exactly, for each row c of C.

    These are the codes that `nnls` finds for C = A Dᵀ and G = D Dᵀ, without A and D. It is computed
    on the device of C.

    Parameters
    ----------
    C : Tensor or ndarray (n, K)
        Cross products, of any sign: ``A @ D.T``. A row is a problem, as in Z and in `nnls`.
    G : Tensor or ndarray (K, K)
        Gram matrix, of any signs: ``D @ D.T``. Symmetric and positive semidefinite but for the
        rounding of its products.
    l1 : float, default 0
        Weight of the sum of the codes, in the units of C.
    l2 : float, default 0
        Weight of half their sum of squares, in the units of G.
    max_iter : int, optional
        As for `nnls`.
    backend : {'auto', 'cpp', 'cuda', 'torch'}, default 'auto'
        What computes, see `available_backends`.
    return_info : bool, default False
        Whether NnlsInfo is returned too.

    Returns
    -------
    Z : Tensor (n, K)
        The codes, non-negative; float64 if C or G is, else float32. A concept with G_kk = 0 is not
        used unless l2 > 0. No gradient.
    info : NnlsInfo
        Status, KKT residual and support of each row; only with return_info=True. The residual is
        that of C and G: slopes are C − Z G − l1 − l2 Z, relative to max_k (|C_k| + Σ_j |G_kj| z_j
        + l1). The status follows from it alone.

    Raises
    ------
    InvalidInput
        For wrong shapes, entries that are not finite, a matrix G that is not symmetric or has a
        negative eigenvalue, or a column of C without a concept of norm above 0.
    ArithmeticError
        Where codes are out of the range of their dtype.
    BackendUnavailable
        If the backend cannot be used on the device of C.

    Warns
    -----
    ConvergenceWarning
        If rows are not solved, with their number and the reason.

    Notes
    -----
    For data that are read once, or whose products are needed anyway: the time of a row does not
    depend on the number of features. Rounding of C and G is part of the problem: where A and D are
    known, and concepts of both signs nearly depend on each other, `nnls` is more exact. The check
    of G takes K³ / 3 operations.

    C has a problem in each row, as Z does, and as `nnls` returns it; scikit-learn's
    ``orthogonal_mp_gram`` takes its transpose.

    References
    ----------
    Bro & de Jong (1997), A fast non-negativity-constrained least squares algorithm.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import nnls_gram
    >>> D = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> A = torch.tensor([[2.0, 3.0, 5.0], [1.0, -1.0, 0.0]])
    >>> nnls_gram(A @ D.T, D @ D.T)
    tensor([[2.0000, 3.0000],
            [0.5000, 0.0000]])
    """
    limits = _limits(max_iter, None)
    penalty = Penalty(checks.penalty("l1", l1), checks.penalty("l2", l2))
    refuse_derivatives("nnls_gram", C=C, G=G)
    device = C.device if isinstance(C, Tensor) else torch.device("cpu")
    C, G = _products(C, G, device)
    G = checked_gram(G)
    if not C.numel():
        return (C, NnlsInfo.of_none(len(C), device)) if return_info else C
    refuse_too_large({"the codes": C.nbytes}, device, "give fewer rows at a time")
    _, ops = select(anls.SOLVER.operations, device, backend)
    Z, info = GramLeastSquares(G, ops, penalty, limits.max_iter, measures=return_info)(C)
    _warn(info, Z.dtype, "nnls_gram")
    return (Z, info) if return_info else Z


def _products(
    C: Tensor | np.ndarray, G: Tensor | np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """C (n, K) and G (K, K), checked, in one dtype; n or K may be 0."""
    C, G = _matrix(C, "C"), _matrix(G, "G")
    shapes = tuple(C.shape), tuple(G.shape)
    square = len(shapes[1]) == 2 and shapes[1][0] == shapes[1][1]
    if len(shapes[0]) != 2 or not square or shapes[0][1] != shapes[1][0]:
        turned = square and len(shapes[0]) == 2 and shapes[0][0] == shapes[1][0]
        raise InvalidInput(
            f"C has shape {shapes[0]} and G {shapes[1]}; C must be (n, K) and G (K, K), such as "
            f"A @ D.T and D @ D.T{': C.T fits' if turned else ''}"
        )
    dtype = torch.promote_types(compute_dtype(C), compute_dtype(G))
    if not len(G):
        C, G = (torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
        return C, G
    G = read_matrix(G, device, Expected("G", dtype=dtype, signed=True))
    if not len(C):
        return G.new_zeros(shapes[0]), G
    return read_matrix(C, device, Expected("C", dtype=dtype, signed=True)), G


def _empty_codes(A: Any, D: Tensor | np.ndarray, device: torch.device) -> Tensor | None:
    """The codes (n, K) where A (n, d) is a tensor or an array and n or K is zero, with gradients of
    nothing; else None."""
    if not isinstance(A, Tensor | np.ndarray) or is_sparse(A) or A.ndim != 2 or D.ndim != 2:
        return None
    if A.shape[1] != D.shape[1] or (len(A) and len(D)):
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


def _warn(info: NnlsInfo, dtype: torch.dtype, name: str = "nnls") -> None:
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
            advice += ", or give float64"
        why.append(f"{floored} stopped at the limit of {name_of(dtype)}: {advice}")
    if why:
        message = f"{name}: {capped + floored} of {len(info.status)} rows are not solved. "
        message += f"{'; '.join(why)}. The largest KKT residual is {float(info.kkt.max()):.1e}; "
        warn(f"{message}return_info=True tells which rows", ConvergenceWarning)
