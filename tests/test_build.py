"""setup.py with compilers that fail: what is built without them, and the message."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compilers import gcc

ROOT = Path(__file__).parent.parent

FAKE_NVCC = {
    "broken": ("echo its licence ran out >&2; exit 1", "does not work: its licence ran out"),
    "old": ("echo 'Cuda compilation tools, release 11.2, V11.2.1'", "nvcc 11.2 is too old"),
    "failing": (
        "[ $1 = --version ] && echo 'release 13.0, V13.0.1' || exit 1",
        "nvcc failed, pip install -v shows why",
    ),
}


# a compiler that takes no time, and leaves what no linker reads
IDLE = 'while [ "$1" != -o ]; do shift; done; : > "$2"'
QUICK = 'exec g++ "$@" -O0'
# without the finder of an editable install, which would add what the copy lacks
INFO = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
from fastnmf.cli.main import main
sys.exit(main(["info"]))
"""


def build(folder, how, nvcc, cxx):
    """Build in a copy of the sources with an nvcc and a compiler of our own; (the process, the
    copy)."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    copy, tools = folder / "copy", folder / "tools"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.missing")
    for name in ("fastnmf", "csrc", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    tools.mkdir()
    # torch brings pybind11's headers
    headers = Path(torch.__file__).parent / "include"
    (tools / "pybind11.py").write_text(f"def get_include(): return {str(headers)!r}")
    for name, lines in (("nvcc", nvcc), ("cxx", cxx)):
        (tools / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tools / name).chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=copy,
        env={
            **os.environ,
            "FASTNMF_BUILD": how,
            "PYTHONPATH": str(tools),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "CXX": "cxx",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return ran, copy


@pytest.mark.parametrize("kind", FAKE_NVCC)
def test_required_cuda_that_fails_ends_the_build_with_the_reason(kind, tmp_path):
    script, reason = FAKE_NVCC[kind]
    ran, copy = build(tmp_path, "cuda", script, IDLE)
    assert ran.returncode != 0
    assert "FASTNMF_BUILD=cuda is not possible" in ran.stderr
    assert reason in ran.stderr
    assert not list(copy.glob("fastnmf/_cuda.*"))


@pytest.mark.compiles
@pytest.mark.parametrize("kind", ["failing"])
def test_an_nvcc_that_fails_leaves_out_the_cuda_half_only(kind, tmp_path):
    script, reason = FAKE_NVCC[kind]
    ran, copy = build(tmp_path, "auto", script, QUICK)
    assert ran.returncode == 0, ran.stderr
    assert "WITHOUT the solver for CUDA" in ran.stdout
    output = subprocess.run(
        [sys.executable, "-c", INFO],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"^cpp .* yes$", output, re.MULTILINE)
    assert re.search(rf"^cuda .* no: the extension for CUDA .*{reason}", output, re.MULTILINE)


@pytest.mark.compiles
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiled for AVX-512")
@pytest.mark.parametrize("kernels", ["hals", "moments", "nnls", "updates"])
def test_kernels_leave_no_code_that_the_linker_could_share(kernels, tmp_path):
    """Of a weak symbol one copy is kept, and that could be the one with AVX-512 in it."""
    source, built = ROOT / "csrc" / "cpu" / f"{kernels}.cpp", tmp_path / f"{kernels}.o"
    avx512 = [f"-mavx512{part}" for part in ("f", "vl", "dq", "bw")]
    flags = ["-O3", "-mavx2", "-mfma", *avx512, "-DFASTNMF_ISA=avx512", "-DFASTNMF_X86=1"]
    assert gcc(*flags, "-c", str(source), "-o", str(built)).wait() == 0
    symbols = subprocess.run(["nm", built], capture_output=True, text=True, check=True).stdout
    assert re.search(r" [RD] .*avx512.*float32", symbols)
    assert not re.findall(r" [WVu] .*", symbols)
