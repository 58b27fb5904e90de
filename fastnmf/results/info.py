"""The account of a fit or of a stream: what was run, how it ended, and what a reader of the codes
wants to know first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..engine.state import Iteration, Method, State
from ..numerics import in_tf32
from ..planning.plan import Plan
from ..solvers.registry import learner
from .metrics import Measured


@dataclass(frozen=True)
class FitInfo:
    """How a fit went; printed, a readable account.

    n, d, nb_concepts: the sizes. solver, backend, form, block, tile_rows: what computed it (see
    plan.py). dictionary_solver: what updated the dictionary: the solver, or hals where there are
    more concepts than it goes to. init: the start taken. accelerated, inner_half_steps: whether
    the factors were extrapolated, and half-steps of codes and dictionary in an iteration.
    cuda_graph: how often an iteration was repeated from a CUDA graph, those that were taken back
    and done again included. iterations, stopped_by ('tol', 'error', 'max_iter', 'max_seconds' or
    'callback'), converged: how it ended. relative_error: ‖A − Z D‖ / ‖A‖ of the factors returned.
    relative_change: ‖ΔZ‖ / ‖Z‖ in the last iteration (of D where codes are not kept). objective:
    ½‖A − Z D‖² and the penalties
    alpha_Z, alpha_D (a number), l1_ratio. unit_norm: whether concepts have norm 1. precision: of
    the products, the dtype or 'tf32'. drift: the most by which a residual carried in tf32 differed
    from a new one, or None. codes: where they are kept: 'memory', a file, or 'not kept'.
    chunk_rows: rows in hand at a time where the data are streamed, else None. passes: how often all
    of them were read, checks, start and account included. processes: that shared the fit;
    reduced_bytes: what is exchanged in an iteration. mean_l0: mean number of non-zero codes a row.
    r_squared: 1 − ‖A − Z D‖² / ‖A − its mean row‖². hoyer, dead_concepts, near_duplicates, l0_most,
    l0_histogram, energy: of codes and concepts, see CodesInfo. revived: concepts that were given a
    row to stand for, each time counted. seconds: the whole fit, start included. history: one
    Iteration for each.
    """

    n: int
    d: int
    nb_concepts: int
    dtype: str
    device: str
    solver: str
    dictionary_solver: str
    backend: str
    form: str
    block: int
    tile_rows: int
    accelerated: bool
    inner_half_steps: tuple[int, int]
    cuda_graph: int
    init: str
    iterations: int
    stopped_by: str
    relative_error: float
    relative_change: float
    objective: float
    alpha_Z: float
    alpha_D: float
    l1_ratio: float
    unit_norm: bool
    mean_l0: float
    hoyer: float
    r_squared: float
    dead_concepts: int
    near_duplicates: int
    revived: int
    seconds: float
    precision: str
    drift: float | None
    codes: str
    chunk_rows: int | None
    passes: int
    processes: int
    reduced_bytes: int
    l0_most: int
    l0_histogram: tuple[int, ...] = field(repr=False)
    energy: tuple[float, ...] = field(repr=False)
    history: tuple[Iteration, ...] = field(repr=False)

    @classmethod
    def of(
        cls, state: State, plan: Plan, method: Method, measured: Measured, **run: Any
    ) -> FitInfo:
        """The summary of a State at the end of a fit; run: what only the fit knows, by name."""
        D, history = state.D, tuple(state.history)
        error, total = measured.squared_error, measured.squared_norm
        learns = learner(method.solver, len(D))
        # where half-steps let tf32 in
        coarse = "residual" in plan.form and not learns.exact and in_tf32(D)
        dtype = str(D.dtype).removeprefix("torch.")
        return cls(
            d=D.shape[1],
            nb_concepts=len(D),
            dtype=dtype,
            device=str(D.device),
            solver=method.solver.name,
            dictionary_solver=learns.name,
            backend=method.backend,
            form=plan.form,
            block=plan.block,
            tile_rows=plan.tile_rows,
            accelerated=plan.accelerates,
            inner_half_steps=plan.inner,
            cuda_graph=state.repeats,
            iterations=len(history),
            stopped_by=state.stopped_by,
            relative_error=(error / total) ** 0.5 if total > 0 else 0.0,
            relative_change=history[-1].relative_change if history else float("nan"),
            objective=0.5 * error + measured.penalty,
            r_squared=measured.r_squared,
            revived=state.revived,
            precision="tf32" if coarse else dtype,
            drift=state.drift,
            codes=state.Z.place,
            history=history,
            **vars(method.penalties),
            **vars(measured.codes),
            **run,
        )

    @property
    def converged(self) -> bool:
        """Whether the fit ended because the codes, or with stop='error' the error, had settled."""
        return self.stopped_by in ("tol", "error")

    def as_dict(self) -> dict[str, Any]:
        """Everything in it, as plain Python values."""
        return {**asdict(self), "converged": self.converged}

    def lines(self) -> dict[str, str]:
        """Name → value of every line that is printed."""
        reasons = {
            "tol": "converged: the codes have settled",
            "error": "converged: the error falls no more",
            "max_iter": "not converged: max_iter reached",
            "max_seconds": "not converged: max_seconds reached",
            "callback": "stopped by the callback",
        }
        changed = "‖D‖" if self.codes == "not kept" else "‖Z‖"
        lines = {
            "data": f"{self.n:,} × {self.d:,} {self.dtype} on {self.device}",
            "concepts": f"{self.nb_concepts:,}, of which {self.dead_concepts:,} dead and "
            f"{self.near_duplicates:,} near-duplicates" + (", of norm 1" if self.unit_norm else ""),
            "solver": f"{_solver_text(self)}, {self.form} form, backend {self.backend}, "
            f"start {self.init}",
            "tiles": f"{self.tile_rows:,} rows, blocks of {self.block} concepts",
            "relative error": f"{self.relative_error:.6g}, R² {self.r_squared:.4g}",
            "mean L0": f"{self.mean_l0:.4g} concepts a row, Hoyer sparsity {self.hoyer:.3g}",
            "iterations": f"{self.iterations} ({reasons[self.stopped_by]})",
            "last change": f"{self.relative_change:.3g} of {changed}",
            "time": f"{self.seconds:.3g} s",
        }
        if self.alpha_Z or self.alpha_D:
            lines["penalties"] = (
                f"alpha_Z {self.alpha_Z:g}, alpha_D {self.alpha_D:g}, l1_ratio {self.l1_ratio:g}; "
                f"objective {self.objective:.6g}"
            )
        if self.revived:
            lines["concepts"] += f"; {self.revived:,} revived on the way"
        if self.accelerated:
            codes, dictionary = self.inner_half_steps
            lines["accelerated"] = f"{codes} + {dictionary} half-steps an iteration"
        if self.cuda_graph:
            lines["CUDA graph"] = f"launched {self.cuda_graph:,} times for an iteration"
        if self.chunk_rows is not None:
            lines["streamed"] = f"{self.chunk_rows:,} rows at a time, {self.passes} passes"
        if self.processes > 1:
            summed = f"{self.reduced_bytes:,} bytes exchanged an iteration"
            lines["processes"] = f"{self.processes}, {summed}"
        if self.codes != "memory":
            lines["codes kept"] = self.codes
        if self.precision != self.dtype:
            drift = "not measured" if self.drift is None else f"{self.drift:.2g} of the residual"
            lines["precision"] = f"{self.precision}, largest drift {drift}"
        return lines

    def __str__(self) -> str:
        return _aligned(self.lines())


@dataclass(frozen=True)
class OnlineInfo:
    """How a stream went so far; printed, a readable account.

    rows, batches: what was seen. d, nb_concepts, dtype, device, solver, dictionary_solver, backend:
    as in FitInfo. half_life: rows after which a row weighs half. relative_error: ‖A − Z D‖ / ‖A‖ of
    the last batch, with the dictionary as it was before it learned from that batch (the first batch
    of all is measured with the start). unused_concepts: concepts that no row has used; they are as
    they started. processes: that shared the last batch, whose rows are all counted. seconds: in all
    batches.
    """

    rows: int
    batches: int
    d: int
    nb_concepts: int
    dtype: str
    device: str
    solver: str
    dictionary_solver: str
    backend: str
    half_life: float
    relative_error: float
    unused_concepts: int
    processes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything in it, as plain Python values."""
        return asdict(self)

    def __str__(self) -> str:
        half_life = f"half-life {self.half_life:,.6g} rows"
        lines = {
            "data": f"{self.rows:,} × {self.d:,} {self.dtype} on {self.device}, "
            f"{self.batches:,} batches",
            "concepts": f"{self.nb_concepts:,}, of which {self.unused_concepts:,} unused",
            "solver": f"{_solver_text(self)}, backend {self.backend}",
            "memory": half_life if self.half_life < float("inf") else "nothing is forgotten",
            "relative error": f"{self.relative_error:.6g} (the last batch, before learning)",
            "time": f"{self.seconds:.3g} s",
        }
        if self.processes > 1:
            lines["processes"] = f"{self.processes}"
        return _aligned(lines)


def _solver_text(info: FitInfo | OnlineInfo) -> str:
    if info.dictionary_solver == info.solver:
        return info.solver
    return f"{info.solver} (dictionary: {info.dictionary_solver})"


def _aligned(lines: dict[str, str]) -> str:
    return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())
