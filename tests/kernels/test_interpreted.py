"""The Triton kernels in Triton's interpreter: interpreted/, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreted import assert_passes

HERE = Path(__file__).parent
# in two parts, which run side by side
EACH_KERNEL = "interpreted/test_each_kernel.py"
PARTS = {"each kernel": [EACH_KERNEL], "fits": ["interpreted", f"--ignore={EACH_KERNEL}"]}


@pytest.mark.parametrize("part", PARTS)
def test_kernels_compute_in_the_interpreter_what_the_reference_does(part):
    assert_passes(HERE, "not compiles", PARTS[part])


@pytest.mark.thorough
def test_what_is_slow_to_interpret_passes_too():
    assert_passes(HERE, "compiles", ["interpreted"])
