"""Each kernel against the plain-torch reference in float64, inside matrices of NaN."""

from __future__ import annotations

import ctypes
import importlib
import mmap

import pytest
import torch
from fastnmf.kernels import packing
from oracle import TOLERANCES, relative_difference

from fastnmf.backends.registry import BACKENDS
from fastnmf.backends.torch import hals_block_, hals_sweep_, mu_, pgd_, round_tf32_
from fastnmf.precision import products_in
from fastnmf.solvers.pgd import GradientStep

OPS = BACKENDS["triton"].load()
HALS = importlib.import_module("fastnmf.kernels.hals")
# layouts: "rows", samples adjacent, as in the dictionary, or "aligned rows"; "columns", concepts
# adjacent, as in the codes, aligned to 16 bytes; "unaligned columns"
# K, m, layout of F, dtype
SWEPT = [
    (1, 1, "rows", "float32"),
    (1, 1, "columns", "float64"),
    # four adjacent concepts are read at once, and there are three
    (3, 37, "columns", "float32"),
    # one concept more than a tile of 16, one sample more than a tile of 32
    (17, 33, "rows", "float32"),
    (17, 33, "columns", "float32"),
    (17, 33, "unaligned columns", "float32"),
    (17, 33, "columns", "float64"),
    # all tiles are full, and rows aligned, of fewer samples than a tile has
    (32, 5, "columns", "float32"),
    (48, 9, "rows", "float64"),
    # more than a sub-block of 64 concepts
    (70, 3, "rows", "float32"),
    (70, 3, "columns", "float32"),
]
# K, m, p, layout of F, dtype


def some_of(cases, slow):
    """The cases, of which those from number `slow` on, but each fourth, are slow to interpret."""
    later = (i >= slow and i % 4 for i in range(len(cases)))
    marks = ([pytest.mark.compiles] if one else [] for one in later)
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


TILED = [
    (1, 1, 1, "rows", "float32"),
    # no tile is full
    (5, 23, 17, "columns", "float32"),
    (5, 23, 17, "rows", "float64"),
    # several tiles of concepts, samples (float64: 32) and features, none of them whole
    (131, 65, 40, "rows", "float32"),
    (131, 65, 40, "unaligned columns", "float32"),
    (131, 65, 40, "columns", "float64"),
]


# of many and of few samples
TILES = HALS.TILES[4]
# for what the second has in common with the first
slow_second = pytest.mark.parametrize(
    "tile", [TILES[0], pytest.param(TILES[1], marks=pytest.mark.compiles)], indirect=True, ids=str
)


@pytest.fixture(params=TILES, ids=["many samples", "few samples"])
def tile(request, monkeypatch):
    """The launchers of hals take one tile in float32, however many samples there are, of 32 at
    most, so that few make several programs; gives BLOCK_M, SLICES, warps, registers."""
    _, block, *rest = request.param
    tile = (min(block, 32), *rest)
    monkeypatch.setitem(HALS.TILES, 4, ((0, *tile),))
    return tile


def guarded(rows, columns, dtype):
    """A matrix of NaN before memory that no process may read."""
    size = rows * columns * dtype.itemsize
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, length + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + length
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    numbers = torch.frombuffer(memory, dtype=dtype, count=rows * columns, offset=length - size)
    return numbers.view(rows, columns).fill_(torch.nan)


class Matrix:
    """A (K, m) matrix inside a larger one of NaN, in one of the layouts."""

    def __init__(self, values, dtype, layout="rows"):
        K, m = values.shape
        if "rows" in layout:
            before, width = (4, m + 8 - m % 4) if layout == "aligned rows" else (3, m + 5)
            self.whole = guarded(K + 2, width, dtype)
            self.view = self.whole[1:-1, before : before + m]
        else:
            before, width = (4, K + 8 - K % 4) if layout == "columns" else (3, K + 6 - K % 2)
            self.whole = guarded(m + 2, width, dtype)
            self.view = self.whole[1:-1, before : before + K].T
        self.view.copy_(values)

    def values(self):
        """The matrix in float64, after checking that nothing around it was written to."""
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


