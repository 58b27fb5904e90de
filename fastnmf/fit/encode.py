"""Codes for a fitted dictionary, and data computed from codes. Sweeps are in engine/codes.py, exact
codes and their gradient in exact/."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..backends.nnls.result import NnlsInfo
from ..backends.products import Matrix, dense
from ..data.arrays import Expected, ValueCheck, as_matrix, check_values
from ..data.dataset import Data
from ..data.opening.opened import opened
from ..data.sparse.arrays import is_sparse
from ..data.storage import output
from ..engine.codes import Encoder, Ended, chunk_rows
from ..engine.state import Method, Stopping
from ..errors import InvalidInput, hold_warnings
from ..exact.encoder import ExactEncoder
from ..exact.gradient import with_gradient
from ..exact.kept import Means, codes_of_few
from ..exact.powers import Powers
from ..exact.pursuit import PursuitEncoder
from ..exact.rows import in_flight
from ..exact.sparsity.refit import refit_
from ..frames import is_transformed
from ..init.start import cold_start
from ..numerics import wide, widened
from ..planning.memory import LEAST_ROWS, Budget, refuse_too_large
from ..precision import products_in
from ..results.encoding import EncodeInfo, EncodeRecord
from ..results.progress import Progress
from ..solvers.supports.pursuit import largest_support
from .options import Options, destination
from .refusals import refuse_derivatives, refuse_overwriting, refuse_tangent
from .rows import given_codes, has_no_rows, kind_of, locked, no_rows, through
from .sparsity.penalty import encoding_penalties

METHODS = ("auto", "exact", "sweeps")


@dataclass(frozen=True)
class Run:
    """The arguments of an encoding that say how: the method, one of METHODS, the most sweeps, the
    change at which sweeps alone end, the most concepts of a row, or None, whether coefficients are
    refitted without the penalty, whether the most concepts are the model's, not the call's, weights
    of the entries, and whether concepts are exchanged, since the model was fitted so."""

    method: str
    max_iter: int
    tol: float
    top_k: int | None = None
    refit: bool = False
    of_model: bool = False
    weights: Any = None
    exchanges: bool = False

    @property
    def sweeps_only(self) -> bool:
        return self.method == "sweeps"

    def refuse_start(self, Z0: Any) -> None:
        """Raise where top_k goes with a start or a method, which it has no use for, or refit with
        codes that are not exact."""
        self._refuse_refit()
        if self.top_k is None or (Z0 is None and self.method == "auto"):
            return
        other = "Z0" if Z0 is not None else f"method={self.method!r}"
        advice = "leave one of them out"
        if self.of_model:
            advice = f"leave {other.partition('=')[0]} out, or set top_k of the model to None"
        raise InvalidInput(
            f"top_k={self.top_k} and {other} cannot be combined: a pursuit starts from no concept, "
            f"and is a method of its own; {advice}"
        )

    def _refuse_refit(self) -> None:
        """Raise where coefficients would be refitted that are not at an optimum."""
        if self.refit and (self.sweeps_only or self.max_iter == 0):
            other = "method='sweeps'" if self.sweeps_only else "max_iter=0"
            raise InvalidInput(
                f"refit=True and {other} cannot be combined: a support is that of exact codes; "
                "leave one of them out"
            )

    def differentiates(self, A: Any) -> bool:
        """Whether A requires a gradient; raises where there is none."""
        if not (isinstance(A, Tensor) and A.requires_grad and torch.is_grad_enabled()):
            return False
        if is_sparse(A):
            raise InvalidInput(
                "A is sparse and requires a gradient, which encode has for dense A only; give "
                "A.to_dense(), or A.detach()"
            )
        if self.sweeps_only:
            raise InvalidInput(
                "A requires a gradient, and method='sweeps' has none, as its codes are not at the "
                "optimum; give method='auto' or 'exact', or A.detach()"
            )
        return True


class Fixed(NamedTuple):
    """What codes are computed for, and data from codes: D (K, d), and the offset (d,) that data are
    larger by, or None."""

    D: Tensor
    offset: Tensor | None = None

    def to(self, like: Tensor) -> Fixed:
        """Both in the dtype and on the device of another tensor."""
        return Fixed(self.D.to(like), None if self.offset is None else self.offset.to(like))


def encode(
    A: Any,
    fixed: Fixed,
    options: Options,
    run: Run,
    *,
    Z0: Any,
    codes: Any,
    return_info: bool,
) -> tuple[Tensor, EncodeInfo | None]:
    """Z (n, K) for A (n, d), less the offset: argmin ½‖A − Z D‖² plus the penalty of Z over Z ≥ 0;
    and the summary, if return_info. codes: 'memory', 'sparse', or the path of the file to write."""
    D, offset = fixed
    (K, d), device, place = D.shape, D.device, destination(codes, optional=False)
    refuse_overwriting((A, Z0, D), place)
    run.refuse_start(Z0)
    wanted = differentiates(A, D, Z0, run, in_memory=place == "memory")
    plain = place == "memory" and Z0 is None and offset is None and not return_info
    if plain and not wanted and (few := _codes_of_few(A, D, options, run)) is not None:
        return few[0], None
    method = options.method(device) if run.sweeps_only else options.method_of_codes(device)
    kind = {"narrow": not wanted, "signed": options.constraint.signed}
    expected = Expected(features=d, dtype=D.dtype, **kind)
    with ExitStack() as stack:
        stack.enter_context(hold_warnings())
        stack.enter_context(products_in(options.precision))
        to = locked(place, stack)
        if has_no_rows(A, expected):
            record = EncodeRecord(method.penalties, D, measures=return_info)
            return no_rows(A, expected, K, to), record.info()
        budget = options.budget(device, place, width=K)
        if not run.sweeps_only and options.tuned.form is None and in_flight(K, d, method.ops):
            budget = replace(budget, squares=1)
        data = stack.enter_context(opened(A, expected, budget))
        data.compute_with(method.ops)
        data.subtract(None if offset is None else offset.to(data.dtype))
        Z0 = None if Z0 is None else given_codes(Z0, data, K)
        method = method.with_penalties(encoding_penalties(options, data, D, run.top_k))
        codes_of = _Scaled(data, D, method, run, measures=return_info)
        codes_of.show(options.verbose, data.n, stack)
        if place == "memory":
            sizes = {"the codes": data.n * K * data.dtype.itemsize}
            refuse_too_large(sizes, device, "give fewer rows, or codes='Z.npy'", budget.requested)
        given = (lambda part: None) if Z0 is None else (lambda part: dense(Z0[part]))
        if data.in_memory_here and place == "memory" and (wanted or offset is None):
            X = A.to(data.A) if wanted else data.A
            Z = codes_of(X if offset is None else X - data.offset, given(slice(0, data.n)))
            return Z, codes_of.ended()
        checks.no_gradient("A", wanted)
        data.limit_chunks(chunk_rows(codes_of.encoder.D, codes_of.encoder.method))
        Z = through(data, lambda part, X: codes_of(X, given(part)), K, to)
        return Z, codes_of.ended()


def differentiates(A: Any, D: Tensor, Z0: Any, run: Run, *, in_memory: bool) -> bool:
    """Whether codes get a gradient in A. Raises for derivatives that there are not."""
    refuse_derivatives("encode", D=D, Z0=Z0)
    refuse_tangent("encode", "A", A)
    wanted = run.differentiates(A)
    checks.no_gradient("A", wanted and not in_memory)
    return wanted


def _codes_of_few(A: Any, D: Tensor, options: Options, run: Run) -> tuple[Tensor, NnlsInfo] | None:
    """Exact codes of a few rows in memory, without what many rows need, and the info of the search;
    None where that may make a difference."""
    only = options.verbose or options.tuning is not None or options.max_memory is not None
    only |= options.target_l0 is not None or run.refit
    if only or run.sweeps_only or run.top_k is not None or run.max_iter == 0:
        return None
    means, made_for = partial(_means, D, options), options.of_codes()
    return codes_of_few(A, D, means, made_for, sweeps=run.method == "auto")


def _means(D: Tensor, options: Options) -> Means:
    method = options.method_of_codes(D.device)
    return Means(method.ops, method.backend, method.penalties.of_codes(D.shape[1]))


def decode(Z: Any, fixed: Fixed, budget: Budget, out: Any) -> Tensor:
    """Z D (n, d), plus the offset, for codes Z (n, K) of any sign; out: the .npy file to write to,
    or None. A tensor may have any shape (…, K)."""
    D = fixed.D
    (K, d), device, matrix = D.shape, D.device, Z
    if out is not None or not isinstance(Z, Tensor) or is_sparse(Z):
        checks.no_gradient("Z", isinstance(Z, Tensor) and Z.requires_grad)
        place = "memory" if checks.file("out", out) in (None, "memory") else output(out)
        refuse_overwriting((Z, D), place)
        expected = Expected("Z", K, "concepts", D.dtype, signed=True)
        with ExitStack() as stack:
            to = locked(place, stack)
            if has_no_rows(Z, expected):
                return no_rows(Z, expected, d, to).to(device)
            budget = replace(budget, codes=kind_of(place))
            data = stack.enter_context(opened(Z, expected, budget))
            if not data.in_memory_here or out is not None or data.stored is not None:
                if out is None:
                    _refuse_too_large(data.n, d, data.like, budget)
                wide = fixed.to(data.like)
                data.limit_chunks(LEAST_ROWS if data.in_memory_here else None)
                return through(data, lambda _, Zi: _product(Zi, wide), d, to)
            matrix = data.A
    if matrix.ndim == 0 or matrix.shape[-1] != K:
        raise InvalidInput(
            f"Z has shape {tuple(matrix.shape)}; codes must be (n, {K}) or (…, {K}), an entry for "
            "each concept"
        )
    if matrix is Z:
        _refuse_values(Z)
    like = D.to(torch.promote_types(matrix.dtype, D.dtype))
    _refuse_too_large(math.prod(matrix.shape[:-1]), d, like, budget)
    return _product(matrix.to(like), fixed.to(like))


def _refuse_too_large(n: int, d: int, like: Tensor, budget: Budget) -> None:
    """Raise InvalidInput where data (n, d) in the dtype of `like` do not fit in memory."""
    sizes = {"the result": n * d * like.itemsize}
    refuse_too_large(sizes, like.device, "give fewer rows, or out='A.npy'", budget.requested)


def _product(Z: Matrix, by: Fixed) -> Tensor:
    product = Z @ by.D if isinstance(Z, Tensor) else Z.dot(by.D)
    return product if by.offset is None else product + by.offset


def _refuse_values(Z: Tensor) -> None:
    """Raise for codes that are not finite, or no real numbers, as for those in an array. What
    torch.func transforms cannot be read."""
    if is_transformed(Z):
        return
    codes = as_matrix(Z, "Z")
    assert isinstance(codes, Tensor)
    if codes.numel():
        check_values(codes.reshape(-1, Z.shape[-1]), ValueCheck(Expected("Z", signed=True)))


class _Scaled:
    """The codes of rows X of the data, from Z0 or from the usual start; and how they ended.
    measures: whether the summary is measured."""

    def __init__(self, data: Data, D: Tensor, method: Method, run: Run, *, measures: bool) -> None:
        self._powers, self._run = Powers.of(data, D, method), run
        D, method = self._powers.of_dictionary(D.to(data.dtype)), self._powers.penalised(method)
        penalty = method.penalties.of_codes(D.shape[1])
        self._dtype, self._free = data.dtype, method.constraint.signed
        # concepts of any signs cancel: of products in float32 the search would follow the rounding
        D = D.to(wide(D.device)) if self._free and not run.sweeps_only else D
        if run.sweeps_only:
            self.encoder = Encoder(D, method, run.max_iter, run.tol, monotone=True)
        elif run.top_k is not None and run.top_k < largest_support(D, penalty):
            self.encoder = PursuitEncoder(D, method, run.top_k, run.exchanges)
        else:
            sweeps = run.method == "auto"
            self.encoder = ExactEncoder(D, data.n, method, run.max_iter, sweeps)
        self._l2 = 0.0 if run.refit else penalty.l2
        offset = None if data.offset is None else self._powers.of_data(data.offset[None])
        kind = {"measures": measures, "refits": run.refit, "offset": offset}
        self._record = EncodeRecord(method.penalties, D, **kind)

    def show(self, verbose: bool, n: int, stack: ExitStack) -> None:
        """Show, until the stack ends, how many of the n rows are done, if that is asked for."""
        if verbose:
            stopping = Stopping(self._run.max_iter, self._run.tol)
            rows = n, chunk_rows(self.encoder.D, self.encoder.method)
            bar = Progress(True, stopping, label="encode", rows=rows)
            each = stack.enter_context(bar)
            shown = {"each": each} if self._run.sweeps_only else {}
            self.encoder = replace(self.encoder, done=bar.done, **shown)

    def __call__(self, X: Matrix, Z0: Tensor | None) -> Tensor:
        X, Z0 = self._powers.of_data(X), self._powers.of_start(Z0)
        if self.encoder.D.dtype != self._dtype:
            X, Z0 = (None if M is None else M.to(self.encoder.D.dtype) for M in (X, Z0))
        ended: list[Ended] = []

        def solve() -> Tensor:
            Z, found = self.encoder(X, Z0)
            ended.extend(found)
            if self._run.refit:
                refit_(Z, X, self.encoder.D, self.encoder.method.ops)
            return Z

        if not (isinstance(X, Tensor) and X.requires_grad and torch.is_grad_enabled()):
            Z = solve()
        elif self._run.max_iter > 0 or self._run.top_k is not None:
            Z = with_gradient(X, self.encoder.D, solve, self.encoder.method.ops, self._l2)
        else:
            Z = _start(widened(X), self.encoder.D, Z0, free=self._free)
            ended.append(Ended(0, True))
        Z = Z.to(self._dtype)
        self._record.add(X, Z, ended)
        return self._powers.of_codes(Z)

    def ended(self) -> EncodeInfo:
        """The summary, after a warning where the codes did not converge."""
        self._record.warn(self._run.max_iter, self._run.tol)
        return self._record.info()


def _start(X: Tensor, D: Tensor, Z0: Tensor | None, *, free: bool) -> Tensor:
    """The codes to start from, with their derivative with respect to X: none of given ones."""
    return cold_start(X, D, free=free) if Z0 is None else Z0 + X @ X.new_zeros(X.shape[1], len(D))
