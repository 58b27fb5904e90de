"""Fits on a pretended CUDA device: pretend_cuda/, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import build
from interpreted import assert_passes

HERE = Path(__file__).parent


def test_fits_are_right_on_a_pretended_device():
    assert_passes(HERE, "not compiles", ["pretend_cuda"])


@pytest.mark.thorough
def test_all_kinds_of_fits_are_right_on_a_pretended_device(once):
    built = once("emulated", build)
    assert_passes(HERE, "compiles", ["pretend_cuda"], EMULATED_CUDA=str(built))
