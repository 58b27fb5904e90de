"""The Triton kernels in Triton's interpreter: tests/interpreted, in a process of their own."""

from __future__ import annotations


def test_kernels_compute_in_the_interpreter_what_the_reference_does(interpreted):
    told, _ = interpreted.communicate()
    assert interpreted.returncode == 0, told.decode(errors="replace")
