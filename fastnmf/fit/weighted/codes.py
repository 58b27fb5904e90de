"""Exact codes for a fixed dictionary of rows whose entries have weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import checks
from ...backends.nnls.result import SOLVED, NnlsInfo
from ...backends.products import Matrix, dense
from ...data.arrays import Expected, as_matrix, read_matrix, tensor_of
from ...data.opening.opened import opened
from ...data.sparse.arrays import is_sparse
from ...data.weights.entries import EntryWeights
from ...data.weights.given import KINDS, Weights
from ...data.weights.read import WeightRows, observed_rows
from ...data.weights.scaled import scaled
from ...data.weights.stored import stored_entries
from ...errors import ConvergenceWarning, InvalidInput, warn
from ...exact.least_squares import Limits
from ...exact.weighted.gradient import with_gradient
from ...exact.weighted.rows import Asked, WeightedCodes
from ...numerics import compute_dtype
from ...planning.memory import Budget, refuse_too_large
from ...results.encoding import EncodeInfo
from ...solvers.half_step import Operations
from ...solvers.penalties import Penalty
from ..encode import Fixed, Run, differentiates, encode
from ..options import Options, destination
from ..refusals import refuse_overwriting
from ..rows import given_codes, has_no_rows, locked, through, with_weights_as_rows
from .request import weights_of_codes


def codes_of_entries(
    A: Any,
    weights: Weights,
    fixed: Fixed,
    by: tuple[Penalty, Operations, Asked],
    place: Path | str,
    budget: Budget,
    Z0: Any = None,
    *,
    signed: bool = False,
) -> tuple[Tensor, NnlsInfo, EncodeInfo]:
    """Z (n, K) at this place, the info of each row and the summary, for A (n, d), less the offset,
    in memory or read in passes. by: the penalty, operations of solver anls, and what is asked."""
    K, d = fixed.D.shape
    expected, rows = Expected(features=d, dtype=fixed.D.dtype, signed=signed), None
    with ExitStack() as stack:
        to = locked(place, stack)
        if weights.sparse:
            stored = stored_entries(A, weights, expected, fixed.D.device)
            A, beside = stored.X, stored.beside
        else:
            A, rows, budget = observed_rows(A, weights, expected, budget)
            beside = rows.beside
        data = stack.enter_context(opened(A, expected, budget))
        if rows is not None:
            rows.check_shape(data.n, d)
        if place == "memory":
            sizes = {"the codes": data.n * K * data.dtype.itemsize}
            advice = "give fewer rows, or codes='Z.npy'"
            refuse_too_large(sizes, data.device, advice, budget.requested)
        start = None if Z0 is None else given_codes(Z0, data, K)
        solve = _Solving(beside, fixed.to(data.like), by, start)
        data.limit_chunks(solve.codes.step)
        return through(data, solve, K, to), *solve.ended()


class _Solving:
    """Codes of rows of A as they come, and how they ended. beside(part, X): their weights."""

    def __init__(
        self,
        beside: Callable[[slice, Matrix], EntryWeights],
        fixed: Fixed,
        by: tuple[Penalty, Operations, Asked],
        start: Matrix | None,
    ) -> None:
        self._beside, (self._D, self._offset), self._start = beside, fixed, start
        self.codes, self._method = WeightedCodes(fixed.D, *by), by[2].method
        self._infos: list[NnlsInfo] = []
        self._error = self._whole = 0.0

    def __call__(self, part: slice, X: Matrix) -> Tensor:
        rows = self._beside(part, X)
        self._whole += rows.squared_norm
        rows = rows if self._offset is None else rows.minus(self._offset)
        Z, info = self.codes(rows, None if self._start is None else dense(self._start[part]))
        self._error += rows.squared_error(Z, self._D)
        self._infos.append(info)
        return Z

    def ended(self) -> tuple[NnlsInfo, EncodeInfo]:
        """The info of each row, and the summary, after the last."""
        info = NnlsInfo.join(self._infos)
        relative = (self._error / self._whole) ** 0.5 if self._whole > 0 else 0.0
        steps, solved = int(info.iterations.max()), bool((info.status == SOLVED).all())
        return info, EncodeInfo(self._method, steps, solved, info.kkt.cpu(), relative)


def _asks_for_gradient(A: Any, D: Any, place: Path | str, weights: Weights) -> bool:
    """Whether A or D requires a gradient. Raises InvalidInput where codes have none."""
    given = {"A": A, "D": D} if torch.is_grad_enabled() else {}
    wanted = [name for name, X in given.items() if isinstance(X, Tensor) and X.requires_grad]
    for name in wanted:
        checks.no_gradient(name, place != "memory")
        if is_sparse(A) or weights.sparse:
            raise InvalidInput(
                f"{name} requires a gradient, which codes have for dense A and dense weights only; "
                f"give {name}.detach()"
            )
    return bool(wanted)


def _differentiable(
    Z: Tensor, A: Any, weights: Weights, fixed: Fixed, l2: float | Tensor
) -> Tensor:
    """Codes Z (n, K) with their gradient with respect to A (n, d), which is in memory, and D."""
    D, offset = (None if X is None else X.to(Z) for X in fixed)
    X = tensor_of(A if isinstance(A, Tensor) else np.asarray(A)).to(Z)
    W = WeightRows(weights).read(0, X.detach()).to(Z)
    # what is not observed may be NaN
    X = torch.where(W > 0, X if offset is None else X - offset, 0)
    return with_gradient(X, D, W, Z, l2)


def encode_weighted(
    A: Any,
    fixed: Fixed,
    options: Options,
    run: Run,
    *,
    Z0: Any,
    codes: Any,
    return_info: bool,
) -> tuple[Tensor, EncodeInfo | None]:
    """encode.encode, with the weights of the run: of scaled features, or of each row by itself.
    Rows without weight have zero codes."""
    how = {"Z0": Z0, "codes": codes, "return_info": return_info}
    D, offset = fixed
    plain = replace(run, weights=None)
    if run.weights is None or _has_no_rows(A, run.weights, D.shape[1]):
        return encode(A, fixed, options, plain, **how)
    refuse_overwriting((run.weights,), destination(codes, optional=False))
    # of a row of weight 0 an offset would be left
    penalised = bool(options.penalties) or offset is not None
    scale, entries = weights_of_codes(run.weights, penalised=penalised)
    if entries is not None:
        return _encode_entries(A, entries, fixed, options, run, (Z0, codes))
    assert scale is not None
    scale.check_shape(None, D.shape[1])
    expected = Expected(features=D.shape[1], dtype=D.dtype, signed=options.constraint.signed)
    fixed = Fixed(*map(scale.of_dictionary, fixed))
    return encode(scaled(A, scale, expected), fixed, options, plain, **how)


def _encode_entries(
    A: Any,
    weights: Weights,
    fixed: Fixed,
    options: Options,
    run: Run,
    beside: tuple[Any, Any],
) -> tuple[Tensor, EncodeInfo]:
    """Exact codes of rows whose entries have weights, and the summary. beside: the codes to start
    from, and the argument `codes`."""
    (D, _), (Z0, codes) = fixed, beside
    place = destination(codes, optional=False)
    refuse_overwriting((A, Z0, D), place)
    run.refuse_start(Z0)
    few = run.top_k is not None
    check_with_entries(
        {
            "method='sweeps'": run.sweeps_only,
            "max_iter=0": run.max_iter == 0 and not few,
        }
    )
    if options.target_l0 is not None and not few:
        raise InvalidInput(
            "weights of entries or rows do not go with target_l0, whose penalty would be found for "
            "rows without them; give top_k=…, or take a model with a penalty: NMF(K, alpha_Z=…, "
            "l1_ratio=1, unit_norm=True).load_dictionary(D)"
        )
    differentiates(A, D, Z0, run, in_memory=place == "memory")
    wants = _asks_for_gradient(A, D, place, weights)
    # top_k of the call goes without the penalty that target_l0 found, as without weights
    penalty = options.penalties.of_codes(D.shape[1])
    asked = Asked(run.top_k, run.exchanges and few, run.refit)
    by = penalty, options.method_of_codes(D.device).ops, asked
    budget = options.budget(D.device, place, width=len(D))
    X = A.detach() if wants else A
    given = X, weights, fixed, by, place, budget, Z0
    Z, info, summary = codes_of_entries(*given, signed=options.constraint.signed)
    if wants:
        Z = _differentiable(Z, A, weights, fixed, 0.0 if run.refit else penalty.l2)
    left = int((info.status != SOLVED).sum())
    if left:
        warn(
            f"{left} of {len(info.status)} rows are not solved: their concepts nearly depend on "
            "each other on the entries that are observed; give A as float64, or fewer concepts",
            ConvergenceWarning,
        )
    return Z, replace(summary, alpha_Z=options.penalties.alpha_Z)


def weighted_inputs(
    A: Any, D: Any, weights: Any, penalty: Penalty
) -> tuple[Any, Any, Weights | None, tuple[int, ...] | None]:
    """A (n, d) and D of fastnmf.nnls, scaled, or weights that stand beside them; and the leading
    dimensions of the rows, where they are no matrix."""
    matrix = None if weights is None else as_matrix(D, "D")
    if matrix is None or matrix.ndim != 2:
        # what reads D refuses it
        return A, D, None, None
    d = matrix.shape[1]
    A, weights, leading = with_weights_as_rows(A, weights, d)
    if _has_no_rows(A, weights, d) or not len(matrix):
        return A, D, None, leading
    scale, entries = weights_of_codes(weights, penalised=bool(penalty))
    if scale is None:
        return A, D, entries, leading
    scale.check_shape(None, d)
    expected = Expected(features=d, dtype=compute_dtype(matrix), signed=True)
    return scaled(A, scale, expected), scale.of_given(D), None, leading


def _has_no_rows(A: Any, weights: Any, d: int) -> bool:
    """Whether A is a matrix (0, d), for which weights have nothing to do. Raises InvalidInput where
    they have rows."""
    if not has_no_rows(A, Expected(features=d)):
        return False
    shape = tuple(getattr(weights, "shape", ()))
    if len(shape) == 2 and shape[0] > 1:
        raise InvalidInput(f"weights have shape {shape}, A has {(0, d)}; give {KINDS}")
    return True


def nnls_of_entries(
    A: Any,
    D: Tensor | np.ndarray,
    Z0: Any,
    weights: Weights,
    by: tuple[Penalty, Operations],
    how: tuple[Path | str, Budget, Limits],
) -> tuple[Tensor, NnlsInfo]:
    """The codes of fastnmf.nnls, and the info of each row. how: where codes go, the memory, and
    the limits of the search."""
    place, budget, limits = how
    check_with_entries({"max_iter": limits.max_iter is not None})
    wants = _asks_for_gradient(A, D, place, weights)
    X, B = (M.detach() if wants and isinstance(M, Tensor) else M for M in (A, D))
    fixed = Fixed(read_matrix(B, budget.device, Expected("D", signed=True)))
    given = X, weights, fixed, (*by, Asked(limits.top_k)), place, budget, Z0
    Z, info, _ = codes_of_entries(*given, signed=True)
    if wants:
        kept = D if isinstance(D, Tensor) else fixed.D
        Z = _differentiable(Z, A, weights, Fixed(kept), by[0].l2)
    return Z, info


def check_with_entries(asked: dict[str, bool]) -> None:
    """Raise InvalidInput for what weights of entries do not go with: what is `asked`."""
    for what in (name for name, given in asked.items() if given):
        raise InvalidInput(
            f"weights of entries, and of rows with a penalty or an offset, do not go with {what}: "
            "each row has a problem of its own, which is solved exactly; leave one out"
        )
