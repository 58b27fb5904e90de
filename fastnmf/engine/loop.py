"""The loop of a fit: iterations until a stopping rule is met. There is no other loop over both
factors; that of codes for a fixed dictionary is in codes.py. What an iteration does is in
iteration.py, when a fit ends in state.py."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from ..data.dataset import Data
from ..planning.plan import REFRESH, Plan
from ..precision import allowed_for, products_in
from ..solvers.registry import learner
from ..waits import look
from .cuda_graph import Recorder, Replay
from .dead_concepts import due_checks
from .iteration import Step
from .state import STOPPING_RULES, Method, Saver, State, Stopping
from .weighted.step import WeightedStep

AnyStep = Step | WeightedStep


def varies(method: Method, plan: Plan, data: Data) -> str | None:
    """Return why the iterations of a fit are not the same launches at the same addresses each time,
    or None."""
    if not data.in_memory_here:
        return "the data are read in passes, or shared by processes"
    if data.weights is not None:
        return "each row has a Gram matrix of its own"
    if data.stored is not None:
        return "products with sparse data are not recorded"
    if data.offset is not None:
        return "rows are copied, without the offset, in every pass"
    if plan.form != "normal":
        return "in residual form the residual is computed anew at intervals"
    for solver in (method.solver, learner(method.solver, 1, method.constraint)):
        if solver.exact:
            return f"the work of {solver.name} depends on the values"
    return None


def factorize_(
    state: State,
    data: Data,
    method: Method,
    plan: Plan,
    stopping: Stopping,
    *,
    revives: bool = False,
    saver: Saver | None = None,
    recorder: Recorder | None = None,
) -> None:
    """Iterate on a State, in place, until `stopping` ends the run.

    A plan that accelerates has no penalties in its method. With unit_norm concepts have norm 1
    after the start and after every iteration. Data that are read in passes have a plan that does
    not accelerate, with the dictionary half in normal form, unless all of them are in memory.
    Processes that share data end together, with the same D.

    revives: dead concepts and near-duplicates are given rows of the data, at intervals and before
    the run counts as converged; the codes must be kept. saver: called after every iteration that
    another may follow; a run from a State that it saved, with the same plan, has the same bits.
    recorder: replays the iterations of a run for which `varies` is None.

    Synchronises once an iteration if it is watched or the plan accelerates, else where concepts are
    checked, and at the end. Raises ArithmeticError when the factors overflow.
    """
    # Triton launches on the current device
    allowed = allowed_for(state.D)
    with torch.cuda.device_of(state.D), products_in("highest"):
        waits = recorder is None and state.D.device.type == "cpu"
        kind = Step if data.weights is None else WeightedStep
        step = kind(state, data, method, plan, allowed=allowed, waits=waits)
        with nullcontext(step) if recorder is None else Replay(step, recorder) as iterate:
            _run_(step, iterate, stopping, revives, saver)
            if isinstance(iterate, Replay):
                state.repeats = iterate.repeats
        # its copies of the factors would take memory from what follows
        state.extrapolation = None


def _run_(
    step: AnyStep, iterate: AnyStep | Replay, stopping: Stopping, revives: bool, saver: Saver | None
) -> None:
    """iterate: the step, or what replays it."""
    state, alone = step.state, step.processes.alone
    accelerates = state.extrapolation is not None
    # where nothing runs ahead of the host, reading costs nothing
    watched = stopping.watches or accelerates or saver is not None or not alone
    watched |= state.D.device.type == "cpu"
    votes = _needs_votes(step, stopping)
    for iteration in range(len(state.history) + 1, stopping.max_iter + 1):
        if revives:
            step.revive_(*due_checks(iteration, step.data.n, len(state.D)))
        if accelerates:
            state.extrapolation.set_out()
        fresh = state.iterations_since_fresh == 0
        step.take_precision()
        look()
        iterate()
        step.history.add(iteration, step.sums, watched=watched)
        if watched:
            _read_(step, iterate, iteration)
            if stopping.check is not None:
                stopping.check(state)
            stop_requested, late, converged = _reasons(step, stopping, votes)
            if stop_requested:
                state.stopped_by = "callback"
                break
            last = iteration == stopping.max_iter or not revives
            if converged and _stays_converged(step, stopping, fresh, last):
                state.stopped_by = stopping.converged_by
                break
            if saver is not None and saver.due():
                saver.save(step.snapshot())
            if late:
                state.stopped_by = "max_seconds"
                break
        elif len(step.history) == REFRESH:
            _read_(step, iterate, iteration)
            watched = step.history.is_coarse(state.history[-1])
    step.history.read()
    step.share_()
    step.apply_scale_()


def _needs_votes(step: AnyStep, stopping: Stopping) -> bool:
    """Return whether one of several processes may end the run by what the others do not see: a
    callback, a clock, or numbers that differ by rounding. A collective call."""
    ends = stopping.each is not None, stopping.deadline < float("inf")
    return any(step.processes.any(*ends, step.statistics.replicated))


def _read_(step: AnyStep, iterate: AnyStep | Replay, iteration: int) -> None:
    """Read what was measured, the last error from the residual where that is more accurate. An
    accelerated iteration whose error rose is undone, and replaced by one that extrapolates
    nothing."""
    state, extrapolation = step.state, step.state.extrapolation
    read = step.measured()
    if extrapolation is not None and extrapolation.rose(read[-1].relative_error, step.noise):
        extrapolation.take_back_(state.codes, state.D)
        iterate()
        step.history.add(iteration, step.sums, watched=True)
        read = step.measured()
        extrapolation.rose(read[-1].relative_error, step.noise)
    state.history += read


def _reasons(step: AnyStep, stopping: Stopping, votes: bool) -> tuple[bool, ...]:
    """Return whether the callback, the clock and the stopping rule end the run after this
    iteration, in any process where they vote."""
    history = step.state.history
    stop_requested = stopping.each is not None and bool(stopping.each(history[-1]))
    converged = stopping.converged(history)
    if converged and STOPPING_RULES[stopping.rule].of_training:
        converged = not step.history.still_falls(stopping.tol, step.data.spread)
    converged &= step.state.target is None or step.state.target.settled
    found = stop_requested, stopping.late(), converged
    return step.processes.any(*found) if votes else found


def _stays_converged(step: AnyStep, stopping: Stopping, fresh: bool, last: bool) -> bool:
    """Return whether a run whose rule is met has converged: from a residual computed anew, not one
    that was carried in tf32, and with no concept to revive, unless no iteration may follow."""
    decides = fresh or step.compute.allowed == "highest"
    if decides and (last or not step.revive_(True, True, stopping.tol)):
        return True
    step.state.iterations_since_fresh = 0
    return False
