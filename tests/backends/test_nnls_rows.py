"""Least squares of rows in flight, nnls_rows_ of the backend cpp, on every instruction set usable
here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from compiled import REASON
from nnls_problems import family
from oracle import TOLERANCES, kkt_residual
from views import Matrix, changed

from fastnmf.backends.nnls.result import CAPPED, SOLVED
from fastnmf.backends.pointers import NnlsLimits, view
from fastnmf.solvers.penalties import Penalty
from fastnmf.solvers.supports.pursuit import pursue_
from fastnmf.solvers.supports.working_set import prepare_concepts

if REASON is None:
    from fastnmf import _C
    from fastnmf.backends.nnls.compiled import nnls_rows_
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def solved(A, D, F=None, *, penalty=Penalty(), gram=False, **limits):  # noqa: B008
    """F (K, n), its info and the sums of nnls_rows_."""
    A, D = torch.as_tensor(A), torch.as_tensor(D)
    F = torch.zeros(len(A), len(D), dtype=A.dtype).T if F is None else F
    concepts = prepare_concepts(D, 10**9 if gram else 0, penalty)
    assert (concepts.unit is not None) == gram
    fixed = concepts.B, concepts.scale, concepts.unit, concepts.l1, concepts.curvature
    sums = torch.zeros(4, dtype=torch.float64)
    info = nnls_rows_(F, A, fixed, sums, **{"warm": False, **limits})
    return F, info, sums


# layout of F, n, d, K, dtype, whether there is a Gram matrix: one row, feature and concept; around
# the lanes of a vector and the candidates of a step; more rows than are in flight; many concepts,
# which have a pool of candidates
SIZES = [
    ("columns", 1, 1, 1, "float32", False),
    ("rows", 3, 5, 17, "float64", False),
    ("apart", 30, 33, 15, "float32", True),
    ("columns", 140, 24, 70, "float32", False),
    ("columns", 140, 24, 70, "float64", True),
    ("rows", 9, 40, 1700, "float32", False),
    ("columns", 9, 40, 1700, "float64", False),
]


@pytest.mark.parametrize(("layout", "n", "d", "K", "dtype", "gram"), SIZES)
def test_rows_are_solved_and_reported(extension, layout, n, d, K, dtype, gram):
    rng = np.random.default_rng(K)
    A, D = (np.maximum(rng.standard_normal(shape), 0).astype(dtype) for shape in ((n, d), (K, d)))
    if K > 20:
        D[7] = 0
    before = np.maximum(rng.standard_normal((K, n)), 0)
    F = Matrix(before, dtype, layout)
    _, info, sums = solved(A, D, F.tensor, gram=gram)
    after, alive = F.values(), D.any(1)
    assert np.array_equal(after[~alive], before[~alive].astype(dtype))
    assert (after >= 0).all()
    assert kkt_residual(after[alive], A, D[alive]) <= TOLERANCES["anls", dtype]
    assert (info.status == SOLVED).all()
    assert torch.equal(info.support, torch.from_numpy((after[alive] > 0).sum(0)).int())
    residual = A - after[alive].T @ D[alive]
    expected = [((after - before.astype(dtype)) ** 2).sum(), (after**2).sum(), (residual**2).sum()]
    np.testing.assert_allclose(sums[:3], expected, rtol=1e-5, atol=1e-12)
    assert sums[3] == 0


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_penalties_are_in_the_slopes(extension, dtype, gram):
    """At the optimum slopes are D (a − z D)ᵀ − l1 − l2 z."""
    rng = np.random.default_rng(3)
    A, D = (
        np.maximum(rng.standard_normal(shape), 0).astype(dtype) for shape in ((20, 16), (40, 16))
    )
    l1, l2 = 0.3, torch.from_numpy(rng.random(40))
    F, info, _ = solved(A, D, penalty=Penalty(l1, l2), gram=gram)
    assert (info.status == SOLVED).all()
    Z, curvature = F.T.double().numpy(), l2.to(F.dtype).double().numpy()
    slope = (A - Z @ D).astype(float) @ D.T.astype(float) - l1 - curvature * Z
    worst = np.where(Z > 0, abs(slope), np.maximum(slope, 0)).max()
    assert worst <= 10 * TOLERANCES["anls", dtype] * (A @ D.T).max()
    plain = solved(A, D)[0]
    assert (F > 0).sum() < (plain > 0).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_start_changes_the_work_not_the_codes(extension, dtype):
    A, D = (M.astype(dtype) for M in family("more_concepts_than_features", n=40))
    F, cold, _ = solved(A, D)
    start = F.clone()
    again, warm, sums = solved(A, D, start, warm=True)
    assert warm.iterations.sum() < cold.iterations.sum() / 5
    torch.testing.assert_close(again, F, rtol=1e-4, atol=1e-5)
    assert sums[0] <= 1e-8 * sums[1]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    A, D = (M.astype("float32") for M in family("more_concepts_than_features", n=300))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _, sums = solved(A, D)
        torch.set_num_threads(threads)
        same, _, same_sums = solved(A, D)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, same)
    assert torch.equal(sums, same_sums)


@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_a_limit_of_steps_counts_times_that_concepts_enter(max_steps):
    A, D = family("more_concepts_than_features")
    free = solved(A, D)[1]
    F, info, _ = solved(A, D, max_steps=max_steps)
    assert free.iterations.min() > 2
    assert (info.status == CAPPED).all()
    assert (info.iterations == max_steps).all()
    assert ((F > 0).sum(0) <= 16 * max_steps).all()
    assert ((A - F.T.numpy() @ D) ** 2).sum() <= (A**2).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_are_not_finite_are_not_solved(dtype):
    A, D = (M.astype(dtype) for M in family("more_concepts_than_features"))
    A[3, 1], A[5, 2] = np.nan, np.inf
    F, info, _ = solved(A, D)
    strange = torch.zeros(len(A), dtype=torch.bool)
    strange[[3, 5]] = True
    assert (info.status[strange] != SOLVED).all()
    assert (info.kkt[strange] == torch.inf).all()
    assert F[:, strange].isnan().all()
    assert (info.status[~strange] == SOLVED).all()
    assert F[:, ~strange].isfinite().all()


@pytest.mark.parametrize(("n", "K"), [(0, 4), (3, 0)])
def test_empty_problems_have_empty_codes(n, K):
    A, D = torch.ones(n, 6), torch.ones(K, 6)
    F, info, sums = solved(A, D)
    assert F.shape == (K, n)
    assert len(info.status) == n
    assert sums.tolist() == [0, 0, float(6 * n), 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": {"capacity": 0}}, "capacity = 0"),
        ({"search": (0, 0, 0.0)}, "slots = 0"),
        ({"search": (-1, 8, 0.0)}, "limit = -1"),
        ({"search": (0, 8, math.nan)}, "roughness = nan"),
        ({"X": {"shape": (49, 6)}}, r"X has shape \(49, 6\): \(50, 6\) is needed"),
        ({"X": {"dtype": "float32"}}, "X has dtype 'float32': 'float64' is needed"),
        ({"B": {"strides": (1, 4)}}, r"B \(4, 6\) has strides \(1, 4\): its rows must be"),
        ({"scale": {"shape": (3,)}}, r"scale has shape \(3\): \(4\) is needed"),
        ({"unit": {"shape": (4, 3)}}, r"unit has shape \(4, 3\): \(4, 4\) is needed"),
        ({"curvature": {"address": 4}}, "curvature = 4 is not aligned to 8"),
        ({"report": {"shape": (50, 3)}}, r"report has shape \(50, 3\): \(50, 4\) is needed"),
        ({"sums": {"shape": (2,)}}, r"sums has shape \(2\): \(3\) is needed"),
        ({"F": {"strides": (0, 1)}}, r"F \(4, 50\) has strides \(0, 1\)"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changes, message):
    kept = {
        "F": torch.rand(4, 50).double(), "X": torch.rand(50, 6).double(),
        "B": torch.rand(4, 6).double(), "scale": torch.ones(4).double(),
        "unit": torch.rand(4, 4).double(), "curvature": torch.rand(4).double(),
        "report": torch.empty(50, 4).double(), "sums": torch.zeros(3).double(),
    }  # fmt: skip
    given = {name: view(M) for name, M in kept.items()}
    given |= {"limits": NnlsLimits(False, 1e-12, 1e-11, 9, 4, 2), "search": (0, 8, 0.0)}
    given = changed(given, changes)
    B, scale, unit, curvature = (given.pop(name) for name in ("B", "scale", "unit", "curvature"))
    with pytest.raises(ValueError, match=message):
        _C.nnls_rows(**given, concepts=(B, scale, unit, 0.0, curvature))


def test_steps_refuse_workspaces_of_other_sizes():
    F, X, B = torch.zeros(4, 5), torch.rand(5, 6), torch.rand(4, 6)
    report, sums, scale = (
        torch.empty(5, 4).double(),
        torch.zeros(3).double(),
        torch.ones(4).double(),
    )
    limits = NnlsLimits(False, 1e-6, 1e-11, 9, 4, 2)
    fixed = view(B), view(scale), None, 0.0, None
    rows = _C.nnls_rows(view(F), view(X), fixed, limits, (0, 3, 0.0), view(report), view(sums))
    W, E = torch.empty(3, 4), torch.empty(3, 6)
    with pytest.raises(ValueError, match=r"W has shape \(2, 4\): \(3, 4\) is needed"):
        rows.step(view(W[:2]), view(E), 1)
    with pytest.raises(ValueError, match=r"E has dtype 'float64': 'float32' is needed"):
        rows.step(view(W), view(E.double()), 1)
    with pytest.raises(ValueError, match="threads = 0"):
        rows.step(view(W), view(E), 0)
    assert rows.step(view(W), view(E), 1) == (3, 0)
    assert torch.equal(E, X[:3])


def test_the_change_of_codes_that_hardly_change_is_not_negative(extension):
    """As a difference of large squares it could be."""
    generator = torch.Generator().manual_seed(0)
    A = 1e6 + torch.rand(50, 20, generator=generator, dtype=torch.float64)
    B = torch.rand(6, 20, generator=generator, dtype=torch.float64)
    F, _, _ = solved(A, B)
    before = F.clone()
    again, _, sums = solved(A, B, F=F, warm=True)
    assert float(sums[0]) == pytest.approx(float((again - before).square().sum()), rel=1e-9)


@pytest.fixture
def rough(monkeypatch):
    """Slopes from bfloat16 wherever they may be; the dtypes of products."""
    from fastnmf.backends.nnls import compiled

    monkeypatch.setattr(compiled, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(compiled, "fast_bfloat16", lambda: True)
    dtypes, product = [], torch.mm

    def noted(E, B, **given):
        dtypes.append(E.dtype)
        return product(E, B, **given)

    monkeypatch.setattr(torch, "mm", noted)
    return dtypes


def similar(n, d, K):
    """Rows and concepts of which many are within the rounding of bfloat16 of others."""
    rng = np.random.default_rng(n)
    D = np.abs(rng.standard_normal((K // 8, d))).repeat(8, 0)
    D *= 1 + 2e-3 * rng.standard_normal((len(D), d))
    return (np.abs(rng.standard_normal((n, d))) + 3 * D[:n]).astype("float32"), D.astype("float32")


@pytest.mark.parametrize("warm", [False, True])
def test_codes_are_as_exact_with_rough_slopes(extension, rough, warm):
    A, D = similar(40, 30, 400)
    F = None
    if warm:
        F = solved(A, D)[0] * 1.1
        rough.clear()
    F, info, _ = solved(A, D, F, warm=warm)
    # from a start that is near, slopes are precise from the beginning
    assert (torch.bfloat16 in rough) is not warm
    assert torch.float32 in rough
    assert (info.status == SOLVED).all()
    assert kkt_residual(F.numpy(), A, D) <= TOLERANCES["anls", "float32"]


def test_rough_slopes_do_not_change_who_enters_first(extension, rough):
    A, D = similar(40, 30, 400)
    F, _, _ = solved(A, D, most=6)
    assert torch.bfloat16 in rough
    expected = torch.zeros(400, 40, dtype=torch.float64)
    concepts = prepare_concepts(torch.from_numpy(D).double(), 0)
    pursue_(expected, torch.from_numpy(A).double(), concepts, 6, {})
    torch.testing.assert_close(F.double(), expected, rtol=1e-4, atol=1e-5)
