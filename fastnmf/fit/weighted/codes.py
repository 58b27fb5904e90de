"""Exact codes for a fixed dictionary of rows whose entries have weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.nnls.result import SOLVED, NnlsInfo
from ...data.arrays import Expected, as_matrix, read_matrix
from ...data.weights.given import Weights
from ...data.weights.observed import observed_entries, stored_entries
from ...data.weights.scaled import scaled
from ...errors import ConvergenceWarning, InvalidInput, warn
from ...exact.weighted.rows import weighted_codes
from ...numerics import compute_dtype
from ...planning.memory import refuse_too_large
from ...results.encoding import EncodeInfo
from ...solvers.half_step import Operations
from ...solvers.penalties import Penalty
from ..encode import Fixed, Run, encode
from ..options import Options, destination
from ..refusals import refuse_overwriting
from .request import weights_of_codes


def codes_of_entries(
    A: Any,
    weights: Weights,
    fixed: tuple[Tensor, Tensor | None],
    penalty: Penalty,
    ops: Operations,
    Z0: Any = None,
    *,
    signed: bool = False,
) -> tuple[Tensor, NnlsInfo, EncodeInfo]:
    """Z (n, K), the info of each row and the summary, for A (n, d) in memory, less the offset, if
    `fixed` = (D, offset) has one."""
    D, offset = fixed
    expected = Expected(features=D.shape[1], dtype=D.dtype, signed=signed)
    read = stored_entries if weights.stored else partial(observed_entries, weights=weights)
    data = read(A, expected=expected, device=D.device)
    n, whole, D = len(data.X), data.squared_norm, D.to(data.X.dtype)
    if offset is not None:
        data = data.minus(offset)
    refuse_too_large({"the codes": n * len(D) * D.itemsize}, D.device, "give fewer rows")
    if Z0 is not None:
        Z0 = read_matrix(Z0, D.device, Expected("Z0", len(D), "concepts"))
        if len(Z0) != n:
            raise InvalidInput(f"Z0 has {len(Z0)} rows, A has {n}; they must agree")
    Z, info = weighted_codes(data, D, penalty, ops, Z0)
    error = data.squared_error(Z, D)
    solved = bool((info.status == SOLVED).all())
    relative = (error / whole) ** 0.5 if whole > 0 else 0.0
    steps = int(info.iterations.max()) if len(info.iterations) else 0
    return Z, info, EncodeInfo("exact", steps, solved, info.kkt.cpu(), relative)


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
    if run.weights is None:
        return encode(A, fixed, options, run, **how)
    refuse_overwriting((run.weights,), destination(codes, optional=False))
    scale, entries = weights_of_codes(run.weights, penalised=bool(options.penalties))
    if entries is not None:
        return _encode_entries(A, entries, fixed, options, run, (Z0, codes))
    assert scale is not None
    D, offset = fixed
    if offset is not None and scale.rows is not None:
        raise InvalidInput(
            "weights of rows do not go with the offset of a model, which rows of weight 0 would be "
            "minus; leave such rows out"
        )
    expected = Expected(features=D.shape[1], dtype=D.dtype, signed=options.constraint.signed)
    fixed = Fixed(*map(scale.of_dictionary, fixed))
    return encode(scaled(A, scale, expected), fixed, options, replace(run, weights=None), **how)


def _encode_entries(
    A: Any,
    weights: Weights,
    fixed: tuple[Tensor, Tensor | None],
    options: Options,
    run: Run,
    beside: tuple[Any, Any],
) -> tuple[Tensor, EncodeInfo]:
    """Exact codes of rows whose entries have weights, and the summary. beside: the codes to start
    from, and the argument `codes`."""
    (D, _), (Z0, codes) = fixed, beside
    place = destination(codes, optional=False)
    asked = {
        "method='sweeps'": run.sweeps_only,
        "top_k": run.top_k is not None,
        "refit=True": run.refit,
        "max_iter=0": run.max_iter == 0,
        "target_l0": options.target_l0 is not None,
    }
    check_with_entries((A, D, Z0), place, asked)
    penalty, ops = options.penalties.of_codes(D.shape[1]), options.method_of_codes(D.device).ops
    given = A, weights, fixed, penalty, ops, Z0
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
) -> tuple[Any, Any, Weights | None]:
    """A and D of fastnmf.nnls, scaled; or weights that stand beside them."""
    scale, entries = weights_of_codes(weights, penalised=bool(penalty))
    if scale is None:
        return A, D, entries
    if (matrix := as_matrix(D, "D")) is None:
        return A, D, None
    dtype = compute_dtype(matrix)
    expected = Expected(features=matrix.shape[-1], dtype=dtype, signed=True)
    return scaled(A, scale, expected), scale.of_given(D), None


def nnls_of_entries(
    A: Any,
    D: Tensor | np.ndarray,
    Z0: Any,
    weights: Weights,
    penalty: Penalty,
    ops: Operations,
    how: tuple[Path | str, dict[str, bool]],
) -> tuple[Tensor, NnlsInfo]:
    """The codes of fastnmf.nnls, and the info of each row. how: where codes go, and what is asked
    for that weights of entries do not go with."""
    check_with_entries((A, D, Z0), *how)
    device = next((X.device for X in (A, D) if isinstance(X, Tensor)), torch.device("cpu"))
    fixed = read_matrix(D, device, Expected("D", signed=True)), None
    return codes_of_entries(A, weights, fixed, penalty, ops, Z0, signed=True)[:2]


def check_with_entries(inputs: tuple[Any, ...], place: Path | str, asked: dict[str, bool]) -> None:
    """Raise InvalidInput for what weights of entries do not go with: what is `asked`, codes that do
    not go to memory, and inputs that require a gradient."""
    wants = (isinstance(X, Tensor) and X.requires_grad for X in inputs)
    asked = asked | {
        "codes in a file, or sparse": place != "memory",
        "a gradient": torch.is_grad_enabled() and any(wants),
    }
    for what in (name for name, given in asked.items() if given):
        raise InvalidInput(
            f"weights of entries, and of rows with a penalty, do not go with {what}: each row has "
            "a problem of its own, which is solved exactly; leave one out"
        )
