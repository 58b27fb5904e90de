"""Penalties on codes and dictionary: those of scikit-learn, in all solvers and entry points."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from half_steps import (
    BACKEND_NAMES,
    BLOCK,
    FORMS,
    backends_of,
    case_name,
    dtype_name,
    iterate,
    saved_and_loaded,
    supplies,
)
from oracle import (
    TOLERANCES,
    curvature_of_penalty,
    kkt_residual,
    objective,
    penalised_hals_half_step,
    penalised_mu_half_step,
    penalised_pgd_half_step,
    problem,
    relative_difference,
)

from fastnmf import NMF, Tuning
from fastnmf.cli.main import main
from fastnmf.errors import InvalidInput
from fastnmf.solvers.penalties import Penalties
from fastnmf.solvers.pgd import largest_eigenvalue, momenta

SOLVERS = ["hals", "mu", "pgd", "anls"]
SINGLE, DOUBLE = torch.float32, torch.float64
# alpha_Z, alpha_D, l1_ratio
BOTH = [(0.01, "same", 0.0), (0.01, "same", 1.0), (0.01, 0.002, 0.5), (0.05, 0.01, 0.2)]
ONE = [(0.01, 0.0, 1.0), (0.0, 0.01, 0.5)]


def weights(alpha_Z, alpha_D, l1_ratio):
    return alpha_Z, alpha_Z if alpha_D == "same" else alpha_D, l1_ratio


def fitted(solver, A, Z, D, penalty, iterations, **options):
    return with_codes(solver, A, Z, D, penalty, iterations, **options)[0]


def with_codes(solver, A, Z, D, penalty, iterations, **options):
    names = ("alpha_Z", "alpha_D", "l1_ratio")
    options |= dict(zip(names, penalty, strict=True))
    model = NMF(Z.shape[1], solver=solver, init=(Z.copy(), D.copy()), tol=0, **options)
    return model, model.fit(torch.tensor(A), iterations)[0].numpy()


@pytest.mark.parametrize("penalty", BOTH, ids=str)
def test_hals_ends_where_coordinate_descent_of_scikit_learn_does(penalty):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="no scikit-learn")
    A, Z, D = problem(60, 20, 7)
    alpha_Z, alpha_D, l1_ratio = penalty
    theirs = decomposition.NMF(
        7, init="custom", tol=1e-10, max_iter=2000,
        alpha_W=alpha_Z, alpha_H=alpha_D, l1_ratio=l1_ratio,
    )  # fmt: skip
    W = theirs.fit_transform(A, W=Z.copy(), H=D.copy())
    expected = objective(A, W, theirs.components_, *weights(*penalty))
    assert fitted("hals", A, Z, D, penalty, 1000).fit_info_.objective == pytest.approx(
        expected, rel=1e-4
    )
    # other solvers may end in other minima
    for solver in ("anls", "pgd", "mu") if penalty == BOTH[2] else ():
        assert fitted(solver, A, Z, D, penalty, 1000).fit_info_.objective <= expected * 1.03


@functools.cache
def penalised_half_steps(n, d, K, kind, dtype, penalty):
    """Solver → the codes of its loop, which knows no form or backend."""
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    l1, l2 = d * penalty[0] * penalty[2], d * penalty[0] * (1 - penalty[2])
    G = torch.tensor(D.astype(np.float64) @ D.T.astype(np.float64))
    G.diagonal().add_(torch.tensor(curvature_of_penalty(D, l1, l2)[:, 0]))
    L = float(largest_eigenvalue(lambda v: G @ v, G.diagonal()))
    codes = {
        "hals": penalised_hals_half_step(Z.T, A, D, l1, l2).T,
        "pgd": penalised_pgd_half_step(Z.T, A, D, L, len(momenta()), l1, l2).T,
    }
    if l1 > 0:
        codes["mu"] = penalised_mu_half_step(Z.T, A, D, l1, l2).T
    return codes


SQUARES, SUMS, MIXED = (0.003, 0.0, 0.0), (0.02, 0.0, 1.0), (0.02, 0.0, 0.4)
# n, d, K, kind, form, dtype, penalties
HALF_STEPS = [
    # a single row, feature, concept
    (1, 7, 3, "plain", "normal", SINGLE, MIXED),
    (5, 1, 2, "plain", "residual", DOUBLE, SUMS),
    (9, 6, 1, "zero_codes", "normal", DOUBLE, SUMS),
    (9, 6, 1, "plain", "residual", SINGLE, SQUARES),
    # zero concepts: with sums alone their minimum is zero too
    (23, 17, 5, "zero_concepts", "normal", SINGLE, SUMS),
    (23, 17, 5, "zero_concepts", "normal", DOUBLE, SQUARES),
    (23, 17, 5, "zero_concepts", "residual", DOUBLE, SUMS),
    (23, 17, 5, "zero_concepts", "residual", SINGLE, MIXED),
    (23, 17, 5, "zero_rows", "residual", SINGLE, SUMS),
    # one concept more than a block
    (24, 31, BLOCK + 1, "plain", "normal", DOUBLE, MIXED),
    (24, 31, BLOCK + 1, "duplicates", "residual", SINGLE, SQUARES),
    # more concepts than features, than rows, and than both
    (40, 13, 37, "zero_concepts", "normal", SINGLE, MIXED),
    (40, 13, 37, "duplicates", "residual", DOUBLE, MIXED),
    (7, 33, 20, "zero_rows", "normal", SINGLE, SQUARES),
    (65, 40, 131, "zero_codes", "normal", DOUBLE, SUMS),
    (65, 40, 131, "zero_concepts", "residual", SINGLE, SUMS),
]


@pytest.mark.parametrize(
    ("n", "d", "K", "kind", "form", "dtype", "penalty"), HALF_STEPS, ids=case_name
)
@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_half_steps_are_those_of_the_loop(n, d, K, kind, form, dtype, penalty, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    penalties = Penalties(*penalty)
    options = {"form": form, "dtype": dtype, "fixed_dictionary": True, "backend": backend}
    for solver, expected in penalised_half_steps(n, d, K, kind, dtype, penalty).items():
        if not supplies(backend, solver):
            continue
        Z1, _, _ = iterate(solver, A, Z, D, penalties=penalties, **options)
        tolerance = TOLERANCES[solver, dtype_name(dtype)]
        assert relative_difference(Z1, expected) <= tolerance, solver


# n, d, K, kind, form, dtype
EXACT = [
    (1, 7, 3, "zero_rows", "normal", DOUBLE),
    (23, 17, 5, "zero_concepts", "normal", SINGLE),
    (23, 17, 5, "zero_concepts", "residual", SINGLE),
    (7, 33, 20, "zero_rows", "residual", DOUBLE),
    (7, 33, 20, "duplicates", "normal", SINGLE),
    # the Gram matrix has not full rank
    (27, 15, 41, "duplicates", "residual", SINGLE),
    (27, 15, 41, "zero_concepts", "normal", DOUBLE),
    (27, 15, 41, "zero_concepts", "residual", DOUBLE),
]


@pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), EXACT, ids=case_name)
@pytest.mark.parametrize("backend", backends_of("anls"))
def test_anls_half_steps_satisfy_the_kkt_conditions(n, d, K, kind, form, dtype, backend):
    penalty = 0.02, 0.01, 0.4
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    options = {"form": form, "dtype": dtype, "penalties": Penalties(*penalty), "backend": backend}
    Z1, D1, _ = iterate("anls", A, Z, D, **options)
    alpha_Z, alpha_D, ratio = penalty
    tolerance = TOLERANCES["anls", dtype_name(dtype)]
    assert kkt_residual(Z1.T, A, D, d * alpha_Z * ratio, d * alpha_Z * (1 - ratio)) <= tolerance
    assert kkt_residual(D1, A.T, Z1.T, n * alpha_D * ratio, n * alpha_D * (1 - ratio)) <= tolerance
    assert not Z1[:, ~D.any(1)].any()
    assert not D1[~Z1.any(0)].any()


# fewer concepts than features, more than rows and features, more than features only
@pytest.mark.parametrize(
    ("n", "d", "K", "dtype", "penalty"),
    [
        (23, 17, 5, DOUBLE, (0.02, 0.001, 1.0)),
        (65, 40, 131, SINGLE, (0.02, 0.01, 0.4)),
        (90, 20, 61, DOUBLE, (0.02, 0.01, 0.4)),
    ],
    ids=case_name,
)
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_both_forms_give_the_same_iterates(n, d, K, dtype, penalty, solver):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K))
    runs = {}
    for form in FORMS:
        options = {"form": form, "dtype": dtype, "penalties": Penalties(*penalty)}
        # in float32 what the normal form loses by cancellation grows with the iterations
        iterations = 10 if dtype == torch.float64 else 1
        *factors, outcome = iterate(solver, A, Z, D, iterations=iterations, **options)
        runs[form] = factors, outcome.history[-1]
    tolerance = TOLERANCES[solver, dtype_name(dtype)]
    for one, other in zip(runs["normal"][0], runs["residual"][0], strict=True):
        assert relative_difference(one, other) <= tolerance
    (Z1, D1), last = runs["residual"]
    if solver == "hals":
        whole = 2 * objective(A, Z1, D1, *weights(*penalty)) / (A.astype(np.float64) ** 2).sum()
        assert last.relative_objective == pytest.approx(whole**0.5, rel=1e-5)
        assert last.relative_objective > 1.01 * last.relative_error


# sums of both factors, a mixture, and a penalty on one factor only
@pytest.mark.parametrize(
    ("n", "d", "K", "penalty"),
    [(60, 20, 7, BOTH[1]), (30, 12, 25, BOTH[2]), (30, 12, 25, ONE[0]), (60, 20, 7, ONE[1])],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_objective_never_rises_and_is_the_reported_one(n, d, K, penalty, form, solver):
    A, Z, D = problem(n, d, K)
    before = objective(A, Z, D, *weights(*penalty))
    model, Z1 = with_codes(solver, A, Z, D, penalty, 40, tuning=Tuning(form=form))
    half = 0.5 * (A**2).sum()
    seen = [before, *(i.relative_objective**2 * half for i in model.fit_info_.history)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(seen))
    assert seen[-1] < 0.9 * before
    D1 = model.D.numpy()
    reported = model.fit_info_.objective
    assert reported == pytest.approx(objective(A, Z1, D1, *weights(*penalty)), rel=1e-9)
    assert seen[-1] == pytest.approx(reported, rel=1e-9)
    again = model.encode(A, 600, 0, method="sweeps").numpy()
    assert objective(A, again, model.D.numpy(), *weights(*penalty)) <= seen[-1] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("seed", "l1_ratio", "solver"),
    [
        # three data sets, since it happened to some only
        (0, 0.5, "hals"),
        (1, 1.0, "hals"),
        (2, 0.5, "hals"),
        (0, 1.0, "mu"),
        (1, 0.5, "pgd"),
        (2, 1.0, "anls"),
    ],
)
def test_encode_of_training_data_is_no_worse_than_the_fit(seed, l1_ratio, solver):
    """300 sweeps of hals without extrapolation had an objective 5 % higher where concepts are
    similar."""
    rng = np.random.default_rng(seed)
    A = rng.random((150, 5)) @ rng.random((5, 25)) + 0.1 * rng.random((150, 25))
    penalty = (1e-4, 1e-3, l1_ratio)
    options = {"alpha_Z": 1e-4, "alpha_D": 1e-3, "l1_ratio": l1_ratio, "seed": 0}
    model = NMF(7, solver=solver, max_iter=400, tol=1e-4, **options)
    Z, D = (F.numpy() for F in model.fit(A))
    # given D, only the codes can be better
    found = objective(A, model.encode(A).numpy(), D, *penalty)
    assert found <= objective(A, Z, D, *penalty) * (1 + 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_penalty_of_zero_changes_no_bit(solver):
    A, Z, D = problem(40, 13, 6)
    plain = NMF(6, solver=solver, init=(Z.copy(), D.copy()), tol=0)
    Z0, D0 = plain.fit(A, 10)
    penalty = fitted(solver, A, Z, D, (0.0, "same", 0.7), 10)
    assert torch.equal(penalty.D, D0)
    assert torch.equal(penalty.encode(A), plain.encode(A))
    info = plain.fit_info_
    assert [i.relative_objective for i in info.history] == [i.relative_error for i in info.history]
    assert info.objective == pytest.approx(0.5 * ((A - (Z0 @ D0).numpy()) ** 2).sum())
    assert "penalties" not in info.lines()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_anls_codes_satisfy_the_kkt_conditions(ratio):
    A, _, D = problem(50, 20, 30)
    model = NMF(30, solver="anls", alpha_Z=0.02, l1_ratio=ratio).load_dictionary(D)
    found = model.encode(A).numpy()
    l1, l2 = 20 * 0.02 * ratio, 20 * 0.02 * (1 - ratio)
    assert kkt_residual(found.T, A, D, l1, l2) <= 1e-9
    assert kkt_residual(found.T, A, D) > 1e-3
    for solver in ("hals", "pgd", "mu"):
        model = NMF(30, solver=solver, alpha_Z=0.02, l1_ratio=ratio).load_dictionary(D)
        reached = objective(
            A, model.encode(A, 3000, 1e-9, method="sweeps").numpy(), D, 0.02, 0, ratio
        )
        assert reached <= objective(A, found, D, 0.02, 0, ratio) * (1 + 1e-5)


@pytest.mark.parametrize(
    ("solver", "ratio"), [("hals", 0.0), *((solver, 0.6) for solver in SOLVERS)]
)
def test_codes_have_the_gradient_of_the_penalised_problem(solver, ratio):
    A, _, D = problem(2, 7, 3)
    model = NMF(3, solver=solver, alpha_Z=0.02, l1_ratio=ratio).load_dictionary(D)
    A = torch.tensor(A + 0.1, requires_grad=True)
    assert torch.autograd.gradcheck(model.encode, (A,), atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("K", "ratio"), [(12, 0.5), (130, 0.0), (130, 1.0)])
def test_codes_are_the_same_in_both_forms(K, solver, ratio):
    A, _, D = problem(50, 20, K)
    penalty = {"solver": solver, "alpha_Z": 0.02, "l1_ratio": ratio}
    one, other = (
        NMF(K, tuning=Tuning(form=form), **penalty)
        .load_dictionary(D)
        .encode(A, 30, 0, method="sweeps")
        .numpy()
        for form in FORMS
    )
    # exact codes are as precise as their slopes
    assert relative_difference(one, other) <= (1e-8 if solver == "anls" else 1e-10)


def test_sums_make_codes_sparse():
    A, Z, D = problem(80, 20, 15)
    plain, sparse = (
        fitted("hals", A, Z, D, (alpha, 0.01, 1.0), 200).fit_info_ for alpha in (0, 0.05)
    )
    assert sparse.mean_l0 < 0.9 * plain.mean_l0


@pytest.mark.parametrize(
    ("solver", "codes"), [*((solver, "file") for solver in SOLVERS), ("hals", None), ("anls", None)]
)
def test_streamed_data_have_penalties(solver, codes, tmp_path, small_budgets):
    A, Z, D = problem(3000, 40, 6)
    np.save(tmp_path / "A.npy", A)
    kept = tmp_path / "Z.npy" if codes else None
    start = (Z if codes else None, D)
    options = {"alpha_Z": 0.01, "alpha_D": 0.001, "l1_ratio": 0.5, "tol": 0}
    resident = fitted(solver, A, Z, D, (0.01, 0.001, 0.5), 5)
    model = NMF(6, solver=solver, init=start, max_memory="600kB", **options)
    model.fit(tmp_path / "A.npy", 5, codes=kept)
    assert model.fit_info_.chunk_rows < 3000
    if codes:
        assert model.fit_info_.objective == pytest.approx(resident.fit_info_.objective, rel=1e-9)
        assert relative_difference(model.D, resident.D) <= 1e-9
    else:
        last = model.fit_info_.history
        assert last[-1].relative_objective < last[0].relative_objective


def test_the_rule_error_watches_the_objective():
    A, Z, D = problem(60, 20, 7)
    model = NMF(7, init=(Z, D), alpha_Z=0.05, l1_ratio=0.5, tol=1e-5, stop="error")
    model.fit(A, 5000)
    history = [i.relative_objective for i in model.fit_info_.history]
    assert model.fit_info_.stopped_by == "error"
    assert history[-11] - history[-1] <= 1e-5 * history[-11]
    assert history[-12] - history[-2] > 1e-5 * history[-12]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("alpha_Z", -0.1, InvalidInput),
        ("alpha_Z", math.nan, InvalidInput),
        ("alpha_Z", "same", TypeError),
        ("alpha_Z", True, TypeError),
        ("alpha_D", math.inf, InvalidInput),
        ("alpha_D", "other", TypeError),
        ("alpha_D", None, TypeError),
        ("l1_ratio", -0.1, InvalidInput),
        ("l1_ratio", 1.1, InvalidInput),
        ("l1_ratio", math.nan, InvalidInput),
        ("l1_ratio", [1], TypeError),
    ],
)
def test_bad_penalties_are_refused(name, value, kind):
    with pytest.raises(kind, match=name):
        NMF(3, **{name: value})


@pytest.mark.parametrize("name", ["alpha_Z", "alpha_D"])
def test_calls_without_penalties_refuse_them(name):
    A, _, _ = problem(20, 8, 3)
    with pytest.raises(InvalidInput, match="accelerate=True does not go with alpha_Z or alpha_D"):
        NMF(3, accelerate=True, **{name: 0.1}).fit(A, 3)
    with pytest.raises(InvalidInput, match="partial_fit has no penalties"):
        NMF(3, **{name: 0.1}).partial_fit(A)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_stream_with_many_concepts_has_the_iterates_of_memory(solver, tmp_path, small_budgets):
    K = {"anls": 60, "hals": 260}.get(solver, 200)
    A, Z, D = problem(2000, 30, K)
    np.save(tmp_path / "A.npy", A)
    options = {"alpha_Z": 0.02, "alpha_D": 0.001, "l1_ratio": 0.5, "tol": 0}
    model = NMF(
        K, solver=solver, init=(Z, D), max_memory="6MB" if solver == "hals" else "3MB", **options
    )
    model.fit(tmp_path / "A.npy", 4, codes=tmp_path / "Z.npy")
    info = model.fit_info_
    assert info.chunk_rows is not None
    resident = fitted(solver, A, Z, D, (0.02, 0.001, 0.5), 4, tuning=Tuning(form="normal"))
    assert info.objective == pytest.approx(resident.fit_info_.objective, rel=1e-9)
    assert relative_difference(model.D, resident.D) <= 1e-9
    if solver == "hals":
        assert info.form == "residual/normal"


def test_the_plan_takes_either_form_and_does_not_accelerate():
    for n, d, K, form in ((60, 16, 12, "normal"), (300, 16, 1200, "residual")):
        A, _, _ = problem(n, d, K)
        model = NMF(K, alpha_Z=0.01, l1_ratio=0.25, seed=0)
        model.fit(A, 2)
        assert model.fit_info_.form == form
        assert not model.fit_info_.accelerated
    A, _, _ = problem(60, 16, 12)
    model = NMF(12, alpha_Z=0.01, l1_ratio=0.25, seed=0)
    model.fit(A, 5)
    info = model.fit_info_
    assert (info.alpha_Z, info.alpha_D, info.l1_ratio) == (0.01, 0.01, 0.25)
    assert f"objective {info.objective:.6g}" in str(info)


def test_saved_models_and_copies_keep_penalties(tmp_path):
    A, _, _ = problem(30, 9, 4)
    model = NMF(4, alpha_Z=0.02, alpha_D=0.03, l1_ratio=0.5, seed=0)
    model.fit(A.astype(np.float32), 5)
    model.save(tmp_path / "model.safetensors")
    for other in (NMF.load(tmp_path / "model.safetensors"), saved_and_loaded(model)):
        assert (other.alpha_Z, other.alpha_D, other.l1_ratio) == (0.02, 0.03, 0.5)
        assert other.fit_info_ == model.fit_info_
        assert torch.equal(other.encode(A), model.encode(A))


def test_a_checkpoint_goes_on_with_its_penalties_only(tmp_path):
    A, _, _ = problem(30, 9, 4)
    penalty = {"alpha_Z": 0.02, "l1_ratio": 0.5, "seed": 0, "tol": 0}
    file, tuning = tmp_path / "run.safetensors", Tuning(checkpoint_seconds=0)
    _, whole = NMF(4, **penalty).fit(A, 8)
    NMF(4, tuning=tuning, **penalty).fit(A, 5, checkpoint=file)
    resumed = NMF(4, tuning=tuning, **penalty)
    assert torch.equal(resumed.fit(A, 8, checkpoint=file, resume=True)[1], whole)
    history = [i.relative_objective for i in resumed.fit_info_.history]
    assert len(history) == 8
    assert all(b <= a for a, b in itertools.pairwise(history))
    for name in ("alpha_Z", "l1_ratio"):
        with pytest.raises(InvalidInput, match=f"{name}="):
            NMF(4, **{**penalty, name: 0.1}).fit(A, 8, checkpoint=file, resume=True)


def test_the_command_takes_penalties(tmp_path, capsys):
    A, _, _ = problem(30, 9, 4)
    np.save(tmp_path / "A.npy", A.astype(np.float32))
    out = tmp_path / "model.safetensors"
    command = ["fit", str(tmp_path / "A.npy"), "--concepts", "4", "--out", str(out), "--seed", "0"]
    assert main([*command, "--alpha-Z", "0.02", "--alpha-D", "0.03", "--l1-ratio", "0.5"]) == 0
    assert "alpha_Z 0.02, alpha_D 0.03, l1_ratio 0.5" in capsys.readouterr().out
    assert NMF.load(out).alpha_D == 0.03
    assert main([*command, "--alpha-Z", "0.02", "--quiet", "--force"]) == 0
    assert NMF.load(out).alpha_D == "same"
    assert main([*command, "--alpha-Z", "-1", "--quiet", "--force"]) == 2
    assert "--alpha-Z" in capsys.readouterr().err
