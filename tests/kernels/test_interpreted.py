"""The Triton kernels in Triton's interpreter: interpreted/, in a process of its own, since whether
kernels are interpreted is decided when they are defined."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# in two parts, which run side by side
EACH_KERNEL = "interpreted/test_each_kernel.py"
PARTS = {"each kernel": [EACH_KERNEL], "fits": ["interpreted", f"--ignore={EACH_KERNEL}"]}


def assert_passes(marked, arguments):
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-rs"]
    ran = subprocess.run(
        [*command, "-m", marked, *arguments],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if unusable := re.search(r"SKIPPED.*(the interpreter of Triton .*)", ran.stdout):
        pytest.skip(unusable[1])


@pytest.mark.parametrize("part", PARTS)
def test_kernels_compute_in_the_interpreter_what_the_reference_does(part):
    assert_passes("not compiles", PARTS[part])


@pytest.mark.compiles
def test_what_is_slow_to_interpret_passes_too():
    assert_passes("compiles", ["interpreted"])
