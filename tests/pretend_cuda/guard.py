"""A guard of CUDA devices: what torch calls to find the current one, and to make one current."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import torch
from compilers import gcc

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent


@functools.cache
def set_guard() -> None:
    """Let torch find one CUDA device, `cuda:0`, which is current (guard.cpp).

    A torch that is built without CUDA has no guard; that of one that finds no device says that the
    current device has no number, so that "cuda" is another than "cuda:0".
    """
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    flags = ["-fPIC", "-shared", abi, f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10"]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/guard.so"
        assert gcc(str(HERE / "guard.cpp"), *flags, "-o", path).wait() == 0
        ctypes.CDLL(path).set_guard()
