"""Kernels compiled ahead: what a launch needs is in Triton's cache, and nothing is launched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

from fastnmf.kernels import ahead, mu  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

H100 = GPUTarget("cuda", 90, 32)


def empty(*shape):
    return torch.empty(shape, device="meta")


def update(K=16, m=32, dtype=torch.float32):
    F, G, sums = empty(K, m).to(dtype), empty(K, K).to(dtype), empty(3).double()
    return lambda: mu.mu_normal_(F, F, G, F, sums)


def test_what_is_launched_twice_is_one_variant():
    once = ahead.variants([update()], H100)
    assert [variant.kernel for variant in once] == ["_mu_normal_kernel", "_add_partials_kernel"]
    assert ahead.variants([update(), update(64, 96)], H100) == once


@pytest.mark.compiles
def test_what_was_compiled_in_this_process_is_still_found():
    once = ahead.variants([update()], H100)
    for variant in once:
        ahead.compiled(variant, H100)
    assert ahead.variants([update()], H100) == once


def test_another_dtype_is_another_variant():
    both = ahead.variants([update(), update(dtype=torch.float64)], H100)
    assert len(both) == 4


def test_nothing_that_was_recorded_stays_changed():
    def fails():
        raise ZeroDivisionError

    hook, driver = triton.knobs.runtime.jit_cache_hook, triton.runtime.driver._active
    with pytest.raises(ZeroDivisionError):
        ahead.variants([fails], H100)
    assert triton.knobs.runtime.jit_cache_hook is hook
    assert triton.runtime.driver._active is driver


def test_a_variant_is_shown_by_its_constants():
    name = str(ahead.variants([update()], H100)[1])
    assert name == "_add_partials_kernel(BLOCK=512)"


COMPILED_AHEAD = """
import os, triton
from test_ahead import H100, ahead, update
if __name__ == "__main__":
    seconds = ahead.compile_ahead([update()], 2, H100)
    assert all(0 < each for each in seconds.values()) and len(seconds) == 2
    before = set(os.listdir(os.environ["TRITON_CACHE_DIR"]))
    run = triton.runtime.jit.JITFunction.run
    def compiles(kernel, *given, grid, warmup, **options):
        return run(kernel, *given, grid=grid, warmup=True, **options)
    triton.runtime.jit.JITFunction.run = compiles
    with ahead._without_device(H100, "launched"):
        update()()
    assert set(os.listdir(os.environ["TRITON_CACHE_DIR"])) == before and before
"""


@pytest.mark.compiles
def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    """By Triton's own rules: a launch that compiles, as far as it can without a GPU, adds nothing
    to the cache."""
    program = tmp_path / "program.py"
    program.write_text(COMPILED_AHEAD)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    subprocess.run([sys.executable, program], env=environment, check=True)
