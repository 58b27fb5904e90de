"""Concepts of norm 1: the objective under that constraint, in all solvers and both forms, and what
does not go with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fits import SOLVERS_AND_FORMS, nmf
from half_steps import saved_and_loaded
from oracle import kkt_residual, objective, problem, relative_difference

from fastnmf import NMF
from fastnmf.cli.main import main
from fastnmf.errors import InvalidInput
from fastnmf.fit.options import Options
from fastnmf.solvers.registry import SOLVERS

both_forms = pytest.mark.parametrize("form", ["normal", "residual"])
all_solvers = pytest.mark.parametrize("solver", SOLVERS)


def scaled(Z, D):
    norms = np.linalg.norm(D, axis=1)
    norms[norms == 0] = 1
    return Z * norms, D / norms[:, None]


def fitted(solver, A, Z, D, iterations, alpha_Z=0.0, l1_ratio=0.0, **options):
    options = {"unit_norm": True, "tol": 0, **options}
    options |= {"solver": solver, "init": (Z.copy(), D.copy())}
    model = nmf(len(D), alpha_Z=alpha_Z, l1_ratio=l1_ratio, **options)
    return model, model.fit(torch.tensor(A), iterations)[0]


# no iteration, one and some; every solver and form; the dtypes in turn
NORMS = [
    ("hals", form, 0, dtype) for form, dtype in (("normal", "float32"), ("residual", "float64"))
]
NORMS += [("hals", "normal", 1, "float64"), ("pgd", "residual", 1, "float32")]
NORMS += [
    (*case, 4, ("float32", "float64")[number % 3 % 2])
    for number, case in enumerate(SOLVERS_AND_FORMS)
]


@pytest.mark.parametrize(("solver", "form", "iterations", "dtype"), NORMS)
def test_concepts_have_norm_one_after_every_iteration(solver, form, iterations, dtype):
    A, Z, D = (M.astype(dtype) for M in problem(40, 13, 20, kind="zero_concepts"))
    model, Z1 = fitted(solver, A, Z, D, iterations, 0.02, 0.5, form=form)
    norms = np.linalg.norm(model.D.numpy(), axis=1)
    # a solver may bring it back, as long as it has codes
    if iterations == 0 or solver in ("hals", "anls"):
        assert norms[10] == 0
    norms = norms[norms > 0]
    assert len(norms) >= 19
    assert norms == pytest.approx(np.ones_like(norms), abs=float(4 * np.finfo(dtype).eps))
    assert np.isfinite(Z1.numpy()).all()
    if iterations == 0:
        assert relative_difference(Z1, scaled(Z, D)[0]) <= 1e-6


# solver, form, (n, d, K), (alpha_Z, l1_ratio): none, l1, l2, both and much; fewer concepts than
# features, more, and several blocks
FEW, WIDE, MANY = (60, 20, 7), (30, 12, 25), (80, 20, 61)
FALLING = [
    ("hals", "normal", FEW, (0.0, 0.0)),
    ("hals", "normal", WIDE, (0.02, 1.0)),
    ("hals", "normal", MANY, (0.01, 0.0)),
    ("hals", "normal", FEW, (0.3, 1.0)),
    ("hals", "residual", FEW, (0.02, 0.5)),
    ("hals", "residual", MANY, (0.02, 1.0)),
    ("hals", "residual", WIDE, (0.01, 0.0)),
    ("mu", "normal", FEW, (0.02, 1.0)),
    ("mu", "normal", MANY, (0.02, 0.5)),
    ("mu", "residual", WIDE, (0.01, 0.0)),
    ("mu", "residual", FEW, (0.3, 1.0)),
    ("pgd", "normal", FEW, (0.01, 0.0)),
    ("pgd", "normal", WIDE, (0.3, 1.0)),
    ("pgd", "residual", MANY, (0.02, 0.5)),
    ("pgd", "residual", FEW, (0.02, 1.0)),
    ("anls", "normal", FEW, (0.02, 0.5)),
    ("anls", "normal", WIDE, (0.02, 1.0)),
    ("anls", "residual", FEW, (0.3, 1.0)),
    ("anls", "residual", WIDE, (0.0, 0.0)),
]


@pytest.mark.parametrize(("solver", "form", "shape", "penalty"), FALLING)
def test_the_objective_never_rises_and_is_what_is_reported(solver, form, shape, penalty):
    A, Z, D = problem(*shape)
    alpha_Z, ratio = penalty
    before = objective(A, *scaled(Z, D), alpha_Z, 0, ratio)
    model, Z1 = fitted(solver, A, Z, D, 40, *penalty, form=form)
    half = 0.5 * (A**2).sum()
    seen = [before, *(i.relative_objective**2 * half for i in model.fit_info_.history)]
    slack = 1e-12 * half
    assert all(b <= a + slack for a, b in itertools.pairwise(seen))
    assert seen[-1] < 0.9 * before
    reported = model.fit_info_.objective
    assert reported == pytest.approx(objective(A, Z1.numpy(), model.D.numpy(), alpha_Z, 0, ratio))
    # in residual form mu and pgd report the error of the dictionary before
    if form == "normal" or solver in ("hals", "anls"):
        assert reported == pytest.approx(seen[-1], rel=1e-9, abs=slack)
    assert reported <= seen[-1] + slack


@pytest.mark.parametrize(
    ("solver", "form"),
    [("hals", "normal"), ("hals", "residual"), ("mu", "normal"), ("anls", "residual")],
)
def test_without_penalties_the_product_is_that_of_the_plain_fit(solver, form):
    A, Z, D = problem(60, 20, 7)
    model, Z1 = fitted(solver, A, Z, D, 6, form=form)
    plain, Z2 = fitted(solver, A, Z, D, 6, form=form, unit_norm=False)
    assert relative_difference(Z1 @ model.D, Z2 @ plain.D) <= 1e-9
    assert relative_difference(Z1, scaled(Z2.numpy(), plain.D.numpy())[0]) <= 1e-9


@pytest.mark.parametrize(
    ("solver", "shape", "penalty"),
    [
        ("hals", (60, 20, 7), (0.02, 0.5)),
        ("hals", (90, 20, 61), (0.02, 1.0)),
        ("mu", (60, 20, 7), (0.01, 0.0)),
        ("mu", (90, 20, 61), (0.02, 0.5)),
        ("pgd", (60, 20, 7), (0.3, 1.0)),
        ("pgd", (90, 20, 61), (0.0, 0.0)),
    ],
)
def test_both_forms_give_the_same_iterates(solver, shape, penalty):
    A, Z, D = problem(*shape)
    (one, Z1), (other, Z2) = (
        fitted(solver, A, Z, D, 10, *penalty, form=form) for form in ("normal", "residual")
    )
    assert relative_difference(Z1, Z2) <= 1e-9
    assert relative_difference(one.D, other.D) <= 1e-9


@pytest.mark.parametrize(
    ("solver", "form", "ratio"),
    [("hals", "normal", 0.0), ("hals", "residual", 1.0), ("anls", "normal", 0.5)],
)
def test_a_long_fit_is_stationary_on_the_sphere(solver, form, ratio):
    A, Z, D = problem(40, 8, 4)
    iterations = 600 if solver == "hals" else 300
    model, Z1 = fitted(solver, A, Z, D, iterations, 0.03, ratio, form=form)
    Z1, D1 = Z1.numpy(), model.D.numpy()
    l1, l2 = 8 * 0.03 * ratio, 8 * 0.03 * (1 - ratio)
    assert kkt_residual(Z1.T, A, D1, l1, l2) <= 1e-6
    for k in range(4):
        # the best concept of norm 1, the others given
        best = np.maximum(0, Z1[:, k] @ (A - Z1 @ D1 + np.outer(Z1[:, k], D1[k])))
        assert D1[k] == pytest.approx(best / np.linalg.norm(best), abs=1e-6)


@both_forms
@pytest.mark.parametrize(("seed", "k"), [(959, 3), (6688, 1)])
def test_a_concept_that_becomes_zero_stays_as_it_was_without_codes(seed, k, form):
    A, Z, D = problem(6, 3, 4, seed=seed)
    plain, Z2 = fitted("hals", A, Z, D, 1, form=form, unit_norm=False)
    assert not plain.D[k].any()
    assert Z2[:, k].any()
    model, Z1 = fitted("hals", A, Z, D, 1, form=form)
    assert relative_difference(model.D[k], scaled(Z, D)[1][k]) <= 1e-15
    assert not Z1[:, k].any()
    assert relative_difference(Z1 @ model.D, Z2 @ plain.D) <= 1e-12


def test_codes_become_sparser_with_the_penalty_where_a_plain_one_says_nothing():
    A, Z, D = problem(80, 20, 40)
    alphas = (0, 0.01, 0.05, 0.1)
    sparse = [fitted("hals", A, Z, D, 200, alpha, 1.0)[0].fit_info_ for alpha in alphas]
    assert all(b.mean_l0 < 0.9 * a.mean_l0 for a, b in itertools.pairwise(sparse))
    assert all(b.relative_error > a.relative_error for a, b in itertools.pairwise(sparse))
    # what the penalty takes from the codes a free dictionary gives back
    free = fitted("hals", A, Z, D, 2000, 0.1, 1.0, unit_norm=False, alpha_D=0)[0].fit_info_
    assert free.relative_error < 0.5 * sparse[-1].relative_error


@pytest.mark.parametrize(
    ("solver", "codes"),
    [("hals", "file"), ("hals", None), ("mu", "file"), ("pgd", None), ("anls", "file")],
)
def test_streamed_data_have_unit_norm(solver, codes, tmp_path, small_budgets):
    A, Z, D = problem(3000, 40, 6)
    np.save(tmp_path / "A.npy", A)
    kept = tmp_path / "Z.npy" if codes else None
    start = (Z if codes else None, D)
    options = {"alpha_Z": 0.01, "l1_ratio": 0.5, "tol": 0, "unit_norm": True}
    model = NMF(6, solver=solver, init=start, max_memory="600kB", **options)
    streamed, _ = model.fit(tmp_path / "A.npy", 5, codes=kept)
    info = model.fit_info_
    assert info.chunk_rows < 3000
    assert np.linalg.norm(model.D.numpy(), axis=1) == pytest.approx(1, abs=1e-15)
    assert info.history[-1].relative_objective < info.history[0].relative_objective
    if codes:
        resident, Z1 = fitted(solver, A, Z, D, 5, 0.01, 0.5)
        assert relative_difference(model.D, resident.D) <= 1e-9
        assert relative_difference(streamed, Z1) <= 1e-9
        assert info.objective == pytest.approx(resident.fit_info_.objective, rel=1e-9)


@all_solvers
def test_codes_are_encoded_for_the_dictionary_as_it_is(solver):
    A, _, D = problem(30, 9, 4)
    plain, unit = (
        NMF(4, solver=solver, unit_norm=unit).load_dictionary(D).encode(A) for unit in (False, True)
    )
    assert torch.equal(plain, unit)


def test_a_dictionary_has_no_penalty_beside():
    assert Options(3, alpha_Z=0.1, unit_norm=True).penalties.alpha_D == 0
    NMF(3, alpha_Z=0.1, alpha_D=0, unit_norm=True)
    with pytest.raises(InvalidInput, match=r"alpha_D=0.2 does not go with unit_norm=True"):
        NMF(3, alpha_Z=0.1, alpha_D=0.2, unit_norm=True)


def test_what_does_not_go_with_unit_norm_says_so():
    A, _, _ = problem(20, 8, 3)
    with pytest.raises(InvalidInput, match=r"accelerate=True does not go with .*unit_norm"):
        NMF(3, accelerate=True, unit_norm=True).fit(A, 3)
    with pytest.raises(InvalidInput, match=r"partial_fit has no .*unit_norm"):
        NMF(3, unit_norm=True).partial_fit(A)
    model = NMF(3, unit_norm=True, seed=0)
    model.fit(A, 3)
    assert not model.fit_info_.accelerated
    assert "of norm 1" in str(model.fit_info_)


def test_saved_models_and_copies_keep_unit_norm(tmp_path):
    A, _, _ = problem(30, 9, 4)
    model = NMF(4, alpha_Z=0.02, unit_norm=True, seed=0)
    model.fit(A.astype(np.float32), 5)
    model.save(tmp_path / "model.safetensors")
    for other in (NMF.load(tmp_path / "model.safetensors"), saved_and_loaded(model)):
        assert other.unit_norm is True
        assert other.fit_info_ == model.fit_info_
        assert other.fit_info_.unit_norm


@pytest.mark.parametrize(
    ("solver", "form"), [("hals", "normal"), ("hals", "residual"), ("mu", "normal")]
)
def test_a_checkpoint_goes_on_to_the_same_bits(solver, form, tmp_path):
    A, _, _ = problem(30, 9, 14)
    options = {"alpha_Z": 0.02, "l1_ratio": 0.5, "seed": 0, "tol": 0, "unit_norm": True}
    options |= {"solver": solver, "form": form}
    path = tmp_path / "run.safetensors"
    whole = nmf(14, **options).fit(A, 8)
    nmf(14, checkpoint_seconds=0, **options).fit(A, 5, checkpoint=path)
    resumed = nmf(14, **options).fit(A, 8, checkpoint=path, resume=True)
    assert all(map(torch.equal, resumed, whole))
    with pytest.raises(InvalidInput, match="unit_norm="):
        nmf(14, **{**options, "unit_norm": False}).fit(A, 8, checkpoint=path, resume=True)


def test_a_streamed_fit_goes_on_to_the_same_bits(tmp_path, small_budgets):
    A, Z, D = problem(3000, 40, 6)
    np.save(tmp_path / "A.npy", A)
    options = {"alpha_Z": 0.02, "l1_ratio": 0.5, "tol": 0, "unit_norm": True, "init": (Z, D)}
    options |= {"max_memory": "600kB"}

    def fit(iterations, codes, checkpoint, seconds):
        model, place = nmf(6, checkpoint_seconds=seconds, **options), tmp_path / checkpoint
        run = {"codes": tmp_path / codes, "checkpoint": place, "resume": True}
        Z1, D1 = model.fit(tmp_path / "A.npy", iterations, **run)
        assert model.fit_info_.chunk_rows < 3000
        return Z1.clone(), D1

    # not saved on the way, so that codes get their norms in the next pass over them
    whole = fit(6, "whole.npy", "never.safetensors", 1e6)
    fit(4, "Z.npy", "run.safetensors", 0)
    assert all(map(torch.equal, fit(6, "Z.npy", "run.safetensors", 0), whole))


@pytest.mark.parametrize(
    ("solver", "unit_norm", "form"),
    [
        ("hals", False, "normal"),
        ("hals", True, "normal"),
        ("hals", True, "residual"),
        ("anls", True, "normal"),
        ("anls", False, "residual"),
    ],
)
def test_rows_for_idle_concepts_lower_the_objective(solver, unit_norm, form):
    A, Z, D = problem(80, 12, 8)
    Z[:, 5:], D[5:] = 0, 0
    options = {"unit_norm": unit_norm, "form": form}
    idle, model = (
        fitted(solver, A, Z, D, 40, 0.005, 1.0, revive=revive, **options)[0]
        for revive in (False, True)
    )
    info = model.fit_info_
    assert info.revived > 0
    seen = [i.relative_objective for i in info.history]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(seen))
    assert info.objective < idle.fit_info_.objective
    if unit_norm:
        assert np.linalg.norm(model.D.numpy(), axis=1) == pytest.approx(np.ones(8), abs=1e-14)


def test_the_command_takes_unit_norm(tmp_path, capsys):
    A, _, _ = problem(30, 9, 4)
    np.save(tmp_path / "A.npy", A.astype(np.float32))
    out = tmp_path / "model.safetensors"
    command = ["fit", str(tmp_path / "A.npy"), "--concepts", "4", "--out", str(out), "--seed", "0"]
    assert main([*command, "--alpha-Z", "0.02", "--unit-norm"]) == 0
    assert "of norm 1" in capsys.readouterr().out
    assert NMF.load(out).unit_norm is True
    assert main([*command, "--quiet", "--force"]) == 0
    assert NMF.load(out).unit_norm is False
