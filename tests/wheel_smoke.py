"""Check a fastnmf that was installed from a wheel: `python -I wheel_smoke.py compiled`, or `plain`
for the wheel without compiled code.

Needs neither the sources nor pytest, and is run where there is no compiler."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import fastnmf
from fastnmf import NMF, SemiNMF, nnls


def usable() -> list[str]:
    return [backend.name for backend in fastnmf.available_backends() if backend.reason is None]


def installed(compiled: bool) -> None:
    package = Path(fastnmf.__file__).parent
    assert not (package.parent / "setup.py").exists(), f"{package} is in the source tree"
    assert fastnmf.__version__ == importlib.metadata.version("fastnmf")
    assert (package / "py.typed").exists()
    assert (package / "kernels").is_dir()
    assert bool(list(package.glob("_C.*"))) == compiled
    assert ("cpp" in usable()) == compiled, fastnmf.available_backends()


def computes() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(300, 8, generator=generator) @ torch.rand(8, 40, generator=generator)
    for model in (NMF(8, seed=0, tol=0), SemiNMF(8, seed=0, tol=0)):
        Z, D = model.fit(A, max_iter=300)
        assert float((A - Z @ D).norm() / A.norm()) < 0.02, model.fit_info_
    model = NMF(8, seed=0, tol=0, max_iter=20, init="random", accelerate=False)
    plain = NMF(8, seed=0, tol=0, max_iter=20, init="random", accelerate=False, backend="torch")
    for mine, its in zip(model.fit(A), plain.fit(A), strict=True):
        assert torch.allclose(mine, its, rtol=1e-2, atol=1e-4)
    Z = model.encode(A[:50])
    assert torch.allclose(nnls(A[:50], model.D), Z, rtol=1e-4, atol=1e-5)
    assert torch.allclose(nnls(A[:50], model.D, backend="torch"), Z, rtol=1e-4, atol=1e-5)


def runs() -> None:
    """The command, beside the python that runs this."""
    command = shutil.which("fastnmf", path=str(Path(sys.executable).parent))
    assert command, f"no command fastnmf beside {sys.executable}"
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "A.npy"), np.random.default_rng(0).random((60, 12), np.float32))
        fit = [command, "fit", "A.npy", "-k", "3", "-o", "m.safetensors"]
        for arguments in ([command, "info"], fit):
            subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        assert Path(folder, "m.safetensors").exists()


if __name__ == "__main__":
    kinds = {"compiled": True, "plain": False}
    if sys.argv[1:] not in [[kind] for kind in kinds]:
        sys.exit(f"give one of {', '.join(kinds)}")
    installed(kinds[sys.argv[1]])
    computes()
    runs()
    print(f"fastnmf {fastnmf.__version__} works: {', '.join(usable())}")
