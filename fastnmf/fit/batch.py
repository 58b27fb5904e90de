"""A whole fit: open the data, choose a plan, start, run the loop, summarise. Options are in
options.py, checkpoints in checkpoint.py."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.arrays import Expected
from ..data.dataset import Data
from ..data.locks import working_folder
from ..data.sparse.codes import are_sparse
from ..data.storage import OnDisk, mapped, written
from ..distributed import ALONE, Processes
from ..engine.cuda_graph import CudaGraph, Recorder, refuses
from ..engine.loop import factorize_, varies
from ..engine.state import Method, State, Stopping
from ..errors import InvalidInput, hold_warnings
from ..init.start import SAMPLE
from ..planning import hardware
from ..planning.beside import dense_copy_pays
from ..planning.plan import Plan
from ..precision import products_in
from ..results.cautions import warn_of_penalties, warn_of_result, warn_of_start
from ..results.fitted import Fitted
from ..results.info import FitInfo
from ..results.metrics import measure
from ..results.progress import Progress
from .checkpoint import Checkpoint
from .options import Options
from .refusals import (
    refuse_extremes,
    refuse_overwriting,
    refuse_residual,
    refuse_start_alone,
    refuse_too_many,
    refuse_unsuited,
)
from .rows import File, delivered_codes, storage_of
from .sparsity.end import end_
from .starts.begin import Beginning, begun, drawn, name_of_start
from .starts.plan import plan_of, problem_of
from .validation.measure import Validation, end_with_best_
from .validation.rows import Split, taken_apart
from .weighted.request import opened_weighted, unscale_

log = logging.getLogger(__name__)

# iterations from which on a CUDA graph, some 2 ms to make, pays; and the longest predicted
# iteration that is recorded: launches are 0.2 to 4 ms of it (docs/gpu.md)
_LEAST_REPEATED, _MOST_SECONDS = 20, 20e-3


def fit(A: Any, options: Options) -> Fitted:
    """Fit A, the rows of this process."""
    A, options, split = taken_apart(A, options)
    with ExitStack() as locks:
        return _fit(A, options, locks, split)


def _fit(A: Any, options: Options, locks: ExitStack, split: Split | None) -> Fitted:
    """locks: a stack for those of the files to write, which last until the codes are mapped. split:
    of the rows of the caller, some of which are for validation."""
    begun = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(hold_warnings())
        data, method, file, checkpoint = _opened(A, options, stack, locks)
        validation = Validation.of(options, data, stack, checkpoint)
        stack.enter_context(torch.no_grad())
        deadline = begun + (math.inf if options.max_seconds is None else options.max_seconds)
        ends = options.stop, deadline, validation and validation.check
        stopping = Stopping(options.iterations, options.tol, None, *ends)
        stopping, note = _shown(stopping, options, data, stack)
        given = options, data, method, checkpoint, file
        plan, state = _begin(*given, stopping, note)
        refuse_start_alone(options, len(state.history))
        log.info("fit %d × %d with %d concepts: %s", data.n, data.d, options.nb_concepts, plan)
        earlier = state.history[-1].seconds if state.history else 0.0
        exchanged = data.processes.exchanged
        _iterate_(state, data, method, plan, stopping, options, checkpoint)
        exchanged = data.processes.exchanged - exchanged
        end_with_best_(state, data, options, validation)
        method = end_(state, data, method, plan, stopping, begun, options.method_of_codes)
        info = _summary(state, data, method, plan, options, begun - earlier, exchanged)
        unscale_(state, data, options)
        if data.processes.rank == 0:
            given = info, options.penalties, options.tol, options.stop
            warn_of_result(*given, state.target, options.constraint)
        Z, place = delivered_codes(state.Z, file)
        if split is not None:
            Z = split.joined(Z, validation.codes(state))
    # a file of codes is in its place now
    W = None if state.mixture is None else state.mixture.sparse(data.n, data.dtype)
    Z = mapped(Path(place)) if isinstance(file, OnDisk) else Z
    return Fitted(Z, state.D, replace(info, codes=place), W, state.offset)


def _shown(
    stopping: Stopping, options: Options, data: Data, stack: ExitStack
) -> tuple[Stopping, Callable[[str], None]]:
    """`stopping` with what is called after an iteration, and what shows which start runs."""
    given = options.verbose, stopping, options.callback
    progress = Progress(*given, streamed=not data.resident, begins="start")
    return replace(stopping, each=stack.enter_context(progress)), progress.note


def _opened(
    A: Any, options: Options, stack: ExitStack, locks: ExitStack
) -> tuple[Data, Method, File | None, Checkpoint | None]:
    """Return the data, how half-steps are computed, the file for codes and the checkpoint, all
    checked and open until the stack ends; and whatever else holds as long, such as precision."""
    device = torch.device(options.device)
    joined = Processes.joined(device) if options.distributed else nullcontext(ALONE)
    processes = stack.enter_context(joined)
    with processes.agreed():
        if options.resume and options.checkpoint is None:
            raise InvalidInput("resume=True needs a file to resume from: fit(A, checkpoint=…)")
        method, destination = options.method(device), options.destination(processes)
        checkpoint = _checkpoint(options, method, processes)
        refuse_overwriting((A, options.init, options.validation), destination, checkpoint)
        folder = None
        if isinstance(destination, Path):
            folder = locks.enter_context(working_folder(destination))
        if checkpoint is not None:
            locks.enter_context(checkpoint.locked())
    processes.agree(options.shared(destination))
    stack.enter_context(products_in(options.precision))
    # data that are read in passes are widened as they come
    narrow = processes.alone and destination is not None
    expected = Expected(empty=not processes.alone, narrow=narrow, signed=options.constraint.signed)
    budget = options.budget(device, destination, processes)
    drawing = drawn(options, budget, processes)
    data = opened_weighted(stack, A, options, expected, budget, processes, drawing)
    with processes.agreed():
        data.compute_with(method.ops)
        refuse_too_many(options, data)
        file = folder
        if folder is not None and not are_sparse(folder.path):
            shape = data.n_here, options.nb_concepts
            file = stack.enter_context(written(folder.path, folder, shape, data.dtype))
    refuse_unsuited(options, data)
    refuse_extremes(data, options)
    free = method.tuning.form is None and data.weights is None
    if free and data.stored is not None and data.in_memory_here:
        if dense_copy_pays(problem_of(options, data, method), data.like, method.backend, budget):
            data = data.as_dense()
    if options.offset:
        # which is written into
        data.subtract(data.mean_row.to(data.dtype, copy=True))
    if processes.rank == 0:
        warn_of_penalties(options.penalties, options.constraint)
        warn_of_start(options.start_name, options.solvers[options.solver])
    return data, method, file, checkpoint


def _begin(
    options: Options,
    data: Data,
    method: Method,
    checkpoint: Checkpoint | None,
    file: File | None,
    stopping: Stopping,
    note: Callable[[str], None],
) -> tuple[Plan, State]:
    """Return the plan and the State to begin with: those of the checkpoint, or else the start.
    note(text): shows which start runs, where there are several."""
    Z = storage_of(options, data, file)
    if checkpoint is not None:
        found = checkpoint.begin(data, Z)
        if found is not None:
            refuse_residual(found[0], data, method.solver)
            data.subtract(found[1].offset)
            return found
    plan = plan_of(options, data, method)
    beginning = Beginning(options, data, method, plan, Z, stopping, note)
    if options.start_name != SAMPLE:
        return plan, begun(beginning)
    # few fits need what this imports
    from .starts.sample import begun_with_sample

    return plan, begun_with_sample(beginning)


def _iterate_(
    state: State,
    data: Data,
    method: Method,
    plan: Plan,
    stopping: Stopping,
    options: Options,
    checkpoint: Checkpoint | None,
) -> None:
    saver = nullcontext() if checkpoint is None else checkpoint.follow(plan)
    given = {"revives": options.revive, "recorder": _recorder(options, data, method, plan)}
    try:
        with saver:
            factorize_(state, data, method, plan, stopping, saver=checkpoint, **given)
    except torch.cuda.OutOfMemoryError as error:
        fewer = max(1, plan.tile_rows // 2)
        advice = f"Try tuning=fastnmf.Tuning(chunk_rows={fewer})."
        raise torch.cuda.OutOfMemoryError(f"{error} {advice}") from error


def _recorder(options: Options, data: Data, method: Method, plan: Plan) -> Recorder | None:
    """Return a recorder of the iterations, or None; by default where launches may be a large share
    of the time."""
    wanted, device = method.tuning.cuda_graph, data.device
    if wanted is False:
        return None
    why = refuses(device) or varies(method, plan, data)
    if why is None and options.target_l0 is not None:
        why = "the penalty follows target_l0"
    if wanted is True:
        if why is not None:
            raise InvalidInput(
                f"cuda_graph=True is not possible: {why}; give cuda_graph=None or False"
            )
        return CudaGraph(device, must=True)
    if why is not None or options.iterations < _LEAST_REPEATED:
        return None
    on, bytes_ = hardware.machine_of(data.A, method.backend), data.A.numel() * data.A.element_size()
    small = hardware.floor_seconds(on, plan.flops, bytes_) <= _MOST_SECONDS
    return CudaGraph(device, must=False) if small else None


def _summary(
    state: State,
    data: Data,
    method: Method,
    plan: Plan,
    options: Options,
    begun: float,
    exchanged: int,
) -> FitInfo:
    """begun: when the fit did, on the clock of time.perf_counter. exchanged: bytes."""
    given = state, plan, method, measure(data, state, method, plan.tile_rows)
    return FitInfo.of(
        *given,
        n=data.n,
        init=name_of_start(options, data, state),
        weights=None if options.weights is None else options.weights.kind,
        seconds=time.perf_counter() - begun,
        chunk_rows=None if data.resident else data.chunk_rows,
        passes=1 if data.resident else data.passes,
        density=data.density,
        dense_copy=data.density is not None and isinstance(data.A, torch.Tensor),
        processes=data.processes.size,
        reduced_bytes=exchanged // max(1, len(state.history)),
    )


def _checkpoint(options: Options, method: Method, processes: Processes) -> Checkpoint | None:
    if options.checkpoint is None:
        return None
    tuning = options.tuned
    settings = {**options.of_a_fit(), "chunk_rows": tuning.chunk_rows, "backend": method.backend}
    seconds = 60.0 if tuning.checkpoint_seconds is None else tuning.checkpoint_seconds
    given = options.checkpoint, seconds, settings
    return Checkpoint(*given, resume=options.resume, processes=processes)
