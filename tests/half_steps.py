"""Run fastnmf's own loop from a given start, for comparison with the oracle; what several tests
need: a model saved and loaded, GCC for tests in C++."""

from __future__ import annotations

import io
import shutil
import subprocess
from unittest import mock

import numpy as np
import pytest
import torch

from fastnmf.backends.registry import BACKENDS, select
from fastnmf.data.arrays import Rows
from fastnmf.engine.loop import factorize_
from fastnmf.planning import plan
from fastnmf.solvers import half_step as sweeps
from fastnmf.solvers.penalties import NO_PENALTIES
from fastnmf.solvers.registry import SOLVERS

BACKEND_NAMES = [name for name, backend in BACKENDS.items() if backend.probe() is None]
DTYPES = [torch.float32, torch.float64]
# small blocks and pieces, so that small problems have several of each
BLOCK, PIECE_ROWS = 16, 11


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def supplies(backend, solver):
    needed = {*SOLVERS[solver].operations, *SOLVERS[solver].fused}
    return bool(needed & set(BACKENDS[backend].operations))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def strided(A):
    """The same numbers as a view of wider rows, NaN around them."""
    wide = A.new_full((A.shape[0], A.shape[1] + 5), torch.nan)
    wide[:, 2:-3] = A
    return wide[:, 2:-3]


def iterate(
    solver,
    A,
    Z,
    D,
    *,
    form,
    dtype,
    iterations=1,
    learn=True,
    backend="torch",
    wide=False,
    penalties=NO_PENALTIES,
):
    """(Z, D, outcome) of so many iterations of factorize_ on copies of arrays, in this form.

    wide: A is a view of wider rows.
    """
    A, Z, D = (torch.tensor(np.asarray(M), dtype=dtype).contiguous() for M in (A, Z, D))
    A = strided(A) if wide else A
    chosen = plan.Plan(form, form, min(BLOCK, D.shape[0]), PIECE_ROWS, 0.0)
    _, ops = select(solver, A.device, backend)
    # however few rows there are
    with mock.patch.object(sweeps, "LEAST_ROWS", 0):
        outcome = factorize_(
            Z,
            D,
            Rows(A),
            solver=solver,
            ops=ops,
            plan=chosen,
            max_iter=iterations,
            tol=0,
            learn=learn,
            penalties=penalties,
        )
    return Z.numpy(), D.numpy(), outcome


def gcc(*arguments):
    """Run GCC; another compiler does not know what the sources' attributes mean on the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return subprocess.Popen(["g++", "-std=c++17", "-O1", "-fopenmp-simd", "-Wall", *arguments])
