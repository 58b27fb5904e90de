"""encode is exact, for models of every solver: by sweeps, by the exact solver, or by both."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from compiled import REASON, instruction_sets
from fits import nmf
from hard_data import similar_concepts
from oracle import problem

from fastnmf import NMF, ConvergenceWarning, InvalidInput, SemiNMF, nnls
from fastnmf.exact import encoder
from fastnmf.planning.codes import SWEEPS, CodesCost
from fastnmf.solvers.registry import SOLVERS

KKT = {torch.float32: 1e-6, torch.float64: 1e-9}
PENALTIES = [{}, {"alpha_Z": 0.01, "l1_ratio": 0.5}]


@pytest.fixture
def sweeps(monkeypatch):
    """sweeps(first): whether rows are swept first, whatever it costs; "start": for one round."""

    def choose(first):
        monkeypatch.setattr(CodesCost, "sweeps_first", lambda self, n: first is True)
        monkeypatch.setattr(CodesCost, "sweeps_start", lambda self, n: first == "start")

    return choose


def loss(A, Z, D):
    return (A.double() - Z.double() @ D.double()).square().sum(1)


@pytest.mark.parametrize("first", [False, True, "start", None])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize(
    ("d", "K", "dtype", "form"),
    [
        (20, 8, torch.float32, None),
        (20, 8, torch.float64, "residual"),
        (9, 20, torch.float32, "residual"),
        (9, 20, torch.float64, None),
    ],
)
def test_codes_are_exact(first, solver, penalty, d, K, dtype, form, sweeps):
    if first is not None:
        sweeps(first)
    A, _, D = problem(80, d, K, kind="zero_rows")
    A, D = torch.tensor(A, dtype=dtype), torch.tensor(D, dtype=dtype)
    model = nmf(K, solver=solver, form=form, **penalty).load_dictionary(D)
    for method in ("auto", "exact"):
        Z, info = model.encode(A, method=method, return_info=True)
        assert (Z >= 0).all()
        assert info.converged
        assert float(info.kkt.max()) <= KKT[dtype]
        assert not Z[A.amax(1) == 0].any()
        if not penalty:
            least = loss(A, nnls(A.double(), D.double()), D)
            assert (loss(A, Z, D) <= least + 1e-6 * A.double().square().sum(1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_codes_of_similar_concepts_are_exact(seed, dtype):
    A, D = similar_concepts(seed, dtype)
    Z, info = NMF(len(D)).load_dictionary(D).encode(A, return_info=True)
    assert info.converged
    assert float(info.kkt.max()) <= KKT[dtype]
    size = 1e-6 if dtype == torch.float32 else 1e-12
    least = loss(A, nnls(A.double(), D.double()), D)
    assert (loss(A, Z, D) <= least + size * A.double().square().sum(1)).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_error_of_sweeps_never_rises_row_by_row(solver, seed, dtype):
    """Momentum raised it for single rows."""
    A, D = similar_concepts(seed, dtype)
    A = torch.cat((A[:12], A[:12] ** 3))
    model = NMF(len(D), solver=solver).load_dictionary(D)
    start = 2 * model.encode(A, method="exact")
    rounding = 16 * torch.finfo(dtype).eps * A.double().square().sum(1)
    for Z0 in (None, start):
        run = {"tol": 0, "Z0": Z0, "method": "sweeps"}
        losses = [loss(A, model.encode(A, i, **run), D) for i in (0, 1, 2, 5, 13, 14, 15, 33)]
        for before, after in itertools.pairwise(losses):
            assert (after <= before + rounding).all()


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("solver", ["mu", "pgd"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_momentum_is_taken_back_where_it_raises_the_objective(form, solver, penalty):
    A, Z, D = (torch.tensor(M) for M in problem(60, 20, 4))
    model = nmf(4, solver=solver, form=form, **penalty).load_dictionary(D)
    weight = 20 * penalty.get("alpha_Z", 0.0)

    def objective(Z):
        return 0.5 * loss(A, Z, D) + weight * (0.5 * Z + 0.25 * Z.square()).sum(1)

    found = [objective(model.encode(A, i, 0, Z0=Z, method="sweeps")) for i in range(40)]
    for before, after in itertools.pairwise(found):
        assert (after <= before * (1 + 1e-14)).all()
    assert (found[-1] < 0.999 * found[0]).any()


@pytest.mark.parametrize(
    ("first", "max_iter", "method"),
    [
        (False, 300, "exact"),
        (True, 300, "hals"),
        (True, 13, "hals, then exact"),
        ("start", 300, "hals, then exact"),
        (True, 0, "start"),
    ],
)
def test_info_says_what_ran(first, max_iter, method, sweeps):
    sweeps(first)
    A, _, D = problem(300, 30, 9)
    if method == "hals":
        # hardly correlated, so that all rows converge soon
        D = 0.02 * D + np.eye(9, 30)
    model = NMF(9, solver="mu").load_dictionary(torch.tensor(D, dtype=torch.float32))
    A = torch.tensor(A, dtype=torch.float32)
    Z, info = model.encode(A, max_iter, return_info=True)
    assert info.method == method
    assert method in str(info)
    assert info.iterations <= (SWEEPS if first == "start" else max_iter) + 1
    if max_iter == 0:
        assert torch.equal(Z, model.encode(A, 0, method="sweeps"))
        assert float(info.kkt.min()) > 1e-3
    else:
        assert float(info.kkt.max()) <= 1e-6
    given = model.encode(A, 0, Z0=2 * Z)
    assert torch.equal(given, 2 * Z)


def test_codes_do_not_depend_on_the_start(sweeps):
    A, Z, D = (torch.tensor(M) for M in problem(80, 20, 8))
    model = NMF(8).load_dictionary(D)
    expected = model.encode(A, method="exact")
    for first in (True, False):
        sweeps(first)
        torch.testing.assert_close(model.encode(A, Z0=Z), expected, rtol=1e-8, atol=1e-10)


def test_rows_on_which_float32_is_too_coarse_are_solved_again(monkeypatch):
    A, D = similar_concepts(2, torch.float32)
    model = NMF(len(D)).load_dictionary(D)
    calls, again = [], encoder.solve_again_
    monkeypatch.setattr(encoder, "solve_again_", lambda *given: calls.append(1) or again(*given))
    monkeypatch.setattr(encoder, "EXACT", {torch.float32: 0.0})
    Z, info = model.encode(A, method="exact", return_info=True)
    assert calls
    assert float(info.kkt.max()) < 2e-7
    monkeypatch.setattr(encoder, "_SOLVED", {torch.float32: 0.0})
    with pytest.warns(ConvergenceWarning, match="40 rows are not solved exactly") as caught:
        _, info = model.encode(A, method="exact", return_info=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert not info.converged
    assert torch.isfinite(Z).all()


def test_codes_of_the_training_data_are_never_worse_than_those_of_fit():
    for K, solver in itertools.product((4, 30), SOLVERS):
        A = torch.tensor(problem(60, 20, K)[0], dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = NMF(K, solver=solver, seed=0)
            Z, D = model.fit(A, 30)
        rounding = 1e-6 * A.double().square().sum(1)
        assert (loss(A, model.encode(A), D) <= loss(A, Z, D) + rounding).all()


def test_method_is_checked_and_no_method_of_a_function():
    model = NMF(2).load_dictionary(np.eye(2, 5))
    with pytest.raises(InvalidInput, match=r"method='sweep' .*did you mean 'sweeps'"):
        model.encode(torch.ones(1, 5), method="sweep")
    model.solver_fn = lambda A, Z, D, **run: (Z, D)
    with pytest.raises(InvalidInput, match="method='exact' does not go with"):
        model.encode(torch.ones(1, 5), method="exact")


@pytest.fixture(params=["torch", *instruction_sets()])
def backend(request):
    """Plain torch, and the extension on each instruction set that is usable here."""
    if request.param == "torch":
        yield "torch"
        return
    if REASON is not None:
        pytest.skip(REASON)
    from fastnmf import _C

    _C.force_isa(request.param)
    yield "cpp"
    _C.force_isa("auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concepts_that_nearly_depend_on_each_other_do_not_follow_rounding(backend, dtype):
    """Six concepts nearly in a half-space of three features: others entered for slopes that were
    rounding, one after the other, until codes were 1e46."""
    draw = torch.Generator().manual_seed(3)
    D = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    D[:, 0] = D[:, 0].abs()
    D[:3, 0] *= -1e-3
    A, D = torch.randn(30, 3, generator=draw, dtype=torch.float64).to(dtype), D.to(dtype)
    best = loss(A, nnls(A, D, backend="torch"), D)
    model = SemiNMF(6, backend=backend).load_dictionary(D)
    close = 1e-5 if dtype == torch.float32 else 1e-10
    for method in ("auto", "exact"):
        Z, info = model.encode(A, method=method, return_info=True)
        assert (loss(A, Z, D) <= best + close).all()
        assert info.relative_error <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_concepts_many_of_them_alike_are_solved(backend, dtype):
    """Blocks enter by slopes of a few concepts, between those of all; twins bring no gain."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    A, _, D = problem(6, 520, 400)
    D = np.concatenate([D, D * 1.001, D[:90] + 1e-3])
    rows, D = torch.tensor(A, dtype=dtype), torch.tensor(D, dtype=dtype)
    model = NMF(len(D), backend=backend).load_dictionary(D)
    codes, info = model.encode(rows, method="exact", return_info=True)
    assert info.converged
    for a, found in zip(rows.double(), loss(rows, codes, D), strict=True):
        best = optimize.nnls(D.double().T.numpy(), a.numpy())[1] ** 2
        close = (1e-6 if dtype == torch.float32 else 1e-10) * float(a.square().sum())
        assert float(found) == pytest.approx(best, rel=0, abs=close)
