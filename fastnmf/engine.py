"""The iteration loop: the only one. It knows pieces of rows, the plan and when to stop, but no
solver's arithmetic."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .extrapolation import Extrapolation
from .momentum import Momentum
from .penalties import NO_PENALTIES, Penalties, Penalty
from .plan import REFRESH, Plan
from .precision import products_in
from .ranks import ALONE, Ranks
from .replay import Recorder, Replay
from .revive import looks, revive_
from .rows import Rows
from .solvers import SOLVERS, learner, squared_norm
from .statistics import Statistics, squared_error
from .store import InMemory, NotKept, Store, row_blocks
from .stream import Stream
from .sweeps import (
    Held,
    Normal,
    Operations,
    Residual,
    Sweep,
    Unformed,
    Workspace,
    half_steps_,
    hold,
    in_tiles,
    penalised,
)
from .unit_norm import UnitNorm

STOPPING_RULES = ("codes", "error")
# iterations over which the error must fall by more than tol of it, with stop='error'
WINDOW = 10
# of the residual's norm: beyond this drift it is computed anew twice as often
_MOST_DRIFT = 1e-2
# the relative error down to which mu and pgd may form their residual in tf32: rounding alone makes
# one of 2e-4
_COARSE_DOWN_TO = 1e-2


@dataclass(frozen=True)
class Iteration:
    """What is known at the end of an iteration.

    relative_change: ‖ΔZ‖ / ‖Z‖; where codes are not kept, ‖ΔD‖ / ‖D‖. relative_error: ‖A − Z D‖ /
    ‖A‖; for mu and pgd in residual form with the dictionary the codes were computed from, since
    only that error costs no extra pass; NaN where the dictionary is not learned. In float32 and
    normal form it is good to about 3e-4. seconds: since the loop began. relative_objective: the
    same pair with the penalties, √(‖A − Z D‖² + twice these) / ‖A‖.
    """

    iteration: int
    relative_change: float
    relative_error: float
    seconds: float
    relative_objective: float = field(default=float("nan"), kw_only=True)


@dataclass(frozen=True)
class Stopping:
    """When a run ends: after max_iter iterations; when ‖ΔZ‖ ≤ tol ‖Z‖ or, by the rule 'error', when
    the relative objective fell by no more than tol of it over WINDOW iterations; at the deadline,
    of time.perf_counter; where each(iteration) is true. tol ≤ 0 never stops early.
    """

    max_iter: int
    tol: float
    each: Callable[[Iteration], bool | None] | None
    rule: str
    deadline: float

    @property
    def watches(self) -> bool:
        """Whether an iteration must be known before the next begins."""
        return self.tol > 0 or self.each is not None or self.deadline < float("inf")

    @property
    def settled_by(self) -> str:
        """'tol' or 'error': how a run ended whose rule was met."""
        return "tol" if self.rule == "codes" else self.rule

    def settled(self, history: list[Iteration]) -> bool:
        """Whether the rule is met."""
        if self.tol <= 0:
            return False
        if self.rule == "codes":
            return history[-1].relative_change <= self.tol
        if len(history) <= WINDOW:
            return False
        before, now = (history[i].relative_objective for i in (-1 - WINDOW, -1))
        return before - now <= self.tol * before


@dataclass(frozen=True)
class Outcome:
    """How a run ended. stopped_by: 'tol', 'error', 'max_iter', 'max_seconds' or 'callback'. drift:
    the most by which a residual carried in tf32 was found to differ from a new one, relative to it,
    or None. revived: concepts that were given a row (revive.py), each time counted. repeats: steps
    that were repeats of a recorded one (replay.py).
    """

    history: tuple[Iteration, ...]
    stopped_by: str
    drift: float | None = None
    revived: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class State:
    """What the loop carries from one iteration to the next, at the end of one: enough to go on to
    the same bits.

    Z (n, K), D (K, d): the factors in hand, no copies, Z as it was given. E (n, d): the residual
    A − Z D, where a later iteration reads it. ahead: what Extrapolation.state gives. The rest as in
    the run.
    """

    Z: Tensor | Store | None
    D: Tensor
    E: Tensor | None
    history: tuple[Iteration, ...]
    iterations_since_fresh: int
    refresh: int
    drifts: tuple[float, ...]
    ahead: dict[str, Tensor] | None = None
    revived: int = 0


@dataclass
class _Run:
    """A run in progress: the factors, updated in place, and what the steps of the loop share."""

    Z: Tensor | Store
    D: Tensor
    rows: Rows | Stream
    solver: str
    plan: Plan
    learn: bool
    # of codes and dictionary
    penalties: tuple[Penalty, Penalty]
    sweep: Sweep
    statistics: Statistics
    ranks: Ranks
    # X (m, d), its codes (m, K) and where their residual is kept, of each piece of rows: views, or
    # of a stream what is read anew in every pass
    pieces: Iterable[tuple[Tensor, Tensor, Tensor | None]]
    # the residual A − Z D (n, d), where the dictionary half reads it; after so many iterations
    E: Tensor | None
    iterations_since_fresh: int = 0
    refresh: int = REFRESH
    # whether an iteration is behind us
    swept: bool = False
    # G of the dictionary, where the next iteration reads it: always in one place
    G: Tensor | None = None
    # where half-steps start, if not from what the last ones left
    ahead: Extrapolation | None = None
    # where concepts have norm 1 after every iteration
    unit: UnitNorm | None = None
    # whether idle concepts are given rows, and how many were
    revives: bool = False
    revived: int = 0
    # pieces prepared once, and the momentum of each, where the dictionary is not learned
    kept: list | None = None

    @property
    def codes(self) -> Tensor:
        """Z, which is in memory."""
        return self.Z.Z if isinstance(self.Z, InMemory) else self.Z

    @property
    def carries(self) -> bool:
        """Whether each half leaves its residual to the next: not where factors move on from it."""
        kept = self.plan.codes == "residual" and self.E is not None
        return self.solver == "hals" and kept and self.ahead is None

    @property
    def watches_error(self) -> bool:
        """Whether the precision of the residual depends on the error."""
        kept = self.learn and "residual" in self.plan.form and self.solver in ("mu", "pgd")
        return kept and self.sweep.allowed != "highest"

    def take_precision(self, history: list[Iteration]) -> None:
        """Form the residual as coarsely as is allowed while it is large."""
        large = not history or history[-1].relative_error > _COARSE_DOWN_TO
        residual = self.sweep.allowed if self.watches_error and large else "highest"
        if residual != self.sweep.residual:
            self.sweep = replace(self.sweep, residual=residual)

    def state(self, history: list[Iteration], drifts: list[float]) -> State:
        if self.unit is not None:
            self.unit.settle_(self.Z)
        # elsewhere E is computed anew before it is read; in tf32 its drift is measured then
        read = self.iterations_since_fresh > 0 or self.sweep.allowed != "highest"
        E = self.E if self.carries and read else None
        counters = self.iterations_since_fresh, self.refresh
        ahead = None if self.ahead is None else self.ahead.state()
        return State(
            self.Z, self.D, E, tuple(history), *counters, tuple(drifts), ahead, self.revived
        )

    def restore(self, state: State) -> None:
        """Go on after `state`, whose factors Z and D hold already."""
        self.iterations_since_fresh, self.refresh = state.iterations_since_fresh, state.refresh
        self.swept, self.revived = len(state.history) > 0, state.revived
        if state.E is not None:
            self.E.copy_(state.E)
        if state.ahead is not None:
            self.ahead.restore(state.ahead)


def factorize_(
    Z: Tensor | Store,
    D: Tensor,
    rows: Rows | Stream,
    *,
    solver: str,
    ops: Operations,
    plan: Plan,
    max_iter: int,
    tol: float,
    learn: bool = True,
    penalties: Penalties = NO_PENALTIES,
    revive: bool = False,
    each: Callable[[Iteration], bool | None] | None = None,
    stop: str = "codes",
    deadline: float = float("inf"),
    keep: Callable[[Callable[[], State]], None] | None = None,
    resumed: State | None = None,
    recorder: Recorder | None = None,
) -> Outcome:
    """Iterate on Z (n, K) and D (K, d) in place until `Stopping` of these says so.

    learn=False leaves D as it is; the half-steps, all of one convex problem, are then extrapolated.
    penalties: with plans that do not accelerate; with unit_norm concepts that are learned have norm
    1 after the start and after every iteration. revive: idle concepts are given rows, between
    iterations and before the codes count as settled, if codes are kept. A Stream has its codes in a
    Store, learns, and has a plan that does not accelerate and whose dictionary half is in normal
    form, unless all is in memory; its rows may be those of one of several processes, which then end
    together, with the same D. keep is called at the end of every iteration that another may follow,
    with a function that gives the State; from it, with its Z and D and the same plan, a run that is
    `resumed` takes the iterations that are left to the same bits (D must be learned). recorder:
    repeats the iterations of a run of which `varies` has nothing to say. Synchronises once an
    iteration if it is watched or the plan accelerates, else where idle concepts are looked for, and
    at the end. Raises ArithmeticError when the factors overflow.
    """
    # Triton launches on the current device
    with torch.cuda.device_of(D), products_in("highest") as allowed:
        asks = recorder is None and D.device.type == "cpu"
        run = _prepare(Z, D, rows, solver, ops, plan, learn, allowed, penalties, asks)
        run.revives = revive
        if resumed is not None:
            run.restore(resumed)
        elif run.unit is not None:
            run.unit.normalise_(D, D, run.statistics)
        stopping = Stopping(max_iter, tol, each, stop, deadline)
        with Replay(functools.partial(_step_, run), recorder) as step:
            return _iterate_(run, step, stopping, keep, resumed)


def varies(solver: str, plan: Plan, rows: Rows | Stream) -> str | None:
    """Why the iterations of a fit are not the same launches at the same addresses every time, or
    None."""
    if isinstance(rows, Stream):
        return "the data are read in passes, or shared by processes"
    if plan.form != "normal":
        return "in residual form the residual is computed anew now and then"
    if SOLVERS[solver].exact:
        return f"what {solver} does depends on what it finds"
    return None


def _iterate_(run: _Run, step: Replay, stopping: Stopping, keep, resumed: State | None) -> Outcome:
    watched = stopping.watches or run.ahead is not None or keep is not None or not run.ranks.alone
    # whether another process may end the run
    ends = stopping.each is not None, stopping.deadline < float("inf")
    derived = stopping.rule == "error" or isinstance(run.Z, NotKept)
    asks = any(run.ranks.any(*ends, run.statistics.apart and derived))
    begun = time.perf_counter()
    history, drifts = ([], []) if resumed is None else map(list, (resumed.history, resumed.drifts))
    done = len(history)
    if history:
        begun -= history[-1].seconds
    unread: list[tuple[int, Tensor, float]] = []
    squared_data = float(run.statistics.squared_data)
    stopped_by = "max_iter"
    for iteration in range(done + 1, stopping.max_iter + 1):
        if run.revives:
            _revive_(run, *looks(iteration, run.rows.n, len(run.D)))
        if run.ahead is not None:
            run.ahead.set_out()
        fresh = run.iterations_since_fresh == 0
        run.take_precision(history)
        step()
        sums = run.statistics.sums
        unread.append((iteration, sums if watched else sums.clone(), time.perf_counter() - begun))
        if not watched:
            if run.watches_error and len(unread) == REFRESH:
                history += _read(unread, run, squared_data, drifts)
            continue
        read = _read(unread, run, squared_data, drifts)
        if run.ahead is not None and run.ahead.rose(read[0].relative_error):
            run.ahead.take_back_(run.codes, run.D)
            step()
            unread.append((iteration, sums, time.perf_counter() - begun))
            read = _read(unread, run, squared_data, drifts)
            run.ahead.rose(read[0].relative_error)
        history += read
        told = stopping.each is not None and bool(stopping.each(history[-1]))
        late = time.perf_counter() >= stopping.deadline
        settled = stopping.settled(history)
        if asks:
            told, late, settled = run.ranks.any(told, late, settled)
        if told:
            stopped_by = "callback"
            break
        if settled:
            # what was carried in tf32 does not decide: once more, from a residual in float32
            decides = fresh or run.sweep.allowed == "highest"
            last = iteration == stopping.max_iter or not run.revives
            if decides and (last or not _revive_(run, True, True, stopping.tol)):
                stopped_by = stopping.settled_by
                break
            run.iterations_since_fresh = 0
        if keep is not None:
            keep(functools.partial(run.state, history, drifts))
        if late:
            stopped_by = "max_seconds"
            break
    history += _read(unread, run, squared_data, drifts)
    if run.E is not None or run.statistics.apart:
        run.ranks.share_(run.D)
    if run.unit is not None:
        run.unit.settle_(run.Z)
    drift = max(drifts, default=None)
    return Outcome(tuple(history), stopped_by, drift, run.revived, step.repeats)


def _step_(run: _Run) -> None:
    """One iteration: both halves, or the codes alone. Where nothing `varies`, all that it reads is
    where it was in the one before, once there was one."""
    if run.ahead is not None:
        run.ahead.begin_(run.D)
    run.statistics.clear_()
    _update_codes_(run)
    run.statistics.reduce_()
    if run.learn:
        _update_dictionary_(run)
    if run.ahead is not None:
        run.ahead.end_(run.codes, run.D, run.statistics.codes)
        run.ranks.sum_(run.statistics.codes[:2])
    run.swept = True


def _revive_(run: _Run, dead: bool, duplicates: bool, least: float = 0.0) -> bool:
    """Whether idle concepts were given rows; what is known of the factors is then made anew."""
    if not dead:
        return False
    if run.statistics.apart:
        run.ranks.share_(run.D)
    if run.unit is not None:
        run.unit.settle_(run.Z)
    by = run.rows, run.sweep, run.plan.piece_rows, run.penalties, run.ranks
    fills = SOLVERS[run.solver].least_share > 0
    revived = revive_(run.Z, run.D, *by, duplicates=duplicates, fills=fills, least=least)
    if not revived:
        return False
    run.revived += revived
    if run.G is not None:
        torch.mm(run.D, run.D.T, out=run.G)
    if run.carries:
        for X, Z, E in run.pieces:
            torch.addmm(X, Z, run.D, alpha=-1, out=E)
    if run.ahead is not None:
        run.ahead.restart_(run.codes, run.D)
    return True


def _prepare(
    Z,
    D,
    rows,
    solver,
    ops,
    plan: Plan,
    learn: bool,
    allowed: str = "highest",
    penalties: Penalties = NO_PENALTIES,
    asks: bool = True,
) -> _Run:
    unit = UnitNorm() if learn and penalties.unit_norm else None
    penalties = penalties.of_codes(D.shape[1]), penalties.of_dictionary(rows.n)
    moments = ops["moments_"] if learn and plan.dictionary == "normal" else None
    sweep = Sweep(ops, plan.block, Workspace(D.dtype, D.device), allowed)
    accelerates = learn and plan.accelerates
    share = SOLVERS[solver].least_share
    E, ranks = None, ALONE
    if learn and plan.dictionary == "residual":
        E = torch.empty(rows.A.shape, dtype=D.dtype, device=D.device)
    if isinstance(rows, Stream):
        pieces, squared_data = rows.pieces(Z, plan.piece_rows, E=E), rows.squared_data
        ranks = rows.ranks
    else:
        parts = row_blocks(rows.n, plan.piece_rows)
        pieces = tuple((rows.A[p], Z[p], None if E is None else E[p]) for p in parts)
        squared_data = squared_norm(rows.A)
    run = _Run(
        Z,
        D,
        rows,
        solver,
        plan,
        learn,
        penalties,
        sweep,
        Statistics(
            D, squared_data, ranks, moments=moments, penalties=penalties, splits=plan.splits
        ),
        ranks,
        pieces,
        E,
        unit=unit,
    )
    if accelerates:
        run.ahead = Extrapolation(run.codes, D, share, plan.piece_rows, ops, asks=asks)
    return run


def _update_codes_(run: _Run) -> None:
    sums = run.statistics.codes
    by, penalty = (run.solver, run.plan.codes, run.sweep), run.penalties[0]
    if run.learn:
        held = hold(*by, run.D, run.G, run.rows.n, penalty)
        first = 0
        for X, Z, target in _code_pieces(run, held):
            part = slice(first, first + len(Z))
            first += len(Z)
            whole = isinstance(target, Unformed)
            if whole:
                moves = None if run.ahead is None else run.ahead.moves(part)
                target = replace(target, moves=moves, moments=run.statistics.moments)
            elif run.ahead is not None:
                run.ahead.keep_codes_(Z, part)
            half_steps_(run.solver, run.plan.inner[0], Z.T, target, held, run.sweep, sums)
            if run.ahead is not None and not whole:
                run.ahead.move_codes_(Z, part)
            run.statistics.add_(X, Z, made=whole)
        return
    if run.kept is None:
        held = hold(*by, run.D, m=run.rows.n, penalty=penalty)
        solver = SOLVERS[run.solver]
        run.kept = [
            (*piece, held, Momentum(solver, run.D, penalised=bool(penalty)))
            for piece in _code_pieces(run, held)
        ]
    for _, Z, target, held, momentum in run.kept:
        F = Z.T
        F.copy_(momentum.extrapolate(F))
        half_steps_(run.solver, 1, F, target, held, run.sweep, sums)


def _code_pieces(
    run: _Run, held: Held
) -> Iterator[tuple[Tensor, Tensor, Normal | Unformed | Residual]]:
    """The rows in pieces, widened where products are made of them, each with its codes and their
    target. Scratch is shared, so take one piece at a time.

    Where the dictionary is not learned all pieces are kept, and each has memory of its own.
    """
    scratch = run.sweep.scratch if run.learn else lambda name, *shape: run.D.new_empty(shape)
    multiplied = "normal" in (run.plan.codes, run.plan.dictionary)
    # where C serves one call only, it need not be formed
    unformed = run.plan.codes == "normal" and run.learn and run.sweep.forms_none(run.solver, run.D)
    Bt = None
    for X, Z, E in run.pieces:
        if multiplied and X.dtype != run.D.dtype:
            X = scratch("X", *X.shape).copy_(X)
        if run.unit is not None and not isinstance(run.Z, NotKept):
            run.unit.move_(Z)
        if unformed and in_tiles(X):
            # this copy takes as long as a product with few rows
            Bt = run.D.T.contiguous() if Bt is None else Bt
            yield X, Z, Unformed(X, Bt)
        elif run.plan.codes == "normal":
            # row-major as the codes are: 1.05x faster than D Xᵀ at 20,000 × 384, K = 50
            C = torch.mm(X, run.D.T, out=scratch("C", *Z.shape)).T
            yield X, Z, penalised(run.solver, C, held, run.swept, out=C)
        else:
            fresh = run.iterations_since_fresh > 0
            # what an earlier iteration left in E, and what became of it since
            carried = run.swept and run.carries and not fresh
            E = scratch("E", *X.shape) if E is None else E
            yield X, Z, Residual(X.T, E.T, fresh, carried=carried, swept=run.swept)


def _update_dictionary_(run: _Run) -> None:
    """One half-step on D, in place; the statistics receive ‖A − Z D‖²."""
    solver, sweep, D = learner(run.solver, len(run.D)), run.sweep, run.D
    sums = run.statistics.dictionary
    penalty, before = run.penalties[1], None
    if run.unit is not None:
        penalty, before = run.statistics.penalty_of_norms(), D.clone()
    if run.plan.dictionary == "normal":
        held = hold(solver, "normal", sweep, None, run.statistics.gram, penalty=penalty)
        some, cross = D, run.statistics.cross
        if run.plan.splits:
            # given the statistics every feature is for itself
            some, cross = run.ranks.columns(D), run.ranks.columns(cross)
        target = penalised(solver, cross, held, run.swept)
        times = run.plan.inner[1] if some.numel() else 0
        half_steps_(solver, times, some, target, held, sweep, sums)
        G = torch.mm(some, some.T, out=run.G)
        run.statistics.measure_error_(some, cross, G)
        if run.plan.splits:
            run.ranks.join_columns_(D, some, run.statistics.sums)
        if run.unit is not None:
            run.unit.normalise_(D, before, run.statistics)
            torch.mm(D, D.T, out=G)
        run.statistics.penalise_(D)
        reads = run.plan.codes == "normal" and run.ahead is None and not run.plan.splits
        run.G = G if reads else None
        return
    # where the error known is that of the dictionary before, so is the penalty
    late = solver in ("mu", "pgd")
    if late:
        run.statistics.penalise_(D)
    _update_by_residual_(run, solver, sums, penalty)
    if run.unit is not None:
        run.unit.normalise_(D, before, run.statistics)
    if not late:
        run.statistics.penalise_(D)


def _update_by_residual_(run: _Run, solver: str, sums: Tensor, penalty: Penalty) -> None:
    sweep, D = replace(run.sweep, sum_=run.ranks.sum_), run.D
    held = hold(solver, "residual", sweep, run.codes.T, m=D.shape[1], penalty=penalty)
    target = Residual(run.rows.A, run.E, run.carries, swept=run.swept)
    half_steps_(solver, 1, D, target, held, sweep, sums)
    if run.carries:
        run.iterations_since_fresh = (run.iterations_since_fresh + 1) % run.refresh
    if solver == "hals":
        sums[2] = squared_norm(run.E)
        # ‖ΔD‖² and ‖D‖², which all have, too: their quotient stays
        run.ranks.sum_(run.statistics.sums)
        if run.iterations_since_fresh == 0:
            # by rounding, machines might differ
            run.ranks.share_(D)
    elif run.ahead is not None:
        # it is judged by the error of the pair, not of the dictionary before
        sums[2] = squared_error(run.rows, run.codes, D, run.plan.piece_rows)
        run.ranks.sum_(sums[2])


def _read(unread: list, run: _Run, squared_data: float, drifts: list[float]) -> list[Iteration]:
    """Bring what was measured to the host, in one transfer, and empty the list.

    Drifts found are appended; where one is large, the residual is computed anew more often.
    """
    if not unread:
        return []
    read = []
    sums = unread[0][1][None] if len(unread) == 1 else torch.stack([sums for _, sums, _ in unread])
    for (iteration, _, seconds), (codes, dictionary) in zip(unread, sums.tolist(), strict=True):
        (change, norm, _, drift), (error, twice) = codes, dictionary[2:]
        if isinstance(run.Z, NotKept):
            change, norm = dictionary[:2]
        if not (norm < float("inf") and error < float("inf")):
            raise ArithmeticError(
                f"the factors overflowed in iteration {iteration}: A is too large for its dtype; "
                "scale it down (A / A.max()) or pass it as float64"
            )
        if drift > 0 and error > 0:
            drifts.append((drift / error) ** 0.5)
            run.refresh = max(1, run.refresh // 2) if drifts[-1] > _MOST_DRIFT else run.refresh
        relative_change = (change / norm) ** 0.5 if norm > 0 else 0.0 if change == 0 else 1.0
        relative = [
            (squared / squared_data) ** 0.5 if squared_data > 0 else 0.0
            for squared in (max(0.0, error), max(0.0, error) + twice)
        ]
        error, objective = relative if run.learn else [float("nan")] * 2
        measured = relative_change, error, seconds
        read.append(Iteration(iteration, *measured, relative_objective=objective))
    unread.clear()
    return read
