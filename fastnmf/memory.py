"""What a device can do and has free: the Machine of the cost model, and the rows that fit."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor

from . import plan
from .nnls_info import workspace_share
from .plan import Machine, Plan
from .precision import in_tf32
from .rows import NARROW, WIDENED_BYTES, Rows, compute_dtype

log = logging.getLogger(__name__)

# what allocations lose to rounding and to what cuBLAS keeps
_USABLE = 0.92
# what a product of pieces needs at least to fill a device
_GPU_PIECES = tuple(1 << power for power in range(28, 34))
# Counted and estimated for one H100 (SXM, 132 processors), not measured: products in tf32 at 80 %
# of the data sheet, memory at 90 %, a launch of 5 µs, four a block, 400 Gbit/s to others
H100 = Machine(
    cache_bytes=50 << 20,
    gemm=400e12,
    sweep=150e12,
    elementwise=2.4e12,
    near=5.5e12,
    far=3e12,
    link=50e9,
    reduce_seconds=100e-6,
    block_seconds=20e-6,
    blocks=(128, 256, 512, 1024),
    piece_bytes=_GPU_PIECES,
)
H100_FLOAT32 = dataclasses.replace(H100, gemm=50e12, sweep=50e12)


def machine_of(A: Tensor, backend: str) -> Machine:
    """The Machine for data A and this backend; a GPU by the number of its processors."""
    if A.device.type != "cuda":
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return plan.machine(torch.get_num_threads(), backend != "torch", wide)
    on = H100 if in_tf32(A.new_empty(0, dtype=compute_dtype(A))) else H100_FLOAT32
    share = torch.cuda.get_device_properties(A.device).multi_processor_count / 132
    # without the kernel a concept takes two launches, and reads what is left of its block
    calls = {"concept_seconds": 10e-6, "sweep": 5e12} if backend == "torch" else {}
    rates = {name: getattr(on, name) * share for name in ("gemm", "sweep", "elementwise", "near")}
    return dataclasses.replace(on, **{**rates, **calls})


def floor_seconds(rows: Rows, flops: float) -> float:
    """What an iteration on these rows takes on an H100 at least: its flops in float32, or A read
    twice."""
    twice = 2 * rows.n * rows.d * rows.A.element_size()
    return max(flops / H100_FLOAT32.gemm, twice / H100_FLOAT32.far)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that torch can still allocate there; None where nobody can tell."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose(A: Tensor, K: int, solver: str, backend: str, free: int | None, **asked) -> Plan:
    """The quickest Plan whose factors and workspaces fit beside A; asked: as for plan.choose. What
    A stores in 16 bits is widened in pieces of WIDENED_BYTES at most.

    free: the bytes that may be used, or None. Raises torch.cuda.OutOfMemoryError, with what would
    fit, where a chunk_rows that was asked for does not, or nothing does.
    """
    n, d = A.shape
    size, on = compute_dtype(A).itemsize, machine_of(A, backend)
    learn, sweeps = asked.get("learn", True), asked.get("sweeps", 1)
    wanted, most, widened = asked.get("chunk_rows"), n, 0
    if A.dtype in NARROW:
        most, widened = max(1, WIDENED_BYTES // (d * size)), WIDENED_BYTES
        asked["chunk_rows"] = min(most, wanted or most)

    def rows_that_fit(chosen: Plan) -> int:
        fixed, a_row = needed_bytes(n, d, K, size, solver, chosen, learn=learn)
        return int((_USABLE * free - fixed - widened) // a_row)

    if free is not None and solver == "anls" and A.device.type == "cuda":
        free -= workspace_share(torch.cuda.get_device_properties(A.device).total_memory)
    chosen = plan.choose(n, d, K, size, solver, on=on, **asked)
    if free is None or chosen.piece_rows <= rows_that_fit(chosen):
        return chosen
    # fewer rows at a time, by the plan that suits all of them
    chosen = plan.choose(n, d, K, size, solver, on=on, **{**asked, "chunk_rows": most})
    rows = min(most, rows_that_fit(chosen))
    if rows < min(most, wanted or 1):
        fixed, a_row = needed_bytes(n, d, K, size, solver, chosen, learn=learn)
        whole = fixed + widened + a_row * (wanted or chosen.piece_rows)
        raise torch.cuda.OutOfMemoryError(_message(n, K, wanted, rows, whole, n * K * size, free))
    rows = min(rows, wanted or rows)
    log.info("%d rows at a time, for memory", rows)
    halves = chosen.codes, chosen.dictionary, chosen.block
    return plan.predict(n, d, K, size, solver, *halves, rows, learn, sweeps, on)


def _message(n, K, wanted: int | None, rows: int, whole: int, codes: int, free: int) -> str:
    advice = (
        f"chunk_rows={rows} would fit"
        if rows >= 1
        else "no chunk_rows would: take fewer rows or concepts, or more memory"
    )
    return (
        f"{n:,} rows and {K:,} concepts with chunk_rows={wanted} need {whole / 1e9:.3g} GB beside "
        f"A, of which the codes take {codes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free: {advice}"
    )


def needed_bytes(
    n: int, d: int, K: int, itemsize: int, solver: str, chosen: Plan, *, learn: bool = True
) -> tuple[int, int]:
    """(bytes whatever the piece, bytes for each row of a piece) that a fit takes beside A.

    An upper bound for all backends and precisions: both factors, the residual, statistics, and
    every workspace of sweeps.py.
    """
    s = min(chosen.block, K)
    kept = n * d if learn and chosen.dictionary == "residual" else 0
    fixed = n * K + 5 * K * d + K * s + kept
    if "normal" in chosen.form:
        fixed += 3 * K * K
    if chosen.form == "normal" and learn:
        # what is extrapolated
        fixed += 2 * n * K
    if chosen.dictionary == "residual" and learn:
        # a block of the codes is rounded; mu and pgd hold a second residual for a moment
        fixed += n * s + (0 if solver == "hals" else n * d)
    a_row = {"hals": 2 * s + d, "mu": 2 * s + d, "pgd": 4 * K + d}.get(solver, 4 * K)
    a_row += 3 * K if chosen.codes == "normal" else d
    # a norm is taken in float64, a part at a time
    return fixed * itemsize + (1 << 28), a_row * itemsize
