"""The machine code of the HALS sweep: nothing is loaded after a store, loops are unrolled, all
samples are swept at once, and few variants are compiled. No GPU is needed."""

from __future__ import annotations

import functools
import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

import sass  # noqa: E402
from fastnmf.kernels import hals  # noqa: E402
from launched import MANY, MULTIPROCESSORS, built, calls, empty, launches  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

H100 = GPUTarget("cuda", 90, 32)
CASES = [(f, precision) for f in ("codes", "dictionary") for precision in ("high", "highest")]
# samples that a thread sweeps
SAMPLES = {"codes": 2, "dictionary": 1}


@functools.cache
def sweep(factor, precision):
    """The compiled sweep of a block of the benchmark, of the codes or of the dictionary."""
    found = built(calls()[f"hals_block {factor}"], precision, 90)
    return next(each for each in found if each.launch.variant.kernel == "_hals_block_kernel")


def loop_of(code, kind):
    """The innermost loop with the most instructions of this kind."""
    return max(code.loops, key=lambda loop: sum(each.kind == kind for each in loop))


def count(instructions, *kinds):
    return sum(each.kind in kinds for each in instructions)


@pytest.mark.compiles
@pytest.mark.parametrize(("factor", "precision"), CASES)
def test_nothing_is_loaded_after_a_store_of_the_same_tile(factor, precision):
    """From the end of the loop that subtracts earlier concepts to the barrier behind the stores."""
    code = sweep(factor, precision).code
    end = next(i for i, x in enumerate(code.instructions) if x is loop_of(code, "FFMA")[-1])
    kinds = [each.kind for each in code.instructions[end:]]
    first = next(i for i, kind in enumerate(kinds) if kind.startswith("STG"))
    tile = kinds[: kinds.index("BAR", first)]
    assert not any(kind.startswith("LDG") for kind in tile[first:])
    # 16 rows of Δ, and F, of which the codes are stored by four; and rows of G before them
    samples = SAMPLES[factor]
    assert count_of(tile, "STG") == 16 * samples + (0 if factor == "codes" else 16)
    assert count_of(tile, "STG.128") == (4 * samples if factor == "codes" else 0)
    assert count_of(tile, "LDG.128") > 0


def count_of(kinds, kind):
    return sum(each == kind for each in kinds)


@pytest.mark.compiles
@pytest.mark.parametrize(("factor", "precision"), CASES)
def test_earlier_concepts_are_subtracted_eight_at_once(factor, precision):
    loop = loop_of(sweep(factor, precision).code, "FFMA")
    assert count(loop, "FFMA") == hals.UNROLL * hals.ROWS * SAMPLES[factor]
    # four numbers of G at once
    assert count(loop, "LDG.128") == hals.UNROLL * hals.ROWS // 4
    # and nothing else goes through memory, nor the stack
    assert count(loop, "STG", "STG.128", "STL", "LDL") == 0


@pytest.mark.compiles
def test_tensor_cores_get_delta_by_wide_copies_that_run_during_the_product():
    loop = loop_of(sweep("codes", "high").code, "HMMA")
    assert count(loop, "LDGSTS.128") > 0
    assert count(loop, "LDGSTS") == 0
    assert sass.copies_in_flight(loop)


@pytest.mark.compiles
@pytest.mark.parametrize(("factor", "precision"), CASES)
def test_all_samples_of_the_benchmark_are_swept_at_once(factor, precision):
    found = sweep(factor, precision)
    samples = MANY[0] if factor == "codes" else MANY[1]
    *_, registers = next(tile for least, *tile in hals.TILES[4] if samples >= least)
    assert found.code.registers <= registers
    assert found.waves <= 1
    # as many multiprocessors as there are, as far as there are samples for eight a program
    assert found.launch.programs[0] >= min(MULTIPROCESSORS, samples // 8)


def block_and_sweep(K, m, codes):
    """Calls of both launchers, with the codes (m × K) or with the dictionary."""
    F, C = (empty(m, K).T if codes else empty(K, m) for _ in range(2))
    G, sums = empty(K, K), empty(2, dtype=torch.float64)
    yield lambda: hals.hals_block_(F, empty(K, m), G, empty(K, m), sums)
    yield lambda: hals.hals_sweep_(F, C, G, sums, 2)


def variants(sizes):
    found = set()
    for precision in ("highest", "high"):
        for K, m, codes in sizes:
            for call in block_and_sweep(K, m, codes):
                found |= {launch.variant for launch in launches(call, precision, H100)}
    return [each for each in found if each.kernel.startswith("_hals")]


def test_the_checks_on_a_gpu_compile_twelve_variants():
    """The shapes and orders of bench/support/gpu_checks.py, in both precisions."""
    codes = [(10, 63_701, True), (131, 5_003, True), (1024, 20_000, True)]
    dictionary = [(K, 768, False) for K, *_ in codes]
    assert len(variants(codes + dictionary)) == 12


def test_sizes_and_strides_alone_do_not_make_variants():
    sizes = [(512, 8_000, True), (1024, 100_000, True), (80, 4_100, True)]
    assert len(variants(sizes)) == len(variants(sizes[:1])) == 3
