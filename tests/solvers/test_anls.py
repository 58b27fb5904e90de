"""ANLS: every half-step is solved exactly, whatever the rank of the dictionary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fuzz_nnls import gaps
from half_steps import CASES, backends_of, case_name, dtype_name, iterate
from oracle import TOLERANCES, kkt_residual, problem

import fastnmf
from fastnmf import NMF, Tuning
from fastnmf.backends.nnls.residual import measure

# the largest is smaller here, the reference being slow; concepts in use depend on each other there
ANLS_CASES = [
    *(case for case in CASES if case[2] < 100),
    (21, 13, 71, "plain", "normal", torch.float32),
    (21, 13, 71, "duplicates", "residual", torch.float64),
]


@pytest.mark.parametrize("backend", backends_of("anls"))
@pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), ANLS_CASES, ids=case_name)
def test_anls_half_steps_satisfy_the_kkt_conditions(n, d, K, kind, form, dtype, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    Z1, D1, _ = iterate("anls", A, Z, D, form=form, dtype=dtype, backend=backend)
    tolerance = TOLERANCES["anls", dtype_name(dtype)]
    assert (Z1 >= 0).all()
    assert (D1 >= 0).all()
    alive = D.any(1)
    # a zero concept keeps its codes; it takes no part in the fit
    assert np.array_equal(Z1[:, ~alive], Z[:, ~alive])
    assert kkt_residual(Z1.T[alive], A, D[alive]) <= tolerance
    assert kkt_residual(D1, A.T, Z1.T) <= tolerance


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_anls_objective_never_rises_beyond_rank(form):
    A, Z, D = problem(25, 12, 30)
    losses = []
    for _ in range(6):
        Z, D, _ = iterate("anls", A, Z, D, form=form, dtype=torch.float64)
        losses.append(((A - Z @ D) ** 2).sum())
    slack = 1e-12 * (A**2).sum()
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))


# concepts that repeat, nearly depend on each other, differ in size, or are zero: the Gram matrix is
# singular, or nearly
@pytest.mark.parametrize("backend", backends_of("anls"))
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["one 100 times", "1e-3 apart", "1e-7 apart", "scales", "zeros"])
def test_codes_by_exact_half_steps_are_as_good_as_those_of_nnls(kind, dtype, form, backend):
    rng = np.random.default_rng(6)
    A, D = abs(rng.normal(size=(8, 12))), abs(rng.normal(size=(40, 12)))
    if kind == "one 100 times":
        D = np.concatenate([np.repeat(D[:1], 100, axis=0), D])
    elif "apart" in kind:
        D[20:] = D[:20] * (1 + float(kind.split()[0]) * rng.normal(size=(20, 12)))
    elif kind == "scales":
        D *= 10.0 ** rng.uniform(-4, 4, (40, 1))
    else:
        D[::2] = 0
    A, D = (torch.from_numpy(M).to(dtype) for M in (A, D))
    model = NMF(len(D), solver="anls", backend=backend, tuning=Tuning(form=form))
    Z = model.load_dictionary(D).encode(A)
    found = measure(A, D, Z)
    exact = {torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    assert float(found.kkt.max()) <= exact
    assert gaps(A, D, Z).max() <= exact
    best = (A - fastnmf.nnls(A, D) @ D).double().square().sum(1)
    rise = (A - Z @ D).double().square().sum(1) - best
    assert (rise <= exact / 100 * A.double().square().sum(1)).all()
