"""ConvexNMF: concepts that are mixtures of rows, and what it shares with NMF and SemiNMF."""

from __future__ import annotations

import copy
import inspect
import io
import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from oracle import exactness, relative_difference

from fastnmf import NMF, ConvexNMF, FastnmfWarning, InvalidInput, SemiNMF, Tuning, nnls
from fastnmf.cli import main as cli
from fastnmf.solvers.constraints import MIXED
from fastnmf.solvers.registry import solvers_of

SOLVERS = tuple(solvers_of(MIXED))


def corners(n=400, d=12, K=4, noise=0.0, seed=0):
    """Rows that are convex mixtures, by Dirichlet weights, of K corners of any signs, which are
    rows themselves; and the corners."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((K, d))
    Z = rng.dirichlet(np.full(K, 0.4), n)
    Z[:K] = np.eye(K)
    A = Z @ D + noise * rng.standard_normal((n, d))
    return torch.from_numpy(A), torch.from_numpy(D)


A, _ = corners(150, 10, 6, noise=0.3)
OPTIONS = [{}, {"strict_convex": True}, {"alpha_Z": 0.01}]


def objectives(model):
    return [iteration.relative_objective for iteration in model.fit_info_.history]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_objective_never_rises(options, solver):
    model = ConvexNMF(5, solver=solver, seed=0, tol=0, max_iter=12, **options)
    Z, D = model.fit(A)
    found = objectives(model)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(found))
    assert found[-1] < found[0]
    assert (Z >= 0).all()
    assert (model.W.values() > 0).all()
    assert relative_difference(model.W @ A, D) < 1e-12
    assert model.fit_info_.relative_error == pytest.approx(float((A - Z @ D).norm() / A.norm()))
    if options.get("strict_convex"):
        assert torch.allclose(model.W.to_dense().sum(1), torch.ones(5, dtype=A.dtype))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_corners_are_found(dtype, strict):
    data, D = corners()
    model = ConvexNMF(4, strict_convex=strict, seed=0, max_iter=300, tol=1e-7)
    model.fit(data.to(dtype))
    assert model.fit_info_.relative_error < 1e-3
    rays = torch.nn.functional.normalize(model.D.double(), dim=1)
    cosines = rays @ torch.nn.functional.normalize(D, dim=1).T
    assert (cosines.amax(0) > 0.9999).all()
    if strict:
        # each is nearly one corner
        assert float(model.W.values().amax()) > 0.9


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_converged_fits_end_at_the_optimum_of_both_halves(options):
    A, _ = corners(40, 6, 3, noise=0.1)
    model = ConvexNMF(3, seed=0, tol=1e-8, **options)
    Z, D = model.fit(A)
    assert model.fit_info_.converged
    assert exactness(A, D, Z).max() < 1e-6
    slope = Z.T @ (A - Z @ D) @ A.T
    W = model.W.to_dense()
    if options:
        slope = slope - (W * slope).sum(1, keepdim=True)
    scale = float((Z.T @ A @ A.T).abs().max())
    assert float(torch.where(W > 0, slope.abs(), slope.clamp(min=0)).max()) < 1e-6 * scale


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_fit_from_a_file_equals_fit_in_memory(options, tmp_path):
    data, _ = corners(1500, 24, 6, noise=0.2)
    np.save(tmp_path / "A.npy", data.float().numpy())
    given = {"seed": 0, "tol": 0, "max_iter": 6, "init": "rows", **options}
    expected = ConvexNMF(6, **given)
    Z, D = expected.fit(data.float())
    streamed = ConvexNMF(6, max_memory=110_000, **given, tuning=Tuning(chunk_rows=211))
    for place in (tmp_path / "A.npy", np.load(tmp_path / "A.npy", mmap_mode="r")):
        found = streamed.fit(place)
        assert streamed.fit_info_.chunk_rows is not None
        assert relative_difference(found[0], Z) <= 1e-4
        assert relative_difference(found[1], D) <= 1e-4
        assert torch.equal(streamed.W.indices(), expected.W.indices())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fit_resumes_from_a_checkpoint_to_the_same_bits(options, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    given = {"seed": 0, "tol": 0, "tuning": Tuning(checkpoint_seconds=0), **options}
    whole = ConvexNMF(5, **given)
    Z, D = whole.fit(A, 9)
    stop = lambda iteration: iteration.iteration == 4  # noqa: E731
    ConvexNMF(5, **given).fit(A, 9, checkpoint=file, callback=stop)
    model = ConvexNMF(5, **given)
    found = model.fit(A, 9, checkpoint=file, resume=True)
    assert torch.equal(found[0], Z)
    assert torch.equal(found[1], D)
    assert torch.equal(model.W.to_dense(), whole.W.to_dense())
    with pytest.raises(InvalidInput, match="mixtures of rows' there"):
        SemiNMF(5, "anls", seed=0, tol=0).fit(A, 9, checkpoint=file, resume=True)


HARD = [
    # more concepts than rows
    (A[:4], 7),
    # one row; one feature
    (A[:1], 2),
    (A[:, :1], 3),
    # duplicates, rows of zeros, nothing else
    (A[:5].repeat(4, 1), 6),
    (torch.cat((A[:9], torch.zeros(9, 10))), 4),
    (torch.zeros(6, 5), 3),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("data", "K"), HARD, ids=[f"{len(d)}x{K}" for d, K in HARD])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_hard_data_are_fitted(data, K, strict, dtype):
    data = data.to(dtype)
    model = ConvexNMF(K, strict_convex=strict, seed=0, max_iter=30, tol=0)
    Z, D = model.fit(data)
    assert Z.isfinite().all()
    assert torch.allclose(model.W @ data.float(), D, atol=1e-4)
    if len(data) <= K:
        assert model.fit_info_.relative_error < 1e-3
    if not data.any():
        assert not Z.any()
        assert not D.any()


def test_codes_are_exact_and_have_gradients():
    model = ConvexNMF(4, seed=0, max_iter=10)
    model.fit(A)
    assert relative_difference(model.encode(A), nnls(A, model.D)) < 1e-6
    assert torch.autograd.gradcheck(model.encode, A[:3].clone().requires_grad_())
    assert (model.encode(A, top_k=2) > 0).sum(1).max() <= 2
    assert torch.allclose(model.decode(model.encode(A)), model.encode(A) @ model.D)


def test_overcompletes_arguments():
    names = list(inspect.signature(ConvexNMF).parameters)
    theirs = ["nb_concepts", "device", "tol", "strict_convex", "solver", "verbose", "l1_penalty"]
    assert names[:7] == theirs
    model = ConvexNMF(5, "cpu", 0.0, True, "hals", False, 0.4, seed=0, max_iter=1)
    assert (model.alpha_Z, model.l1_ratio, model.alpha_D) == (0.04, 1.0, 0)
    assert model.l1_penalty == pytest.approx(0.4)
    Z, D = model.fit(A)
    theirs = float((A - Z @ D).square().mean() + 0.4 * Z.abs().mean())
    assert 2 / A.numel() * model.fit_info_.objective == pytest.approx(theirs)
    assert model.init_random_z(A).shape == (150, 5)
    W = model.init_random_w(A)
    assert torch.allclose(W.sum(1), torch.ones(5, dtype=A.dtype))


REFUSED = [
    ({"accelerate": True}, "extrapolated concepts are no mixtures"),
    ({"revive": True}, "residuals, which are no mixtures"),
    ({"unit_norm": True}, "norms of mixtures of rows"),
    ({"distributed": True}, "rows of all processes"),
    ({"init": "svd"}, "auto, random, rows, spread"),
    ({"tuning": Tuning(form="residual")}, "does not exist for mixtures of rows"),
    ({"alpha_Z": 0.1, "l1_ratio": 0.5}, "l2 only"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_options_that_do_not_go_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        ConvexNMF(3, **options)


@pytest.mark.usefixtures("small_budgets")
def test_data_without_any_order_are_refused():
    model = ConvexNMF(3)
    with pytest.raises(InvalidInput, match="a sparse A does not give"):
        model.fit(scipy.sparse.csr_array(A.numpy()))
    batches = list(A.split(20))
    with pytest.raises(InvalidInput, match="batches that are read in passes do not give"):
        ConvexNMF(3, init="rows", max_memory=110_000).fit(_Batches(batches * 10))
    with pytest.raises(InvalidInput, match="no partial_fit"):
        model.partial_fit(A)
    assert model.D is None


class _Batches:
    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


def test_mixture_goes_with_the_model(tmp_path):
    model = ConvexNMF(4, strict_convex=True, seed=0, max_iter=5)
    model.fit(A)
    W = model.W.to_dense()
    model.save(tmp_path / "convex.safetensors")
    found = ConvexNMF.load(tmp_path / "convex.safetensors")
    assert torch.equal(found.W.to_dense(), W)
    assert torch.equal(found.D, model.D)
    assert (found.solver, found.strict_convex) == ("anls", True)
    with pytest.raises(InvalidInput, match=r"read it by ConvexNMF\.load"):
        NMF.load(tmp_path / "convex.safetensors")
    assert torch.equal(copy.deepcopy(model).W.to_dense(), W)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).W.to_dense(), W)
    for state in (model.state_dict(), {"D": model.D, "W": W}):
        fresh = ConvexNMF(4)
        fresh.load_state_dict(state)
        assert torch.allclose(fresh.W.to_dense().to(W), W)
    assert model.to(torch.float32).W.dtype == torch.float32
    assert model.load_dictionary(model.D).W is None
    assert model.to_empty(device="cpu").W is None


def test_failed_fit_leaves_the_model_as_it_was():
    model = ConvexNMF(3, seed=0, max_iter=3)
    model.fit(A)
    W, D = model.W, model.D
    with pytest.raises(InvalidInput, match="nan or inf"):
        model.fit(torch.full((4, 3), torch.nan))
    assert model.W is W
    assert model.D is D


def test_command_line_fits_encodes_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A.numpy())
    fit = ["fit", "A.npy", "-k", "4", "--model", "convex", "--strict-convex", "--seed", "0"]
    assert cli.main([*fit, "-o", "m.safetensors"]) == 0
    assert "anls" in capsys.readouterr().out
    assert cli.main(["encode", "m.safetensors", "A.npy", "-o", "Z.npy"]) == 0
    assert cli.main(["report", "m.safetensors"]) == 0
    assert ConvexNMF.load("m.safetensors").strict_convex


def test_state_that_cannot_be_loaded_leaves_the_mixture_as_it_was():
    drawn = torch.Generator().manual_seed(0)
    model = ConvexNMF(3, seed=0, max_iter=3, tol=1.0)
    model.fit(torch.randn(20, 5, generator=drawn))
    D, W = model.D, model.W
    with pytest.raises(RuntimeError, match="W cannot be loaded"):
        model.load_state_dict({"D": torch.ones(3, 5), "W": torch.ones(2, 20)})
    assert model.D is D
    assert model.W is W


def test_advice_on_penalties_names_what_the_model_has(recwarn):
    """It was unit_norm=True, which does not exist here; and concepts between rows are bounded."""
    A = torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) - 0.3
    options = {"alpha_Z": 0.01, "l1_ratio": 1.0, "seed": 0, "max_iter": 3, "tol": 0}
    with pytest.raises(InvalidInput, match="give alpha_D=0, with strict_convex=True, so that"):
        ConvexNMF(2, **options)
    ConvexNMF(2, alpha_D=0.0, strict_convex=True, **options).fit(A)
    assert not [each for each in recwarn if "one factor alone" in str(each.message)]
    with pytest.warns(FastnmfWarning, match="give strict_convex=True, or alpha_D as well"):
        ConvexNMF(2, alpha_D=0.0, **options).fit(A)
