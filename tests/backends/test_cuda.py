"""The CUDA half of exact least squares without a GPU: compiled for the cards, its layout in memory,
and the message where it cannot be used. nnls/test_emulated.py runs it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compilers import gcc
from half_steps import operations_of

import fastnmf
from fastnmf import NMF, BackendUnavailable
from fastnmf.backends.registry import BACKENDS, _load, _probe_cuda, select

HERE = Path(__file__).parents[1]
SOURCE = HERE.parent / "csrc" / "cuda" / "nnls.cu"
# two for each warp or block and each arithmetic: float32, float64, and float32 data in float64
KERNELS = 6
# a block of 128 threads, five of them on a multiprocessor
MOST_REGISTERS = 168
MOST_SPILLED_BYTES = 64
MOST_STATIC_SHARED_BYTES = 64


@pytest.mark.compiles
@pytest.mark.thorough
@pytest.mark.parametrize("capability", [80, 90])
def test_row_solver_compiles_for_the_card(capability, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{capability}", "-Xptxas", "-v"]
    built = subprocess.run(
        [*command, "-c", str(SOURCE), "-o", str(tmp_path / "nnls.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    report = built.stderr
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", report)]
    shared = [int(count) for count in re.findall(r"(\d+) bytes smem", report)]
    assert len(registers) == KERNELS
    assert max(registers) <= MOST_REGISTERS
    assert max(spilled) <= MOST_SPILLED_BYTES
    assert max(shared, default=0) <= MOST_STATIC_SHARED_BYTES


def test_layout_keeps_all_vectors_separate_and_inside(tmp_path):
    program = tmp_path / "layout"
    assert gcc(str(HERE / "nnls_layout.cpp"), "-o", str(program)).wait() == 0
    ran = subprocess.run([program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_extension_imports_and_says_why_there_is_no_gpu(fresh):
    """With the runtime of CUDA linked in, neither a driver nor a device is needed to import it."""
    pytest.importorskip("fastnmf._cuda", reason="the extension for CUDA is not built")
    code = "import fastnmf._cuda as built; built.devices()"
    ran = fresh(code, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert ran.returncode == 1
    assert "RuntimeError: CUDA, count of devices: " in ran.stderr


def test_table_says_why_cuda_is_not_usable():
    backend, why = fastnmf.available_backends()["cuda"], _probe_cuda()
    assert backend.operations == ("nnls_", "nnls_on_")
    assert why is None or "is not installed" in why or "GPU" in why or "torch" in why
    assert why is None or f"no: {why}" in str(fastnmf.available_backends())


def test_missing_extension_gives_the_reason_that_was_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastnmf._cuda", None)
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "_cuda.missing")
    monkeypatch.setattr(Path, "read_text", lambda path: "nvcc was not found\n")
    reason = _probe_cuda.__wrapped__()
    assert reason == "the extension for CUDA is not installed (nvcc was not found)"


def test_cuda_is_refused_on_the_cpu_with_every_reason():
    model = NMF(3, solver="anls", backend="cuda")
    with pytest.raises(BackendUnavailable, match=r"computes on cuda, not on cpu.*torch: usable"):
        model.fit(torch.rand(9, 5))
    with pytest.raises(BackendUnavailable, match="does not supply hals_block_"):
        NMF(3, solver="hals", backend="cuda").fit(torch.rand(9, 5))


@pytest.mark.parametrize(
    ("solver", "works", "expected"),
    [
        ("anls", True, "cuda"),
        ("anls", False, "torch"),
        ("hals", True, "triton"),
        ("mu", True, "triton"),
        ("pgd", False, "triton"),
    ],
)
def test_anls_on_a_gpu_takes_cuda_and_the_others_triton(
    solver, works, expected, monkeypatch, caplog
):
    for name, works_here in (("cuda", works), ("triton", True)):
        reason = None if works_here else "no nvcc"
        there = dataclasses.replace(
            BACKENDS[name],
            devices=("cuda",),
            probe=lambda reason=reason: reason,
            load=lambda name=name: {"is": name},
        )
        monkeypatch.setitem(BACKENDS, name, there)
    _load.cache_clear()
    with caplog.at_level("INFO", logger="fastnmf.backends.registry"):
        name, ops = select(operations_of(solver), torch.device("cuda"), "auto")
    _load.cache_clear()
    assert name == expected
    assert ops.get("is", "torch") == expected
    assert works or solver != "anls" or "no nvcc" in caplog.text
