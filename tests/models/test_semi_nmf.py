"""SemiNMF: fits and codes of data of any signs, and what it shares with NMF."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from oracle import relative_difference

from fastnmf import NMF, InvalidInput, SemiNMF, Tuning, nnls
from fastnmf.cli import main as cli
from fastnmf.solvers.constraints import FREE
from fastnmf.solvers.registry import solvers_of

FORMS = [(solver, form) for solver, one in solvers_of(FREE).items() for form in one.forms]
SPARSE = {"alpha_Z": 0.01, "l1_ratio": 1.0, "unit_norm": True}


def draw(n=300, d=24, rank=6, noise=0.3, seed=0):
    """Rows of few concepts of any signs with non-negative codes, and noise, in float64."""
    rng = np.random.default_rng(seed)
    Z = np.maximum(rng.standard_normal((n, rank)), 0)
    A = Z @ rng.standard_normal((rank, d)) + noise * rng.standard_normal((n, d))
    return torch.from_numpy(A)


A = draw()


def objectives(model):
    return [iteration.relative_objective for iteration in model.fit_info_.history]


OPTIONS = [
    # the plain loop
    {},
    {"accelerate": True},
    # l1 on the codes, concepts of norm 1
    SPARSE,
    # l2 on both
    {"alpha_Z": 0.01},
    {"revive": True},
]


@pytest.mark.parametrize(("solver", "form"), FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_objective_never_rises(options, solver, form):
    given = {"accelerate": False, "tuning": Tuning(form=form), "init": "random", **options}
    model = SemiNMF(8, solver, seed=0, tol=0, max_iter=25, **given)
    Z, D = model.fit(A)
    found = objectives(model)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(found))
    assert found[-1] < 0.99 * found[0]
    assert (Z >= 0).all()
    assert (D < 0).any()
    assert model.fit_info_.relative_error == pytest.approx(float((A - Z @ D).norm() / A.norm()))
    if options.get("unit_norm"):
        assert torch.allclose(D.norm(dim=1), torch.ones(8, dtype=D.dtype))


# mu converges too slowly: it has 0.157 where these have 0.146 after 200 iterations
@pytest.mark.parametrize("solver", ["hals", "pgd", "anls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_concepts_reach_the_best_rank_on_easy_data(solver, dtype):
    data = draw()
    model = SemiNMF(6, solver, seed=0, max_iter=200, tol=0)
    model.fit(data.to(dtype))
    singular = torch.linalg.svdvals(data)
    bound = float(singular[6:].norm() / singular.norm())
    assert model.fit_info_.relative_error <= 1.01 * bound


def test_exact_fits_end_at_the_optimum_of_both_halves():
    model = SemiNMF(6, "anls", seed=0, tol=1e-9, max_iter=3000, **SPARSE)
    Z, D = model.fit(A)
    # of the codes, with the penalty
    slope = (A - Z @ D) @ D.T - 0.01 * A.shape[1]
    scale = float((A @ D.T).abs().max())
    worst = torch.where(Z > 0, slope.abs(), slope.clamp(min=0)).max()
    assert float(worst) < 1e-4 * scale
    free = SemiNMF(6, "anls", seed=0, tol=0, max_iter=30)
    Z, D = free.fit(A)
    assert float((Z.T @ (A - Z @ D)).norm()) < 1e-8 * float((Z.T @ A).norm())


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("solver", solvers_of(FREE))
def test_streamed_fit_equals_fit_in_memory(solver, tmp_path):
    data = draw(1500).float()
    np.save(tmp_path / "A.npy", data.numpy())
    given = {"solver": solver, "seed": 0, "tol": 0, "max_iter": 15, "init": "rows"}
    expected = SemiNMF(6, accelerate=False, **given)
    Z, D = expected.fit(data)
    tuning = Tuning(chunk_rows=211)
    streamed = SemiNMF(6, max_memory=110_000, tuning=tuning, **given)
    found = streamed.fit(tmp_path / "A.npy")
    assert 64 <= streamed.fit_info_.chunk_rows <= 211
    assert relative_difference(found[0], Z) <= 1e-5
    assert relative_difference(found[1], D) <= 1e-5


def test_least_squares_in_float32_lose_no_more_than_the_numbers_they_are_given():
    """cond(ZᵀZ) is 280: sums in float32 made the dictionary 1.2e-5 wrong."""
    data = draw(1500)
    fits = [
        SemiNMF(6, "mu", seed=0, tol=0, max_iter=15, init="rows", accelerate=False).fit(A)
        for A in (data.float(), data)
    ]
    for single, double in zip(*fits, strict=True):
        assert relative_difference(single, double) <= 1e-6


@pytest.mark.parametrize("options", [{}, {"accelerate": True}, SPARSE], ids=str)
def test_fit_resumes_from_a_checkpoint_to_the_same_bits(options, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    tuning = Tuning(checkpoint_seconds=0)
    given = {"seed": 0, "tol": 0, "tuning": tuning, **options}
    Z, D = SemiNMF(7, **given).fit(A, 12)
    stop = lambda iteration: iteration.iteration == 5  # noqa: E731
    SemiNMF(7, **given).fit(A, 12, checkpoint=file, callback=stop)
    found = SemiNMF(7, **given).fit(A, 12, checkpoint=file, resume=True)
    assert torch.equal(found[0], Z)
    assert torch.equal(found[1], D)
    with pytest.raises(InvalidInput, match="dictionary='free' there"):
        NMF(7, **given).fit(A.abs(), 12, checkpoint=file, resume=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_codes_are_the_exact_solution(dtype):
    data = A.to(dtype)
    model = SemiNMF(30, seed=0, max_iter=20)
    model.fit(data)
    Z, info = model.encode(data[:50], return_info=True)
    expected = nnls(data[:50].to(Z.dtype), model.D)
    assert info.converged
    assert float(info.kkt.max()) < 1e-6
    rebuilt = expected @ model.D
    assert relative_difference(Z @ model.D, rebuilt) < 1e-4
    swept = model.encode(data[:50], method="sweeps", max_iter=2000, tol=1e-8)
    assert relative_difference(swept @ model.D, rebuilt) < 2e-3


def test_codes_of_penalised_models_are_exact():
    model = SemiNMF(10, seed=0, max_iter=20, **SPARSE)
    Z, _ = model.fit(A)
    Z, info = model.encode(A, return_info=True)
    assert float(info.kkt.max()) < 1e-9
    slope = (A - Z @ model.D) @ model.D.T - 0.01 * A.shape[1]
    assert float(torch.where(Z > 0, slope.abs(), slope.clamp(min=0)).max()) < 1e-8
    assert (Z > 0).double().mean() < 0.7


def test_codes_have_gradients_and_supports():
    model = SemiNMF(8, seed=0, max_iter=20)
    model.fit(A)
    few = A[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(model.encode, few)
    assert (model.encode(A, top_k=2) > 0).sum(1).max() <= 2


def test_batches_are_learned():
    model = SemiNMF(6, seed=0)
    for batch in A.split(60):
        model.partial_fit(batch)
    whole = SemiNMF(6, seed=0)
    whole.fit(A)
    error = float((A - model.encode(A) @ model.D).norm() / A.norm())
    assert error < 1.3 * whole.fit_info_.relative_error
    assert (model.D < 0).any()


def test_dead_concepts_get_rows_of_any_signs():
    D = torch.zeros(6, A.shape[1], dtype=A.dtype)
    D[0] = A[0]
    Z = torch.ones(len(A), 6, dtype=A.dtype)
    model = SemiNMF(6, init=(Z, D), revive=True, max_iter=60, tol=0)
    model.fit(A)
    assert model.fit_info_.dead_concepts == 0
    assert (model.D < 0).any(1).all()


def test_overcompletes_l1_penalty_is_that_of_the_codes():
    K, weight = 5, 0.4
    model = SemiNMF(K, "hals", "cpu", 0.0, weight, False, seed=0, max_iter=1)
    assert (model.alpha_Z, model.l1_ratio, model.alpha_D) == (weight / (2 * K), 1.0, 0)
    assert model.l1_penalty == pytest.approx(weight)
    with pytest.warns(UserWarning, match="one factor alone"):
        Z, D = model.fit(A)
    n, d = A.shape
    theirs = float((A - Z @ D).square().mean() + weight * Z.abs().mean())
    assert 2 / (n * d) * model.fit_info_.objective == pytest.approx(theirs)
    model.l1_penalty = 0.2
    assert model.alpha_Z == pytest.approx(0.02)


REFUSED = [
    ({"alpha_Z": 0.1, "l1_ratio": 0.5}, "l2 only"),
    ({"l1_penalty": 0.1, "alpha_Z": 0.1}, "goes with none of them"),
    ({"init": "nndsvda"}, "auto, random, svd, rows, spread"),
    ({"solver": "mu", "tuning": Tuning(form="residual")}, "does not exist for solver='mu'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_options_that_do_not_go_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        SemiNMF(3, **options)


def test_messages_name_the_model():
    with pytest.raises(InvalidInput, match=r"or fastnmf\.SemiNMF, which takes any signs"):
        NMF(3).fit(A)
    with pytest.raises(TypeError, match=r"write SemiNMF\(seed=…\)"):
        SemiNMF(3, random_state=0)
    with pytest.raises(AttributeError, match="SemiNMF has no 'components_'"):
        _ = SemiNMF(3).components_
    with pytest.raises(InvalidInput, match=r"make it by SemiNMF\(2\)"):
        SemiNMF(3).load_dictionary(-torch.ones(2, 4))
    with pytest.raises(InvalidInput, match="nan; it must hold finite numbers"):
        SemiNMF(3).fit(torch.full((4, 3), torch.nan))
    with pytest.raises(TypeError, match=r"did you mean 'l1_penalty'.*: nb_concepts, solver, dev"):
        SemiNMF(3, l1_penalti=0.1)
    with pytest.raises(InvalidInput, match="nb_concepts=0 must be at least 1"):
        SemiNMF(0, l1_penalty=0.1)
    with pytest.raises(ArithmeticError, match=r"scale A \(A / abs\(A\)\.max\(\)\)"):
        SemiNMF(3).fit(torch.full((4, 3), -1e30))


def negative_calls(folder):
    np.save(folder / "A.npy", A.numpy())
    fitted = NMF(3).load_dictionary(A[:3].abs())
    return {
        "fit": lambda: NMF(3).fit(A.half()),
        "batches": lambda: NMF(3).fit([A[:90], A[90:]]),
        "file": lambda: NMF(3).fit(folder / "A.npy"),
        "passes": lambda: NMF(3, max_memory=100_000).fit(folder / "A.npy"),
        "sparse": lambda: NMF(3).fit(A.to_sparse_csr()),
        "partial_fit": lambda: NMF(3).partial_fit(A),
        "encode": lambda: fitted.encode(A),
        "encode of a file": lambda: fitted.encode(folder / "A.npy"),
    }


def test_negative_data_in_nmf_are_an_error_that_names_semi_nmf_everywhere(tmp_path):
    for name, call in negative_calls(tmp_path).items():
        with pytest.raises(InvalidInput, match=r"negative ent.* fastnmf\.SemiNMF, which") as error:
            call()
        assert "clip with" in str(error.value), name


def test_negative_data_in_estimators_are_an_error_that_names_semi_nmf():
    estimators = pytest.importorskip("fastnmf.sklearn", reason="scikit-learn is an extra")
    X = A.numpy()
    fitted = estimators.NMF(3, max_iter=1, tol=0).fit(abs(X))
    for call in (
        estimators.NMF(3).fit,
        estimators.MiniBatchNMF(3).fit,
        estimators.MiniBatchNMF(3).partial_fit,
        fitted.transform,
        lambda X: estimators.non_negative_factorization(X, n_components=3),
    ):
        with pytest.raises(ValueError, match=r"^Negative values in data .* fastnmf\.SemiNMF"):
            call(X)


def test_negative_data_on_the_command_line_are_an_error_that_names_its_option(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A.numpy())
    NMF(3).load_dictionary(A[:3].abs()).save("m.safetensors")
    for command in (
        ["fit", "A.npy", "-k", "3", "-o", "n.safetensors"],
        ["encode", "m.safetensors", "A.npy", "-o", "Z.npy"],
    ):
        assert cli.main(command) == 3
        assert "NMF needs A ≥ 0, or fit with --model semi, which" in capsys.readouterr().err


def test_order_of_arguments_is_overcompletes():
    names = list(inspect.signature(SemiNMF).parameters)
    assert names[:6] == ["nb_concepts", "solver", "device", "tol", "l1_penalty", "verbose"]


def test_files_are_read_by_their_own_class(tmp_path):
    model = SemiNMF(4, "anls", seed=0, max_iter=5, **SPARSE)
    model.fit(A)
    model.save(tmp_path / "semi.safetensors")
    found = SemiNMF.load(tmp_path / "semi.safetensors")
    assert torch.equal(found.D, model.D)
    assert (found.solver, found.unit_norm) == ("anls", True)
    assert found.fit_info_ == model.fit_info_
    with pytest.raises(InvalidInput, match=r"read it by SemiNMF\.load"):
        NMF.load(tmp_path / "semi.safetensors")


def test_solver_functions_have_overcompletes_form():
    Z, D = SemiNMF(5, seed=0, max_iter=3).fit(A)
    for name, solve in SemiNMF._SOLVERS.items():
        both = solve(A, Z, D, max_iter=2, tol=0)
        assert [F.shape for F in both] == [Z.shape, D.shape], name
        kept, found = solve(A, Z, D, update_Z=False)
        assert torch.equal(kept, Z)
        assert float((Z.T @ (A - Z @ found)).norm()) < 1e-6 * float((Z.T @ A).norm())


def test_subclass_with_codes_of_its_own_starts_with_them():
    class Own(SemiNMF):
        def init_random_z(self, A):
            return torch.ones(len(A), self.nb_concepts, dtype=A.dtype)

    Z, D = Own(1, init="random", seed=0).fit(A, 0)
    assert (Z == 1).all()
    assert torch.allclose(D[0], A.mean(0))


def test_command_line_fits_encodes_and_decodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A.numpy())
    fit = ["fit", "A.npy", "-k", "4", "--model", "semi", "--seed", "0", "-o", "m.safetensors"]
    assert cli.main([*fit, "--unit-norm", "--alpha-Z", "0.01", "--l1-ratio", "1"]) == 0
    assert cli.main(["encode", "m.safetensors", "A.npy", "-o", "Z.npy"]) == 0
    assert cli.main(["decode", "m.safetensors", "Z.npy", "-o", "B.npy"]) == 0
    assert cli.main(["report", "m.safetensors"]) == 0
    capsys.readouterr()
    rebuilt = np.load("Z.npy") @ SemiNMF.load("m.safetensors").D.numpy()
    assert np.allclose(np.load("B.npy"), rebuilt)
