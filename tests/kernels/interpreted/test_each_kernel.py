"""Every kernel by itself: against the plain-torch reference in float64, inside matrices of NaN."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
from oracle import TOLERANCES, relative_difference

from fastnmf.backends.registry import BACKENDS
from fastnmf.backends.torch import hals_block_, hals_sweep_, mu_, pgd_
from fastnmf.solvers.pgd import GradientStep

OPS = BACKENDS["triton"].load()
DTYPES = ["float32", "float64"]
# samples adjacent as in the dictionary; concepts adjacent as in the codes, on 16 bytes or not
LAYOUTS = ["rows", "columns", "unaligned columns"]
SIZES = [(1, 1), (3, 37), (17, 33), (70, 3)]
# all layouts in one dtype, one in the other
LAID_OUT = [*((layout, "float32") for layout in LAYOUTS), ("columns", "float64")]
# few concepts of many samples where concepts are adjacent: four are read at once, three are there
SWEPT = [
    (*size, *laid_out)
    for size in SIZES
    for laid_out in LAID_OUT
    if size != (3, 37) or laid_out == ("columns", "float32")
]


def guarded(rows, columns, dtype):
    """A matrix of NaN that ends where memory begins which ends a process that reads it."""
    size = rows * columns * dtype.itemsize
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, length + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + length
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    held = torch.frombuffer(memory, dtype=dtype, count=rows * columns, offset=length - size)
    return held.view(rows, columns).fill_(torch.nan)


class Matrix:
    """A (K, m) matrix inside a larger one of NaN, in one of the layouts."""

    def __init__(self, values, dtype, layout="rows"):
        K, m = values.shape
        if layout == "rows":
            self.whole = guarded(K + 2, m + 5, dtype)
            self.view = self.whole[1:-1, 3 : 3 + m]
        else:
            before, width = (4, K + 8 - K % 4) if layout == "columns" else (3, K + 6 - K % 2)
            self.whole = guarded(m + 2, width, dtype)
            self.view = self.whole[1:-1, before : before + K].T
        self.view.copy_(values)

    def values(self):
        """The matrix in float64, once it is sure that nothing around it was written to."""
        kept = self.view.double().clone()
        self.view.fill_(torch.nan)
        assert self.whole.isnan().all()
        return kept


def draw(K, m, dtype, p=9, seed=0):
    """F (K, m) with zeros, X (m, p), B (K, p) with two zero concepts; numbers of that dtype."""
    generator = torch.Generator().manual_seed(seed)
    F, X, B = (torch.randn(*size, generator=generator) for size in ((K, m), (m, p), (K, p)))
    F, X, B = F.relu(), X.relu() + 0.1, B.abs()
    if K > 2:
        B[[1, K - 1]] = 0
    return [M.to(getattr(torch, dtype)).double() for M in (F, X, B)]


def penalty_of(K, dtype):
    """A curvature for each concept (K, 1), the first zero, at the end of memory."""
    curvature = guarded(1, K, dtype).T
    curvature.copy_(torch.linspace(0, 2, K)[:, None])
    return curvature


def new_sums():
    return torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def assert_near(given, expected, solver, dtype):
    assert relative_difference(given, expected) <= TOLERANCES[solver, dtype]


def check(solver, dtype, F, expected, sums, before):
    new = F.values()
    assert_near(new, expected, solver, dtype)
    assert (new >= 0).all()
    squares = [1 + (new - before).square().sum(), 2 + new.square().sum(), 3.0]
    assert_near(sums, torch.tensor(squares), solver, dtype)


@pytest.mark.parametrize(("K", "m", "layout", "dtype"), SWEPT)
def test_hals_block_is_the_reference(K, m, layout, dtype):
    before, X, B = draw(K, m, dtype)
    number = getattr(torch, dtype)
    gram, owed = (B @ B.T).to(number).double(), (B @ X.T - B @ B.T @ before).to(number).double()
    F, R, G = Matrix(before, number, layout), Matrix(owed, number), Matrix(gram, number)
    delta, sums = Matrix(torch.full((K, m), torch.nan), number), new_sums()
    OPS["hals_block_"](F.view, R.view, G.view, delta.view, sums)
    after, change = before.clone(), torch.empty(K, m).double()
    hals_block_(after, owed, gram, change, new_sums())
    assert_near(delta.values(), change, "hals", dtype)
    R.values()
    check("hals", dtype, F, after, sums, before)


@pytest.mark.parametrize(("K", "m", "layout", "dtype"), [each for each in SWEPT if each[0] < 70])
def test_hals_sweep_is_the_reference(K, m, layout, dtype):
    before, X, B = draw(K, m, dtype)
    number = getattr(torch, dtype)
    gram, cross = (B @ B.T).to(number).double(), (B @ X.T).to(number).double()
    F, C, G = (
        Matrix(M, number, where) for M, where in ((before, layout), (cross, layout), (gram, "rows"))
    )
    sums, after = new_sums(), before.clone()
    OPS["hals_sweep_"](F.view, C.view, G.view, sums)
    hals_sweep_(after, cross, gram, new_sums())
    C.values()
    check("hals", dtype, F, after, sums, before)


def test_sweeps_in_one_launch_are_sweeps_one_after_the_other():
    before, X, B = draw(21, 70, "float32")
    gram, cross = (B @ B.T).float(), (B @ X.T).float()
    once, at_once = before.float(), before.float()
    each, all_of_them = new_sums(), new_sums()
    for _ in range(3):
        OPS["hals_sweep_"](once, cross, gram, each)
    OPS["hals_sweep_"](at_once, cross, gram, all_of_them, 3)
    assert torch.equal(once, at_once)
    assert torch.allclose(each, all_of_them, rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "K"),
    [
        ("rows", 70),
        ("unaligned columns", 70),
        # a third sub-block, of few concepts
        ("columns", 134),
        # the widest block that a plan takes
        pytest.param("columns", 1024, marks=pytest.mark.compiles),
    ],
)
def test_hals_block_gives_delta_in_tf32_where_products_are(layout, K, monkeypatch):
    """Δ has 10 bits of mantissa, F is exact, and R was told of the Δ that was stored.

    From one sub-block of 64 concepts to the next it is told by products, for which G is rounded.
    """
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    before, X, B = draw(K, 3, "float32")
    gram, owed = B @ B.T, B @ X.T - B @ B.T @ before
    F, (R, G) = (
        Matrix(before, torch.float32, layout),
        (Matrix(M, torch.float32) for M in (owed, gram)),
    )
    delta = Matrix(torch.full(before.shape, torch.nan), torch.float32)
    OPS["hals_block_"](F.view, R.view, G.view, delta.view, new_sums())
    stored, new = delta.view.clone(), F.view.clone()
    assert (stored.view(torch.int32) & 8191 == 0).all()
    assert (stored - (new - before.float())).abs().max() <= stored.abs().max() * 2**-11
    rounded = gram.float().view(torch.int32).add(0x1000).bitwise_and(-8192).view(torch.float32)
    sub = torch.arange(K) // 64
    told_of = torch.where(sub[:, None] > sub, rounded.double(), gram)
    follow, told = before.clone(), owed.clone()
    step = torch.empty_like(follow)
    for k in range(K):
        if gram[k, k] > 0:
            step[k] = (follow[k] + told[k] / gram[k, k]).clamp(min=0) - follow[k]
            follow[k] += step[k]
            told -= torch.outer(told_of[:, k], stored[k].double())
    assert relative_difference(new, follow) < 1e-4


@pytest.mark.parametrize(("K", "m", "p"), [(1, 1, 1), (5, 23, 17), (131, 65, 40)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_mu_is_the_reference(K, m, p, layout, dtype, form):
    before, X, B = draw(K, m, dtype, p)
    number = getattr(torch, dtype)
    W = (before.T @ B).to(number).double()
    G, C = (B @ B.T).to(number).double(), (B @ X.T).to(number).double()
    F, sums, after = Matrix(before, number, layout), new_sums(), before.clone()
    if form == "residual":
        rest = [Matrix(M, number, "columns").view for M in (X, W, B)]
        OPS["mu_residual_"](F.view, *rest, sums)
        mu_(after, B @ X.T, B @ W.T, new_sums())
        return check("mu", dtype, F, after, sums, before)
    C_given, G_given = Matrix(C, number, layout), Matrix(G, number)
    updated = Matrix(torch.full((K, m), torch.nan), number, layout)
    OPS["mu_normal_"](F.view, C_given.view, G_given.view, updated.view, sums)
    mu_(after, C, G @ before, new_sums())
    assert torch.equal(F.values(), before)
    check("mu", dtype, updated, after, sums, before)


def check_step(dtype, F, next_Y, sums, step):
    """F and next_Y against pgd_ on `step`: (F, Y, gradient, step, momentum) before it. With sums it
    is the last: of ‖Δ‖² from the start, and next_Y is left alone."""
    before, point, *rest = step
    after, ahead = before.clone(), point.clone()
    pgd_(after, ahead, *rest)
    if sums is not None:
        assert next_Y.values().isnan().all()
        return check("pgd", dtype, F, after, sums, point)
    assert_near(next_Y.values(), ahead, "pgd", dtype)
    assert_near(F.values(), after, "pgd", dtype)


@pytest.mark.parametrize(("K", "m", "p"), [(1, 1, 1), (5, 23, 17), (131, 65, 40)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("last", [False, True])
def test_pgd_is_the_reference(K, m, p, layout, dtype, form, last):
    before, X, B = draw(K, m, dtype, p)
    number = getattr(torch, dtype)
    point = draw(K, m, dtype, p, seed=1)[0]
    step = torch.tensor(0.01, dtype=number)
    start, Y = Matrix(point, number, layout), Matrix(point, number, layout)
    F, next_Y = Matrix(before, number, layout), Matrix(torch.full((K, m), torch.nan), number)
    sums = new_sums() if last else None
    to = GradientStep(F.view, next_Y.view, start.view, step, 0.3, sums)
    if form == "residual":
        E = (X - point.T @ B).to(number).double()
        gradient = -B @ E.T
        E, B = (Matrix(M, number, "columns").view for M in (E, B))
        OPS["pgd_residual_"](F.view, Y.view, E, B, to)
    else:
        C, G = ((B @ M.T).to(number).double() for M in (X, B))
        gradient = G @ point - C
        C, G = Matrix(C, number, layout).view, Matrix(G, number).view
        OPS["pgd_normal_"](F.view, Y.view, C, G, to)
    Y.values(), start.values()
    check_step(dtype, F, next_Y, sums, (before, point, gradient, step.double(), 0.3))


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_mu_reads_data_in_16_bits_where_they_lie(layout, stored, precision, monkeypatch):
    """The bits of what the same data give that were widened first."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    before, X, B = draw(70, 33, "float32", 40)
    X[0, :3] = torch.tensor([0.0, 2**-24, 3e4])
    W, given = before.T @ B, []
    for dtype in (stored, torch.float32):
        F, sums = Matrix(before, torch.float32), new_sums()
        data = Matrix(X.to(stored).double(), dtype, layout)
        W_given, B_given = (Matrix(M, torch.float32, "columns").view for M in (W, B))
        OPS["mu_residual_"](F.view, data.view, W_given, B_given, sums)
        data.values()
        given.append((F.values(), sums))
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize(("K", "m", "p"), [(1, 1, 1), (5, 23, 17), (131, 65, 40)], ids=str)
@pytest.mark.parametrize(("layout", "dtype"), LAID_OUT)
@pytest.mark.parametrize(("l1", "curved"), [(0.3, True), (0.0, True), (0.3, False)], ids=str)
def test_penalised_mu_is_the_reference(K, m, p, layout, dtype, l1, curved):
    before, X, B = draw(K, m, dtype, p)
    number = getattr(torch, dtype)
    curvature = penalty_of(K, number) if curved else None
    W = (before.T @ B).to(number).double()
    slope = l1 + (curvature.double() * before if curved else 0)
    F, sums, after = Matrix(before, number, layout), new_sums(), before.clone()
    if curved:
        rest = [Matrix(M, number, "columns").view for M in (X, W, B)]
        OPS["mu_residual_"](F.view, *rest, sums, l1, curvature)
        mu_(after, B @ X.T, B @ W.T + slope, new_sums())
        return check("mu", dtype, F, after, sums, before)
    G, C = (B @ B.T).to(number).double(), (B @ X.T).to(number).double()
    C_given, G_given = Matrix(C, number, layout), Matrix(G, number)
    updated = Matrix(torch.full((K, m), torch.nan), number, layout)
    OPS["mu_normal_"](F.view, C_given.view, G_given.view, updated.view, sums, l1)
    mu_(after, C, G @ before + l1, new_sums())
    check("mu", dtype, updated, after, sums, before)


