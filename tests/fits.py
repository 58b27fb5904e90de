"""Models, data and starts that tests of several packages share."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from fastnmf import NMF, SemiNMF, Tuning
from fastnmf.backends.registry import select
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.init.start import start
from fastnmf.planning.plan import Plan
from fastnmf.solvers.penalties import NO_PENALTIES
from fastnmf.solvers.registry import SOLVERS

SOLVERS_AND_FORMS = [(name, form) for name, solver in SOLVERS.items() for form in solver.forms]


def nmf(nb_concepts, **options) -> NMF:
    """An NMF; fields of Tuning are given by name beside the constructor's options, and model='semi'
    for a SemiNMF."""
    names = [field.name for field in fields(Tuning) if field.name in options]
    tuning = Tuning(**{name: options.pop(name) for name in names}) if names else None
    kind = {"nmf": NMF, "semi": SemiNMF}[options.pop("model", "nmf")]
    return kind(nb_concepts, tuning=tuning, **options)


def method(solver, backend="torch", penalties=NO_PENALTIES, device="cpu") -> Method:
    """The Method of a solver by name."""
    record = SOLVERS[solver]
    backend, ops = select(record.operations + record.fused, torch.device(device), backend)
    return Method(record, backend, ops, penalties=penalties)


def run_loop(
    A, state: State | tuple, solver, plan: Plan, stopping: Stopping, *, by=None, **options
) -> State:
    """The State after the loop has run on it, or on a pair (Z, D), in place. by: the Method, where
    it is not the reference without penalties."""
    if not isinstance(state, State):
        state = State(InMemory(state[0]), state[1])
    with torch.no_grad():
        factorize_(state, Data(A), by or method(solver), plan, stopping, **options)
    return state


def digits(dtype=torch.float64):
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return torch.tensor(datasets.load_digits().data, dtype=dtype)


def low_rank(n, d, rank, dtype=torch.float64):
    """A product of two factors of which most entries are small."""
    generator = torch.Generator().manual_seed(0)
    Z, D = (torch.rand(*s, generator=generator, dtype=dtype).pow(4) for s in ((n, rank), (rank, d)))
    return Z @ D


def rows_of_five_concepts(m=40, d=12, seed=0, dtype=torch.float32):
    """Rows (m, d) of one model for all seeds: few of five concepts each, and noise."""
    D = np.random.default_rng(99).gamma(0.5, 1.0, (5, d))
    rng = np.random.default_rng(seed)
    codes = rng.gamma(1.0, 1.0, (m, 5)) * (rng.random((m, 5)) < 0.5)
    return torch.tensor(codes @ D + 0.3 * rng.random((m, d)), dtype=dtype)


def start_of(A, K, init="random", seed=0):
    """The pair (Z, D) that a fit of A begins with."""
    data = Data(A)
    codes = InMemory(data.like.new_empty(len(A), K))
    D = start(data, codes, K, init, torch.Generator().manual_seed(seed))
    return codes.Z, D


def idle_start(A, K):
    """A random start of which a third is dead and a sixth the last concept again."""
    Z, D = start_of(A, K)
    dead = K // 3
    Z[:, :dead] = 0
    D[:dead] = 0
    D[dead : dead + K // 6] = D[-1]
    Z[:, dead : dead + K // 6] = Z[:, -1:]
    return Z, D


# the data and the options of fits that several processes share (shared_program.py)
SHARED_ROWS, SHARED_FEATURES, SHARED_CONCEPTS = 203, 19, 6
SHARED = {
    "nb_concepts": SHARED_CONCEPTS,
    "max_iter": 20,
    "tol": 0,
    "seed": 1,
    "accelerate": False,
}


def shared_data(dtype=torch.float32):
    """Low rank and noise, with a row of zeros."""
    n, d, K = SHARED_ROWS, SHARED_FEATURES, SHARED_CONCEPTS
    generator = torch.Generator().manual_seed(3)
    Z = torch.rand(n, K, generator=generator, dtype=torch.float64) ** 4
    D = torch.rand(K, d, generator=generator, dtype=torch.float64) ** 2
    A = Z @ D + 0.05 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    A[5] = 0
    return A.to(dtype)
