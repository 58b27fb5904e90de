"""Every Triton kernel as it is shipped, compiled for the GPUs it is meant for; no GPU is needed.

The launchers are called with tensors without memory, and what they would have launched is compiled
by Triton's own rules: an argument that is 1 is a constant, one that 16 divides is known to be.
"""

from __future__ import annotations

import collections
import functools
import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastnmf.precision import products_in  # noqa: E402
from fastnmf.solvers.pgd import GradientStep  # noqa: E402

pytestmark = pytest.mark.compiles

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes of shared memory that one program may take
SHARED = {80: 163 << 10, 90: 227 << 10}
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bool: "*i1"}
TYPES |= {torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def hals_block(op, F, s, m):
    return lambda: op(F, empty(s, m, dtype=F.dtype), empty(s, s, dtype=F.dtype),
                      empty(s, m, dtype=F.dtype), empty(3, dtype=torch.float64))  # fmt: skip


def calls(dtype=torch.float32):
    """Name → a call of a launcher, with the layouts of the codes (n × K) or the dictionary."""
    hals, mu, pgd = (importlib.import_module(f"fastnmf.kernels.{n}") for n in ("hals", "mu", "pgd"))
    n, d, K, few = 32_768, 768, 1024, 10
    new = functools.partial(empty, dtype=dtype)
    sums = empty(3, dtype=torch.float64)
    Zt, D, A, G = new(n, K).T, new(K, d), new(n, d), new(K, K)
    step, penalty = new(), (0.5, new(K, 1))
    # the widest block that a plan takes
    codes, dictionary = (hals_block(hals.hals_block_, F, K, F.shape[1]) for F in (Zt, D))
    return {
        "hals_block codes": codes,
        "hals_block dictionary": dictionary,
        "hals_sweep codes": lambda: hals.hals_sweep_(
            new(n, 64).T, new(n, 64).T, new(64, 64), sums
        ),
        "hals_sweep few codes": lambda: hals.hals_sweep_(
            new(n, few).T, new(n, few).T, new(few, few), sums, 3
        ),
        "hals_sweep dictionary": lambda: hals.hals_sweep_(
            new(64, d), new(64, d), new(64, 64), sums
        ),
        "mu_residual codes": lambda: mu.mu_residual_(Zt, A, A, D, sums),
        "mu_residual dictionary": lambda: mu.mu_residual_(D, A.T, A.T, Zt, sums),
        "16-bit mu_residual codes": lambda: mu.mu_residual_(Zt, A.bfloat16(), A, D, sums),
        "16-bit mu_residual dictionary": lambda: mu.mu_residual_(D, A.half().T, A.T, Zt, sums),
        "16-bit penalised mu_residual codes": lambda: mu.mu_residual_(
            Zt, A.half(), A, D, sums, *penalty
        ),
        "16-bit penalised mu_residual dictionary": lambda: mu.mu_residual_(
            D, A.bfloat16().T, A.T, Zt, sums, *penalty
        ),
        "penalised mu_residual codes": lambda: mu.mu_residual_(Zt, A, A, D, sums, *penalty),
        "penalised mu_residual dictionary": lambda: mu.mu_residual_(
            D, A.T, A.T, Zt, sums, *penalty
        ),
        "mu_normal codes": lambda: mu.mu_normal_(Zt, Zt, G, Zt, sums),
        "penalised mu_normal codes": lambda: mu.mu_normal_(Zt, Zt, G, Zt, sums, 0.5),
        "pgd_residual codes": lambda: pgd.pgd_residual_(
            Zt, Zt, A, D, GradientStep(Zt, Zt, Zt, step, 0.5, sums)
        ),
        "pgd_residual dictionary": lambda: pgd.pgd_residual_(
            D, D, A.T, Zt, GradientStep(D, D, D, step, 0.5, None)
        ),
        "penalised pgd_residual codes": lambda: pgd.pgd_residual_(
            Zt, Zt, A, D, GradientStep(Zt, Zt, Zt, step, 0.5, sums), *penalty
        ),
        "penalised pgd_residual dictionary": lambda: pgd.pgd_residual_(
            D, D, A.T, Zt, GradientStep(D, D, D, step, 0.5, None), *penalty
        ),
        "pgd_normal codes": lambda: pgd.pgd_normal_(
            Zt, Zt, Zt, G, GradientStep(Zt, Zt, Zt, step, 0.5, sums)
        ),
    }  # fmt: skip


NAMES = list(calls()) if importlib.util.find_spec("fastnmf.kernels") else []
IN_TF32 = [name for name in NAMES if "block" in name or "residual" in name]


def launches(call, monkeypatch):
    """(kernel, arguments, options) of every launch that the call would make."""
    seen = []

    def record(kernel, *given, grid, warmup, **options):
        seen.append((kernel, given, options))

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", record)
    call()
    monkeypatch.undo()
    return seen


def compiled(kernel, given, options, target):
    constants, types, attributes = {}, {}, {}
    given = dict(zip(kernel.arg_names, given, strict=False))
    for index, name in enumerate(kernel.arg_names):
        value = given.get(name, options.get(name))
        if name not in given or (isinstance(value, int) and value == 1):
            constants[name], types[name] = value, "constexpr"
            continue
        whole = isinstance(value, int)
        types[name] = ("i32" if value < 2**31 else "i64") if whole else TYPES[value.dtype]
        if value % 16 == 0 if whole else value.data_ptr() % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {key: value for key, value in options.items() if key.startswith("num_")}
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def instructions(cubin, folder):
    """How often every instruction occurs, with its width; and the bytes of the stack."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    text, usage = (
        subprocess.run([BINARIES / tool, flag, file], capture_output=True, text=True).stdout
        for tool, flag in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
    )
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    counted = collections.Counter()
    for name in found:
        wide = ".128" if ".128" in name else ""
        counted[name.split(".")[0] + wide] += 1
    return counted, int(re.search(r"STACK:(\d+)", usage)[1])


def check_on_nvidia(name, capability, tf32, kernel, given, options, folder):
    built = compiled(kernel, given, options, GPUTarget("cuda", capability, 32))
    counted, stack = instructions(built.asm["cubin"], folder)
    assert stack <= 64
    assert built.metadata.shared <= SHARED[capability]
    if kernel.__name__ == "_add_partials_kernel":
        return
    # what concepts are read by is as wide as 10 adjacent numbers allow
    if "few" not in name:
        assert counted["LDG.128"] + counted["LDGSTS.128"] > 0
    if "hals" in name:
        # of the two norms at the very end: five in a warp, two between four warps. A single warp
        # moves what the tensor cores made by shuffles, 32 numbers by two each, once in 64 concepts
        # and before they are swept: the sweep itself, the same with and without, has none
        assert counted["SHFL"] <= 2 * 7 + (64 if tf32 else 0)
    if tf32:
        assert counted["HGMMA"] + counted["HMMA"] > 0


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "highest") for name in NAMES] + [(name, "high") for name in IN_TF32],
)
def test_kernel_fits_the_card(name, precision, capability, monkeypatch, tmp_path):
    with products_in(precision):
        found = launches(calls()[name], monkeypatch)
    for launch in found:
        check_on_nvidia(name, capability, precision == "high", *launch, tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if "16-bit" not in name])
def test_kernel_compiles_in_float64(name, monkeypatch, tmp_path):
    (kernel, given, options), *_ = launches(calls(torch.float64)[name], monkeypatch)
    built = compiled(kernel, given, options, GPUTarget("cuda", 90, 32))
    assert instructions(built.asm["cubin"], tmp_path)[1] <= 64
    assert built.metadata.shared <= SHARED[90]


@pytest.mark.parametrize("name", ["hals_block codes", "mu_residual codes", "pgd_residual codes"])
def test_kernel_compiles_for_an_amd_gpu(name, monkeypatch):
    (kernel, given, options), *_ = launches(calls()[name], monkeypatch)
    assert compiled(kernel, given, options, GPUTarget("hip", "gfx942", 64)).metadata.shared <= 65536
