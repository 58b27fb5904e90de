"""The ends of fits: converged means that neither factor moves, and what is wrong is a warning."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from fits import digits

from fastnmf import NMF, FastnmfWarning, InvalidInput
from fastnmf.solvers.registry import SOLVERS


def true_error(A, Z, D):
    A, Z, D = (torch.as_tensor(M).double() for M in (A, Z, D))
    return float((A - Z @ D).norm() / A.norm())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_from_codes_that_suit_its_dictionary_goes_on_while_that_improves(solver):
    A = digits()[:500]
    D0 = A[::25][:20]
    # by its own sweeps: multiplicative updates cannot leave the zeros of exact codes
    Z0 = NMF(20, solver=solver).load_dictionary(D0).encode(A, method="sweeps")
    model = NMF(20, solver=solver, init=(Z0, D0), max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z, D = model.fit(A)
    assert model.fit_info_.iterations > 20
    # mu is slow: 0.26
    assert true_error(A, Z0, D0) > 0.3
    assert true_error(A, Z, D) < (0.26 if solver == "mu" else 0.22)


def test_exact_codes_of_a_start_do_not_end_a_fit():
    A = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    for init in ("rows", "spread", "random", "nndsvda"):
        Z, D = NMF(1, solver="anls", init=init, seed=0, tol=1e-8).fit(A)
        best = torch.linalg.svdvals(A)[1] / A.norm()
        assert true_error(A, Z, D) == pytest.approx(float(best), rel=1e-6)


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("solver", ["hals", "pgd"])
def test_neither_factor_moves_after_a_fit_that_converged(solver, accelerate):
    A = torch.rand(60, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = NMF(4, solver=solver, seed=0, tol=1e-6, max_iter=10**4, accelerate=accelerate)
    Z, D = model.fit(A)
    assert model.fit_info_.stopped_by == "tol"
    again = NMF(4, solver=solver, init=(Z, D), tol=0, max_iter=1).fit(A)
    for before, after in zip((Z, D), again, strict=True):
        assert float((after - before).norm() / before.norm()) < 1e-4


def test_the_rule_of_the_codes_alone_is_named_no_more():
    with pytest.raises(InvalidInput, match=r"did you mean .change.*must be one of: change, error"):
        NMF(3, stop="codes")
    with pytest.raises(InvalidInput, match="tol=-1 must be at least 0; 0 never stops early"):
        NMF(3, tol=-1)


A = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
WARNED = {
    "all concepts dead": (
        A,
        {"alpha_Z": 10.0, "l1_ratio": 1, "unit_norm": True},
        "all 3 concepts are dead: Z D is zero.*smaller penalties",
    ),
    "worse than the mean": (
        1e4 + A,
        {"solver": "mu", "accelerate": False, "max_iter": 50},
        "R² is -.*explained worse than by their mean.*smaller tol",
    ),
    "error that falls": (
        A,
        {"stop": "error", "max_iter": 12, "tol": 1e-9},
        "^not converged: the error still falls after 12 iterations, with tol=1e-09 and stop='err",
    ),
    "error that falls beside a large mean": (
        1e4 + A,
        {"max_iter": 5, "tol": 0.01},
        "^not converged: the relative change is .*, but the error still falls after 5 iterations",
    ),
    "penalty on the codes alone": (
        A,
        {"alpha_Z": 0.01, "alpha_D": 0, "max_iter": 3},
        "alpha_Z=0.01 penalises one factor alone.*give unit_norm=True, or alpha_D as well",
    ),
    "penalty on the dictionary alone": (
        A,
        {"alpha_Z": 0, "alpha_D": 0.01, "max_iter": 3},
        "alpha_D=0.01 penalises one factor alone.*give alpha_Z as well",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_fit_that_found_nothing_warns(case):
    data, options, message = WARNED[case]
    with pytest.warns(FastnmfWarning) as caught:
        NMF(3, seed=0, **options).fit(data)
    found = [str(warning.message) for warning in caught]
    assert sum(re.search(message, text) is not None for text in found) == 1
    assert all(warning.filename == __file__ for warning in caught)
    if "alone" in case:
        # more iterations would not help
        assert not any("raise max_iter" in text for text in found)


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        ("hals", torch.float32),
        ("hals", torch.float64),
        ("pgd", torch.float32),
        ("pgd", torch.float64),
        # in float32 its exact half-steps move by rounding alone
        ("anls", torch.float64),
    ],
)
def test_a_large_mean_does_not_hide_what_a_fit_can_still_learn(solver, dtype):
    """Factors of such data change by less than tol while they learn what differs between rows."""
    uniform = torch.rand(200, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = NMF(6, solver=solver, seed=0, max_iter=1000)
    model.fit((1e4 + uniform).to(dtype))
    assert model.fit_info_.converged
    assert model.fit_info_.r_squared > 0.15


@pytest.mark.parametrize("data", [torch.zeros(5, 4), torch.ones(5, 4), torch.rand(1, 4)])
def test_a_fit_of_data_without_differences_does_not_warn(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NMF(2, seed=0).fit(data)
        NMF(2, seed=0).fit(data.numpy().astype(np.float64))
