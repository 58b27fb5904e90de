"""Half-steps and whole fits with the Triton backend, from the facade down to the interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from half_steps import iterate, method_of, operations_of
from oracle import TOLERANCES, pgd_half_step, problem, relative_difference
from oracle import iterate as expected_iterates

import fastnmf
from fastnmf import NMF, Tuning
from fastnmf.backends.registry import select
from fastnmf.precision import products_in
from fastnmf.solvers.penalties import Penalties
from fastnmf.solvers.pgd import largest_eigenvalue, momenta

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("solver", "form", "n", "d", "K", "kind"),
    [
        ("hals", "normal", 9, 6, 1, "plain"),
        # more than a block of concepts
        ("hals", "normal", 13, 7, 18, "zero_concepts"),
        ("hals", "residual", 13, 7, 18, "zero_concepts"),
        ("mu", "normal", 13, 7, 18, "zero_concepts"),
        ("mu", "residual", 13, 7, 18, "zero_concepts"),
        ("mu", "residual", 9, 6, 1, "plain"),
    ],
)
def test_iterates_are_those_of_the_loop(solver, form, n, d, K, kind):
    A, Z, D = (M.astype("float32") for M in problem(n, d, K, kind=kind))
    Z1, D1, _ = iterate(
        solver, A, Z, D, form=form, dtype=torch.float32, iterations=2, backend="triton"
    )
    expected = expected_iterates(solver, A, Z, D, 2)
    assert relative_difference(Z1, expected[0]) <= TOLERANCES[solver, "float32"]
    assert relative_difference(D1, expected[1]) <= TOLERANCES[solver, "float32"]


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pgd_half_step_is_that_of_fista(form, dtype):
    A, Z, D = (M.astype(dtype) for M in problem(23, 17, 5, kind="zero_concepts"))
    kind = getattr(torch, dtype)
    Z1, _, outcome = iterate(
        "pgd", A, Z, D, form=form, dtype=kind, fixed_dictionary=True, backend="triton"
    )
    G = torch.tensor(D.astype(np.float64) @ D.T.astype(np.float64))
    L = float(largest_eigenvalue(lambda v: G @ v, G.diagonal()))
    expected = pgd_half_step(Z.T, A, D, L, len(momenta())).T
    assert relative_difference(Z1, expected) <= TOLERANCES["pgd", dtype]
    change = np.linalg.norm(Z1 - Z) / np.linalg.norm(Z1)
    assert outcome.history[0].relative_change == pytest.approx(change, rel=1e-5)


MIXED, UNIT_NORM = Penalties(0.02, 0.01, 0.5), Penalties(0.02, 0, 1.0, True)


@pytest.mark.parametrize(
    ("solver", "form", "penalties"),
    [
        ("hals", "normal", MIXED),
        ("hals", "residual", UNIT_NORM),
        ("mu", "normal", UNIT_NORM),
        ("mu", "residual", MIXED),
        ("pgd", "normal", UNIT_NORM),
        ("pgd", "residual", MIXED),
    ],
)
def test_penalised_iterates_are_those_of_the_reference(penalties, form, solver):
    A, Z, D = problem(9, 5, 17)
    # the norms of one iteration go into the codes in the next
    iterations = 2 if penalties.unit_norm else 1
    asked = {"form": form, "dtype": torch.float64, "iterations": iterations}
    asked["penalties"] = penalties
    on_kernels, reference = (
        iterate(solver, A, Z, D, backend=backend, **asked)[:2] for backend in ("triton", "torch")
    )
    for F, expected in zip(on_kernels, reference, strict=True):
        assert relative_difference(F, expected) <= TOLERANCES[solver, "float64"]


@pytest.mark.parametrize("solver", ["mu", "pgd"])
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("penalties", [MIXED, UNIT_NORM])
def test_penalised_half_steps_take_the_fused_kernels(penalties, form, solver, monkeypatch):
    """The plain update is not there."""
    method = method_of(solver, backend="triton", penalties=penalties)
    fused = {name: op for name, op in method.ops.items() if name != f"{solver}_"}
    monkeypatch.setattr("half_steps.method_of", lambda *_: replace(method, ops=fused))
    *_, outcome = iterate(solver, *problem(9, 5, 17), form=form, dtype=torch.float32,
                          penalties=penalties, backend="triton")  # fmt: skip
    assert len(outcome.history) == 1


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_fit_is_that_of_the_reference(solver):
    A = torch.rand(19, 11, generator=torch.Generator().manual_seed(0))
    fits = []
    for backend in ("triton", "torch"):
        model = NMF(4, solver=solver, backend=backend, seed=0, max_iter=2, tol=0)
        fits.append((*model.fit(A), model.fit_info_))
    (Z, D, info), (Z_reference, D_reference, reference) = fits
    assert info.backend == "triton"
    assert relative_difference(Z @ D, Z_reference @ D_reference) < 1e-5
    assert info.relative_error == pytest.approx(reference.relative_error, rel=1e-4)


def test_fit_in_tf32_is_that_of_the_reference(monkeypatch):
    """Blocks are rounded by the kernel; the products are in float32."""
    monkeypatch.setattr("fastnmf.precision.TF32_ON", ("cpu",))
    A, found = torch.tensor(problem(23, 17, 5)[0], dtype=torch.float32), []
    for backend in ("triton", "torch"):
        tuning = Tuning(form="residual", block=16)
        model = NMF(20, seed=0, max_iter=3, tol=0, backend=backend, tuning=tuning)
        with products_in("high"):
            found.append(model.fit(A))
        assert model.fit_info_.precision == "tf32"
    for mine, theirs in zip(*found, strict=True):
        # some numbers are rounded the other way
        assert relative_difference(mine, theirs) <= 2**-10


def test_encode_runs_on_the_kernels():
    A, D = torch.rand(9, 5, generator=torch.Generator().manual_seed(0)).split((6, 3))
    model, reference = (NMF(3, backend=name).load_dictionary(D) for name in ("triton", "torch"))
    assert (
        relative_difference(*(one.encode(A, 3, method="sweeps") for one in (model, reference)))
        < 1e-5
    )


def test_auto_never_chooses_the_interpreter():
    assert fastnmf.available_backends()["triton"].reason is None
    assert select(operations_of("mu"), CPU, "auto")[0] != "triton"
    assert select(operations_of("mu"), CPU, "triton")[0] == "triton"