FORMS = ["normal", "residual", "residual, in place"]


@pytest.fixture
def form(request, monkeypatch):
    """One of FORMS; in place: as if B were too large for a copy."""
    if "in place" in request.param:
        monkeypatch.setattr(packing, "MOST_BYTES", -1)
    return request.param.partition(",")[0]


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


@pytest.mark.parametrize(("K", "m", "layout", "dtype"), some_of(SWEPT, 2))
def test_hals_block_is_the_reference(tile, K, m, layout, dtype):
    before, X, B = draw(K, m, dtype)
    number = getattr(torch, dtype)
    gram, rest = (B @ B.T).to(number).double(), (B @ X.T - B @ B.T @ before).to(number).double()
    F, R, G = Matrix(before, number, layout), Matrix(rest, number), Matrix(gram, number)
    delta, sums = Matrix(torch.full((K, m), torch.nan), number), new_sums()
    OPS["hals_block_"](F.view, R.view, G.view, delta.view, sums)
    after, change = before.clone(), torch.empty(K, m).double()
    hals_block_(after, rest, gram, change, new_sums())
    assert_near(delta.values(), change, "hals", dtype)
    R.values()
    check("hals", dtype, F, after, sums, before)


@pytest.mark.parametrize(
    ("K", "m", "layout", "dtype"), some_of([each for each in SWEPT if each[0] < 70], 2)
)
def test_hals_sweep_is_the_reference(tile, K, m, layout, dtype):
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


# two tiles of concepts, either layout
@slow_second
@pytest.mark.parametrize(("layout", "dtype"), [("rows", "float32"), ("columns", "float64")])
def test_hals_without_a_bound_is_the_reference(tile, layout, dtype):
    before, X, B = draw(17, 33, dtype)
    number, before = getattr(torch, dtype), before - 0.5
    before = before.to(number).double()
    gram, cross = (B @ B.T).to(number).double(), (B @ X.T).to(number).double()
    F, C, G = Matrix(before, number, layout), Matrix(cross, number), Matrix(gram, number)
    OPS["hals_sweep_"](F.view, C.view, G.view, new_sums(), 1, False)
    swept = before.clone()
    hals_sweep_(swept, cross, gram, new_sums(), 1, False)
    assert (swept < 0).any()
    assert_near(F.values(), swept, "hals", dtype)
    rest = (cross - gram @ before).to(number).double()
    F, R, G = Matrix(before, number, layout), Matrix(rest, number), Matrix(gram, number)
    delta, sums = Matrix(torch.full((17, 33), torch.nan), number), new_sums()
    OPS["hals_block_"](F.view, R.view, G.view, delta.view, sums, False)
    after, change = before.clone(), torch.empty(17, 33).double()
    hals_block_(after, rest, gram, change, new_sums(), False)
    assert_near(delta.values(), change, "hals", dtype)
    new = F.values()
    assert_near(new, after, "hals", dtype)
    squares = [1 + (new - before).square().sum(), 2 + new.square().sum(), 3.0]
    assert_near(sums, torch.tensor(squares), "hals", dtype)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_pgd_without_a_bound_is_the_reference(form):
    K, m, dtype = 5, 23, "float32"
    before, X, B = draw(K, m, dtype, 17)
    point = (before - 0.5).float().double()
    step, last = torch.tensor(0.01), Matrix(torch.full((K, m), torch.nan), torch.float32)
    F, Y = Matrix(before, torch.float32), Matrix(point, torch.float32)
    to = GradientStep(F.view, last.view, Y.view, step, 0.3, None, False)
    if form == "residual":
        E = (X - point.T @ B).float().double()
        gradient = -B @ E.T
        E, B = (Matrix(M, torch.float32, "columns").view for M in (E, B))
        OPS["pgd_residual_"](F.view, Y.view, E, B, to)
    else:
        C, G = ((B @ M.T).float().double() for M in (X, B))
        gradient = G @ point - C
        C, G = Matrix(C, torch.float32).view, Matrix(G, torch.float32).view
        OPS["pgd_normal_"](F.view, Y.view, C, G, to)
    after, extrapolated = before.clone(), point.clone()
    pgd_(after, extrapolated, gradient, step.double(), 0.3, False)
    assert (after < 0).any()
    assert_near(F.values(), after, "pgd", dtype)
    assert_near(last.values(), extrapolated, "pgd", dtype)


