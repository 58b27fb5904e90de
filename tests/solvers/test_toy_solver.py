"""A new solver is one file: a record in the registry, and everything takes it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracle import kkt_residual

from fastnmf import NMF, Tuning
from fastnmf.errors import InvalidInput
from fastnmf.models.own_parts import SolverFunction
from fastnmf.numerics import add_squares_
from fastnmf.solvers.base import Solver
from fastnmf.solvers.registry import SOLVERS


def half_steps_(F, data, fixed, compute, sums, times):
    """F ← max(0, F − (G F − C) / trace(G)): projected gradient with a fixed step."""
    for _ in range(times):
        before = F.clone()
        step = (fixed.G @ F - data.C) / fixed.G.trace().clamp(min=1e-30)
        F.copy_((F - step).clamp(min=0))
        add_squares_(sums, F - before, F)


TOY = Solver("toy", "projected gradient, fixed step", half_steps_)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SOLVERS, TOY.name, TOY)
    # as for every solver that is registered when NMF is defined
    monkeypatch.setitem(NMF._SOLVERS, TOY.name, SolverFunction(TOY.name, NMF))


@pytest.fixture
def A():
    return torch.rand(900, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


OPTIONS = [
    # the plain loop
    {"accelerate": False},
    # extrapolation, with inner half-steps
    {"accelerate": True},
    {"alpha_Z": 0.01},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_toy_solver_fits_and_never_raises_the_objective(options, A):
    model = NMF(3, solver="toy", seed=0, tol=0, max_iter=40, **options)
    Z, D = model.fit(A)
    objectives = [iteration.relative_objective for iteration in model.fit_info_.history]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(objectives))
    assert objectives[-1] < 0.9 * objectives[0]
    assert float((A - Z @ D).norm() / A.norm()) == pytest.approx(model.fit_info_.relative_error)


def test_toy_solver_encodes_and_has_a_gradient(A):
    D = torch.rand(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = NMF(3, solver="toy").load_dictionary(D)
    Z = model.encode(A, 3000, 0, method="sweeps")
    assert kkt_residual(Z.T.numpy(), A.numpy(), D.numpy()) < 1e-6
    rows = A[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(model.encode, (rows,), atol=1e-6)


def test_toy_solver_streams_to_the_iterates_of_memory(A, tmp_path, small_budgets):
    np.save(tmp_path / "A.npy", A.numpy())
    init = torch.rand(900, 3, dtype=torch.float64), torch.rand(3, 12, dtype=torch.float64)
    options = {"solver": "toy", "init": init, "tol": 0, "max_iter": 5}
    streamed, resident = NMF(3, max_memory="60kB", **options), NMF(3, **options)
    streamed.fit(tmp_path / "A.npy", codes=tmp_path / "Z.npy")
    resident.fit(A)
    assert streamed.fit_info_.chunk_rows < 900
    torch.testing.assert_close(streamed.D, resident.D, rtol=1e-10, atol=0)


def test_toy_solver_learns_online_and_is_saved(A, tmp_path):
    model = NMF(3, solver="toy", seed=0)
    for batch in A.split(300):
        model.partial_fit(batch)
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(NMF.load(tmp_path / "model.safetensors").encode(A), model.encode(A))


def test_toy_solver_has_no_form_but_its_own():
    with pytest.raises(InvalidInput, match="form='residual' does not exist for solver='toy'"):
        NMF(3, solver="toy", tuning=Tuning(form="residual"))
