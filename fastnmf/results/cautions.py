"""What fits warn of: penalties without a minimum, and results that are probably not what was
wanted."""

from __future__ import annotations

from ..engine.sparsity.target import TargetL0
from ..errors import ConvergenceWarning, warn
from ..solvers.base import Solver
from ..solvers.constraints import NON_NEGATIVE, Constraint
from ..solvers.penalties import Penalties
from .info import FitInfo

# a first batch is large from so many times the rows that suffice: one step on 6,000 rows at K = 8
# leaves 1.7 times the error of 128 rows at a time, at K = 20 8 times that of 320
_LARGE_BATCH = 10


def warn_of_penalties(penalties: Penalties, constraint: Constraint = NON_NEGATIVE) -> None:
    """Warn of a penalty on one factor alone, which the other can evade; of a dictionary with this
    constraint."""
    if not _one_alone(penalties, constraint):
        return
    penalised, other = ("alpha_Z", "D") if penalties.alpha_Z else ("alpha_D", "Z")
    bounded = "strict_convex=True" if constraint.of_rows else "unit_norm=True"
    remedy = f"{bounded}, or alpha_D" if other == "D" else "alpha_Z"
    warn(
        f"{penalised}={getattr(penalties, penalised):g} penalises one factor alone: it can be made "
        f"as small as one likes while {other} grows, at the same error, so that the objective has "
        f"no minimum; give {remedy} as well"
    )


def warn_of_start(init: str, solver: Solver) -> None:
    """Warn of a start with zeros that the solver keeps."""
    if init == "nndsvd" and solver.keeps_zeros:
        warn(
            f"the solver {solver.name!r} cannot change a zero, and init={init!r} has many: the fit "
            "ends at a higher error; give init='nndsvda' or 'nndsvdar'"
        )


def warn_of_result(
    info: FitInfo,
    penalties: Penalties,
    tol: float,
    stop: str,
    target: TargetL0 | None = None,
    constraint: Constraint = NON_NEGATIVE,
) -> None:
    """Warn of a fit that did not converge, whose concepts explain nothing, or that missed its
    target of active concepts."""
    _warn_of_target(info, target)
    if info.iterations == 0:
        return
    if tol > 0 and info.stopped_by in ("max_iter", "max_seconds"):
        remedy = (
            "with a penalty on one factor alone it need not converge"
            if _one_alone(penalties, constraint)
            else f"raise {info.stopped_by} or tol (tol=0 runs all iterations without this warning)"
        )
        moves = f"the relative change is {info.relative_change:.2g}"
        if stop == "error":
            moves = "the error still falls"
        elif stop == "validation":
            moves = "the error of the validation rows may still fall"
        elif info.relative_change <= tol:
            moves += ", but the error still falls"
        warn(
            f"not converged: {moves} after {info.iterations} iterations, with tol={tol:g} and "
            f"stop={stop!r}; {remedy}",
            ConvergenceWarning,
        )
    smaller = ", or smaller penalties" if penalties else ""
    smaller = smaller if target is None else ", or a larger target_l0"
    if info.dead_concepts == info.nb_concepts and info.relative_error > 0:
        warn(
            f"all {info.nb_concepts} concepts are dead: Z D is zero and the relative error "
            f"{info.relative_error:.3g}; give another start (init='rows', seed=…){smaller}"
        )
    elif info.r_squared < 0:
        warn(
            f"R² is {info.r_squared:.3g}: the rows of A are explained worse than by their mean; "
            f"give more iterations, a smaller tol (it was {tol:g}), another start{smaller}"
        )


def _warn_of_target(info: FitInfo, target: TargetL0 | None) -> None:
    """Warn of a fit whose mean number of active concepts is not the one that was asked for."""
    if target is None or info.iterations == 0 or info.reaches_target:
        return
    if info.mean_l0 < target.target and (target.is_least or info.exact_codes):
        why = "these data use no more even without a penalty; give a smaller target_l0, or "
        why += "more concepts or features"
    elif info.converged:
        why = f"the fit converged before; give a smaller tol than {info.relative_change:.1g}"
    else:
        why = f"the fit ended after {info.iterations} iterations by {info.stopped_by}, and about "
        why += "20 to 40 are needed; give more"
    warn(
        f"target_l0={target.target:g} is not reached: {info.mean_l0:.4g} concepts are active per "
        f"row: {why}",
        ConvergenceWarning,
    )


def warn_of_large_batch(rows: int, concepts: int, per_concept: int) -> None:
    """Warn of a first batch that would learn more in parts."""
    part = per_concept * concepts
    if rows >= _LARGE_BATCH * part:
        warn(
            f"partial_fit learns in one step from a batch, here of {rows:,} rows; give smaller "
            f"ones, such as A.split({part}), {per_concept} rows per concept, which leave an error "
            "that is up to 8 times lower, or fit(A)"
        )


def _one_alone(penalties: Penalties, constraint: Constraint) -> bool:
    """Whether one factor alone is penalised, and the other may grow for it; concepts between rows
    of the data do not."""
    bounded = penalties.unit_norm or (constraint.sums_to_one and penalties.alpha_Z > 0)
    return not bounded and (penalties.alpha_Z > 0) != (penalties.alpha_D > 0)
