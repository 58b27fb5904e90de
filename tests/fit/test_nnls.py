"""fastnmf.nnls: the KKT conditions on data made to break active sets, and the account it gives."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from half_steps import BACKEND_NAMES, method_of, supplies
from oracle import TOLERANCES, kkt_residual

from fastnmf import NMF, InvalidInput, nnls
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.solvers.working_set import Search, prepare_concepts, working_set_

BACKENDS = [name for name in BACKEND_NAMES if supplies(name, "anls")]
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def rectified(rng, *shape):
    return np.maximum(rng.standard_normal(shape), 0)


def family(name, n=30, d=48, K=120):
    """(A (n, d), D (K, d)) in float64, of the kind named."""
    rng = np.random.default_rng(3)
    A, D = rectified(rng, n, d), rectified(rng, K, d)
    if name == "zero_rows_and_concepts":
        A[[0, 5]], D[[0, 7, K - 1]] = 0, 0
    elif name == "exact_duplicates":
        D[K // 2 :] = D[: K // 2]
    elif name == "scaled_duplicates":
        D[K // 2 :] = 7.3 * D[: K // 2]
    elif name == "near_duplicates":
        D[K // 2 :] = D[: K // 2] * (1 + 1e-5 * rng.standard_normal((K // 2, d)))
    elif name == "rank_6":
        D = rectified(rng, K, 6) @ rng.random((6, d))
    elif name == "rank_6_zero_residual":
        D = rectified(rng, K, 6) @ rng.random((6, d))
        A = rectified(rng, n, K) @ D
    elif name == "scales":
        D *= 10.0 ** rng.uniform(-4, 4, (K, 1))
    elif name == "tiny_data":
        A *= 1e-15
    elif name == "huge_data":
        A *= 1e15
    elif name == "zero_residual":
        A = rng.random((n, K)) @ D
    elif name == "bumps":
        places, centres = np.linspace(0, 1, d), np.linspace(0, 1, K)[:, None]
        D = np.exp(-((places - centres) ** 2) / 0.02)
        A = D[rng.integers(0, K, n)] + 0.5 * D[rng.integers(0, K, n)] + 0.01 * rng.random((n, d))
    elif name == "all_ones":
        D = np.ones((20, d))
    elif name == "one_concept":
        D = D[:1]
    elif name == "one_feature":
        A, D = A[:, :1], D[:, :1]
    return A, D


FAMILIES = [
    "more_concepts_than_features",
    "zero_rows_and_concepts",
    "exact_duplicates",
    "scaled_duplicates",
    "near_duplicates",
    "rank_6",
    "rank_6_zero_residual",
    "scales",
    "tiny_data",
    "huge_data",
    "zero_residual",
    "bumps",
    "all_ones",
    "one_concept",
    "one_feature",
]
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_FAMILY
def test_nnls_satisfies_the_kkt_conditions(name, dtype, backend):
    A, D = (M.astype(dtype) for M in family(name))
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert str(Z.dtype) == f"torch.{dtype}"
    assert torch.isfinite(Z).all()
    assert (Z >= 0).all()
    assert not Z[~torch.tensor(A).any(1)].any()
    assert not Z[:, ~torch.tensor(D).any(1)].any()
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", dtype]
    assert info.capped == 0
    assert torch.equal(info.support, (Z > 0).sum(1).int())


@EVERY_BACKEND
@EVERY_FAMILY
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
    A, D = (M.astype(dtype) for M in family("more_concepts_than_features"))
    start = rectified(np.random.default_rng(5), len(A), len(D)).astype(dtype)
    Z = nnls(A, D, start, backend=backend)
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", dtype]


@EVERY_BACKEND
def test_nnls_is_exact_from_a_solution_of_other_data(backend):
    A, D = family("near_duplicates")
    rng = np.random.default_rng(6)
    near = nnls(A * (1 + 0.02 * rng.standard_normal(A.shape)), D, backend=backend)
    Z = nnls(A, D, near, backend=backend)
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", "float64"]


@EVERY_BACKEND
@pytest.mark.parametrize("max_iter", [0, 1, 2, 4])
def test_nnls_reports_rows_that_meet_the_cap(max_iter, backend, caplog):
    A, D = family("more_concepts_than_features")
    with caplog.at_level(logging.WARNING, logger="fastnmf"):
        Z, info = nnls(A, D, max_iter=max_iter, backend=backend, return_info=True)
    assert info.capped > 0
    assert f"{info.capped} of 30 rows are not solved" in caplog.text
    assert (info.kkt[info.status == CAPPED] > 1e-12).all()
    assert (info.kkt[info.status == SOLVED] <= 1e-12).all()
    assert (Z >= 0).all()
    Z = Z.numpy()
    assert (((A - Z @ D) ** 2).sum(1) <= (A**2).sum(1)).all()


def test_nnls_refuses_a_cap_that_is_no_count():
    A, D = family("one_concept")
    with pytest.raises(InvalidInput, match="max_iter=-1"):
        nnls(A, D, max_iter=-1)
    with pytest.raises(TypeError, match="max_iter"):
        nnls(A, D, max_iter=0.5)


@EVERY_BACKEND
def test_nnls_account_agrees_with_the_codes(backend):
    A, D = family("more_concepts_than_features")
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert (info.status == SOLVED).all()
    for i in range(len(A)):
        recomputed = kkt_residual(Z[i : i + 1].numpy().T, A[i : i + 1], D)
        assert abs(recomputed - float(info.kkt[i])) < 1e-13
    assert "30 rows: 30 solved, 0 capped" in str(info)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [20, 90])
@pytest.mark.parametrize("data", [digits, patches])
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


@EVERY_BACKEND
@pytest.mark.parametrize("shared", [True, False], ids=["gram", "own_grams"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_FAMILY
def test_working_sets_end_at_the_solution_on_all_concepts(
    name, dtype, warm, shared, backend, monkeypatch
):
    monkeypatch.setattr("fastnmf.solvers.working_set.GROWTH", 7)
    monkeypatch.setattr("fastnmf.solvers.working_set._ROWS", 5)
    monkeypatch.setattr("fastnmf.solvers.working_set.GRAM_BYTES", 2**31 if shared else 0)
    A, D = (torch.tensor(M.astype(dtype)) for M in family(name, n=7, d=24, K=60))
    start = nnls(A.flip(1), D, backend=backend) if warm else torch.rand(7, len(D))
    F, sums = start.to(A.dtype).T.clone(), torch.zeros(3, dtype=torch.float64)
    ops = method_of("anls", backend=backend).ops
    held = prepare_concepts(D, 10**6)
    assert (held.unit is not None) == shared
    info = working_set_(F, A.T, held, sums, Search(ops["nnls_on_"]), warm=warm)
    alive = D.any(1)
    assert (F >= 0).all()
    assert torch.equal(F[~alive], start.to(A.dtype).T[~alive])
    assert kkt_residual(F[alive].numpy(), A.numpy(), D[alive].numpy()) <= TOLERANCES["anls", dtype]
    assert info.capped == 0
    assert float(sums[1]) == pytest.approx(float(F.double().square().sum()), rel=1e-5)
    assert float(sums[0]) == pytest.approx(float((F.T - start).double().square().sum()), rel=1e-5)


def test_anls_hands_very_many_concepts_to_hals_and_says_so():
    model = NMF(4001, solver="anls", max_iter=2, tol=0, seed=0)
    model.fit(torch.rand(6, 5))
    assert model.fit_info_.dictionary_solver == "hals"
    assert "anls (dictionary: hals)" in str(model.fit_info_)


def test_fit_warns_when_columns_meet_the_cap(caplog, monkeypatch):
    monkeypatch.setattr("fastnmf.backends.pointers.most_steps", lambda K: 1)
    with caplog.at_level(logging.WARNING, logger="fastnmf.solvers.anls"):
        NMF(20, solver="anls", max_iter=1, tol=0, seed=0).fit(torch.rand(30, 40))
    if "cpp" in BACKENDS:
        assert "columns are not solved" in caplog.text
