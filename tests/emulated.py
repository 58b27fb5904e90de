"""The extension for CUDA without a GPU: compiled for the CPU, where one thread runs all lanes in
turn (emulated_cuda), and put in the place of the backend `cuda`. It shows no timing."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compilers import gcc

import fastnmf
from fastnmf.backends.registry import BACKENDS, _load

TESTS = Path(__file__).parent
SOURCES = TESTS.parent / "csrc" / "cuda"


class Emulated:
    """The extension, compiled for the CPU, and the device that is emulated."""

    def __init__(self, path):
        # by another name: pybind11 loads a name once
        place = importlib.util.spec_from_file_location("emulated._cuda", path)
        self.module = importlib.util.module_from_spec(place)
        place.loader.exec_module(self.module)
        self.library = ctypes.CDLL(str(path))
        self.library.emulated_setting.restype = ctypes.c_long
        self.library.emulate.argtypes = (ctypes.c_char_p, ctypes.c_long)
        self.most = 1 << 20
        self["launches"] = 0

    def __setitem__(self, name, value):
        self.library.emulate(name.encode(), value)

    def __getitem__(self, name):
        return self.library.emulated_setting(name.encode())

    def __delitem__(self, name):
        self.library.emulate_no(name.encode())


def build(folder: Path) -> None:
    """Compile the extension into folder / "_cuda.so"."""
    # torch brings pybind11's headers
    headers = [TESTS / "emulated_cuda", Path(torch.__file__).parent / "include"]
    headers = [f"-I{path}" for path in (*headers, sysconfig.get_path("include"))]
    # lanes are changed by longjmp, which hardened libraries take for a mistake
    flags = ["-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", *headers, "-x", "c++", "-c"]
    names = ("bindings.cpp", "nnls.cu")
    compilers = [gcc(*flags, str(SOURCES / name), "-o", f"{folder / name}.o") for name in names]
    assert [compiler.wait() for compiler in compilers] == [0, 0]
    objects = [f"{folder / name}.o" for name in names]
    assert gcc("-shared", *objects, "-o", str(folder / "_cuda.so")).wait() == 0


@contextlib.contextmanager
def installed(path: Path, device: str = "cpu") -> Iterator[Emulated]:
    """The extension at path as the backend `cuda`, on an emulated device: for tensors of the CPU,
    or those of a device that is pretended (pretend_cuda)."""
    found = Emulated(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fastnmf._cuda", found.module)
        patch.setattr(fastnmf, "_cuda", found.module, raising=False)
        patch.delitem(sys.modules, "fastnmf.backends.cuda", raising=False)
        cuda = importlib.import_module("fastnmf.backends.cuda")
        if device == "cpu":
            place = contextlib.contextmanager(lambda device: iter([(0, 4096, found.most)]))
            patch.setattr(cuda, "_place", place)
        here = dataclasses.replace(BACKENDS["cuda"], devices=(device,), probe=lambda: None)
        patch.setitem(BACKENDS, "cuda", here)
        _load.cache_clear()
        yield found
        for name, value in {"devices": 2, "current": 0, "ratio": 2, "shared": 8192}.items():
            found[name] = value
        _load.cache_clear()
        del sys.modules["fastnmf.backends.cuda"]
