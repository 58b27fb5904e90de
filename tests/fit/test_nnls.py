"""fastnmf.nnls: the KKT conditions on data made to break active sets, and the info it returns."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import pytest
import torch
from half_steps import backends_of
from nnls_problems import (
    EVERY_FAMILY,
    EVERY_SEARCH,
    assert_cap_is_reported,
    assert_nothing_strange_is_solved,
    assert_same_work,
    assert_solved,
    assert_solved_from_garbage,
    assert_solved_from_other_data,
    family,
)
from oracle import kkt_residual, problem

from fastnmf import NMF, InvalidInput, Tuning, nnls
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.errors import ConvergenceWarning
from fastnmf.exact import rows
from fastnmf.solvers.supports import working_set

BACKENDS = backends_of("anls")
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


@EVERY_BACKEND
@EVERY_FAMILY
def test_nnls_satisfies_the_kkt_conditions(name, dtype, backend):
    assert_solved(name, dtype, backend)


@EVERY_BACKEND
@pytest.mark.parametrize(
    "name", ["near_duplicates", "rank_6", "scales", "zero_residual", "bumps", "all_ones"]
)
def test_nnls_reaches_the_objective_of_scipy(name, backend):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    A, D = family(name)
    Z = nnls(A, D, backend=backend).numpy()
    for row, codes in zip(A, Z, strict=True):
        exact = optimize.nnls(D.T, row, maxiter=100 * len(D))[1] ** 2
        # with no residual both are rounding
        floor = 1e-28 * max(1, len(D)) * (row**2).sum()
        assert ((row - codes @ D) ** 2).sum() <= exact * (1 + 1e-9) + floor


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nnls_is_exact_from_a_garbage_start(dtype, backend):
    assert_solved_from_garbage(dtype, backend)


@EVERY_BACKEND
def test_nnls_is_exact_from_a_solution_of_other_data(backend):
    assert_solved_from_other_data(backend)


@EVERY_BACKEND
@pytest.mark.parametrize("max_iter", [0, 1, 4])
def test_nnls_reports_rows_that_meet_the_cap(max_iter, backend):
    assert_cap_is_reported(max_iter, backend)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
@EVERY_SEARCH
def test_max_iter_means_the_same_work_on_every_backend(n, d, K, signed, backend):
    assert_same_work(n, d, K, signed, backend)


@EVERY_BACKEND
def test_max_iter_counts_all_rounds_on_working_sets(backend, monkeypatch):
    """A search on working sets of a few concepts was given the whole of max_iter in every round."""
    monkeypatch.setattr(working_set, "GROWTH", 7)
    monkeypatch.setattr(rows, "GRAM_BYTES", 0)
    A, D = family("more_concepts_than_features", n=7, d=24, K=60)
    _, all_of_it = nnls(A, D, backend=backend, return_info=True)
    assert all_of_it.iterations.max() > 3
    with pytest.warns(ConvergenceWarning):
        _, info = nnls(A, D, max_iter=3, backend=backend, return_info=True)
    assert (info.iterations <= 3).all()
    expected = torch.where(all_of_it.iterations > 3, CAPPED, SOLVED).int()
    assert torch.equal(info.status, expected)


@pytest.mark.parametrize("sign", [1, -1], ids=["non-negative", "signed"])
@EVERY_BACKEND
def test_without_iterations_the_residual_is_that_of_zero_codes(backend, sign):
    A, D = (sign * M for M in family("more_concepts_than_features"))
    with pytest.warns(ConvergenceWarning):
        Z, info = nnls(A, D, max_iter=0, backend=backend, return_info=True)
    assert not Z.any()
    # the largest slope relative to itself
    assert torch.equal(info.kkt, torch.ones(len(A)).double())


@EVERY_BACKEND
def test_rows_that_are_not_finite_are_never_solved(backend):
    assert_nothing_strange_is_solved(backend)


def test_nnls_takes_any_max_iter():
    A, D = family("one_feature")
    assert torch.equal(nnls(A, D, max_iter=10**30), nnls(A, D))


def test_nnls_leaves_zero_rows_and_zero_concepts_at_zero():
    A, _, D = problem(20, 8, 5)
    A[4], D[2] = 0, 0
    Z = nnls(torch.tensor(A), torch.tensor(D), torch.ones(20, 5))
    assert not Z[4].any()
    assert not Z[:, 2].any()


def test_nnls_takes_signed_data():
    rng = np.random.default_rng(2)
    A, D = rng.standard_normal((15, 9)), rng.standard_normal((6, 9))
    assert kkt_residual(nnls(A, D).numpy().T, A, D) <= 1e-9


def test_nnls_refuses_a_cap_that_is_no_count():
    A, D = family("one_concept")
    with pytest.raises(InvalidInput, match="max_iter=-1"):
        nnls(A, D, max_iter=-1)
    with pytest.raises(TypeError, match="max_iter"):
        nnls(A, D, max_iter=0.5)


@EVERY_BACKEND
def test_nnls_info_agrees_with_the_codes(backend):
    A, D = family("more_concepts_than_features")
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert (info.status == SOLVED).all()
    for i in range(len(A)):
        recomputed = kkt_residual(Z[i : i + 1].numpy().T, A[i : i + 1], D)
        assert abs(recomputed - float(info.kkt[i])) < 1e-13
    assert "30 rows: 30 solved, 0 capped" in str(info)


@pytest.mark.parametrize(("threads", "dtype"), [(2, "float64"), (3, "float32")])
def test_nnls_has_the_same_bits_with_any_number_of_threads(threads, dtype):
    A, D = (M.astype(dtype) for M in family("rank_6", n=200))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = nnls(A, D)
        torch.set_num_threads(threads)
        assert torch.equal(nnls(A, D), one)
    finally:
        torch.set_num_threads(before)


@EVERY_BACKEND
def test_nnls_follows_the_scale_of_a_row(backend):
    A, D = family("more_concepts_than_features")
    powers = 2.0 ** np.random.default_rng(7).integers(-200, 200, (len(A), 1))
    Z = nnls(A, D, backend=backend).numpy()
    scaled = nnls(A * powers, D, backend=backend).numpy()
    np.testing.assert_allclose(scaled, powers * Z, rtol=1e-9, atol=0)


def patches():
    """8 × 8 patches of an image of smooth shapes, (400, 64)."""
    y, x = np.mgrid[0:160, 0:160] / 160
    image = 0.5 + 0.25 * np.sin(9 * x + 14 * y**2) + 0.25 * np.cos(23 * x * y) * (x > y)
    return image.reshape(20, 8, 20, 8).swapaxes(1, 2).reshape(400, 64)


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return datasets.load_digits().data[:400] / 16


@pytest.mark.parametrize(
    ("data", "K", "dtype"),
    [(digits, 20, "float32"), (digits, 90, "float64"), (patches, 20, "float64")],
)
def test_anls_never_raises_the_loss_and_ends_no_higher_than_hals(data, K, dtype):
    A = torch.tensor(data(), dtype=getattr(torch, dtype))

    def loss(solver, iterations):
        Z, D = NMF(
            K, solver=solver, tol=0, max_iter=iterations, seed=0, init="random", accelerate=False
        ).fit(A)
        return float((A - Z @ D).double().square().sum())

    losses = [loss("anls", iterations) for iterations in range(1, 9)]
    slack = {"float32": 1e-5 * losses[0], "float64": 1e-12 * float(A.square().sum())}[dtype]
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))
    assert losses[-1] <= loss("hals", 8)


def test_anls_hands_very_many_concepts_to_hals_and_says_so():
    model = NMF(4001, solver="anls", max_iter=2, tol=0, seed=0)
    model.fit(torch.rand(6, 5))
    assert model.fit_info_.dictionary_solver == "hals"
    assert "anls (dictionary: hals)" in str(model.fit_info_)


@EVERY_BACKEND
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_fit_and_encode_warn_once_of_problems_that_are_not_solved(form, backend, monkeypatch):
    for place in ("backends.pointers", "backends.nnls.reference"):
        monkeypatch.setattr(f"fastnmf.{place}.most_steps", lambda K: 1)
    A = torch.rand(30, 40, generator=torch.Generator().manual_seed(0))
    model = NMF(
        20, solver="anls", max_iter=3, tol=0, seed=0, backend=backend, tuning=Tuning(form=form)
    )
    calls = (
        lambda: model.fit(A),
        lambda: model.encode(A, method="sweeps"),
        lambda: model.partial_fit(A),
    )
    for call in calls:
        with pytest.warns(ConvergenceWarning) as caught:
            call()
        messages = [str(one.message) for one in caught if "anls" in str(one.message)]
        assert len(messages) == 1
        assert re.search(r"anls: \d+ of \d+ least squares problems .* not solved", messages[0])
    with pytest.warns(ConvergenceWarning, match=r"encode: \d+ rows are not solved exactly"):
        model.encode(A)


def test_a_usual_fit_by_exact_half_steps_does_not_warn_of_them():
    A = torch.rand(60, 20, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for K in (5, 30):
            model = NMF(K, solver="anls", max_iter=4, tol=0, seed=0)
            model.fit(A)
            model.encode(A)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "K"), [(0, 3), (4, 0), (0, 0)])
def test_no_rows_and_no_concepts_have_empty_codes(n, K, dtype, backend):
    A, D = torch.rand(n, 5, dtype=dtype).requires_grad_(), torch.rand(K, 5)
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert (Z.shape, Z.dtype) == ((n, K), dtype)
    Z.sum().backward()
    assert A.grad.shape == (n, 5)
    for found in (info.status, info.kkt, info.support, info.iterations):
        assert found.shape == (n,)
        assert not found.any()
    assert f"{n} rows" in str(info)
    assert nnls(A.detach().numpy(), D.numpy()).shape == (n, K)
    with pytest.raises(InvalidInput):
        nnls(torch.ones(n, 6), D)
    if n:
        with pytest.raises(InvalidInput, match="nan or inf"):
            nnls(torch.full((n, 5), torch.nan), D)
