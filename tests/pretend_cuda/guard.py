"""A guard of CUDA devices, for a torch that is built without CUDA."""

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
    """Let torch make CUDA devices current, which does nothing (guard.cpp).

    A torch that is built for CUDA and finds no device has such a guard already. It must be there
    before the first gradient is computed, which starts a thread for each device.
    """
    torch._C._ensureCUDADeviceGuardSet()
    if torch.version.cuda is not None:
        return
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    flags = ["-fPIC", "-shared", abi, f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10"]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/guard.so"
        assert gcc(str(HERE / "guard.cpp"), *flags, "-o", path).wait() == 0
        ctypes.CDLL(path).set_guard()
