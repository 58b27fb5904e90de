"""The iteration loop of a fit: the only one. It knows steps, the plan and when to stop, but no
solver's arithmetic."""

from __future__ import annotations

import torch

from ..data.dataset import Data
from ..data.storage import NotKept
from ..numerics import products_in
from ..planning.plan import REFRESH, Plan
from .cuda_graph import Recorder, Replay
from .dead_concepts import looks
from .history import History
from .iteration import Step
from .state import Method, Saver, State, Stopping


def varies(method: Method, plan: Plan, data: Data) -> str | None:
    """Why the iterations of a fit are not the same launches at the same addresses every time, or
    None."""
    if not data.in_one_piece:
        return "the data are read in passes, or shared by processes"
    if plan.form != "normal":
        return "in residual form the residual is computed anew now and then"
    if method.solver.exact:
        return f"what {method.solver.name} does depends on what it finds"
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
    """Iterate on a State, in place, until `stopping` says so.

    penalties of the method: with plans that do not accelerate; with unit_norm concepts have norm 1
    after the start and after every iteration. revives: idle concepts are given rows, between
    iterations and before the fit counts as converged, if codes are kept. Data that are read in
    passes have a plan that does not accelerate and whose dictionary half is in normal form, unless
    all is in memory; the processes that share data end together, with the same D. saver: is asked
    at the end of every iteration that another may follow; from the State that it saved and the same
    plan a run takes the iterations that are left to the same bits. recorder: repeats the iterations
    of a run of which `varies` has nothing to say. Synchronises once an iteration if it is watched or
    the plan accelerates, else where idle concepts are looked for, and at the end. Raises
    ArithmeticError when the factors overflow.
    """
    # Triton launches on the current device
    with torch.cuda.device_of(state.D), products_in("highest") as allowed:
        waits = recorder is None and state.D.device.type == "cpu"
        step = Step(state, data, method, plan, allowed=allowed, waits=waits)
        with Replay(step, recorder) as iterate:
            _Loop(step, iterate, stopping, revives, saver).run()
            state.repeats = iterate.repeats


class _Loop:
    """A run in progress."""

    def __init__(
        self, step: Step, iterate: Replay, stopping: Stopping, revives: bool, saver: Saver | None
    ) -> None:
        self.step, self.iterate, self.stopping, self.state = step, iterate, stopping, step.state
        self.revives, self.saver = revives, saver
        processes, statistics = step.processes, step.statistics
        self.watched = (
            stopping.watches
            or self.state.extrapolation is not None
            or saver is not None
            or not processes.alone
        )
        # whether another process may end the run
        ends = stopping.each is not None, stopping.deadline < float("inf")
        derived = stopping.rule == "error" or isinstance(self.state.Z, NotKept)
        self.asks = any(processes.any(*ends, statistics.apart and derived))
        self.history = History(self.state, float(statistics.squared_norm))

    def run(self) -> None:
        state, step, history = self.state, self.step, self.history
        for iteration in range(len(state.history) + 1, self.stopping.max_iter + 1):
            if self.revives:
                step.revive_(*looks(iteration, step.data.n, len(state.D)))
            if state.extrapolation is not None:
                state.extrapolation.set_out()
            fresh = state.iterations_since_fresh == 0
            step.take_precision(state.history)
            self.iterate()
            history.add(iteration, step.sums, watched=self.watched)
            if self.watched:
                self._read_and_take_back_(iteration)
                if self._ends(iteration, fresh):
                    break
            elif step.watches_error and len(history) == REFRESH:
                history.read()
        history.read()
        step.share_()
        step.settle_()

    def _read_and_take_back_(self, iteration: int) -> None:
        """Read what was measured; an accelerated iteration whose error rose is taken back, and
        followed by one that extrapolates nothing."""
        state, extrapolation = self.state, self.state.extrapolation
        read = self.history.take()
        if extrapolation is not None and extrapolation.rose(read[0].relative_error):
            extrapolation.take_back_(state.codes, state.D)
            self.iterate()
            self.history.add(iteration, self.step.sums, watched=True)
            read = self.history.take()
            extrapolation.rose(read[0].relative_error)
        state.history += read

    def _ends(self, iteration: int, fresh: bool) -> bool:
        """Whether the run ends after this iteration; the State says why."""
        state, stopping, step = self.state, self.stopping, self.step
        asked = stopping.each is not None and bool(stopping.each(state.history[-1]))
        late, converged = stopping.late(), stopping.converged(state.history)
        if self.asks:
            asked, late, converged = step.processes.any(asked, late, converged)
        if asked:
            state.stopped_by = "callback"
            return True
        if converged:
            # what was carried in tf32 does not decide: once more, from a residual in float32
            decides = fresh or step.compute.allowed == "highest"
            last = iteration == stopping.max_iter or not self.revives
            if decides and (last or not step.revive_(True, True, stopping.tol)):
                state.stopped_by = stopping.converged_by
                return True
            state.iterations_since_fresh = 0
        if self.saver is not None and self.saver.due():
            self.saver.save(step.snapshot())
        if late:
            state.stopped_by = "max_seconds"
        return late