@pytest.mark.parametrize(("K", "m", "p"), [(1, 1, 1), (5, 23, 17), (131, 65, 40)], ids=str)
@pytest.mark.parametrize(("layout", "dtype"), LAID_OUT)
@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("last", [False, True])
def test_penalised_pgd_is_the_reference(K, m, p, layout, dtype, l1, last):
    before, X, B = draw(K, m, dtype, p)
    number = getattr(torch, dtype)
    curvature, step = penalty_of(K, number), torch.tensor(0.01, dtype=number)
    point = draw(K, m, dtype, p, seed=1)[0]
    start, Y = Matrix(point, number, layout), Matrix(point, number, layout)
    F, next_Y = Matrix(before, number, layout), Matrix(torch.full((K, m), torch.nan), number)
    sums = new_sums() if last else None
    E = (X - point.T @ B).to(number).double()
    gradient = l1 + curvature.double() * point - B @ E.T
    E, B = (Matrix(M, number, "columns").view for M in (E, B))
    to = GradientStep(F.view, next_Y.view, start.view, step, 0.3, sums)
    OPS["pgd_residual_"](F.view, Y.view, E, B, to, l1, curvature)
    Y.values(), start.values()
    check_step(dtype, F, next_Y, sums, (before, point, gradient, step.double(), 0.3))