@slow_second
def test_sweeps_in_one_launch_are_successive_sweeps(tile):
    # two tiles of concepts and two of samples
    before, X, B = draw(17, 33, "float32")
    gram, cross = (B @ B.T).float(), (B @ X.T).float()
    once, at_once = before.float(), before.float()
    each, all_of_them = new_sums(), new_sums()
    for _ in range(2):
        OPS["hals_sweep_"](once, cross, gram, each)
    OPS["hals_sweep_"](at_once, cross, gram, all_of_them, 2)
    assert torch.equal(once, at_once)
    assert torch.allclose(each, all_of_them, rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "K", "m"),
    [
        ("rows", 70, 3),
        pytest.param("unaligned columns", 70, 3, marks=pytest.mark.compiles),
        ("columns", 144, 3),
        # products by tl.dot: tiles of concepts are full, rows of R and Δ aligned; the third
        # sub-block has few concepts
        pytest.param("columns", 144, 8, marks=pytest.mark.compiles),
        pytest.param("rows", 80, 12, marks=pytest.mark.compiles),
        # the widest block that a plan takes
        pytest.param("columns", 1024, 8, marks=pytest.mark.compiles),
    ],
)
def test_hals_block_gives_delta_in_tf32_where_products_are(tile, layout, K, m):
    """Δ has 10 bits of mantissa, F is exact, and R is updated by the Δ that was stored: by products
    in tf32 from one sub-block of 64 concepts to the next, for which G is rounded.
    """
    before, X, B = draw(K, m, "float32")
    gram, R_before = B @ B.T, B @ X.T - B @ B.T @ before
    F, G = Matrix(before, torch.float32, layout), Matrix(gram, torch.float32, "aligned rows")
    R, delta = (
        Matrix(M, torch.float32, "aligned rows")
        for M in (R_before, torch.full(before.shape, torch.nan))
    )
    with products_in("high"):
        by_dot = HALS.by_dot(F.view, R.view, delta.view, HALS.options_of(F.view, G.view))
        OPS["hals_block_"](F.view, R.view, G.view, delta.view, new_sums())
    assert by_dot == (tile[1] == 1 and m % 4 == 0)
    stored, new = delta.view.clone(), F.view.clone()
    assert (stored.view(torch.int32) & 8191 == 0).all()
    assert (stored - (new - before.float())).abs().max() <= stored.abs().max() * 2**-11
    rounded = gram.float().view(torch.int32).add(0x1000).bitwise_and(-8192).view(torch.float32)
    sub = torch.arange(K) // 64
    applied = torch.where(by_dot & (sub[:, None] > sub), rounded.double(), gram)
    follow, rest = before.clone(), R_before.clone()
    step = torch.empty_like(follow)
    for k in range(K):
        if gram[k, k] > 0:
            step[k] = (follow[k] + rest[k] / gram[k, k]).clamp(min=0) - follow[k]
            follow[k] += step[k]
            rest -= torch.outer(applied[:, k], stored[k].double())
    assert relative_difference(new, follow) < 1e-4
    F.values(), R.values(), G.values(), delta.values()


