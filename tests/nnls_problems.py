"""Problems made to break active sets, and what must hold of a solution: for every backend, and for
the CUDA solver emulated on the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from half_steps import method_of
from oracle import TOLERANCES, kkt_residual

from fastnmf import nnls
from fastnmf.backends.nnls.residual import measure
from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.errors import ConvergenceWarning
from fastnmf.solvers.supports import working_set
from fastnmf.solvers.supports.working_set import Search, prepare_concepts, working_set_


def rectified(rng, *shape):
    return np.maximum(rng.standard_normal(shape), 0)


def draw(n, d, K, signed, dtype="float64", seed=0, decades=1.0):
    """A (n, d) and D (K, d), concepts of norms that differ by up to twice that many decades."""
    rng = np.random.default_rng(seed)
    A, D = rng.standard_normal((n, d)), rng.standard_normal((K, d))
    D *= 10.0 ** rng.uniform(-decades, decades, (K, 1))
    A, D = (A, D) if signed else (abs(A), abs(D))
    return torch.from_numpy(A.astype(dtype)), torch.from_numpy(D.astype(dtype))


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


def assert_cap_is_reported(max_iter, backend):
    A, D = family("more_concepts_than_features")
    with pytest.warns(ConvergenceWarning, match="of 30 rows are not solved") as warned:
        Z, info = nnls(A, D, max_iter=max_iter, backend=backend, return_info=True)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert info.capped > 0
    assert f"{info.capped} reached max_iter" in str(warned[0].message)
    assert (info.iterations <= max_iter).all()
    assert (info.iterations[info.status == CAPPED] == max_iter).all()
    assert torch.equal(info.kkt, measure(*map(torch.from_numpy, (A, D)), Z).kkt)
    assert (info.kkt[info.status == CAPPED] > 1e-12).all()
    assert (info.kkt[info.status == SOLVED] <= 1e-12).all()
    assert (Z >= 0).all()
    Z = Z.numpy()
    assert (((A - Z @ D) ** 2).sum(1) <= (A**2).sum(1)).all()


# (n, d, K, whether A and D are signed): fewer and more concepts than features
SEARCHES = [(20, 30, 20, False), (20, 30, 20, True), (20, 20, 60, False), (20, 20, 60, True)]
EVERY_SEARCH = pytest.mark.parametrize(("n", "d", "K", "signed"), SEARCHES)


def assert_same_work(n, d, K, signed, backend):
    """Codes after max_iter are those of the backend torch, from zero and from a start."""
    rng = np.random.default_rng(4)
    A, D = rng.standard_normal((n, d)), rng.standard_normal((K, d))
    A, D = (A, D) if signed else (abs(A), abs(D))
    start = rectified(rng, n, K) * (rng.random((n, K)) < 0.3)
    for Z0 in (None, start):
        for max_iter in (0, 1, 2, 3, 5, None):
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                Z, info = nnls(A, D, Z0, max_iter=max_iter, backend=backend, return_info=True)
                expected, of_torch = nnls(
                    A, D, Z0, max_iter=max_iter, backend="torch", return_info=True
                )
            torch.testing.assert_close(Z, expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(info.kkt, of_torch.kkt, rtol=1e-6, atol=1e-13)
            assert torch.equal(info.status, of_torch.status)
            assert torch.equal(info.iterations, of_torch.iterations)
            if max_iter == 0 and Z0 is None:
                assert not Z.any()


def assert_nothing_strange_is_solved(backend):
    """Rows with numbers that are not finite were reported as solved, with a KKT residual of 0."""
    operation = method_of("anls", backend=backend).ops["nnls_"]
    rng = np.random.default_rng(0)
    B, X = (torch.tensor(rng.random(shape)) for shape in ((7, 12), (5, 12)))
    for dtype in (torch.float32, torch.float64):
        for where, value in ((0, torch.nan), (0, torch.inf), (1, torch.nan)):
            for warm in (False, True):
                C, G = (B @ X.T).to(dtype), (B @ B.T).to(dtype)
                if where:
                    G[3], G[:, 3] = value, value
                else:
                    C[2, 3] = value
                F, sums = torch.full_like(C, 0.5), torch.zeros(3, dtype=torch.float64)
                info = operation(F, C, G, sums, warm=warm)
                strange = torch.ones(5, dtype=torch.bool) if where else torch.arange(5) == 3
                assert (info.status[strange] != SOLVED).all()
                assert (info.kkt[strange] == torch.inf).all()
                assert (info.status[~strange] == SOLVED).all()
                if not where:
                    assert not F[:, 3].isfinite().all()
                    assert F[:, ~strange].isfinite().all()


def assert_working_sets_solve(case, backend, monkeypatch, *, in_flight=False):
    """Small working sets, grown in rounds, end at the solution on all concepts."""
    name, dtype, warm, shared = case
    monkeypatch.setattr(working_set, "GROWTH", 7)
    monkeypatch.setattr(working_set, "_ROWS", 5)
    monkeypatch.setattr(working_set, "GRAM_BYTES", 2**31 if shared else 0)
    A, D = (torch.tensor(M.astype(dtype)) for M in family(name, n=7, d=24, K=60))
    start = nnls(A.flip(1), D, backend=backend) if warm else torch.rand(7, len(D))
    F, sums = start.to(A.dtype).T.clone(), torch.zeros(3, dtype=torch.float64)
    ops = method_of("anls", backend=backend).ops
    search = Search.of(ops) if in_flight else Search(ops["nnls_on_"])
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
