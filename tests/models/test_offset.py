"""SemiNMF with an offset: A ≈ Z D + b."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from oracle import (
    free_hals_half_step,
    free_pgd_half_step,
    hals_half_step,
    least_squares_half_step,
    offset_half_steps,
    pgd_half_step,
    relative_difference,
    signed_mu_half_step,
)

from fastnmf import NMF, InvalidInput, SemiNMF, Tuning, nnls
from fastnmf.cli import main as cli
from fastnmf.engine.codes import Encoder
from fastnmf.solvers.constraints import FREE
from fastnmf.solvers.pgd import largest_eigenvalue_of_signed, momenta
from fastnmf.solvers.registry import solvers_of

FORMS = [(solver, form) for solver, one in solvers_of(FREE).items() for form in one.forms]
BY_FORM = pytest.mark.parametrize(("solver", "form"), FORMS)
SPARSE = {"alpha_Z": 0.01, "l1_ratio": 1.0, "unit_norm": True}


def draw(n=300, d=24, rank=6, noise=0.3, seed=0):
    """Rows of few concepts of any signs with non-negative codes, a mean and noise, in float64."""
    rng = np.random.default_rng(seed)
    Z = np.maximum(rng.standard_normal((n, rank)), 0)
    A = Z @ rng.standard_normal((rank, d)) + noise * rng.standard_normal((n, d))
    return torch.from_numpy(A + 3 * rng.standard_normal(d))


A = draw()


def fitted(data=A, K=6, **options):
    model = SemiNMF(K, **{"seed": 0, "tol": 0, "max_iter": 12, "offset": True, **options})
    return model, *model.fit(data)


def loss(model, Z, D, data=A):
    """The error, computed here."""
    return float((data - Z @ D - model.offset_).norm() / data.norm())


def oracle_of(solver):
    """Half-steps (F, X, B) of the codes and of the dictionary."""
    if solver == "hals":
        return hals_half_step, free_hals_half_step
    if solver == "mu":
        return signed_mu_half_step, least_squares_half_step

    def half_step(step):
        def of(F, X, B):
            G = torch.from_numpy(B @ B.T)
            L = float(largest_eigenvalue_of_signed(lambda V: G @ V, G.diagonal()))
            return step(F, X, B, L, len(momenta()))

        return of

    return half_step(pgd_half_step), half_step(free_pgd_half_step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("solver", "form"), [one for one in FORMS if one[0] != "anls"])
def test_iterates_are_those_of_the_loop(solver, form, dtype):
    rng = np.random.default_rng(1)
    K, data = 7, A[:90].to(dtype)
    Z, D = rng.random((90, K)), rng.standard_normal((K, 24))
    # a concept whose codes become zero, and one that is zero
    Z[:, 2], D[2] = 0, -100 * D[2]
    start = torch.tensor(Z, dtype=dtype), torch.tensor(D, dtype=dtype)
    tuning = Tuning(form=form, block=3, chunk_rows=20)
    model, found, _ = fitted(data, K, solver=solver, init=start, max_iter=3, tuning=tuning)
    b = data.double().numpy().mean(0)
    for _ in range(3):
        Z, D, b = offset_half_steps(data.numpy(), Z, D, b, *oracle_of(solver))
    tolerance = {torch.float32: 2e-3 if solver == "mu" else 2e-4, torch.float64: 1e-9}[dtype]
    assert relative_difference(found, Z) <= tolerance
    assert relative_difference(model.offset_, b) <= tolerance
    assert relative_difference(found @ model.D, Z @ D) <= tolerance


OPTIONS = [
    {},
    {"accelerate": True},
    SPARSE,
    {**SPARSE, "l1_ratio": 0.5},
    {"alpha_Z": 0.01},
    {"alpha_Z": 0.01, "alpha_D": 0.02},
    {"revive": True},
]


@BY_FORM
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_objective_never_rises(options, solver, form):
    given = {"accelerate": False, "tuning": Tuning(form=form), "init": "random", **options}
    model, Z, D = fitted(K=8, solver=solver, max_iter=25, **given)
    found = [iteration.relative_objective for iteration in model.fit_info_.history]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(found))
    assert found[-1] < 0.99 * found[0]
    assert model.fit_info_.relative_error == pytest.approx(loss(model, Z, D))
    # the best offset for both factors, where no half-step of the dictionary follows
    assert torch.allclose(model.offset_, (A - Z @ D).mean(0))
    if options.get("unit_norm"):
        assert torch.allclose(D.norm(dim=1), torch.ones(8, dtype=D.dtype))


@pytest.mark.parametrize("init", ["auto", "svd", "rows", "spread", "random"])
@pytest.mark.parametrize(
    "options", [{}, {"solver": "mu", "max_iter": 1}, {"K": 30}, SPARSE], ids=str
)
def test_a_row_added_to_all_is_added_to_the_offset(init, options):
    options = {"accelerate": False, "max_iter": 5, "init": init, **options}
    row = 5 * torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=A.dtype)
    model, Z, D = fitted(**options)
    other, Z1, D1 = fitted(A + row, **options)
    assert relative_difference(Z1 @ D1, Z @ D) <= 1e-7
    assert torch.allclose(other.offset_, model.offset_ + row)
    assert other.fit_info_.r_squared == pytest.approx(model.fit_info_.r_squared)


def test_no_concept_carries_the_mean():
    model, Z, D = fitted(max_iter=200)
    singular = torch.linalg.svdvals(A - A.mean(0))
    bound = float(singular[6:].norm() / A.norm())
    assert loss(model, Z, D) <= 1.01 * bound
    without = SemiNMF(6, seed=0, tol=0, max_iter=200)
    without.fit(A)
    assert without.fit_info_.relative_error > 1.02 * bound


@BY_FORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"alpha_Z": 0.01}, SPARSE], ids=str)
def test_constant_codes_leave_their_concept(solver, form, dtype, options):
    # rows are alike but for few: codes of most concepts do not vary
    data = A[:1].repeat(50, 1)
    data[:2] += A[1:3]
    given = {"tuning": Tuning(form=form), "init": "rows", **options}
    model, Z, D = fitted(data.to(dtype), 4, solver=solver, **given)
    assert loss(model, Z, D, data) < 0.1
    assert float(D.abs().max()) < 100 * float(data.abs().max())


def test_rows_that_are_alike_are_the_offset():
    data = A[:1].repeat(20, 1)
    for dtype in (torch.float32, torch.float64):
        model, Z, D = fitted(data.to(dtype), 3, max_iter=5)
        assert loss(model, Z, D, data) < 1e-6


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("solver", solvers_of(FREE))
@pytest.mark.parametrize("options", [{}, SPARSE], ids=str)
def test_streamed_fit_equals_fit_in_memory(solver, options, tmp_path):
    data = draw(1500).float()
    np.save(tmp_path / "A.npy", data.numpy())
    options = {"solver": solver, "max_iter": 15, "init": "rows", **options}
    expected, Z, D = fitted(data, accelerate=False, **options)
    tuning = Tuning(chunk_rows=211)
    streamed, Z1, D1 = fitted(tmp_path / "A.npy", max_memory=150_000, tuning=tuning, **options)
    assert 64 <= streamed.fit_info_.chunk_rows <= 211
    assert relative_difference(Z1, Z) <= 1e-5
    assert relative_difference(D1, D) <= 1e-5
    assert relative_difference(streamed.offset_, expected.offset_) <= 1e-5
    assert streamed.fit_info_.relative_error == pytest.approx(loss(expected, Z, D, data), rel=1e-5)
    assert streamed.fit_info_.r_squared == pytest.approx(expected.fit_info_.r_squared, abs=1e-5)


@pytest.mark.parametrize("form", [None, "normal"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_sparse_data_are_made_dense_some_at_a_time(form, kind, tmp_path):
    dense = A.clone().float()
    dense[torch.rand(A.shape, generator=torch.Generator().manual_seed(0)) < 0.8] = 0
    data = scipy.sparse.csr_array(dense.numpy())
    if kind == "file":
        scipy.sparse.save_npz(tmp_path / "A.npz", scipy.sparse.csr_matrix(data))
        data = tmp_path / "A.npz"
    options = {"init": "rows", "accelerate": False, "tuning": Tuning(form=form)}
    expected, Z, D = fitted(dense, **options)
    model, Z1, D1 = fitted(data, **options)
    assert relative_difference(Z1 @ D1, Z @ D) <= 1e-4
    assert relative_difference(model.offset_, expected.offset_) <= 1e-5
    assert relative_difference(model.encode(data), expected.encode(dense)) <= 1e-3


def test_sparse_data_have_no_residual():
    data = scipy.sparse.csr_array(A.clamp(min=0).numpy())
    with pytest.raises(InvalidInput, match="form='residual'"):
        fitted(data, tuning=Tuning(form="residual"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_computed_as_float32(dtype):
    data = A.to(dtype)
    model, Z, D = fitted(data, max_iter=4)
    expected, Z1, D1 = fitted(data.float(), max_iter=4)
    assert D.dtype == model.offset_.dtype == torch.float32
    assert relative_difference(Z @ D, Z1 @ D1) < 1e-4
    assert relative_difference(model.encode(data), expected.encode(data.float())) < 1e-3


@pytest.mark.parametrize("codes", ["memory", None, "file"])
@pytest.mark.parametrize(
    "options", [{"accelerate": False}, {"accelerate": True}, SPARSE, {"form": "residual"}], ids=str
)
def test_fit_resumes_from_a_checkpoint_to_the_same_bits(options, codes, tmp_path):
    file, options = tmp_path / "checkpoint.safetensors", dict(options)
    form = options.pop("form", None)
    if codes is None and (options.get("accelerate") or form == "residual"):
        options, form = {"solver": "pgd"}, None
    tuning = Tuning(checkpoint_seconds=0, form=form)
    codes = tmp_path / "Z.npy" if codes == "file" else codes
    given = {"seed": 0, "tol": 0, "tuning": tuning, "offset": True, **options}
    run = {"codes": codes, "checkpoint": file}
    expected = SemiNMF(7, **given)
    _, D = expected.fit(A, 12, codes=codes)
    stop = lambda iteration: iteration.iteration == 5  # noqa: E731
    SemiNMF(7, **given).fit(A, 12, callback=stop, **run)
    found = SemiNMF(7, **given)
    found.fit(A, 12, resume=True, **run)
    assert torch.equal(found.D, D)
    assert torch.equal(found.offset_, expected.offset_)
    with pytest.raises(InvalidInput, match="offset=True there, False here"):
        SemiNMF(7, **{**given, "offset": False}).fit(A, 12, resume=True, **run)


def test_codes_are_exact_for_what_the_offset_leaves(tmp_path):
    model, _, D = fitted()
    b = model.offset_
    expected = nnls(A - b, D)
    Z, info = model.encode(A, return_info=True)
    assert torch.allclose(Z, expected, atol=1e-8)
    assert info.relative_error == pytest.approx(loss(model, Z, D))
    assert float(info.kkt.max()) < 1e-9
    for same in (
        model.encode(A.reshape(10, 30, 24)).reshape(300, 6),
        model.encode(A.numpy()),
        torch.stack([model.encode(row) for row in A]),
        model.encode(A, codes=tmp_path / "Z.npy"),
        model.encode(A, method="exact"),
        model.encode(A, method="sweeps", max_iter=5000, tol=1e-12),
        model.encode(A, top_k=6),
    ):
        assert torch.allclose(same, expected, atol=1e-5)
    few = model.encode(A, top_k=2)
    assert torch.allclose(few, nnls(A - b, D, top_k=2), atol=1e-8)
    plain = SemiNMF(6).load_dictionary(D)
    assert torch.equal(model.encode(A, 0), plain.encode(A - b, 0))
    # far from one, where data and concepts are scaled
    small = SemiNMF(6, offset=True).load_dictionary(D * 2.0**-500, b * 2.0**-500)
    assert torch.allclose(small.encode(A * 2.0**-500), expected, atol=1e-8)
    assert model.encode(A[:0]).shape == (0, 6)


def test_codes_have_the_gradient_of_what_the_offset_leaves():
    model, _, D = fitted()
    for options in ({}, {"top_k": 2}, {"max_iter": 0}):
        few = A[:3].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda X, o=options: model.encode(X, **o), few)
        plain = SemiNMF(6).load_dictionary(D)
        expected = plain.encode(A[:3] - model.offset_, **options)
        assert torch.allclose(model.encode(few, **options), expected)


def test_data_are_computed_from_codes(tmp_path):
    model, Z, D = fitted()
    expected = Z @ D + model.offset_
    assert torch.allclose(model.decode(Z), expected)
    assert torch.allclose(model.decode(Z.float()), expected, atol=1e-5)
    assert torch.allclose(model.decode(Z.numpy()), expected)
    assert torch.allclose(model.decode(Z.reshape(3, 100, 6)).reshape(300, 24), expected)
    assert torch.allclose(model.decode(Z, out=tmp_path / "B.npy"), expected)
    assert model.decode(Z[:0]).shape == (0, 24)
    codes = Z[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(model.decode, codes)


@pytest.mark.parametrize("solver", solvers_of(FREE))
def test_batches_are_learned(solver):
    model = SemiNMF(6, solver, seed=0, offset=True)
    other = SemiNMF(6, solver, seed=0, offset=True)
    row = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=A.dtype)
    for batch in A.split(60):
        model.partial_fit(batch)
        other.partial_fit(batch + row)
        # the best offset for the statistics of all batches
        codes, rows, sums = model._totals.split((6, 1, 24))
        assert torch.allclose(sums, codes @ model.D, atol=1e-9 * float(rows))
    assert torch.allclose(other.offset_, model.offset_ + row)
    assert relative_difference(other.D, model.D) < 1e-6
    whole, _, _ = fitted(max_iter=100)
    Z = model.encode(A)
    assert loss(model, Z, model.D) < 1.3 * whole.fit_info_.relative_error
    assert model.online_info_.relative_error < 0.3


def test_statistics_follow_the_offset():
    """Of two batches, nothing forgotten: the statistics are those of both minus the last offset."""
    model = SemiNMF(4, seed=0, offset=True).partial_fit(A[:100], half_life=float("inf"))
    sums = model._totals[:4].clone()
    cross = model._cross + torch.outer(sums, model.offset_)
    encoder = Encoder(model.D, model._options().method(torch.device("cpu")), 4)
    Z = encoder(A[100:] - model.offset_)[0]
    model.partial_fit(A[100:], half_life=float("inf"))
    # of A itself
    cross = cross + Z.T @ A[100:]
    found = model._cross + torch.outer(model._totals[:4], model.offset_)
    assert torch.allclose(model._totals[:4], sums + Z.sum(0))
    assert relative_difference(found, cross) < 1e-10


def test_fit_goes_on_with_batches():
    model, _, _ = fitted(max_iter=100)
    error = float((A - model.decode(model.encode(A))).norm() / A.norm())
    for batch in A[:64].split(4):
        model.partial_fit(batch)
    after = float((A - model.decode(model.encode(A))).norm() / A.norm())
    assert after < 1.05 * error


def test_models_are_kept_with_their_offset(tmp_path):
    model, _, D = fitted(solver="anls")
    model.save(tmp_path / "m.safetensors")
    loaded = SemiNMF.load(tmp_path / "m.safetensors")
    assert loaded.fit_info_ == model.fit_info_
    fresh = SemiNMF(6, offset=True)
    fresh.load_state_dict(model.state_dict())
    assigned = SemiNMF(6, offset=True)
    assigned.load_state_dict(model.state_dict(), assign=True)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        loaded,
        fresh,
        assigned,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
        SemiNMF(6, offset=True).load_dictionary(D, model.offset_),
        SemiNMF(6, offset=True).load_dictionary(D.numpy(), model.offset_.numpy()),
    ):
        assert other.offset
        assert torch.equal(other.offset_, model.offset_)
        assert torch.equal(other.encode(A), model.encode(A))
    assert copy.deepcopy(model).float().offset_.dtype == torch.float32
    assert set(model.state_dict()) == {"D", "offset_"}
    assert set(SemiNMF(6).load_dictionary(D).state_dict()) == {"D"}
    assert torch.equal(SemiNMF(6, offset=True).load_dictionary(D).offset_, torch.zeros_like(D[0]))


def test_what_has_no_place_is_refused():
    model, _, D = fitted()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*offset_"):
        SemiNMF(6).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*offset_"):
        SemiNMF(6, offset=True).load_state_dict({"D": D})
    kept = model.offset_.clone()
    for bad, message in ((torch.zeros(3), "one per feature"), (kept * torch.nan, "nan or inf")):
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict({"D": D, "offset_": bad})
        with pytest.raises(InvalidInput, match=message):
            model.load_dictionary(D, bad)
        assert torch.equal(model.offset_, kept)
    with pytest.raises(InvalidInput, match="no offset to load"):
        SemiNMF(6).load_dictionary(D, kept)
    with pytest.raises(InvalidInput, match="no offset to load"):
        NMF(6).load_dictionary(D.abs(), kept)
    with pytest.raises(TypeError, match=r"SemiNMF\(offset=…\)"):
        NMF(6, offset=True)
    with pytest.raises(TypeError, match="offset"):
        SemiNMF(6, offset="yes")


def test_summary_names_the_model():
    model, Z, D = fitted()
    assert (model.fit_info_.model, model.fit_info_.offset) == ("SemiNMF", True)
    assert "SemiNMF, with an offset" in str(model.fit_info_)
    plain = SemiNMF(3, seed=0)
    plain.fit(A, 2)
    assert "with an offset" not in str(plain.fit_info_)
    assert "SemiNMF" in str(plain.fit_info_)
    nmf = NMF(3, seed=0)
    nmf.fit(A.abs(), 2)
    assert (nmf.fit_info_.model, nmf.fit_info_.offset) == ("NMF", False)
    assert "model" not in nmf.fit_info_.lines()
    assert model.fit_info_.r_squared == pytest.approx(
        1 - float((A - Z @ D - model.offset_).square().sum() / (A - A.mean(0)).square().sum())
    )


def test_command_line_fits_encodes_and_decodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A.numpy())
    fit = ["fit", "A.npy", "-k", "4", "--seed", "0", "-o", "m.safetensors", "--offset"]
    assert cli.main(fit) != 0
    assert "--offset is an option of --model semi alone" in capsys.readouterr().err
    assert cli.main([*fit, "--model", "semi"]) == 0
    assert "SemiNMF, with an offset" in capsys.readouterr().out
    assert cli.main(["encode", "m.safetensors", "A.npy", "-o", "Z.npy"]) == 0
    assert cli.main(["decode", "m.safetensors", "Z.npy", "-o", "B.npy"]) == 0
    assert cli.main(["report", "m.safetensors"]) == 0
    model = SemiNMF.load("m.safetensors")
    assert np.array_equal(np.load("Z.npy"), model.encode(A).numpy())
    assert np.allclose(np.load("B.npy"), model.decode(model.encode(A)).numpy())