@slow_second
def test_hals_block_in_tf32_changes_nothing_beside_its_matrices(tile):
    """Ones are beside R and Δ: NaN would stay NaN where a kernel subtracts from it."""
    K, m = 80, 4
    F, X, B = (M.float() for M in draw(K, m, "float32"))
    R, delta = torch.ones(K, m + 4), torch.ones(K, m + 4)
    R[:, :m] = B @ X.T - B @ B.T @ F
    with products_in("high"):
        OPS["hals_block_"](F, R[:, :m], B @ B.T, delta[:, :m], new_sums())
    assert (R[:, m:] == 1).all()
    assert (delta[:, m:] == 1).all()


@slow_second
@pytest.mark.parametrize("precision", ["high", "highest"])
def test_hals_block_gives_the_same_bits_twice(tile, precision):
    before, X, B = (M.float() for M in draw(32, 9, "float32"))
    given = []
    for _ in range(2):
        F, R, sums = before.clone(), B @ X.T - B @ B.T @ before, new_sums()
        delta = torch.full_like(R, torch.nan)
        with products_in(precision):
            OPS["hals_block_"](F, R, B @ B.T, delta, sums)
        given.append((F, delta, sums))
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize(("K", "m", "p", "layout", "dtype"), TILED)
@pytest.mark.parametrize("form", FORMS, indirect=True)
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
    after, extrapolated = before.clone(), point.clone()
    pgd_(after, extrapolated, *rest)
    if sums is not None:
        assert next_Y.values().isnan().all()
        return check("pgd", dtype, F, after, sums, point)
    assert_near(next_Y.values(), extrapolated, "pgd", dtype)
    assert_near(F.values(), after, "pgd", dtype)


@pytest.mark.parametrize(("K", "m", "p", "layout", "dtype"), TILED)
@pytest.mark.parametrize("form", FORMS, indirect=True)
# the last step of a half-step makes the norms
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


def rounded(M):
    """To the nearest tf32, ties away from zero."""
    bits = M.float().contiguous().view(torch.int32)
    return bits.add(0x1000).bitwise_and(-8192).view(torch.float32).double()


