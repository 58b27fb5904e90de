"""Fits and encodings on a pretended device are those on the CPU: all solvers, forms, starts and
options."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCES

from pretend_cuda.cases import assert_same_on_device, drawn, model

slow = pytest.mark.compiles
PENALISED = {"alpha_Z": 1e-3, "l1_ratio": 0.5}
RESIDUAL, NORMAL = {"form": "residual"}, {"form": "normal"}
# name → (K, iterations, options): each solver in each form, and each option once
FITS = {
    "hals normal": (4, 3, {"solver": "hals", "tuning": NORMAL}),
    "hals residual": (14, 10, {"solver": "hals", "tuning": RESIDUAL}),
    "mu normal": (4, 3, {"solver": "mu", "tuning": NORMAL}),
    "mu residual": (14, 3, {"solver": "mu", "tuning": RESIDUAL}),
    "pgd normal": (4, 1, {"solver": "pgd", "tuning": NORMAL}),
    "pgd residual": (4, 1, {"solver": "pgd", "tuning": RESIDUAL}),
    "start spread": (4, 1, {"init": "spread"}),
    "accelerated": (4, 5, {"accelerate": True, "tol": 1e-9}),
    "unit norm": (4, 2, {"unit_norm": True, **PENALISED}),
    "blocks and tiles": (6, 2, {"tuning": {"block": 2, "chunk_rows": 11}}),
    "revival": (14, 21, {"solver": "mu", "revive": True, "tuning": NORMAL}),
    "graph": (4, 4, {"tuning": {"cuda_graph": True}, "accelerate": False}),
}
SLOW = {
    "penalties": (4, 2, {**PENALISED, "alpha_D": 1e-3}),
    "start rows": (4, 1, {"init": "rows"}),
    "stop error": (4, 3, {"stop": "error", "tol": 1e-9}),
    "start random": (4, 1, {"init": "random"}),
    "penalties, mu": (14, 3, {**PENALISED, "solver": "mu", "tuning": RESIDUAL}),
    "penalties, hals": (14, 3, {**PENALISED, "tuning": RESIDUAL}),
    "penalties, pgd": (4, 1, {**PENALISED, "solver": "pgd"}),
    "unit norm, pgd": (4, 2, {"solver": "pgd", "unit_norm": True}),
    "unit norm, mu": (4, 2, {"solver": "mu", "unit_norm": True, **PENALISED}),
    "accelerated, mu": (4, 4, {"solver": "mu", "accelerate": True}),
    "accelerated, pgd": (4, 3, {"solver": "pgd", "accelerate": True}),
    "revival, residual": (14, 21, {"revive": True, "tuning": RESIDUAL}),
    "anls normal": (3, 1, {"solver": "anls", "tuning": NORMAL}),
    "graph, accelerated": (4, 6, {"tuning": {"cuda_graph": True}, "accelerate": True}),
}


def fit(K, iterations, options):
    def run(device, A):
        nmf = model(device, K, **options)
        Z, D = nmf.fit(A, max_iter=iterations)
        if options.get("tuning", {}).get("cuda_graph") and device == "cuda":
            assert nmf.fit_info_.cuda_graph > 0
        return Z, D, nmf.encode(A[:5], max_iter=2), nmf.decode(Z[:5])

    return run


def on_cpu(options):
    """The CPU has no graphs."""
    return {**options, "tuning": {**options.get("tuning", {}), "cuda_graph": False}}


@pytest.mark.parametrize("name", [*FITS, *(pytest.param(name, marks=slow) for name in SLOW)])
def test_a_fit_is_that_of_the_cpu(name):
    K, iterations, options = {**FITS, **SLOW}[name]

    def run(device, A):
        return fit(K, iterations, options if device == "cuda" else on_cpu(options))(device, A)

    A = drawn(n=9) if "anls" in name else drawn()
    assert_same_on_device(run, A)


@pytest.mark.parametrize(
    ("dtype", "solver", "options"),
    [
        (torch.float64, "hals", {}),
        # stays as it is on the device, and is widened in tiles
        (torch.float16, "hals", {}),
        (torch.bfloat16, "mu", {"tuning": RESIDUAL}),
    ],
)
def test_data_of_each_dtype_are_fitted(dtype, solver, options):
    run = fit(4, 2, {"solver": solver, "accelerate": False, **options})
    assert_same_on_device(run, drawn().to(dtype))


def test_a_fit_in_tf32_leaves_the_precision_of_torch_as_it_was():

    def run(device, A):
        torch.set_float32_matmul_precision("high")
        try:
            found = fit(14, 9, {"tuning": RESIDUAL})(device, A)
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")
        return found

    # the codes are rounded to tf32 on a GPU only
    assert_same_on_device(run, most=2e-2)


# n, K: the interpreter takes a second for some 10⁴ entries of Z in an iteration
@pytest.mark.parametrize(
    ("solver", "form", "penalised"),
    [
        ("hals", "normal", False),
        pytest.param("hals", "residual", True, marks=slow),
        ("mu", "residual", True),
        pytest.param("mu", "normal", False, marks=slow),
        pytest.param("pgd", "normal", True, marks=slow),
        pytest.param("pgd", "residual", False, marks=slow),
    ],
)
def test_a_fit_on_the_kernels_is_that_of_the_cpu(solver, form, penalised):
    options = {"solver": solver, "tuning": {"form": form}, "accelerate": False}
    options |= PENALISED if penalised else {}

    def run(device, A):
        nmf = model(device, 3, **options, backend="triton" if device == "cuda" else "torch")
        Z, D = nmf.fit(A, max_iter=2)
        assert nmf.fit_info_.backend == ("triton" if device == "cuda" else "torch")
        return Z, D

    device = assert_same_on_device(run, drawn(7, 5), TOLERANCES[solver, "float32"])
    assert any(name.startswith(f"_{solver}_") for name in device.launched)


@slow
def test_a_graph_of_kernels_is_repeated():
    def run(device, A):
        tuning = {"cuda_graph": device == "cuda"}
        options = {"solver": "mu", "accelerate": False, "tuning": tuning}
        nmf = model(device, 3, **options, backend="triton" if device == "cuda" else "torch")
        Z, D = nmf.fit(A, max_iter=5)
        assert nmf.fit_info_.cuda_graph == (3 if device == "cuda" else 0)
        return Z, D

    assert_same_on_device(run, drawn(7, 5), TOLERANCES["mu", "float32"])
