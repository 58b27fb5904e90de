"""How many kernels the checks of bench/studies/gpu.py compile. Nothing is launched or compiled."""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted are not compiled", allow_module_level=True)

from fastnmf.kernels import ahead  # noqa: E402
from launched import empty, normal_calls  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from fastnmf.solvers.pgd import GradientStep  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from support import gpu_compile  # noqa: E402
from support.gpu_sizes import FULL  # noqa: E402

SM_90 = GPUTarget("cuda", 90, 32)


def of_fits():
    """The launches of the fits whose graphs are checked: in normal form, with penalties or not."""
    (n, d, K), *_ = FULL.graphs
    sums, length = empty(3, dtype=torch.float64), empty()

    def to(F, last=True):
        return GradientStep(F, F, F, length, 0.5, sums if last else None)

    return list(normal_calls(empty(n, K).T, empty(K, d), empty(K, K), to, sums).values())


@pytest.fixture(scope="module")
def variants():
    return ahead.variants([*gpu_compile.calls(FULL), *of_fits()], SM_90)


def test_all_checks_compile_at_most_30_kernels(variants):
    counted = collections.Counter(variant.kernel for variant in variants)
    assert len(variants) <= 30, counted


def test_mu_and_pgd_have_as_many_kernels_as_they_need(variants):
    """Those of packed operands serve any size and layout: in float32, and in tf32 with rows that
    are aligned or not; those in place are for either precision, those of normal form for lengths
    that 16 divides or not."""
    counted = collections.Counter(variant.kernel for variant in variants)
    for solver in ("mu", "pgd"):
        assert counted[f"_{solver}_packed_kernel"] == 3
        assert counted[f"_{solver}_residual_kernel"] == 2
        assert counted[f"_{solver}_normal_kernel"] == 2
    assert counted["_pack_kernel"] == counted["_add_partials_kernel"] == 1


def test_multiplications_and_additions_are_fused_whatever_the_default_is(monkeypatch):
    """Which is no from Triton 3.10 on."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    found = ahead.variants([*gpu_compile.calls(FULL), *of_fits()], SM_90)
    given = {
        each.kernel: json.loads(each.launched_as)["options"]
        for each in found
        if "hals" not in each.kernel
    }
    assert {name for name, options in given.items() if not options["enable_fp_fusion"]} == set()
