"""Summaries: what was run by a fit or by online learning, how it ended, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.sparsity.target import REACHED
from ..engine.state import STOPPING_RULES, Iteration, Method, Sampled, Starts, State
from ..notebook import folded
from ..planning.plan import Plan
from ..precision import in_tf32
from ..solvers.constraints import NON_NEGATIVE
from ..solvers.registry import learner
from .metrics import Measured, as_plain

# stopped_by of a fit that converged → the condition that was met
_CONVERGED = {rule.stopped_by: rule.condition for rule in STOPPING_RULES.values()}
# stopped_by → what is printed
_ENDS = {
    **{stopped_by: f"converged: {condition}" for stopped_by, condition in _CONVERGED.items()},
    "max_iter": "not converged: max_iter reached",
    "max_seconds": "not converged: max_seconds reached",
    "callback": "stopped by the callback",
}


@dataclass(frozen=True)
class FitInfo:
    """Summary of a fit: what was run, how it ended, and what it found. Printing it shows the most.

    Attributes
    ----------
    n, d, nb_concepts : int
        Rows and features of A, and concepts K; at least 1.
    dtype : str
        The dtype of the computation: 'float32' or 'float64'.
    device : str
        The device of the computation.
    solver, dictionary_solver : str
        What updated the codes, and the dictionary: the same, or 'hals' where there are more
        concepts than the solver of the codes is used for.
    backend : str
        What supplied the updates; see ``fastnmf.available_backends()``.
    form : str
        'normal' or 'residual': how half-steps were computed. With weights of entries 'weighted',
        where rows and features have Gram matrices of their own, or 'imputed', where what is missing
        is estimated by Z D. Where codes and dictionary differ, both, with a slash.
    block : int
        Concepts updated between two matrix products, from 1 to K.
    tile_rows : int
        Rows that are processed together, from 1 to n.
    accelerated : bool
        Whether the factors were extrapolated.
    inner_half_steps : tuple of two int
        Half-steps of codes and of dictionary per iteration; at least 1 each.
    cuda_graph : int
        Iterations repeated from a CUDA graph, including those that were undone; at least 0.
    init : str
        The start that was taken; 'given' for a pair.
    seed : int or None
        The seed of the start, given or drawn; ``NMF(seed=…)`` with it repeats the fit. None for a
        pair, and for fits of versions that did not record it.
    iterations : int
        Iterations done, from 0 to max_iter. Good: below max_iter.
    stopped_by : str
        'tol', 'error', 'validation', 'max_iter', 'max_seconds' or 'callback'. Good: 'tol', or with
        ``stop='error'`` and ``stop='validation'`` these.
    converged : bool
        Whether `stopped_by` is 'tol', 'error' or 'validation'. Good: True.
    relative_error : float
        ‖A − Z D‖ / ‖A‖ of the returned factors; from 0, above 1 only after a bad start. What is
        good depends on the data and on K: compare fits of the same data.
    relative_change : float
        The larger of ‖ΔZ‖ / ‖Z‖ and ‖ΔD‖ / ‖D‖ in the last iteration, that of D where codes are
        not kept; at least 0, NaN without an iteration. Good: at most tol.
    objective : float
        ½ ‖A − Z D‖² and the penalties, in squared units of A; at least 0. Lower is better, among
        fits with the same penalties.
    alpha_Z, alpha_D, l1_ratio : float
        The penalties; at least 0, l1_ratio at most 1.
    unit_norm : bool
        Whether concepts have Euclidean norm 1.
    weights : str or None
        What has weights: 'entries', 'stored' (the entries that a sparse A stores), 'rows' or
        'features'; None without weights. With weights all errors, R² and the objective are those of
        the weighted problem, Σ w (A − Z D)² in place of ‖A − Z D‖² and Σ w A² in place of ‖A‖²; and
        rows whose weights are all 0 do not count in mean_l0, l0_histogram and hoyer.
    target_l0 : float or None
        The mean_l0 that was asked for, by which alpha_Z was found; None where it was given.
    top_k : int or None
        The most active concepts that a row may have; None where any number is allowed.
    validation_error, validation_l0 : float or None
        Error and mean L0 of exact codes of the validation rows, for the dictionary returned; None
        without such rows. Good: an error near relative_error.
    best_iteration : int or None
        With ``stop='validation'``, the iteration whose dictionary was returned; else None.
    reaches_target : bool
        Whether mean_l0 is within 5 % of target_l0, where there is one. Good: True.
    mean_l0 : float
        Mean number of non-zero codes per row, from 0 to K. Good: small, at an error you accept.
    hoyer : float
        Mean Hoyer sparsity of the rows that have codes, from 0 (equal codes) to 1 (a single code).
        High for sparse codes.
    r_squared : float
        1 − ‖A − Z D‖² / ‖A − its mean row‖²; at most 1. Good: near 1; below 0 the mean row
        explains A better.
    dead_concepts : int
        Concepts whose codes or dictionary row are all zero, from 0 to K. Good: 0.
    near_duplicates : int
        Concepts with a cosine of at least 0.99 to an earlier one, from 0 to K − 1. Good: 0.
    revived : int
        Concepts that were given a new row, each time counted; at least 0.
    seconds : float
        Time of the whole fit, start included, in seconds.
    precision : str
        Of the matrix products: the dtype, or 'tf32'.
    drift : float or None
        Largest difference between a residual carried in tf32 and a new one, relative to the new
        one; None where it was not measured. Good: below 0.01; above, the residual is computed anew
        more often.
    exact_codes : bool
        Whether the fit ended with exact codes for its dictionary, as it does where it converges
        with more concepts than features.
    codes : str
        Where the codes are: 'memory', 'sparse' (in memory, in compressed rows), a file, or
        'not kept'.
    chunk_rows : int or None
        Rows in memory at a time where A is read in passes, else None.
    passes : int
        How often all rows were read, including checks, start and this summary; at least 1.
    density : float or None
        The share of the entries that is stored of a sparse A, from 0 to 1; None for a dense one.
    dense_copy : bool
        Whether the fit used a dense copy of a sparse A, on which an iteration takes less time.
    processes : int
        Processes that shared the fit; at least 1.
    reduced_bytes : int
        Bytes exchanged between processes per iteration; 0 for one process.
    l0_most : int
        Largest number of non-zero codes in a row, from 0 to K.
    l0_histogram : tuple of int
        Rows by their number of non-zero codes, from 0; at most 32 bars of
        ⌈(l0_most + 1) / bars⌉ numbers each. The sum is n.
    energy : tuple of float
        ‖Z_k‖² ‖D_k‖² of each concept as a share of their sum: K numbers from 0 to 1. Good: none
        near 1.
    history : tuple of Iteration
        The iterations, in order. The errors of the last are those of the factors returned.
    model : str
        The model that was fitted, as 'NMF'.
    offset : bool
        Whether the model has an offset b, which is part of Z D + b wherever errors, R² and the
        objective speak of Z D.
    n_init : int
        Starts that the fit was chosen from; at least 1.
    best_start : int
        Which of them went on, from 0 to n_init − 1. `init` is the start that it took.
    start_errors : tuple of float
        √(‖A − Z D‖² + 2 P) / ‖A‖ of each start, with the penalties P, after its last short run;
        empty for one start. Infinite for those that max_seconds left no time for.
    start_iterations : int
        Iterations of all short runs; at least 0. Those of the best are in `iterations` as well.
    sample_rows : int or None
        Rows of the largest sample that was fitted before all rows, with ``init='sample'``; 0 where
        there were too few rows for one, None where none was asked for.
    sample_iterations : int
        Iterations of all fits of samples; at least 0. They are not part of `iterations`.
    sample_seconds : float
        Their time, in seconds; at least 0, part of `seconds`.
    held_out_error : float or None
        ‖H − Z D‖ / ‖H‖ of the exact codes of other rows H, with the dictionary of the largest
        sample; None without a sample. Good: near relative_error.
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
    seed: int | None
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
    density: float | None
    dense_copy: bool
    processes: int
    reduced_bytes: int
    l0_most: int
    l0_histogram: tuple[int, ...] = field(repr=False)
    energy: tuple[float, ...] = field(repr=False)
    history: tuple[Iteration, ...] = field(repr=False)
    exact_codes: bool = False
    model: str = NON_NEGATIVE.model
    offset: bool = False
    target_l0: float | None = None
    top_k: int | None = None
    n_init: int = 1
    best_start: int = 0
    start_errors: tuple[float, ...] = field(default=(), repr=False)
    start_iterations: int = 0
    validation_error: float | None = None
    validation_l0: float | None = None
    best_iteration: int | None = None
    weights: str | None = None
    sample_rows: int | None = None
    sample_iterations: int = 0
    sample_seconds: float = 0.0
    held_out_error: float | None = None

    @classmethod
    def of(
        cls, state: State, plan: Plan, method: Method, measured: Measured, **run: Any
    ) -> FitInfo:
        """The summary of a State at the end of a fit; run: fields that only the fit has."""
        D, history = state.D, state.history
        error, total = measured.squared_error, measured.squared_norm
        objective = 0.5 * error + measured.penalty
        if history:
            # of the factors returned, whatever their form reports and where the codes are
            found = ((of / total) ** 0.5 if total > 0 else 0.0 for of in (error, 2 * objective))
            names = "relative_error", "relative_objective"
            history = [*history[:-1], replace(history[-1], **dict(zip(names, found, strict=True)))]
        learns = learner(method.solver, len(D), method.constraint)
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
            seed=state.seed,
            iterations=len(history),
            stopped_by=state.stopped_by,
            exact_codes=state.exact_codes,
            model=method.constraint.model,
            offset=state.offset is not None,
            target_l0=None if state.target is None else state.target.target,
            **_asked(state, method),
            relative_error=(error / total) ** 0.5 if total > 0 else 0.0,
            relative_change=history[-1].relative_change if history else float("nan"),
            objective=objective,
            r_squared=measured.r_squared,
            revived=state.revived,
            precision="tf32" if coarse else dtype,
            drift=state.drift,
            codes=state.Z.place,
            history=tuple(history),
            **vars(method.penalties),
            **(vars(measured.codes) | _of_starts(state.starts) | _of_sample(state.sample)),
            **run,
        )

    @property
    def converged(self) -> bool:
        """Whether the fit met its stopping rule: `stopped_by` is that of a rule."""
        return self.stopped_by in _CONVERGED

    @property
    def reaches_target(self) -> bool:
        """Whether mean_l0 is within 5 % of target_l0, where there is one."""
        target = self.target_l0
        return target is None or abs(self.mean_l0 / target - 1) <= REACHED

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as plain Python values, by name."""
        return {**as_plain(self), "converged": self.converged}

    def lines(self) -> dict[str, str]:
        """Return what printing shows: name → value of each line."""
        model = self.model + (", with an offset" if self.offset else "")
        named = {} if self.model == NON_NEGATIVE.model and not self.offset else {"model": model}
        wanted = "" if self.target_l0 is None else f" (target {self.target_l0:g})"
        wanted = wanted if self.top_k is None else f" (at most {self.top_k})"
        changed = "D" if self.codes == "not kept" else "Z or D, whichever changed more"
        lines = {
            **named,
            "data": f"{self.n:,} × {self.d:,} {self.dtype} on {self.device}",
            "concepts": f"{self.nb_concepts:,}, of which {self.dead_concepts:,} dead and "
            f"{self.near_duplicates:,} near-duplicates" + (", of norm 1" if self.unit_norm else ""),
            "solver": f"{_solver_text(self)}, {self.form} form, backend {self.backend}, "
            f"start {_start_text(self.init, self.seed)}",
            "tiles": f"{self.tile_rows:,} rows, blocks of {self.block} concepts",
            "relative error": f"{self.relative_error:.6g}, R² {self.r_squared:.4g}",
            "mean L0": f"{self.mean_l0:.4g} concepts per row{wanted}, "
            f"Hoyer sparsity {self.hoyer:.3g}",
            "iterations": f"{self.iterations} ({_ENDS[self.stopped_by]})",
            "last change": f"{self.relative_change:.3g} of {changed}",
            "time": f"{self.seconds:.3g} s",
        }
        if self.revived:
            lines["concepts"] += f"; {self.revived:,} revived"
        # nothing else needs it
        from .lines.special import special_lines

        return lines | special_lines(self)

    def __str__(self) -> str:
        return _aligned(self.lines())

    def _repr_html_(self) -> str:
        end = "converged" if self.converged else f"not converged ({self.stopped_by})"
        error = f"relative error {self.relative_error:.4g}"
        title = f"Fit of {self.model}: {error}, {end} after {self.iterations} iterations"
        return folded(title, self.lines())


@dataclass(frozen=True)
class OnlineInfo:
    """Summary of online learning so far. Printing it shows the most.

    Attributes
    ----------
    rows, batches : int
        What was seen; at least 1.
    d, nb_concepts : int
        Features and concepts; at least 1.
    dtype, device, solver, dictionary_solver, backend : str
        As in FitInfo.
    half_life : float
        Rows after which a row weighs half; above 0, infinity where nothing is forgotten.
    relative_error : float
        ‖A − Z D‖ / ‖A‖ of the last batch, with the dictionary before it learned from that batch
        (for the first batch: the start); at least 0. Good: falling from batch to batch.
    unused_concepts : int
        Concepts that no row has used, which are as they started; from 0 to K. Good: 0.
    processes : int
        Processes that shared the last batch; at least 1. `rows` counts the rows of all.
    seconds : float
        Time of all batches, in seconds.
    seed : int or None
        The seed of the start, given or drawn; None where learning began from a given dictionary or
        pair.
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
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as plain Python values, by name."""
        return as_plain(self)

    def lines(self) -> dict[str, str]:
        """Return what printing shows: name → value of each line."""
        half_life = f"half-life {self.half_life:,.6g} rows"
        lines = {
            "data": f"{self.rows:,} × {self.d:,} {self.dtype} on {self.device}, "
            f"{self.batches:,} batches",
            "concepts": f"{self.nb_concepts:,}, of which {self.unused_concepts:,} unused",
            "solver": f"{_solver_text(self)}, backend {self.backend}"
            + ("" if self.seed is None else f", seed {self.seed}"),
            "memory": half_life if self.half_life < float("inf") else "nothing is forgotten",
            "relative error": f"{self.relative_error:.6g} (the last batch, before learning)",
            "time": f"{self.seconds:.3g} s",
        }
        if self.processes > 1:
            lines["processes"] = f"{self.processes}"
        return lines

    def __str__(self) -> str:
        return _aligned(self.lines())

    def _repr_html_(self) -> str:
        title = f"Online learning: {self.rows:,} rows, relative error {self.relative_error:.4g}"
        return folded(f"{title} of the last batch", self.lines())


def _asked(state: State, method: Method) -> dict[str, Any]:
    """The most concepts of a row, and what validation rows had with the dictionary that is
    returned."""
    best, names = state.best, ("top_k", "validation_error", "validation_l0", "best_iteration")
    last = best.measured if best is not None else state.history[-1] if state.history else None
    found = (None, None) if last is None else (last.validation_error, last.validation_l0)
    number = None if best is None else best.measured.iteration
    return dict(zip(names, (method.solver.most, *found, number), strict=True))


def _solver_text(info: FitInfo | OnlineInfo) -> str:
    other = info.dictionary_solver
    return info.solver if other == info.solver else f"{info.solver} (dictionary: {other})"


def _of_starts(starts: Starts | None) -> dict[str, Any]:
    """The fields about the starts that a fit was chosen from, if there were several."""
    if starts is None:
        return {}
    names = "n_init", "best_start", "start_errors", "start_iterations"
    values = len(starts.errors), starts.best, starts.errors, starts.iterations
    return dict(zip(names, values, strict=True))


def _of_sample(sample: Sampled | None) -> dict[str, Any]:
    """The fields about the samples that a fit began with, if it was to."""
    if sample is None:
        return {}
    names = "sample_rows", "sample_iterations", "sample_seconds", "held_out_error"
    values = sample.rows, sample.iterations, sample.seconds, sample.error
    return dict(zip(names, values, strict=True))


def _start_text(init: str, seed: int | None) -> str:
    return init if seed is None else f"{init}, seed {seed}"


def _aligned(lines: dict[str, str]) -> str:
    return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())
