"""The Triton kernels in Triton's interpreter: interpreted/, in a process of their own, for how
kernels run is settled when they are defined."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "marked", ["not compiles", pytest.param("compiles", marks=pytest.mark.compiles)]
)
def test_kernels_compute_in_the_interpreter_what_the_reference_does(marked):
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-rs"]
    command += ["-m", marked, "interpreted"]
    ran = subprocess.run(
        command, cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if unusable := re.search(r"SKIPPED.*(the interpreter of Triton .*)", ran.stdout):
        pytest.skip(unusable[1])
