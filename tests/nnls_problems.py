"""Problems made to break active sets, and what must hold of a solution: for every backend, and for
the CUDA solver emulated on the CPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from half_steps import method_of
from oracle import TOLERANCES, kkt_residual

from fastnmf import nnls
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.solvers import working_set
from fastnmf.solvers.working_set import Search, prepare_concepts, working_set_


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


# every family in one dtype; in both where rounding decides the support
FAMILIES = [
    ("more_concepts_than_features", "float32"),
    ("more_concepts_than_features", "float64"),
    ("zero_rows_and_concepts", "float32"),
    ("exact_duplicates", "float32"),
    ("exact_duplicates", "float64"),
    ("scaled_duplicates", "float64"),
    ("near_duplicates", "float32"),
    ("near_duplicates", "float64"),
    ("rank_6", "float32"),
    ("rank_6", "float64"),
    ("rank_6_zero_residual", "float32"),
    ("rank_6_zero_residual", "float64"),
    ("scales", "float32"),
    ("tiny_data", "float32"),
    ("huge_data", "float32"),
    ("zero_residual", "float64"),
    ("bumps", "float32"),
    ("bumps", "float64"),
    ("all_ones", "float32"),
    ("one_concept", "float64"),
    ("one_feature", "float32"),
]
EVERY_FAMILY = pytest.mark.parametrize(("name", "dtype"), FAMILIES)
# family, dtype, whether it starts from another solution, whether all concepts have a Gram matrix
WORKING_SETS = [
    ("more_concepts_than_features", "float32", False, True),
    ("more_concepts_than_features", "float64", True, False),
    ("zero_rows_and_concepts", "float32", True, False),
    ("zero_rows_and_concepts", "float64", False, True),
    ("exact_duplicates", "float32", False, False),
    ("exact_duplicates", "float64", True, True),
    ("scaled_duplicates", "float32", True, True),
    ("near_duplicates", "float32", False, True),
    ("near_duplicates", "float64", False, False),
    ("rank_6", "float32", True, False),
    ("rank_6", "float64", False, True),
    ("rank_6_zero_residual", "float32", False, True),
    ("rank_6_zero_residual", "float64", True, False),
    ("scales", "float32", True, True),
    ("scales", "float64", False, False),
    ("tiny_data", "float32", False, False),
    ("huge_data", "float32", True, True),
    ("zero_residual", "float32", False, True),
    ("zero_residual", "float64", True, False),
    ("bumps", "float32", True, True),
    ("bumps", "float64", False, False),
    ("all_ones", "float32", False, True),
    ("one_concept", "float64", True, True),
    ("one_feature", "float32", False, False),
]
EVERY_WORKING_SET = pytest.mark.parametrize(("name", "dtype", "warm", "shared"), WORKING_SETS)


def assert_solved(name, dtype, backend, **sizes):
    """nnls meets the KKT conditions, keeps zeros at zero, and says so."""
    A, D = (M.astype(dtype) for M in family(name, **sizes))
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert str(Z.dtype) == f"torch.{dtype}"
    assert torch.isfinite(Z).all()
    assert (Z >= 0).all()
    assert not Z[~torch.tensor(A).any(1)].any()
    assert not Z[:, ~torch.tensor(D).any(1)].any()
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", dtype]
    assert info.capped == 0
    assert torch.equal(info.support, (Z > 0).sum(1).int())


def assert_solved_from_garbage(dtype, backend, **sizes):
    A, D = (M.astype(dtype) for M in family("more_concepts_than_features", **sizes))
    start = rectified(np.random.default_rng(5), len(A), len(D)).astype(dtype)
    Z = nnls(A, D, start, backend=backend)
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", dtype]


def assert_solved_from_other_data(backend, **sizes):
    A, D = family("near_duplicates", **sizes)
    rng = np.random.default_rng(6)
    near = nnls(A * (1 + 0.02 * rng.standard_normal(A.shape)), D, backend=backend)
    Z = nnls(A, D, near, backend=backend)
    assert kkt_residual(Z.numpy().T, A, D) <= TOLERANCES["anls", "float64"]


def assert_cap_is_reported(max_iter, backend, caplog):
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


def assert_working_sets_solve(case, backend, monkeypatch):
    """Small working sets, grown in rounds, end at the solution on all concepts."""
    name, dtype, warm, shared = case
    monkeypatch.setattr(working_set, "GROWTH", 7)
    monkeypatch.setattr(working_set, "_ROWS", 5)
    monkeypatch.setattr(working_set, "GRAM_BYTES", 2**31 if shared else 0)
    A, D = (torch.tensor(M.astype(dtype)) for M in family(name, n=7, d=24, K=60))
    start = nnls(A.flip(1), D, backend=backend) if warm else torch.rand(7, len(D))
    F, sums = start.to(A.dtype).T.clone(), torch.zeros(3, dtype=torch.float64)
    search = Search(method_of("anls", backend=backend).ops["nnls_on_"])
    concepts = prepare_concepts(D, 10**6)
    assert (concepts.unit is not None) == shared
    info = working_set_(F, A.T, concepts, sums, search, warm=warm)
    alive = D.any(1)
    assert (F >= 0).all()
    assert torch.equal(F[~alive], start.to(A.dtype).T[~alive])
    assert kkt_residual(F[alive].numpy(), A.numpy(), D[alive].numpy()) <= TOLERANCES["anls", dtype]
    assert info.capped == 0
    assert float(sums[1]) == pytest.approx(float(F.double().square().sum()), rel=1e-5)
    assert float(sums[0]) == pytest.approx(float((F.T - start).double().square().sum()), rel=1e-5)
