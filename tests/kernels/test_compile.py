"""Every Triton kernel as it is shipped, compiled for the GPUs it is meant for; no GPU is needed."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

import sass  # noqa: E402
from fastnmf.kernels import ahead  # noqa: E402
from launched import SHARED, built, calls, in_tf32, launches, names  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

pytestmark = pytest.mark.compiles
# what makes products of tiles, and is launched beside it
PRODUCTS = ("_mu_", "_pgd_")
BESIDE = ("_add_partials_kernel", "_pack_kernel")


def check(name, precision, each):
    code, kernel = each.code, each.launch.variant.kernel
    assert code.stack <= 64
    assert each.shared <= SHARED[each.capability]
    assert each.resident >= 1
    if kernel in BESIDE:
        return
    # 10 adjacent numbers do not allow loads of four
    if "few" not in name:
        assert code.count("LDG.128", "LDGSTS.128") > 0
    if kernel.startswith(PRODUCTS):
        # X in 16 bits goes through registers
        narrow = "16-bit" in name and precision == "highest"
        flying = [sass.copies_in_flight(loop) for loop in code.loops]
        assert {True} == {*flying} - {None} or narrow
    if "round" in name:
        assert code.count("STG.128") > 0
    if "hals" in name:
        # of the two norms at the very end: five in a warp, two between four warps. The dictionary
        # adds the sums of 16 threads, of which four are in a warp: two for each of 16 concepts
        assert code.count("SHFL") <= 2 * 7 + (64 if "dictionary" in name else 0)
    # hals takes them for many samples in full tiles of concepts
    if precision == "high" and name not in ("hals_block dictionary", "few hals_block codes"):
        assert code.count("HGMMA", "HMMA") > 0


PRECISIONS = [(name, "highest") for name in names()]
PRECISIONS += [(name, "high") for name in names() if in_tf32(name)]


# half of them for one card, half for the other
CARDS = [
    pytest.param(name, precision, card, marks=[pytest.mark.thorough] * ((i + j) % 2))
    for i, (name, precision) in enumerate(PRECISIONS)
    for j, card in enumerate(sorted(SHARED, reverse=True))
]


@pytest.mark.parametrize(("name", "precision", "capability"), CARDS)
def test_kernel_fits_the_card(name, precision, capability):
    for each in built(calls()[name], precision, capability):
        check(name, precision, each)


WIDE = [each for each in names() if "16-bit" not in each and "round" not in each]
IN_FLOAT64 = [
    pytest.param(name, marks=[pytest.mark.thorough] * (i % 3 > 0)) for i, name in enumerate(WIDE)
]


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_kernel_compiles_in_float64(name):
    for each in built(calls(torch.float64)[name], "highest", 90):
        assert each.code.stack <= 64
        assert each.shared <= SHARED[90]


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("name", ["hals_block codes", "mu_residual codes", "pgd_residual codes"])
def test_kernel_compiles_for_an_amd_gpu(name, precision, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    target = GPUTarget("hip", "gfx942", 64)
    for launch in launches(calls()[name], precision, target):
        assert ahead.compiled(launch.variant, target).metadata.shared <= 65536


def test_operands_that_are_packed_go_to_the_tensor_cores_from_shared_memory():
    """No step of the loop waits for the products that it starts, and none rounds."""
    for name in ("mu_residual codes", "pgd_residual codes"):
        *_, each = (
            e for e in built(calls()[name], "high", 90) if e.launch.variant.kernel not in BESIDE
        )
        (loop,) = (loop for loop in each.code.loops if any(i.kind == "HGMMA" for i in loop))
        waits = [i.operands for i in loop if i.name.startswith("WARPGROUP.DEPBAR")]
        products = 2 if "mu" in name else 1
        assert waits == [f"gsb0, 0x{products}"]
        assert not any(i.kind in ("LDSM", "STS", "STS.128", "LOP3", "VIADD") for i in loop)
