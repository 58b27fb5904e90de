"""A whole fit of data in hand: plan, start, loop, account. The counterpart of encoding.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import memory, plan
from .codes import describe, r_squared
from .engine import Iteration, Outcome, State, factorize_
from .info import FitInfo
from .init import resolve, start
from .precision import in_tf32, products_in
from .rows import Rows
from .solvers import learner, squared_norm
from .statistics import squared_error
from .sweeps import Operations

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitter:
    """min ‖A − Z D‖² over Z ≥ 0, D ≥ 0 with K concepts by one of the solvers, from a start that is
    drawn or given, or from where a checkpoint was left.

    backend is the name of what supplies ops. begun: when the fit began, by time.perf_counter. The
    rest as for NMF.
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
    checkpoint: Checkpoint | None = None

    @torch.no_grad()
    def __call__(self, A: Tensor) -> tuple[Tensor, Tensor, FitInfo]:
        """Z (n, K), D (K, d) and the account for A (n, d), checked and on its device."""
        n, d = A.shape
        chosen, resumed = self._resumed(A)
        log.info("fit %d × %d with %d concepts: %s", n, d, self.K, chosen)
        if resumed is None:
            Z, D = start(A, self.K, self.init, self.generator)
        else:
            Z, D = resumed.Z, resumed.D
        keeping = nullcontext() if self.checkpoint is None else self.checkpoint.follow(chosen)
        try:
            with keeping as kept:
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
                    keep=None if kept is None else kept.keep,
                    resumed=resumed,
                )
        except torch.cuda.OutOfMemoryError as error:
            fewer = max(1, chosen.piece_rows // 2)
            raise torch.cuda.OutOfMemoryError(f"{error} Try chunk_rows={fewer}.") from error
        earlier = resumed.history[-1].seconds if resumed is not None else 0.0
        info = self._account(A, Z, D, chosen, outcome, earlier)
        if self.tol > 0 and info.stopped_by == "max_iter":
            log.warning(
                "not converged: ‖ΔZ‖/‖Z‖ is %.2g after %d iterations, above tol=%g; raise max_iter "
                "or tol (tol=0 asks for exactly max_iter iterations)",
                info.relative_change,
                self.max_iter,
                self.tol,
            )
        return Z, D, info

    def _resumed(self, A: Tensor) -> tuple[plan.Plan, State | None]:
        """The plan, and the state to go on from if a checkpoint has one."""
        if self.checkpoint is not None:
            found = self.checkpoint.begin(A, float(squared_norm(A)))
            if found is not None:
                return found
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
        return chosen, None

    def _account(
        self, A: Tensor, Z: Tensor, D: Tensor, chosen: plan.Plan, outcome: Outcome, earlier: float
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
            init=resolve(self.init, n, d, self.K),
            iterations=len(outcome.history),
            stopped_by=outcome.stopped_by,
            relative_error=(error / whole) ** 0.5 if whole > 0 else 0.0,
            relative_change=last,
            r_squared=r_squared(A, error, whole),
            **vars(codes),
            seconds=earlier + time.perf_counter() - self.begun,
            precision="tf32" if coarse and in_tf32(A) else dtype,
            drift=outcome.drift,
            history=outcome.history,
        )
