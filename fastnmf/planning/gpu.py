"""The cost model of a GPU: the parts of a half-step, by name, in seconds.

Predictions, not measurements (docs/notes/gpu_predictions.md). The model of a CPU, one formula, is
in plan.py."""

from __future__ import annotations

import math

from ..solvers.base import Size, Solver, Work
from .hardware import Machine

# seconds of the host for a launch by torch and by Triton, and of the device between two launches
HOST_SECONDS, GAP_SECONDS = (5e-6, 20e-6), 2e-6
# how much slower products on tensor cores are whose result is a block's Gram matrix: too few tiles
# for a card, so that long sums are split among multiprocessors. Assumed
_SPLIT = 2
WAITING = "waiting for the host"
# launches of torch in which an accelerated iteration moves its factors
_EXTRAPOLATION = 39
_HOST = "host"
Parts = dict[str, float]


def half_step_parts(
    solver: Solver,
    form: str,
    size: Size,
    tile: int,
    itemsize: int,
    on: Machine,
    times: int = 1,
) -> Parts:
    """The parts of `times` half-steps on the same data, with tiles of `tile` columns of F, and of
    the host, which launches them meanwhile: for `settled`.

    In residual form with tf32 the products, and by the kernels that are there the Gram matrices,
    are tf32; a new residual and all of the normal form are float32.
    """
    gpu, work = on.gpu, solver.work(form, size, times)
    assert gpu is not None
    m, p, K, block = size
    single, blocks, tiles = 4 / itemsize, math.ceil(K / min(block, K)), math.ceil(m / tile)
    tf32 = gpu.tf32 and form == "residual" and itemsize == 4
    float32 = gpu.card.float32 * single
    rate = gpu.card.tf32 if tf32 else float32
    # products with a narrow matrix are slower than large ones
    slim = min(block, K) / (min(block, K) + 24)
    library = work.products - work.gram - work.fresh - work.searched
    library -= 0 if on.concept_seconds else work.fused
    in_cache = tile * (p if form == "residual" else K) * itemsize <= on.cache_bytes / 2
    through = _through(solver, form, size, times * work.steps * blocks)
    gram_rate = gpu.card.tf32 / _SPLIT if tf32 and gpu.kernels.gram_tf32 else float32
    memory = itemsize / on.far
    parts = {
        "products": max(
            library / (rate * slim), through * itemsize / (on.near if in_cache else on.far)
        ),
        "Gram matrices": max(work.gram / (gram_rate * slim), p * K * memory) if work.gram else 0.0,
        "sweep": _sweep(work, size, tile, itemsize, on, times, tf32) if work.swept else 0.0,
        "update": _update(work, itemsize, on, rate, tf32),
        "rounding": gpu.kernels.rounding * work.rounded * memory if tf32 else 0.0,
        "new residual": work.fresh / (float32 * slim),
        "other passes": work.passed * memory,
        "search": _search(solver, work, K, itemsize, on),
    }
    launched = launches(work, size, tiles, times, tf32=tf32)
    parts["launches"] = sum(launched) * GAP_SECONDS
    host = sum(count * seconds for count, seconds in zip(launched, HOST_SECONDS, strict=True))
    return {**{name: took for name, took in parts.items() if took}, _HOST: host}


def settled(parts: Parts) -> Parts:
    """The parts of what runs on the device, and the time that it waits for the host: the host
    launches what follows while the device computes."""
    on_device = {name: took for name, took in parts.items() if name != _HOST}
    waits = parts.get(_HOST, 0.0) - sum(on_device.values())
    return {**on_device, WAITING: waits} if waits > 0 else on_device


def iteration_parts(halves: dict[str, Parts], kept: int | None, *, accelerated: bool) -> Parts:
    """The parts of an iteration from those of its halves, 'codes' and 'dictionary', each named by
    its half. kept: iterations that share a residual, if one half passes it to the other."""
    if accelerated:
        launches = {
            "launches": _EXTRAPOLATION * GAP_SECONDS,
            _HOST: _EXTRAPOLATION * HOST_SECONDS[0],
        }
        halves = {**halves, "extrapolation": launches}
    if kept is not None:
        halves["codes"]["new residual"] /= kept
        del halves["dictionary"]["new residual"]
    found = {_HOST: sum(parts[_HOST] for parts in halves.values())}
    for half, parts in halves.items():
        found |= {f"{half}: {name}": took for name, took in parts.items() if name != _HOST}
    return settled(found)


def _through(solver: Solver, form: str, size: Size, passes: int) -> float:
    """Entries that the products read and write: for each block the residual; in normal form the
    data once, and F for each block."""
    m, p, K, _ = size
    if form == "residual":
        return passes * m * p * (3 if solver.sweeps_blocks else 2)
    return m * p + passes * m * K


def _sweep(
    work: Work, size: Size, tile: int, itemsize: int, on: Machine, times: int, tf32: bool
) -> float:
    """The seconds of the block sweeps, tile by tile."""
    gpu, tiles, columns = on.gpu, math.ceil(size.m / tile), min(size.m, tile)
    if on.concept_seconds:
        return times * tiles * size.K * on.concept_seconds + work.swept / on.sweep
    sweep = gpu.kernels.sweep(columns, tf32)
    return times * size.m / columns * sweep.seconds(columns, size, itemsize, gpu.card)


def _update(work: Work, itemsize: int, on: Machine, rate: float, tf32: bool) -> float:
    """The seconds of element-wise updates, with the products in the same kernels: limited by these
    products, or by the tiles that they read from L2 where they are tf32."""
    if on.concept_seconds or not work.fused:
        return work.updated * itemsize / on.far
    kernels, operands = on.gpu.kernels, work.operands
    products = work.fused / (rate * (kernels.fused if tf32 else kernels.fused_float32))
    if tf32:
        # operands share a tile of B
        bytes_ = (1 + operands) / operands * itemsize / (2 * kernels.tile)
        products = max(products, work.fused * bytes_ / on.near)
    stored = work.stored * itemsize / on.far
    return products + stored if tf32 and operands >= kernels.alone else max(products, stored)


def _search(solver: Solver, work: Work, K: int, itemsize: int, on: Machine) -> float:
    """The seconds of exact searches on all of G: each multiply-add reads an entry. Where the
    workspaces of few rows fill the memory that they may take, few multiprocessors have work."""
    if not work.searched:
        return 0.0
    rate = on.near if K * K * itemsize <= on.cache_bytes / 2 else on.far
    card = on.gpu.card
    rows = solver.rows_at_once(K, int(card.memory)) if solver.rows_at_once else card.processors
    return work.searched / 2 * itemsize / rate * max(1.0, card.processors / rows)


def launches(work: Work, size: Size, tiles: int, times: int, *, tf32: bool) -> tuple[float, float]:
    """The launches by torch and by Triton of half-steps, `times` of them in each tile."""
    passes = times * work.steps * math.ceil(size.K / min(size.block, size.K))
    of_torch, of_triton = (
        tiles * (fixed + passes * each)
        for fixed, each in zip(work.fixed_calls, work.calls, strict=True)
    )
    return work.prepared + of_torch, of_triton + (tiles * passes * work.rounds if tf32 else 0)
