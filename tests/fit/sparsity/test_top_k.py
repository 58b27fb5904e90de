"""Fits with top_k: never more concepts a row, an objective that does not rise, known concepts found
again; in every solver and place of the data; and what top_k goes with."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from fits import idle_start, nmf

from fastnmf import NMF, InvalidInput, SemiNMF, Tuning, nnls
from fastnmf.backends.registry import select
from fastnmf.solvers import anls
from fastnmf.solvers.registry import SOLVERS
from fastnmf.solvers.supports.pursuit import pursue_
from fastnmf.solvers.supports.working_set import prepare_concepts

K, TOP_K = 32, 4


def planted(n=500, d=16, *, signed=False, seed=0, noise=0.02, dtype=torch.float32):
    """Rows of TOP_K of 2 d concepts, with noise; and the concepts."""
    drawn, K = torch.Generator().manual_seed(seed), 2 * d
    if signed:
        D = torch.randn(K, d, generator=drawn)
    else:
        D = torch.rand(K, d, generator=drawn)
        D = D * (torch.rand(D.shape, generator=drawn) < 0.3)
        D[torch.arange(K), torch.randint(d, (K,), generator=drawn)] += 0.5
    D = torch.nn.functional.normalize(D, dim=1)
    used = torch.rand(n, K, generator=drawn).topk(TOP_K, dim=1).indices
    codes = torch.rand(used.shape, generator=drawn) + 0.2
    A = torch.zeros(n, K).scatter_(1, used, codes) @ D
    A += noise * A.square().mean().sqrt() * torch.randn(A.shape, generator=drawn)
    return (A if signed else A.clamp(min=0)).to(dtype), D


def recovered(D, concepts):
    """The mean over concepts of the best cosine."""
    rays = torch.nn.functional.normalize(D, dim=1)
    return float((concepts @ rays.T).amax(1).mean())


def quiet(function, *given, **named):
    """Its result without warnings that a fit has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*given, **named)


def falls(info):
    errors = [iteration.relative_objective for iteration in info.history]
    return all(after <= before + 1e-6 for before, after in itertools.pairwise(errors))


MODELS = [(NMF, name) for name in SOLVERS] + [(SemiNMF, "hals"), (SemiNMF, "anls")]


@pytest.mark.parametrize(("kind", "solver"), MODELS)
def test_rows_have_as_many_concepts_at_most_and_the_objective_does_not_rise(kind, solver):
    A, _ = planted(200, signed=kind is SemiNMF)
    model = kind(K, solver=solver, top_k=3, seed=0, max_iter=12, tol=0)
    Z, D = model.fit(A)
    info = model.fit_info_
    assert ((Z > 0).sum(1) <= 3).all()
    assert info.l0_most <= 3 == info.top_k
    assert info.solver == "pursuit"
    assert info.dictionary_solver in (solver, "least squares")
    assert "(at most 3)" in str(info)
    assert falls(info)
    error = float((A - Z @ D).norm() / A.norm())
    assert info.relative_error == pytest.approx(error, rel=1e-4)
    assert info.history[-1].relative_error < 0.9 * info.history[0].relative_error


@pytest.mark.parametrize(("signed", "n", "d"), [(False, 600, 20), (True, 1500, 24)])
def test_known_concepts_are_found_again(signed, n, d):
    A, concepts = planted(n, d, signed=signed)
    kind = SemiNMF if signed else NMF
    Z, D = kind(2 * d, top_k=TOP_K, seed=0, max_iter=30, tol=0).fit(A)
    assert recovered(D, concepts) >= 0.95
    assert ((Z > 0).sum(1) <= TOP_K).all()


def long_search(A, D, most, iterations):
    """The loss after alternating pursuits and sweeps of HALS over the dictionary."""
    ops = select(anls.SOLVER.operations, torch.device("cpu"), "auto")[1]
    D, best = D.clone(), float("inf")
    for _ in range(iterations):
        Z = torch.zeros(len(A), len(D))
        pursue_(Z.T, A, prepare_concepts(D, 0), most, ops)
        best = min(best, float((A - Z @ D).double().square().sum()))
        C, G = Z.T @ A, Z.T @ Z
        for k in range(len(D)):
            if G[k, k] > 0:
                D[k] = (D[k] + (C[k] - G[k] @ D) / G[k, k]).clamp(min=0)
    return best


