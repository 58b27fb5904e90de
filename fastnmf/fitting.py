"""A whole fit of data in hand: plan, start, loop, account. The counterpart of encoding.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import memory, plan
from .codes import describe, r_squared
from .engine import Iteration, Outcome, factorize_
from .info import FitInfo
from .init import resolve, start
from .precision import in_tf32, products_in
from .rows import Rows
from .solvers import SOLVERS, learner, squared_norm
from .statistics import squared_error
from .sweeps import Operations

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitter:
    """min ‖A − Z D‖² over Z ≥ 0, D ≥ 0 with K concepts by one of the solvers, from a start that is
    drawn or given.

    backend is the name of what supplies ops. begun: when the fit began, by time.perf_counter;
    deadline: when it is to end. The rest as for NMF.
    """

    K: int
    solver: str
    backend: str
    ops: Operations
    init: str | tuple[Any, Any]
    generator: torch.Generator | None
    form: str
    block: int | None
    chunk_rows: int | None
    max_iter: int
    tol: float
    begun: float
    each: Callable[[Iteration], bool | None] | None = None
    accelerate: bool | str = "auto"
    stop: str = "codes"
    deadline: float = float("inf")

    @torch.no_grad()
    def __call__(self, A: Tensor) -> tuple[Tensor, Tensor, FitInfo]:
        """Z (n, K), D (K, d) and the account for A (n, d), checked and on its device."""
        n, d = A.shape
        chosen = memory.choose(
            A,
            self.K,
            self.solver,
            self.backend,
            memory.free_bytes(A.device),
            form=self.form,
            chunk_rows=self.chunk_rows,
            block=self.block,
        )
        if self._accelerates(chosen):
            chosen = plan.accelerated(chosen, n, d, self.K, A.element_size(), self.solver)
        log.info("fit %d × %d with %d concepts: %s", n, d, self.K, chosen)
        Z, D = start(A, self.K, self.init, self.generator)
        try:
            outcome = factorize_(
                Z,
                D,
                Rows(A),
                solver=self.solver,
                ops=self.ops,
                plan=chosen,
                max_iter=self.max_iter,
                tol=self.tol,
                each=self.each,
                stop=self.stop,
                deadline=self.deadline,
            )
        except torch.cuda.OutOfMemoryError as error:
            fewer = max(1, chosen.piece_rows // 2)
            raise torch.cuda.OutOfMemoryError(f"{error} Try chunk_rows={fewer}.") from error
        info = self._account(A, Z, D, chosen, outcome)
        if self.tol > 0 and info.stopped_by in ("max_iter", "max_seconds"):
            log.warning(
                "not converged: ‖ΔZ‖/‖Z‖ is %.2g after %d iterations, with tol=%g and stop=%r; "
                "raise %s or tol (tol=0 asks for no more than that)",
                info.relative_change,
                info.iterations,
                self.tol,
                self.stop,
                info.stopped_by,
            )
        return Z, D, info

    def _accelerates(self, chosen: plan.Plan) -> bool:
        """Whether to extrapolate. 'auto' does where it pays, in normal form and where half-steps
        are not exact, unless the iterates of the plain loop may be meant: where a start or a form
        is given (README, design)."""
        if self.accelerate != "auto":
            return bool(self.accelerate)
        free = isinstance(self.init, str) and self.form == "auto"
        return free and chosen.form == "normal" and not SOLVERS[self.solver].exact

    def _account(
        self, A: Tensor, Z: Tensor, D: Tensor, chosen: plan.Plan, outcome: Outcome
    ) -> FitInfo:
        n, d = A.shape
        whole = float(squared_norm(A))
        with products_in("highest"):
            error = float(squared_error(Rows(A), Z, D, chosen.piece_rows))
            codes = describe(Z, D)
        # where sweeps.py lets tf32 in
        coarse = "residual" in chosen.form and (self.solver == "hals" or self.backend == "triton")
        dtype = str(A.dtype).removeprefix("torch.")
        last = outcome.history[-1].relative_change if outcome.history else float("nan")
        return FitInfo(
            n=n,
            d=d,
            nb_concepts=self.K,
            dtype=dtype,
            device=str(A.device),
            solver=self.solver,
            dictionary_solver=learner(self.solver, self.K),
            backend=self.backend,
            form=chosen.form,
            block=chosen.block,
            piece_rows=chosen.piece_rows,
            accelerated=chosen.accelerates,
            inner_half_steps=chosen.inner,
            init=resolve(self.init, n, d, self.K),
            iterations=len(outcome.history),
            stopped_by=outcome.stopped_by,
            relative_error=(error / whole) ** 0.5 if whole > 0 else 0.0,
            relative_change=last,
            r_squared=r_squared(A, error, whole),
            **vars(codes),
            seconds=time.perf_counter() - self.begun,
            precision="tf32" if coarse and in_tf32(A) else dtype,
            drift=outcome.drift,
            history=outcome.history,
        )
