"""A whole fit: plan, start, loop, account. The counterpart of encoding.py."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import memory, plan
from .encoding import Method
from .engine import Iteration, Outcome, State, factorize_, varies
from .errors import InvalidInput
from .info import FitInfo
from .init import resolve
from .precision import in_tf32, products_in
from .replay import CudaGraph, Recorder, refuses
from .resident import Resident
from .solvers import SOLVERS, learner
from .store import Store
from .streamed import Streamed

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

log = logging.getLogger(__name__)

# iterations from which on a CUDA graph, some 2 ms to make, is gained back; and what one takes at
# most by its floor: launches are 0.2 to 4 ms of it (README, CUDA graphs)
_LEAST_REPEATED, _MOST_SECONDS = 20, 20e-3


@dataclass(frozen=True)
class Fitter:
    """min ½‖A − Z D‖² and penalties over Z ≥ 0, D ≥ 0 with K concepts by one of the solvers, from a
    start that is drawn or given, or from where a checkpoint was left.

    begun: when the fit began, by time.perf_counter; deadline: when it is to end. The rest as for
    NMF.
    """

    K: int
    by: Method
    init: str | tuple[Any, Any]
    generator: torch.Generator | None
    max_iter: int
    tol: float
    begun: float
    each: Callable[[Iteration], bool | None] | None = None
    accelerate: bool | str = "auto"
    stop: str = "codes"
    deadline: float = float("inf")
    checkpoint: Checkpoint | None = None
    revive: bool = False
    cuda_graph: bool | str = "auto"

    @torch.no_grad()
    def __call__(self, data: Resident | Streamed) -> tuple[Tensor | Store, Tensor, FitInfo]:
        """The codes, D (K, d) and the account for data that are in memory or read in passes."""
        n, d = data.rows.n, data.rows.d
        self._refuse(data)
        _refuse_extremes(data)
        chosen, resumed = self._resumed(data)
        recorder = self._recorder(data, chosen)
        if resumed is None:
            Z, D = data.start(self.K, self.init, self.generator)
        else:
            Z, D = data.resume(resumed.Z, resumed.D)
        Z, D = _row_major(Z), _row_major(D)
        log.info("fit %d × %d with %d concepts: %s", n, d, self.K, chosen)
        summed = data.ranks.summed
        keeping = nullcontext() if self.checkpoint is None else self.checkpoint.follow(chosen)
        try:
            with keeping as kept:
                outcome = factorize_(
                    Z,
                    D,
                    data.rows,
                    solver=self.by.solver,
                    ops=self.by.ops,
                    plan=chosen,
                    max_iter=self.max_iter,
                    tol=self.tol,
                    penalties=self.by.penalties,
                    revive=self.revive,
                    each=self.each,
                    stop=self.stop,
                    deadline=self.deadline,
                    keep=None if kept is None else kept.keep,
                    resumed=resumed,
                    recorder=recorder,
                )
            summed = data.ranks.summed - summed
        except torch.cuda.OutOfMemoryError as error:
            fewer = max(1, chosen.piece_rows // 2)
            raise torch.cuda.OutOfMemoryError(f"{error} Try chunk_rows={fewer}.") from error
        earlier = resumed.history[-1].seconds if resumed is not None else 0.0
        info = self._account(data, Z, D, chosen, outcome, earlier, summed)
        data.keep(Z)
        begun = data.ranks.rank == 0 and info.iterations > 0
        if begun and self.tol > 0 and info.stopped_by in ("max_iter", "max_seconds"):
            log.warning(
                "not converged: the relative change is %.2g after %d iterations, with tol=%g and "
                "stop=%r; raise %s or tol (tol=0 asks for no more than that)",
                info.relative_change,
                info.iterations,
                self.tol,
                self.stop,
                info.stopped_by,
            )
        return Z, D, info

    def _refuse(self, data: Resident | Streamed) -> None:
        """Refuse what penalties do not have, and what needs the codes of all rows in memory where
        they are not."""
        if self.by.penalties and self.accelerate is True:
            raise InvalidInput(
                "accelerate=True does not go with alpha_Z or alpha_D, nor with unit_norm: it "
                "scales concepts, which they count; give accelerate='auto' or False"
            )
        if self.accelerate is True and not data.rows_in_memory:
            raise InvalidInput(
                "accelerate=True keeps two copies of the codes in memory, and the data are read in "
                "passes here; give accelerate='auto' or False, or more max_memory"
            )
        if self.revive and isinstance(data, Streamed) and data.store is None:
            raise InvalidInput(
                "revive=True gives concepts other codes, and codes=None keeps none; give "
                "revive=False, or codes='memory' or a file"
            )

    def _resumed(self, data: Resident | Streamed) -> tuple[plan.Plan, State | None]:
        """The plan, and the state to go on from if a checkpoint has one."""
        if self.checkpoint is not None:
            found = self.checkpoint.begin(data.rows, data.store)
            if found is not None:
                return found
        sizes = {"form": self.by.form, "chunk_rows": self.by.chunk_rows, "block": self.by.block}
        chosen = data.plan(self.K, self.by.solver, self.by.backend, **sizes)
        if self._accelerates(chosen, data):
            n, d, itemsize = data.rows.n, data.rows.d, data.rows.dtype.itemsize
            chosen = plan.accelerated(chosen, n, d, self.K, itemsize, self.by.solver)
        return chosen, None

    def _accelerates(self, chosen: plan.Plan, data: Resident | Streamed) -> bool:
        """Whether to extrapolate. 'auto' does where it pays, up to min(n, d) concepts, in normal
        form and where half-steps are not exact or penalised, unless the iterates of the plain loop
        may be meant: where a start or a form is given (README, design). Streamed codes have no
        copies to be moved ahead of."""
        if not data.rows_in_memory or self.accelerate != "auto":
            return self.accelerate is True
        free = isinstance(self.init, str) and self.by.form == "auto" and not self.by.penalties
        few = min(data.rows.n, data.rows.d) >= self.K
        return free and few and chosen.form == "normal" and not SOLVERS[self.by.solver].exact

    def _recorder(self, data: Resident | Streamed, chosen: plan.Plan) -> Recorder | None:
        """What repeats the iterations, if anything does. 'auto' takes it where launches may be much
        of the time."""
        if self.cuda_graph is False:
            return None
        device = data.rows.device
        why = refuses(device) or varies(self.by.solver, chosen, data.rows)
        if self.cuda_graph is True:
            if why is not None:
                raise InvalidInput(
                    f"cuda_graph=True is not possible: {why}; give cuda_graph='auto' or False"
                )
            return CudaGraph(device, must=True)
        if why is not None or self.max_iter < _LEAST_REPEATED:
            return None
        small = memory.floor_seconds(data.rows, chosen.flops) <= _MOST_SECONDS
        return CudaGraph(device, must=False) if small else None

    def _account(
        self,
        data: Resident | Streamed,
        Z: Tensor | Store,
        D: Tensor,
        chosen: plan.Plan,
        outcome: Outcome,
        earlier: float,
        summed: int,
    ) -> FitInfo:
        n, d, penalties = data.rows.n, data.rows.d, self.by.penalties
        with products_in("highest"):
            on_codes, on_dictionary = penalties.of_codes(d), penalties.of_dictionary(n)
            error, whole, r_squared, codes, penalty = data.measure(Z, D, chosen, on_codes)
            penalty += float(on_dictionary.value(D))
        # where sweeps.py lets tf32 in
        coarse = "residual" in chosen.form and learner(self.by.solver, self.K) != "anls"
        dtype = str(D.dtype).removeprefix("torch.")
        last = outcome.history[-1].relative_change if outcome.history else float("nan")
        return FitInfo(
            n=n,
            d=d,
            nb_concepts=self.K,
            dtype=dtype,
            device=str(D.device),
            solver=self.by.solver,
            dictionary_solver=learner(self.by.solver, self.K),
            backend=self.by.backend,
            form=chosen.form,
            block=chosen.block,
            piece_rows=chosen.piece_rows,
            accelerated=chosen.accelerates,
            inner_half_steps=chosen.inner,
            cuda_graph=outcome.repeats,
            init=resolve(self.init, n, d, self.K),
            iterations=len(outcome.history),
            stopped_by=outcome.stopped_by,
            relative_error=(error / whole) ** 0.5 if whole > 0 else 0.0,
            relative_change=last,
            objective=0.5 * error + penalty,
            **vars(penalties),
            r_squared=r_squared,
            **vars(codes),
            revived=outcome.revived,
            seconds=earlier + time.perf_counter() - self.begun,
            precision="tf32" if coarse and in_tf32(D) else dtype,
            drift=outcome.drift,
            codes=data.place,
            chunk_rows=data.chunk_rows,
            passes=data.passes,
            processes=data.ranks.size,
            reduced_bytes=summed // max(1, len(outcome.history)),
            history=outcome.history,
        )


def _row_major(F: Tensor | Store) -> Tensor | Store:
    """F, a contiguous matrix, with strides to match: those of a single row or column may be any,
    and products choose by them how they sum."""
    return F.flatten().view(F.shape) if isinstance(F, Tensor) else F


def _refuse_extremes(data: Resident | Streamed) -> None:
    """Refuse data whose squares are no normal numbers, or whose sum of squares is none: where they
    vanish every error is zero."""
    n, d, dtype, largest = data.rows.n, data.rows.d, data.rows.dtype, data.largest
    square, limits = largest * largest, torch.finfo(dtype)
    if largest and not (limits.tiny <= square <= limits.max and math.isfinite(square * n * d)):
        name = str(dtype).removeprefix("torch.")
        raise ArithmeticError(
            f"the largest entry of A is {largest:.3g}, too {'small' if square < 1 else 'large'} to "
            f"be squared in {name}; scale A (A / A.max())"
            + (" or pass it as float64" if dtype == torch.float32 else "")
        )
