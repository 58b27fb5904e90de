"""What is timed on a GPU: iterations and whole fits, with the plan's prediction beside them, and
beside Overcomplete's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from fastnmf import NMF, Tuning
from fastnmf.backends.registry import select
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.planning import hardware
from fastnmf.planning.beside import plan_beside
from fastnmf.planning.plan import Plan, Problem
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties
from fastnmf.solvers.registry import SOLVERS
from support import gpu_theirs
from support.gaussian import draw
from support.gpu_sizes import Size, Sizes
from support.seconds import least_seconds, seconds_of

OURS = "fastnmf (triton)"
PENALTIES = {"": NO_PENALTIES, ", penalised": Penalties(1e-3, 1e-3, 0.5)}


def method_of(solver: str, device: torch.device, backend: str = "triton") -> Method:
    """How a fit would compute half-steps."""
    record = SOLVERS[solver]
    name, ops = select(record.operations + record.fused, device, backend)
    return Method(record, name, ops)


def planned(method: Method, A, K: int) -> Plan:
    """The plan of a fit in the memory that is free."""
    problem = Problem(*A.shape, K, A.element_size(), method.solver)
    free = hardware.free_bytes(A.device)
    return plan_beside(A, problem, method.backend, method.tuning, free)


def titled(size: Size) -> str:
    n, d, K = size
    return f"{n:,} × {d:,}, K = {K:,}"


def iteration(
    solver: str,
    size: Size,
    repeats: tuple[int, int],
    precision: str,
    device: str,
    penalised: str = "",
) -> Iterator[dict]:
    """One iteration of a fit by the plan that it would take; repeats: as in Sizes."""
    together, rounds = repeats
    torch.set_float32_matmul_precision(precision)
    what = f"{solver}, {titled(size)}, {precision}{penalised}"
    try:
        A, Z, D = draw(*size, device)
        method = replace(method_of(solver, A.device), penalties=PENALTIES[penalised])
        plan = planned(method, A, size[2])

        def iterate() -> None:
            factorize_(State(InMemory(Z), D), Data(A), method, plan, Stopping(together, 0))

        seconds = least_seconds(iterate, rounds, device) / together
        yield {"what": what, "contender": OURS, "seconds": seconds, "predicted": plan.seconds,
               "plan": str(plan)}  # fmt: skip
    except torch.cuda.OutOfMemoryError as error:
        yield {"what": what, "contender": OURS, "left_out": str(error).splitlines()[0]}
    finally:
        A = Z = D = None
        torch.cuda.empty_cache()


def theirs(
    solver: str, size: Size, loop: int, rounds: int, precision: str, device: str
) -> Iterator[dict]:
    """The same of Overcomplete."""
    torch.set_float32_matmul_precision(precision)
    label = {"what": f"{solver}, {titled(size)}, {precision}", "contender": gpu_theirs.name()}
    try:
        yield {**label, **gpu_theirs.iteration(solver, size, loop, rounds, device)}
    except torch.cuda.OutOfMemoryError as error:
        yield {**label, "left_out": str(error).splitlines()[0]}
    finally:
        torch.cuda.empty_cache()


def many_concepts(solver: str, precision: str, sizes: Sizes, device: str) -> Iterator[dict]:
    """An iteration of a solver and of Overcomplete's; penalised too, where its kernel differs."""
    size, repeats = sizes.many, sizes.repeats
    yield from iteration(solver, size, repeats, precision, device)
    yield from theirs(solver, size, sizes.loop, min(repeats[1], 1), precision, device)
    if solver != "hals" and precision == "high":
        yield from iteration(solver, size, repeats, precision, device, ", penalised")


