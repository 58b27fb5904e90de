"""Run fastnmf's own loop from a given start, for comparison with the oracle."""

from __future__ import annotations

import numpy as np
import torch

from fastnmf import plan
from fastnmf.backends import BACKENDS, select
from fastnmf.engine import factorize_
from fastnmf.rows import Rows
from fastnmf.solvers import SOLVERS

BACKEND_NAMES = [name for name, backend in BACKENDS.items() if backend.probe() is None]
DTYPES = [torch.float32, torch.float64]
# small blocks and pieces, so that small problems have several of each
BLOCK, PIECE_ROWS = 16, 11


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def supplies(backend, solver):
    return bool(set(SOLVERS[solver].operations) & set(BACKENDS[backend].operations))


def strided(array):
    """The same numbers as a view of a larger array, every second column of it."""
    wide = np.full((array.shape[0], 2 * array.shape[1] + 3), np.nan)
    wide[:, 1 : 2 * array.shape[1] + 1 : 2] = array
    return torch.from_numpy(wide)[:, 1 : 2 * array.shape[1] + 1 : 2]


def iterate(
    solver, A, Z, D, *, form, dtype, iterations=1, learn=True, backend="torch", plan_for=None
):
    """(Z, D) after so many iterations of factorize_ on copies of float64 arrays, in this form and
    dtype."""
    A, Z, D = (torch.tensor(np.asarray(M), dtype=dtype).contiguous() for M in (A, Z, D))
    K = D.shape[0]
    chosen = plan_for or plan.Plan(form, form, min(BLOCK, K), PIECE_ROWS, 0.0)
    _, ops = select(solver, A.device, backend)
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
    )
    return Z.numpy(), D.numpy(), outcome
