"""The iteration loop: the only one. It knows pieces of rows, the plan and when to stop, but no
solver's arithmetic."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .momentum import Momentum
from .plan import REFRESH, Plan
from .precision import products_in
from .rows import Rows
from .solvers import SOLVERS, learner, squared_norm
from .statistics import Statistics
from .sweeps import HALF_STEPS, Held, Normal, Operations, Residual, Sweep, Workspace, hold

# of the residual's norm: beyond this drift it is computed anew twice as often
_MOST_DRIFT = 1e-2


@dataclass(frozen=True)
class Iteration:
    """What is known at the end of an iteration.

    relative_change: ‖ΔZ‖ / ‖Z‖. relative_error: ‖A − Z D‖ / ‖A‖; for mu and pgd in residual form
    with the dictionary the codes were computed from, since only that error costs no extra pass; NaN
    where the dictionary is not learned. In float32 and normal form it is good to about 3e-4.
    seconds: since the loop began.
    """

    iteration: int
    relative_change: float
    relative_error: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended. stopped_by: 'tol', 'max_iter' or 'callback'. drift: the most by which a
    residual carried in tf32 was found to differ from a new one, relative to it, or None.
    """

    history: tuple[Iteration, ...]
    stopped_by: str
    drift: float | None = None


@dataclass(frozen=True)
class State:
    """What the loop carries from one iteration to the next, at the end of one: enough to go on to
    the same bits.

    Z (n, K), D (K, d): the factors in hand, no copies. E (n, d): the residual A − Z D, where a
    later iteration reads it. The rest as in the run.
    """

    Z: Tensor
    D: Tensor
    E: Tensor | None
    history: tuple[Iteration, ...]
    iterations_since_fresh: int
    refresh: int
    drifts: tuple[float, ...]


@dataclass
class _Run:
    """A run in progress: the factors, updated in place, and what the steps of the loop share."""

    Z: Tensor
    D: Tensor
    rows: Rows
    solver: str
    plan: Plan
    learn: bool
    sweep: Sweep
    statistics: Statistics
    # X (m, d), its codes (m, K) and where their residual is kept, of each piece of rows: views
    pieces: tuple[tuple[Tensor, Tensor, Tensor | None], ...]
    # the residual A − Z D (n, d), where the dictionary half reads it; after so many iterations
    E: Tensor | None
    iterations_since_fresh: int = 0
    refresh: int = REFRESH
    # whether an iteration is behind us
    swept: bool = False
    # G of the dictionary, where the statistics of the last iteration needed it
    G: Tensor | None = None
    # pieces prepared once, and the momentum of each, where the dictionary is not learned
    kept: list | None = None

    def state(self, history: list[Iteration], drifts: list[float]) -> State:
        # elsewhere E is computed anew before it is read; in tf32 its drift is measured then
        read = self.iterations_since_fresh > 0 or self.sweep.allowed != "highest"
        E = self.E if read else None
        counters = self.iterations_since_fresh, self.refresh
        return State(self.Z, self.D, E, tuple(history), *counters, tuple(drifts))

    def restore(self, state: State) -> None:
        """Go on after `state`, whose factors Z and D hold already."""
        self.iterations_since_fresh, self.refresh = state.iterations_since_fresh, state.refresh
        self.swept = len(state.history) > 0
        if state.E is not None:
            self.E.copy_(state.E)


def factorize_(
    Z: Tensor,
    D: Tensor,
    rows: Rows,
    *,
    solver: str,
    ops: Operations,
    plan: Plan,
    max_iter: int,
    tol: float,
    learn: bool = True,
    each: Callable[[Iteration], bool | None] | None = None,
    keep: Callable[[Callable[[], State]], None] | None = None,
    resumed: State | None = None,
) -> Outcome:
    """Iterate on Z (n, K) and D (K, d) in place until ‖ΔZ‖ ≤ tol ‖Z‖, max_iter, or each(iteration)
    is true.

    learn=False leaves D as it is; the half-steps, all of one convex problem, are then extrapolated.
    tol ≤ 0 never stops. keep is called at the end of every iteration that another may follow, with
    a function that gives the State; from it, with its Z and D and the same plan, a run that is
    `resumed` takes the iterations that are left to the same bits (D must be learned). Synchronises
    once an iteration if tol, each or keep asks for it, else once at the end. Raises ArithmeticError
    when the factors overflow.
    """
    with products_in("highest") as allowed:
        run = _prepare(Z, D, rows, solver, ops, plan, learn, allowed)
        if resumed is not None:
            run.restore(resumed)
        return _iterate_(run, max_iter, tol, each, keep, resumed)


def _iterate_(run: _Run, max_iter: int, tol: float, each, keep, resumed: State | None) -> Outcome:
    learn = run.learn
    watched = tol > 0 or each is not None or keep is not None
    begun = time.perf_counter()
    history, drifts = ([], []) if resumed is None else map(list, (resumed.history, resumed.drifts))
    done = len(history)
    if history:
        begun -= history[-1].seconds
    unread: list[tuple[int, Tensor, float]] = []
    squared_data = float(run.statistics.squared_data)
    stopped_by = "max_iter"
    for iteration in range(done + 1, max_iter + 1):
        run.statistics.clear_()
        fresh = run.iterations_since_fresh == 0
        _update_codes_(run)
        if learn:
            _update_dictionary_(run)
        run.swept = True
        sums = run.statistics.sums
        unread.append((iteration, sums if watched else sums.clone(), time.perf_counter() - begun))
        if not watched:
            continue
        history += _read(unread, run, squared_data, drifts)
        if each is not None and each(history[-1]):
            stopped_by = "callback"
            break
        if tol > 0 and history[-1].relative_change <= tol:
            if fresh or run.sweep.allowed == "highest":
                stopped_by = "tol"
                break
            # what was carried in tf32 does not decide: once more, from a residual in float32
            run.iterations_since_fresh = 0
        if keep is not None:
            keep(functools.partial(run.state, history, drifts))
    history += _read(unread, run, squared_data, drifts)
    return Outcome(tuple(history), stopped_by, max(drifts, default=None))