@pytest.mark.parametrize("form", FORMS[1:], indirect=True)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_operands_are_rounded_to_nearest_before_a_product_in_tf32(form, layout):
    """Against products of the rounded operands; those of the others are 100 times further away."""
    K, m, p = 70, 33, 40
    before, X, B = draw(K, m, "float32", p)
    W, step = before.T @ B, torch.tensor(0.01)
    F, G = Matrix(before, torch.float32, layout), Matrix(before, torch.float32, layout)
    X_given, W_given, B_given = (Matrix(M, torch.float32, "columns").view for M in (X, W, B))
    with products_in("high"):
        OPS["mu_residual_"](F.view, X_given, W_given, B_given, new_sums())
    expected = before.clone()
    mu_(expected, rounded(B) @ rounded(X).T, rounded(B) @ rounded(W.float()).T, new_sums())
    assert relative_difference(F.values(), expected) < 1e-6
    Y = Matrix(torch.full((K, m), torch.nan), torch.float32, layout)
    to = GradientStep(G.view, Y.view, G.view, step, 0.3, None)
    with products_in("high"):
        OPS["pgd_residual_"](G.view, G.view, X_given, B_given, to)
    expected = before.clone()
    pgd_(expected, before.clone(), -rounded(B) @ rounded(X).T, step.double(), 0.3)
    assert relative_difference(G.values(), expected) < 1e-6


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_samples_in_chunks_give_the_same_bits(precision, monkeypatch):
    # three tiles, the last not whole; features become 32 columns
    K, m, p = 20, 3 * 128 - 5, 10
    before, X, B = (M.float() for M in draw(K, m, "float32", p))
    W, found = before.T @ B, []
    monkeypatch.setattr(packing, "LEAST_ROWS", 128)
    for rows in (512, 128, 256):
        # of two operands, or twice the rows of one
        monkeypatch.setattr(packing, "CHUNK_BYTES", rows * 2 * 32 * 4)
        F, sums = before.T.contiguous().T, new_sums()
        G, more = before.T.contiguous().T, new_sums()
        to = GradientStep(G, G, before, torch.tensor(0.01), 0.3, more)
        with products_in(precision):
            OPS["mu_residual_"](F, X, W, B, sums)
            OPS["pgd_residual_"](G, G, X, B, to)
        found.append((F, sums, G, more))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_an_operand_is_packed_with_zeros_around_it(dtype, layout):
    values = torch.randn(37, 45, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X, rounds = Matrix(values, dtype, layout), dtype == torch.float32
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = packing.packed(X.view, torch.full((64, 48), torch.nan, dtype=wide), rounds)
    kept = X.values()
    assert torch.equal(out[:37, :45].double(), rounded(kept) if rounds else kept)
    assert not out[37:].any()
    assert not out[:, 45:].any()


@pytest.mark.parametrize(
    ("layout", "stored", "precision"),
    [
        ("rows", torch.bfloat16, "highest"),
        ("columns", torch.bfloat16, "high"),
        ("rows", torch.float16, "high"),
        ("columns", torch.float16, "highest"),
    ],
    ids=str,
)
def test_mu_reads_data_in_16_bits_where_they_lie(layout, stored, precision):
    """The bits are those of the same data widened first."""
    before, X, B = draw(70, 33, "float32", 40)
    X[0, :3] = torch.tensor([0.0, 2**-24, 3e4])
    W, given = before.T @ B, []
    for dtype in (stored, torch.float32):
        F, sums = Matrix(before, torch.float32), new_sums()
        data = Matrix(X.to(stored).double(), dtype, layout)
        W_given, B_given = (Matrix(M, torch.float32, "columns").view for M in (W, B))
        with products_in(precision):
            OPS["mu_residual_"](F.view, data.view, W_given, B_given, sums)
        data.values()
        given.append((F.values(), sums))
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize(("K", "m", "p", "layout", "dtype"), [TILED[1], *TILED[3:]])
@pytest.mark.parametrize(
    ("l1", "form"),
    [(0.3, FORMS[1]), (0.3, FORMS[2]), (0.0, FORMS[1]), (0.3, FORMS[0])],
    indirect=["form"],
)
def test_penalised_mu_is_the_reference(K, m, p, layout, dtype, l1, form):
    curved = form == "residual"
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


@pytest.mark.parametrize(("K", "m", "p", "layout", "dtype"), [TILED[1], *TILED[3:]])
@pytest.mark.parametrize(
    ("l1", "last", "form"),
    [(0.3, False, FORMS[1]), (0.3, True, FORMS[1]), (0.0, False, FORMS[1]), (0.3, True, FORMS[2])],
    indirect=["form"],
)
def test_penalised_pgd_is_the_reference(K, m, p, layout, dtype, l1, last, form):
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


@pytest.mark.parametrize("layout", ["rows", "columns", "unaligned columns"])
@pytest.mark.parametrize(
    ("K", "m"),
    [
        (1, 1),
        # no tile of 16 × 128 is full
        (5, 23),
        # several tiles each way
        (131, 35),
    ],
)
def test_round_tf32_is_the_reference_to_the_bit(K, m, layout):
    values = torch.randn(K, m, generator=torch.Generator().manual_seed(0))
    # halfway between two numbers, of both signs; zeros; the smallest numbers
    some = torch.tensor([1 + 2**-11, -1 - 2**-11, 0.0, -0.0, 1e-40, 3e38])[: K * m]
    values.view(-1)[: len(some)] = some
    expected = torch.empty(K, m)
    round_tf32_(expected, values)
    X, out = (Matrix(M, torch.float32, layout) for M in (values, values * torch.nan))
    OPS["round_tf32_"](out.view, X.view)
    assert out.view.equal(expected)
    OPS["round_tf32_"](X.view, X.view)
    assert X.values().equal(expected.double())
    out.values()