def test_the_loss_is_near_that_of_a_long_search_with_restarts():
    drawn = torch.Generator().manual_seed(1)
    A = torch.rand(80, 3, generator=drawn) @ torch.rand(3, 10, generator=drawn)
    A += 0.3 * torch.rand(A.shape, generator=drawn)
    starts = [torch.rand(12, 10, generator=drawn) for _ in range(5)]
    best = min(long_search(A, D, 2, 30) for D in starts)
    Z, D = NMF(12, top_k=2, seed=0, max_iter=80, tol=0).fit(A)
    assert float((A - Z @ D).double().square().sum()) <= 1.03 * best


def test_both_forms_of_the_dictionary_have_the_same_iterates():
    A, _ = planted(120, dtype=torch.float64)
    fits = [
        nmf(K, form=form, top_k=3, seed=0, max_iter=6, tol=0) for form in ("normal", "residual")
    ]
    Z, expected = (model.fit(A)[0] for model in fits)
    assert [model.fit_info_.form for model in fits] == ["residual/normal", "residual"]
    torch.testing.assert_close(Z, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("codes", ["memory", "sparse", "Z.npz", "Z.npy", None])
def test_data_that_are_read_in_passes_and_all_places_of_codes(codes, tmp_path, small_budgets):
    A, _ = planted(700)
    np.save(tmp_path / "A.npy", A.numpy())
    place = tmp_path / codes if codes and codes.startswith("Z") else codes
    given = {"top_k": 3, "seed": 0, "max_iter": 4, "tol": 0}
    model = NMF(K, max_memory="300kB", **given)
    Z, D = model.fit(tmp_path / "A.npy", codes=place)
    assert model.fit_info_.chunk_rows < 700
    assert model.fit_info_.l0_most == 3
    if Z is None:
        return
    Z = Z.to_dense() if Z.layout == torch.sparse_csr else Z
    assert ((Z > 0).sum(1) <= 3).all()
    # codes of a start are drawn where they are kept dense
    if place == "sparse" or str(place).endswith(".npz"):
        return
    _, expected = NMF(K, **given).fit(A)
    torch.testing.assert_close(D, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("codes", ["memory", None])
def test_sparse_data_have_the_codes_of_dense_ones(codes):
    scipy = pytest.importorskip("scipy.sparse")
    A, _ = planted(200, dtype=torch.float64)
    A *= A > 0.2
    given = {"top_k": 3, "seed": 0, "max_iter": 6, "tol": 0, "init": "rows"}
    _, D = nmf(K, form="normal", **given).fit(scipy.csr_array(A.numpy()), codes=codes)
    _, expected = nmf(K, form="normal", **given).fit(A, codes=codes)
    torch.testing.assert_close(D, expected)


def test_a_fit_that_was_left_resumes_to_the_same_bits(tmp_path):
    A, path = planted(200)[0], tmp_path / "fit.safetensors"
    given = {"top_k": 3, "seed": 0, "max_iter": 9, "tol": 0}
    tuning = Tuning(checkpoint_seconds=0)
    Z, D = NMF(K, tuning=tuning, **given).fit(A)

    def leave(info):
        if info.iteration == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NMF(K, tuning=tuning, **given).fit(A, checkpoint=path, callback=leave)
    again, same = NMF(K, tuning=tuning, **given).fit(A, checkpoint=path, resume=True)
    assert torch.equal(again, Z)
    assert torch.equal(same, D)
    with pytest.raises(InvalidInput, match="top_k=3 there, 4 here"):
        NMF(K, tuning=tuning, **{**given, "top_k": 4}).fit(A, checkpoint=path, resume=True)


def test_a_fit_goes_on_from_its_factors_without_a_rise():
    A, _ = planted(200)
    Z, D = NMF(K, top_k=3, seed=0, max_iter=10, tol=0).fit(A)
    model = NMF(K, top_k=3, init=(Z, D), max_iter=5, tol=0)
    model.fit(A)
    before = float((A - Z @ D).norm() / A.norm())
    assert model.fit_info_.history[0].relative_error <= before * (1 + 1e-6)


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_revived_concepts_leave_rows_as_many_concepts(form):
    A, _ = planted(200)
    given = {"init": idle_start(A, K), "max_iter": 25, "tol": 0, "top_k": 3}
    model = nmf(K, revive=True, form=form, **given)
    Z, _ = model.fit(A)
    assert model.fit_info_.revived > 0
    assert ((Z > 0).sum(1) <= 3).all()
    assert falls(model.fit_info_)


@pytest.mark.parametrize("options", [{"unit_norm": True}, {"offset": True}])
def test_concepts_of_norm_one_and_offsets_go_with_it(options):
    A, _ = planted(200, signed=True)
    model = SemiNMF(K, top_k=3, seed=0, max_iter=10, tol=0, **options)
    Z, D = model.fit(A + 1)
    assert ((Z > 0).sum(1) <= 3).all()
    assert falls(model.fit_info_)
    if model.unit_norm:
        assert torch.linalg.vector_norm(D, dim=1).numpy() == pytest.approx(np.ones(K), abs=1e-5)
    assert model.decode(model.encode(A + 1)).shape == A.shape


def test_encode_has_as_many_concepts_by_default():
    A, _ = planted(300)
    model = NMF(K, top_k=3, seed=0, max_iter=5, tol=0)
    model.fit(A[:200])
    Z, info = model.encode(A[200:], return_info=True)
    assert ((Z > 0).sum(1) <= 3).all()
    assert info.method == "pursuit"
    assert torch.equal(Z, model.encode(A[200:], top_k=3))
    assert ((model.encode(A[200:], top_k=5) > 0).sum(1) > 3).any()
    for other in ({"method": "exact"}, {"Z0": Z}):
        with pytest.raises(InvalidInput, match=r"or set top_k of the model to None"):
            model.encode(A[200:], **other)


@pytest.mark.parametrize("kind", [NMF, SemiNMF])
def test_encode_exchanges_concepts_as_the_fit_does(kind):
    A, _ = planted(600, signed=kind is SemiNMF)
    model = kind(K, top_k=4, seed=0, max_iter=40, tol=0)
    Z, D = model.fit(A)
    found, alone = model.encode(A), nnls(A, D, top_k=4)
    losses = [(A - codes @ D).square().sum(1) for codes in (found, alone)]
    assert ((found > 0).sum(1) <= 4).all()
    assert (losses[0] <= losses[1] * (1 + 1e-5) + 1e-9).all()
    error, pursued, fitted = ((A - codes @ D).norm() for codes in (found, alone, Z))
    # half of the gap and more
    assert error < pursued - 0.4 * (pursued - fitted)


def test_a_saved_model_has_it(tmp_path):
    A, _ = planted(200)
    model = NMF(K, top_k=3, seed=0, max_iter=3, tol=0)
    model.fit(A)
    model.save(tmp_path / "model.safetensors")
    again = NMF.load(tmp_path / "model.safetensors")
    assert again.top_k == 3 == again.fit_info_.top_k
    assert torch.equal(again.encode(A), model.encode(A))


def test_batches_are_learned_by_it():
    A, _ = planted(600)
    model = NMF(K, top_k=3, seed=0)
    for batch in A.split(100):
        model.partial_fit(batch)
    info = model.online_info_
    assert info.solver == "pursuit"
    assert info.relative_error < 0.5


REFUSED = [
    ({"target_l0": 4}, "top_k=3 is the most active concepts of a row, and target_l0=4 their mean"),
    ({"alpha_Z": 0.1}, "without a penalty, and alpha_Z=0.1 is one; leave one of them out"),
    ({"accelerate": True}, "top_k=3 does not go with accelerate=True"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"top_k": 33}, "top_k=33 must be at most nb_concepts=32"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_does_not_go_with_it_is_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        NMF(K, **{"top_k": 3, **options})


def test_other_than_a_number_is_a_type_error():
    with pytest.raises(TypeError, match="top_k"):
        NMF(K, top_k=2.5)


def test_the_start_alone_which_may_have_more_is_refused():
    """fit(A, max_iter=0) returned codes of all concepts."""
    A = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    model = NMF(5, top_k=2, seed=0, max_iter=0)
    with pytest.raises(InvalidInput, match="give at least one iteration"):
        model.fit(A)
    Z = model.load_dictionary(A[:5]).encode(A)
    assert int((Z > 0).sum(1).max()) <= 2


def test_a_checkpoint_may_be_loaded_without_iterating(tmp_path):
    A = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    run = {"checkpoint": tmp_path / "c.safetensors"}
    options = {"top_k": 2, "seed": 0, "tol": 0, "tuning": Tuning(checkpoint_seconds=0)}
    Z, D = NMF(5, **options).fit(A, 3, **run)
    again = NMF(5, **options).fit(A, 0, resume=True, **run)
    assert torch.equal(again[0], Z)
    assert torch.equal(again[1], D)
