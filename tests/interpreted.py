"""Tests that run in Triton's interpreter, in a process of their own, since whether kernels are
interpreted is decided when they are defined."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def assert_passes(folder: Path, marked: str, arguments: list[str], **variables: str) -> None:
    """Run pytest on these arguments in a folder, with these variables in its environment; skips
    where the interpreter does not work."""
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-rs"]
    ran = subprocess.run(
        [*command, "-m", marked, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if unusable := re.search(r"SKIPPED.*(the interpreter of Triton .*)", ran.stdout):
        pytest.skip(unusable[1])
