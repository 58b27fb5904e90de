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

from ...backends.nnls.result import SOLVED, NnlsInfo
from ...backends.products import Matrix, dense
from ...data.arrays import Expected, as_matrix, read_matrix
from ...data.opening.opened import opened
from ...data.weights.entries import EntryWeights
from ...data.weights.given import KINDS, Weights
from ...data.weights.read import observed_rows
from ...data.weights.scaled import scaled
from ...data.weights.stored import stored_entries
from ...errors import ConvergenceWarning, InvalidInput, warn
from ...exact.weighted.rows import WeightedCodes
from ...numerics import compute_dtype
from ...planning.memory import Budget, refuse_too_large
from ...results.encoding import EncodeInfo
from ...solvers.half_step import Operations
from ...solvers.penalties import Penalty
from ..encode import Fixed, Run, encode
from ..options import Options, destination
from ..refusals import refuse_overwriting
from ..rows import given_codes, has_no_rows, locked, through, with_weights_as_rows
from .request import weights_of_codes


def codes_of_entries(
    A: Any,
    weights: Weights,
    fixed: Fixed,
    by: tuple[Penalty, Operations],
    place: Path | str,
    budget: Budget,
    Z0: Any = None,
    *,
    signed: bool = False,
) -> tuple[Tensor, NnlsInfo, EncodeInfo]:
    """Z (n, K) at this place, the info of each row and the summary, for A (n, d), less the offset,
    in memory or read in passes. by: the penalty, and operations of solver anls."""
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
        by: tuple[Penalty, Operations],
        start: Matrix | None,
    ) -> None:
        self._beside, (self._D, self._offset), self._start = beside, fixed, start
        self.codes = WeightedCodes(fixed.D, *by)
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
        return info, EncodeInfo("exact", steps, solved, info.kkt.cpu(), relative)


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
    scale, entries = weights_of_codes(run.weights, penalised=bool(options.penalties))
    if entries is not None:
        return _encode_entries(A, entries, fixed, options, run, (Z0, codes))
    assert scale is not None
    scale.check_shape(None, D.shape[1])
    if offset is not None and scale.rows is not None:
        raise InvalidInput(
            "weights of rows do not go with the offset of a model, which rows of weight 0 would be "
            "minus; leave such rows out"
        )
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
    asked = {
        "method='sweeps'": run.sweeps_only,
        "top_k": run.top_k is not None,
        "refit=True": run.refit,
        "max_iter=0": run.max_iter == 0,
        "target_l0": options.target_l0 is not None,
    }
    check_with_entries((A, D, Z0), asked)
    by = options.penalties.of_codes(D.shape[1]), options.method_of_codes(D.device).ops
    budget = options.budget(D.device, place, width=len(D))
    given = A, weights, fixed, by, place, budget, Z0
    Z, info, summary = codes_of_entries(*given, signed=options.constraint.signed)
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
    how: tuple[Path | str, Budget, dict[str, bool]],
) -> tuple[Tensor, NnlsInfo]:
    """The codes of fastnmf.nnls, and the info of each row. how: where codes go, the memory, and
    what is asked for that weights of entries do not go with."""
    place, budget, asked = how
    check_with_entries((A, D, Z0), asked)
    fixed = Fixed(read_matrix(D, budget.device, Expected("D", signed=True)))
    return codes_of_entries(A, weights, fixed, by, place, budget, Z0, signed=True)[:2]


def check_with_entries(inputs: tuple[Any, ...], asked: dict[str, bool]) -> None:
    """Raise InvalidInput for what weights of entries do not go with: what is `asked`, and inputs
    that require a gradient."""
    wants = (isinstance(X, Tensor) and X.requires_grad for X in inputs)
    asked = asked | {"a gradient": torch.is_grad_enabled() and any(wants)}
    for what in (name for name, given in asked.items() if given):
        raise InvalidInput(
            f"weights of entries, and of rows with a penalty, do not go with {what}: each row has "
            "a problem of its own, which is solved exactly; leave one out"
        )
