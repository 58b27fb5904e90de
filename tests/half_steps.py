"""Iterations of fastnmf's own loop from a given start, for comparison with the oracle."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
import torch

from fastnmf.backends.registry import BACKENDS, select
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.codes import CodesStep
from fastnmf.engine.history import History
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.planning.plan import Plan
from fastnmf.precision import products_in
from fastnmf.solvers import half_step
from fastnmf.solvers.constraints import NON_NEGATIVE
from fastnmf.solvers.penalties import NO_PENALTIES
from fastnmf.solvers.registry import SOLVERS, solvers_of

BACKEND_NAMES = [name for name, backend in BACKENDS.items() if backend.probe() is None]
DTYPES = [torch.float32, torch.float64]
FORMS = ["normal", "residual"]
# small blocks and tiles, so that small problems have several of each
BLOCK, TILE_ROWS = 16, 11
# n, d, K, kind of the problem (oracle.problem), form, dtype
CASES = [
    # a single row, feature, concept
    (1, 7, 3, "plain", "normal", torch.float32),
    (1, 7, 3, "plain", "residual", torch.float64),
    (5, 1, 2, "zero_rows", "normal", torch.float64),
    (5, 1, 2, "duplicates", "residual", torch.float32),
    (9, 6, 1, "plain", "normal", torch.float32),
    (9, 6, 1, "zero_codes", "residual", torch.float64),
    # one block of concepts in three tiles, the last one narrower
    (23, 17, 5, "zero_rows", "normal", torch.float32),
    (23, 17, 5, "zero_concepts", "normal", torch.float64),
    (23, 17, 5, "duplicates", "residual", torch.float32),
    # a whole block, and one concept more
    (24, 31, BLOCK, "zero_codes", "normal", torch.float64),
    (24, 31, BLOCK + 1, "plain", "normal", torch.float64),
    (24, 31, BLOCK + 1, "zero_rows", "residual", torch.float64),
    # n < K < d: A is fitted exactly
    (7, 33, 20, "zero_concepts", "normal", torch.float32),
    (7, 33, 20, "plain", "residual", torch.float64),
    # d < K < n: G has not full rank
    (40, 13, 37, "zero_concepts", "residual", torch.float32),
    (40, 13, 37, "duplicates", "normal", torch.float64),
    # many blocks, K > n
    (65, 40, 131, "plain", "normal", torch.float32),
    (65, 40, 131, "zero_codes", "residual", torch.float64),
]


def case_name(value):
    return dtype_name(value) if isinstance(value, torch.dtype) else str(value)


EVERY_CASE = pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), CASES, ids=case_name)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def operations_of(solver):
    """The names of all operations of a solver that a backend may supply."""
    return *SOLVERS[solver].operations, *SOLVERS[solver].fused


def supplies(backend, solver):
    return bool(set(operations_of(solver)) & set(BACKENDS[backend].operations))


def backends_of(solver):
    """The backends usable here that supply operations of this solver."""
    return [name for name in BACKEND_NAMES if supplies(name, solver)]


def method_of(
    solver, device="cpu", backend="torch", penalties=NO_PENALTIES, constraint=NON_NEGATIVE
):
    name, ops = select(operations_of(solver), torch.device(device), backend)
    record = solvers_of(constraint)[solver]
    return Method(record, name, ops, penalties=penalties, constraint=constraint)


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
    fixed_dictionary=False,
    backend="torch",
    wide=False,
    penalties=NO_PENALTIES,
    constraint=NON_NEGATIVE,
):
    """(Z, D, State) after iterations on copies of arrays, all half-steps in this form.

    fixed_dictionary: whether only the codes are updated. wide: A is a view of wider rows.
    """
    A, Z, D = (torch.tensor(np.asarray(M), dtype=dtype).contiguous() for M in (A, Z, D))
    A = strided(A) if wide else A
    plan = Plan(form, form, min(BLOCK, D.shape[0]), TILE_ROWS, 0.0)
    state, method = (
        State(InMemory(Z), D),
        method_of(solver, A.device, backend, penalties, constraint),
    )
    # tiles are read as they are however few their rows
    with mock.patch.object(half_step, "LEAST_ROWS", 0):
        if fixed_dictionary:
            _update_codes_(state, A, method, plan, iterations)
        else:
            factorize_(state, Data(A), method, plan, Stopping(iterations, 0.0))
    return Z.numpy(), D.numpy(), state


def _update_codes_(state, A, method, plan, iterations):
    with products_in("highest"):
        step, history = (
            CodesStep(state, A, method, plan, "highest"),
            History(state, 0.0, learns=False),
        )
        for iteration in range(1, iterations + 1):
            step()
            history.add(iteration, step.sums, watched=False)
        history.read()