def _prepare(Z, D, rows, solver, ops, plan: Plan, learn: bool, allowed: str = "highest") -> _Run:
    moments = learn and plan.dictionary == "normal"
    E = torch.empty_like(rows.A) if learn and plan.dictionary == "residual" else None
    chunks = rows.chunks(plan.piece_rows)
    return _Run(
        Z,
        D,
        rows,
        solver,
        plan,
        learn,
        Sweep(ops, plan.block, Workspace(D.dtype, D.device), allowed),
        Statistics(rows, D.shape[0], moments=moments),
        tuple((X, Z[part], None if E is None else E[part]) for part, X in chunks),
        E,
    )


def _update_codes_(run: _Run) -> None:
    half_step_, sums = HALF_STEPS[run.solver], run.statistics.codes
    if run.learn:
        held = hold(run.solver, run.plan.codes, run.sweep, run.D, run.G, len(run.Z))
        for X, Z, target in _code_pieces(run, held):
            half_step_(Z.T, target, held, run.sweep, sums)
            run.statistics.add_(X, Z)
        return
    if run.kept is None:
        held = hold(run.solver, run.plan.codes, run.sweep, run.D, m=len(run.Z))
        solver = SOLVERS[run.solver]
        run.kept = [(*piece, held, Momentum(solver)) for piece in _code_pieces(run, held)]
    for _, Z, target, held, momentum in run.kept:
        F = Z.T
        F.copy_(momentum.extrapolate(F))
        half_step_(F, target, held, run.sweep, sums)


def _code_pieces(run: _Run, held: Held) -> Iterator[tuple[Tensor, Tensor, Normal | Residual]]:
    """The rows in pieces, each with its codes and their target. Scratch is shared, so take one
    piece at a time.

    Where the dictionary is not learned all pieces are kept, and each has memory of its own.
    """
    scratch = run.sweep.scratch if run.learn else lambda name, *shape: run.D.new_empty(shape)
    for X, Z, E in run.pieces:
        if run.plan.codes == "normal":
            # row-major as the codes are: 1.05x faster than D Xᵀ at 20,000 × 384, K = 50
            C = torch.mm(X, run.D.T, out=scratch("C", *Z.shape)).T
            yield X, Z, Normal(C, run.swept)
        else:
            fresh = run.iterations_since_fresh > 0
            # what an earlier iteration left in E, and what became of it since
            carried = run.swept and E is not None and not fresh
            E = scratch("E", *X.shape) if E is None else E
            yield X, Z, Residual(X.T, E.T, fresh, carried=carried, swept=run.swept)


def _update_dictionary_(run: _Run) -> None:
    """One half-step on D, in place; the statistics receive ‖A − Z D‖²."""
    solver, sweep, D = learner(run.solver, len(run.D)), run.sweep, run.D
    half_step_, sums = HALF_STEPS[solver], run.statistics.dictionary
    if run.plan.dictionary == "normal":
        held = hold(solver, "normal", sweep, None, run.statistics.gram)
        half_step_(D, Normal(run.statistics.cross, run.swept), held, sweep, sums)
        G = D @ D.T
        run.G = G if run.plan.codes == "normal" else None
        run.statistics.measure_error_(D, G)
        return
    held = hold(solver, "residual", sweep, run.Z.T, m=D.shape[1])
    carried = run.solver == "hals" and run.plan.codes == "residual"
    half_step_(D, Residual(run.rows.A, run.E, carried, swept=run.swept), held, sweep, sums)
    if carried:
        run.iterations_since_fresh = (run.iterations_since_fresh + 1) % run.refresh
    if solver == "hals":
        sums[2] = squared_norm(run.E)


def _read(unread: list, run: _Run, squared_data: float, drifts: list[float]) -> list[Iteration]:
    """Bring what was measured to the host, in one transfer, and empty the list.

    Drifts found are appended; where one is large, the residual is computed anew more often.
    """
    if not unread:
        return []
    read = []
    sums = unread[0][1][None] if len(unread) == 1 else torch.stack([sums for _, sums, _ in unread])
    for (iteration, _, seconds), (codes, dictionary) in zip(unread, sums.tolist(), strict=True):
        (change, norm, _, drift), error = codes, dictionary[2]
        if not (norm < float("inf") and error < float("inf")):
            raise ArithmeticError(
                f"the factors overflowed in iteration {iteration}: A is too large for its dtype; "
                "scale it down (A / A.max()) or pass it as float64"
            )
        if drift > 0 and error > 0:
            drifts.append((drift / error) ** 0.5)
            run.refresh = max(1, run.refresh // 2) if drifts[-1] > _MOST_DRIFT else run.refresh
        relative_change = (change / norm) ** 0.5 if norm > 0 else 0.0 if change == 0 else 1.0
        relative_error = (max(0.0, error) / squared_data) ** 0.5 if squared_data > 0 else 0.0
        if not run.learn:
            relative_error = float("nan")
        read.append(Iteration(iteration, relative_change, relative_error, seconds))
    unread.clear()
    return read
