"""Compilers that tests in C++ need."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def gcc(*arguments):
    """Start GCC; other compilers do not know the attributes in the sources on the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return subprocess.Popen(["g++", "-std=c++17", "-O1", "-fopenmp-simd", "-Wall", *arguments])
