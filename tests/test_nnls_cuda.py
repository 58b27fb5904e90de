"""The CUDA source of the row solver compiles, and keeps to the registers; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "csrc" / "nnls_cuda.cu"
# two for each warp or block and each arithmetic: float32, float64, and float32 data in float64
KERNELS = 6
# a block of 128 threads, five of them on a multiprocessor
MOST_REGISTERS = 168
MOST_SPILLED_BYTES = 64
MOST_STATIC_SHARED_BYTES = 64


@pytest.mark.compiles
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
    told = built.stderr
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", told)]
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", told)]
    shared = [int(count) for count in re.findall(r"(\d+) bytes smem", told)]
    assert len(registers) == KERNELS
    assert max(registers) <= MOST_REGISTERS
    assert max(spilled) <= MOST_SPILLED_BYTES
    assert max(shared, default=0) <= MOST_STATIC_SHARED_BYTES