def few_concepts(sizes: Sizes, device: str) -> Iterator[dict]:
    """Whole fits, start included. As by default, the change is read in each iteration. With and
    without a CUDA graph, accelerated and not."""
    torch.set_float32_matmul_precision("highest")
    size, iterations, rounds = sizes.few, sizes.iterations[0], min(sizes.repeats[1], 1)
    K, (A, *_) = size[2], draw(*size, device)
    for (solver, accelerate), graph in itertools.product(sizes.accelerated, (True, False)):
        how = {"tuning": Tuning(cuda_graph=graph), "backend": "triton", "seed": 0}
        model = NMF(K, device, solver, 1e-30, accelerate=accelerate, **how)
        seconds = least_seconds(
            lambda model=model: model.fit(A, max_iter=iterations), rounds, device
        )
        info = model.fit_info_
        what = _fit_of(solver, iterations, size) + (", accelerated" if info.accelerated else "")
        label = {"what": what, "contender": OURS, "graph": graph, "repeats": info.cuda_graph}
        if not info.accelerated:
            # of the iterations; the start is not predicted
            plan = planned(method_of(solver, A.device), A, K)
            label["predicted"] = iterations * plan.seconds
        yield {**label, "seconds": seconds, "relative_error": info.relative_error}
    for solver in dict(sizes.accelerated):
        # what takes seconds on the CPU is the same for all solvers
        them = gpu_theirs.fit(solver, A, K, iterations, begins=solver == "hals")
        what = _fit_of(solver, iterations, size)
        yield {"what": what, "contender": gpu_theirs.name(), **them}


def _fit_of(solver: str, iterations: int, size: Size) -> str:
    return f"{iterations} iterations of {solver}, {titled(size)}"


def in_16_bits(sizes: Sizes, device: str) -> Iterator[dict]:
    """Few concepts in normal form, where A is most of the memory: bfloat16 data, and the same data
    converted to float32 first. Bytes count from before the data were made."""
    torch.set_float32_matmul_precision("highest")
    size, iterations, rounds = sizes.narrow, sizes.iterations[1], min(sizes.repeats[1], 1)
    errors = []
    for dtype in (torch.bfloat16, torch.float32):
        before = torch.cuda.memory_allocated()
        A = draw(*size, device)[0].bfloat16().to(dtype)
        torch.cuda.reset_peak_memory_stats()
        options = {"init": "random", "backend": "triton", "tuning": Tuning(form="normal")}
        model = NMF(size[2], device, tol=0, seed=0, **options)
        seconds = least_seconds(
            lambda model=model, A=A: model.fit(A, max_iter=iterations), rounds, device
        )
        errors.append(model.fit_info_.relative_error)
        what = f"{iterations} iterations of hals, {titled(size)}, {str(dtype)[6:]}"
        peak = torch.cuda.max_memory_allocated() - before
        yield {"what": what, "contender": OURS, "seconds": seconds, "peak_bytes": peak,
               "relative_error": errors[-1]}  # fmt: skip
        del A, model
    # the same numbers in other tiles
    off = abs(errors[0] / errors[1] - 1)
    yield {"check": "fit of 16-bit data", "relative": off, "passed": off <= 1e-4}


def streamed(size: Size, iterations: int, device: str) -> Iterator[dict]:
    """Data in the memory of the host, read in chunks in each pass: copies beside the computation.

    Compared with the same fit of data on the device, and with the copies alone.
    """
    torch.set_float32_matmul_precision("highest")
    n, d, K = size
    A, *pair = draw(*size, device)
    there, bytes_ = A.cpu(), n * d * A.element_size()
    # a drawn start would be another where data are read in chunks
    start = tuple(F.cpu() for F in pair)
    options = {"init": start, "backend": "triton", "accelerate": False}
    found = {}
    # too little for the data and what is kept for each row
    for name, data, most in (("on the device", A, None), ("streamed", there, bytes_)):
        tuning = Tuning(form="normal")
        model = NMF(K, device, tol=0, max_memory=most, tuning=tuning, **options)
        seconds, _ = seconds_of(lambda m=model, X=data: m.fit(X, max_iter=iterations), device)
        info = model.fit_info_
        found[name] = info.relative_error
        yield {"what": f"{iterations} iterations of hals, {titled(size)}, {name}",
               "contender": OURS, "seconds": seconds, "passes": info.passes,
               "chunk_rows": info.chunk_rows, "relative_error": info.relative_error}  # fmt: skip
    parts = there.split(info.chunk_rows)
    copied = least_seconds(lambda: [part.to(device) for part in parts], 1, device)
    yield {"what": f"{titled(size)}, one copy to the device, not pinned", "contender": "torch",
           "seconds": copied}  # fmt: skip
    off = abs(found["streamed"] / found["on the device"] - 1)
    yield {"check": "fit of streamed data", "relative": off, "passed": off <= 1e-4}
