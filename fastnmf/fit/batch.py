"""A whole fit: data, plan, start, loop, summary."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.arrays import Expected
from ..data.dataset import Data, opened
from ..data.shards import paths_of
from ..data.sources import Shards
from ..data.storage import InMemory, NotKept, OnDisk, Storage, copy_rows, mapped, written
from ..distributed import ALONE, Processes
from ..engine.cuda_graph import CudaGraph, Recorder, refuses
from ..engine.loop import factorize_, varies
from ..engine.state import Method, State, Stopping
from ..errors import InvalidInput
from ..init.start import resolve, start
from ..numerics import products_in
from ..planning import hardware
from ..planning.memory import plan_beside
from ..planning.plan import Plan, Problem, accelerated, choose
from ..results.info import FitInfo
from ..results.metrics import measure
from ..results.progress import Progress
from .checkpoint import Checkpoint
from .options import Options

log = logging.getLogger(__name__)

# iterations from which on a CUDA graph, some 2 ms to make, is gained back; and what one takes at
# most by its floor: launches are 0.2 to 4 ms of it (docs/gpu.md)
_LEAST_REPEATED, _MOST_SECONDS = 20, 20e-3


def fit(
    A: Any, options: Options, device: torch.device, processes: Processes = ALONE
) -> tuple[Tensor | None, Tensor, FitInfo]:
    """The codes, D (K, d) and the summary of a fit of A, the rows of this process."""
    begun = time.perf_counter()
    with ExitStack() as stack:
        with processes.agreed():
            if options.resume and options.checkpoint is None:
                raise InvalidInput("resume=True needs a file to go on from: fit(A, checkpoint=…)")
            method, destination = options.method(device), options.destination(processes)
            checkpoint = _checkpoint(options, method, processes)
            refuse_overwriting(A, destination, None if checkpoint is None else checkpoint.path)
        processes.agree(_shared(options, destination))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(products_in(options.precision))
        budget = options.budget(device, destination, processes)
        # what is read in passes is widened as it comes
        narrow = processes.alone and destination is not None
        expected = Expected(empty=not processes.alone, narrow=narrow)
        data = stack.enter_context(opened(A, expected, budget, processes))
        with processes.agreed():
            Z, target = _storage(data, options.nb_concepts, destination, stack)
        _refuse(options, data, Z)
        _refuse_extremes(data)
        bar = Progress(options.verbose, options.iterations, options.callback, not data.resident)
        each = stack.enter_context(bar)
        fitted = _Fit(options, data, method, checkpoint, begun)
        state, info = fitted(Z, each)
        if target is not None:
            copy_rows(state.Z, target)
            info = replace(info, codes=target.place)
    # a file of codes is in its place now
    return _codes(state.Z, target), state.D, info


class _Fit:
    """A fit of data that are open: what its parts share."""

    def __init__(
        self,
        options: Options,
        data: Data,
        method: Method,
        checkpoint: Checkpoint | None,
        begun: float,
    ) -> None:
        self.options, self.data, self.method = options, data, method
        self.checkpoint, self.begun = checkpoint, begun

    @torch.no_grad()
    def __call__(self, Z: Storage, each) -> tuple[State, FitInfo]:
        """The State at the end, from codes to be written into Z, and the summary."""
        options, data = self.options, self.data
        plan, state = self._begin(Z)
        earlier = state.history[-1].seconds if state.history else 0.0
        exchanged = data.processes.exchanged
        log.info("fit %d × %d with %d concepts: %s", data.n, data.d, options.nb_concepts, plan)
        limit = math.inf if options.max_seconds is None else options.max_seconds
        stopping = Stopping(options.iterations, options.tol, each, options.stop, self.begun + limit)
        saver = None if self.checkpoint is None else self.checkpoint.follow(plan)
        extra = {"revives": options.revive, "saver": saver, "recorder": self._recorder(plan)}
        try:
            with nullcontext() if saver is None else saver:
                factorize_(state, data, self.method, plan, stopping, **extra)
        except torch.cuda.OutOfMemoryError as error:
            fewer = max(1, plan.tile_rows // 2)
            advice = f"Try tuning=fastnmf.Tuning(chunk_rows={fewer})."
            raise torch.cuda.OutOfMemoryError(f"{error} {advice}") from error
        exchanged = data.processes.exchanged - exchanged
        info = self._summary(state, plan, earlier, exchanged)
        self._warn(info)
        return state, info

    def _begin(self, Z: Storage) -> tuple[Plan, State]:
        """The plan and the State to begin with: of the checkpoint, if it has one, else the start."""
        data, K = self.data, self.options.nb_concepts
        if self.checkpoint is not None:
            found = self.checkpoint.begin(data, Z)
            if found is not None:
                return found
        plan = self._plan()
        if data.in_one_piece:
            Z = InMemory(data.like.new_empty(data.n, K))
        codes = None if isinstance(Z, NotKept) else Z
        generator = self.options.generator() or data.processes.generator()
        D = start(data, codes, K, self.options.init, generator)
        data.processes.broadcast_(D)
        return plan, State(Z, _row_major(D))

    def _plan(self) -> Plan:
        data, method, K = self.data, self.method, self.options.nb_concepts
        like, processes = data.like, data.processes
        problem = Problem(data.n, data.d, K, like.itemsize, method.solver)
        if data.in_one_piece:
            free = hardware.free_bytes(data.device)
            plan = plan_beside(data.A, problem, method.backend, method.tuning, free)
        else:
            # of a process, on average
            here = replace(
                problem,
                n=-(-data.n // processes.size),
                streams=not data.resident,
                processes=processes.size,
            )
            on = hardware.machine_of(like, method.backend)
            plan = choose(here, on, replace(method.tuning, chunk_rows=data.chunk_rows))
            # the same in all of them, but for the tiles
            plan = replace(processes.gather(plan)[0], tile_rows=plan.tile_rows)
        return accelerated(plan, problem) if self._accelerates(plan) else plan

    def _accelerates(self, plan: Plan) -> bool:
        """Whether to extrapolate. 'auto' does where it pays, up to min(n, d) concepts, in normal
        form and where half-steps are not exact or penalised, unless the iterates of the plain loop
        may be meant: where a start or a form is given (docs/acceleration.md). Codes that are not in
        memory have no copies to be extrapolated."""
        options, data, method = self.options, self.data, self.method
        if not data.resident or options.accelerate != "auto":
            return options.accelerate is True
        free = isinstance(options.init, str) and method.tuning.form is None
        few = min(data.n, data.d) >= options.nb_concepts
        normal = plan.form == "normal" and not method.solver.exact
        return free and not method.penalties and few and normal

    def _recorder(self, plan: Plan) -> Recorder | None:
        """What repeats the iterations, if anything does; by default where launches may be much of
        the time."""
        asked, device = self.method.tuning.cuda_graph, self.data.device
        if asked is False:
            return None
        why = refuses(device) or varies(self.method, plan, self.data)
        if asked is True:
            if why is not None:
                raise InvalidInput(
                    f"cuda_graph=True is not possible: {why}; give cuda_graph=None or False"
                )
            return CudaGraph(device, must=True)
        if why is not None or self.options.iterations < _LEAST_REPEATED:
            return None
        small = hardware.floor_seconds(self.data.A, plan.flops) <= _MOST_SECONDS
        return CudaGraph(device, must=False) if small else None

    def _summary(self, state: State, plan: Plan, earlier: float, exchanged: int) -> FitInfo:
        options, data, method = self.options, self.data, self.method
        measured = measure(data, state, method, plan.tile_rows)
        return FitInfo.of(
            state,
            plan,
            method,
            measured,
            n=data.n,
            init=resolve(options.init, data.n, data.d, options.nb_concepts),
            seconds=earlier + time.perf_counter() - self.begun,
            chunk_rows=None if data.resident else data.chunk_rows,
            passes=1 if data.resident else data.passes,
            processes=data.processes.size,
            reduced_bytes=exchanged // max(1, len(state.history)),
        )

    def _warn(self, info: FitInfo) -> None:
        begun = self.data.processes.rank == 0 and info.iterations > 0
        if begun and self.options.tol > 0 and info.stopped_by in ("max_iter", "max_seconds"):
            log.warning(
                "not converged: the relative change is %.2g after %d iterations, with tol=%g and "
                "stop=%r; raise %s or tol (tol=0 asks for no more than that)",
                info.relative_change,
                info.iterations,
                self.options.tol,
                self.options.stop,
                info.stopped_by,
            )


def _checkpoint(options: Options, method: Method, processes: Processes) -> Checkpoint | None:
    if options.checkpoint is None:
        return None
    tuning = options.tuned
    settings = {**options.of_a_fit(), "chunk_rows": tuning.chunk_rows, "backend": method.backend}
    seconds = 60.0 if tuning.checkpoint_seconds is None else tuning.checkpoint_seconds
    given = options.checkpoint, seconds, settings
    return Checkpoint(*given, resume=options.resume, processes=processes)


def _shared(options: Options, destination: Path | str | None) -> dict[str, Any]:
    """What all processes of a fit must have alike."""
    return {
        **options.of_a_fit(),
        "tol": options.tol,
        "stop": options.stop,
        "max_iter": options.iterations,
        "codes": "in a file" if isinstance(destination, Path) else destination,
        "checkpoint": None if options.checkpoint is None else "a file",
        "resume": options.resume,
    }


def refuse_overwriting(A: Any, *files: Path | str | None) -> None:
    """Raise InvalidInput where a file that is to be written is one that is read."""
    read = A.paths if isinstance(A, Shards) else paths_of(A) or ()
    for file in files:
        for path in map(Path, read if isinstance(file, Path) else ()):
            # a new file in a folder would be one of its shards the next time
            if path.resolve() in (file, file.parent):
                raise InvalidInput(f"{file} is to be written, but {path} is read; give another")


def _storage(
    data: Data, K: int, destination: Path | str | None, stack: ExitStack
) -> tuple[Storage, OnDisk | None]:
    """Where codes go during a fit, and the file to which those in memory go at its end."""
    if destination is None:
        return NotKept(), None
    shape, file = (data.n_here, K), None
    if isinstance(destination, Path):
        file = stack.enter_context(written(destination, shape, data.dtype))
        if not data.resident:
            return file, None
    if data.in_one_piece:
        # the start allocates them
        return InMemory(torch.empty(0, K, dtype=data.dtype, device=data.device)), file
    return InMemory(torch.empty(shape, dtype=data.dtype, device=data.device)), file


def _codes(Z: Storage, target: OnDisk | None) -> Tensor | None:
    """The codes for the caller, after all is done."""
    if isinstance(Z, NotKept):
        return None
    if target is None and isinstance(Z, InMemory):
        return Z.Z
    return mapped(Path((target or Z).place))


def _refuse(options: Options, data: Data, Z: Storage) -> None:
    """Refuse what penalties do not have, and what needs the codes of all rows in memory where they
    are not."""
    if options.penalties and options.accelerate is True:
        raise InvalidInput(
            "accelerate=True does not go with alpha_Z or alpha_D, nor with unit_norm: it scales "
            "concepts, which they count; give accelerate='auto' or False"
        )
    if options.accelerate is True and not data.resident:
        raise InvalidInput(
            "accelerate=True keeps two copies of the codes in memory, and the data are read in "
            "passes here; give accelerate='auto' or False, or more max_memory"
        )
    if options.revive and isinstance(Z, NotKept):
        raise InvalidInput(
            "revive=True gives concepts other codes, and codes=None keeps none; give revive=False, "
            "or codes='memory' or a file"
        )


def _refuse_extremes(data: Data) -> None:
    """Refuse data whose squares are no normal numbers, or whose sum of squares is none: where they
    vanish every error is zero."""
    largest, limits = data.largest, torch.finfo(data.dtype)
    square = largest * largest
    usable = limits.tiny <= square <= limits.max and math.isfinite(square * data.n * data.d)
    if largest and not usable:
        name = str(data.dtype).removeprefix("torch.")
        raise ArithmeticError(
            f"the largest entry of A is {largest:.3g}, too {'small' if square < 1 else 'large'} to "
            f"be squared in {name}; scale A (A / A.max())"
            + (" or pass it as float64" if data.dtype == torch.float32 else "")
        )


def _row_major(F: Tensor) -> Tensor:
    """F, a contiguous matrix, with strides to match: those of a single row or column may be any,
    and products choose by them how they sum."""
    return F.flatten().view(F.shape)
