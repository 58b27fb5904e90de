"""The compiled extension, given views of memory, on every instruction set usable here; and what of
it Python hands over."""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import REASON, instruction_sets
from oracle import TOLERANCES, kkt_residual, relative_difference
from views import Matrix, changed

from fastnmf import nnls
from fastnmf.backends import torch as reference
from fastnmf.backends.pointers import NnlsLimits, view

PEAK = Path("/proc/self/clear_refs")
# layout of F, K, m, dtype. A vector has 4, 8 or 16 lanes in float32, 2, 4 or 8 in float64
CASES = [
    ("rows", 1, 1, "float32"),
    ("columns", 1, 65, "float64"),
    # fewer samples or concepts than a vector has lanes, as many, and one more or less
    ("columns", 2, 63, "float32"),
    ("rows", 3, 7, "float64"),
    ("columns", 3, 8, "float64"),
    ("columns", 17, 1, "float32"),
    # whole vectors, and tiles of 16 concepts with one less, none and one left over
    ("rows", 15, 64, "float32"),
    ("columns", 16, 64, "float64"),
    ("columns", 16, 65, "float32"),
    ("rows", 17, 65, "float64"),
    # nothing is contiguous
    ("apart", 17, 65, "float32"),
    ("apart", 17, 65, "float64"),
    # many concepts, and a block of 128 with two left over
    ("rows", 100, 65, "float32"),
    ("columns", 128, 63, "float32"),
    ("columns", 130, 65, "float64"),
    ("rows", 130, 7, "float64"),
    # enough samples for both threads
    ("columns", 17, 1000, "float32"),
    ("rows", 17, 1000, "float64"),
]


on_all_cases = pytest.mark.parametrize(("layout", "K", "m", "dtype"), CASES)


def guarded(values):
    """The values, followed by a page that no process may read."""
    size = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    numbers = np.frombuffer(pages, values.dtype, values.size, size - values.nbytes)
    numbers = numbers.reshape(values.shape)
    numbers[:] = values
    return numbers


def peak_of(call):
    """Bytes by which the process grows during a call."""

    def read(key):
        return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10

    PEAK.write_text("5")
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def rounded(values, dtype):
    return values.astype(dtype).astype(np.float64)


def draw(K, m, dtype, seed=0):
    """F (K, m) with zeros, R (K, m), a Gram matrix (K, K) with two zero concepts."""
    rng = np.random.default_rng(seed)
    F, R = np.maximum(rng.standard_normal((K, m)), 0), 3 * rng.standard_normal((K, m))
    B = np.abs(rng.standard_normal((K, 2 * K + 3)))
    if K > 2:
        B[[1, K - 1]] = 0
    return [rounded(M, dtype) for M in (F, R, B @ B.T / (2 * K + 3))]


def sweep(F, R, G):
    """(F, Δ) after hals_block, in float64."""
    F, R, delta = F.copy(), R.copy(), np.zeros_like(F)
    for j in range(len(F)):
        if G[j, j] > 0:
            delta[j] = np.maximum(0, F[j] + R[j] / G[j, j]) - F[j]
            F[j] += delta[j]
            R[j + 1 :] -= np.outer(G[j + 1 :, j], delta[j])
    return F, delta


def hals_block(extension, F, R, G, delta, sums, threads=2):
    extension.hals_block(F.view, R.view, G.view, delta.view, view(sums), threads)


def hals_normal(extension, F, C, G, sums, threads=2):
    extension.hals_normal(F.view, C.view, G.view, view(sums), threads)


def assert_sums(sums, before, after, dtype):
    expected = [1 + ((after - before) ** 2).sum(), 2 + (after**2).sum()]
    assert relative_difference(sums.numpy(), expected) < TOLERANCES["hals", dtype]


@on_all_cases
def test_hals_block_follows_the_loop(extension, layout, K, m, dtype):
    before, rest, gram = draw(K, m, dtype)
    # as in the half-steps, where F is rows or codes, and otherwise
    of_R = {"rows": "rows", "columns": "columns", "apart": "rows"}[layout]
    F, R, G = Matrix(before, dtype, layout), Matrix(rest, dtype, of_R), Matrix(gram, dtype)
    delta, sums = Matrix(np.full((K, m), np.nan), dtype, of_R), torch.tensor([1.0, 2.0]).double()
    hals_block(extension, F, R, G, delta, sums)
    expected, change = sweep(before, rest, gram)
    assert relative_difference(F.values(), expected) < TOLERANCES["hals", dtype]
    assert relative_difference(delta.values(), change) < TOLERANCES["hals", dtype]
    assert (F.values() >= 0).all()
    assert_sums(sums, before, F.values(), dtype)


@on_all_cases
def test_hals_normal_follows_the_loop(extension, layout, K, m, dtype):
    before, rest, gram = draw(K, m, dtype)
    cross = rounded(rest + gram @ before, dtype)
    F, G, sums = (
        Matrix(before, dtype, layout),
        Matrix(gram, dtype),
        torch.tensor([1.0, 2.0]).double(),
    )
    other_layout = {"rows": "columns", "columns": "columns", "apart": "rows"}[layout]
    hals_normal(extension, F, Matrix(cross, dtype, other_layout), G, sums)
    expected, _ = sweep(before, cross - gram @ before, gram)
    assert relative_difference(F.values(), expected) < TOLERANCES["hals", dtype]
    assert_sums(sums, before, F.values(), dtype)


@pytest.mark.parametrize(
    ("K", "m", "dtype"), [(1, 1, "float32"), (17, 65, "float64"), (130, 1000, "float32")]
)
def test_sweeps_in_one_call_are_successive_sweeps(extension, K, m, dtype):
    before, rest, gram = draw(K, m, dtype)
    once, at_once = (Matrix(before, dtype, "columns") for _ in range(2))
    C, G = Matrix(rest + gram @ before, dtype, "columns"), Matrix(gram, dtype)
    each, all_of_them = torch.zeros(2).double(), torch.zeros(2).double()
    for _ in range(3):
        hals_normal(extension, once, C, G, each)
    extension.hals_normal(at_once.view, C.view, G.view, view(all_of_them), 2, 3)
    assert np.array_equal(once.values(), at_once.values())
    assert torch.allclose(each, all_of_them, rtol=1e-12)


def residuals(F, C, G, l1, l2):
    """The KKT residual of each column, and the number of its positive entries."""
    product = G @ F
    slope, scale = C - product, (product - l2 * F + C).max(0) + 2 * l1
    worst = np.where(F > 0, np.abs(slope), np.maximum(slope, 0)).max(0)
    return np.stack((worst / np.maximum(scale, 1e-30), (F > 0).sum(0)))


@on_all_cases
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.2)])
def test_kkt_follows_the_loop(extension, layout, K, m, dtype, l1, l2):
    F, rest, gram = draw(K, m, dtype)
    gram = rounded(gram + l2 * np.eye(K), dtype)
    cross = rounded(np.abs(rest) + gram @ F - l1, dtype)
    F[:, -1] = cross[:, -1] = 0
    other = {"rows": "columns"}.get(layout, layout)
    given = Matrix(F, dtype, layout), Matrix(cross, dtype, other), Matrix(gram, dtype)
    out = torch.full((2, m), torch.nan, dtype=getattr(torch, dtype))
    extension.kkt(view(out), *(one.view for one in given), (l1, l2), 2)
    expected = residuals(F, cross, gram, l1, l2)
    np.testing.assert_array_equal(out[1], expected[1])
    np.testing.assert_allclose(out[0], expected[0], rtol=TOLERANCES["hals", dtype], atol=1e-6)
    assert out[0, -1] == 0


@pytest.mark.parametrize("place", [0, 64, 69])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kkt_of_codes_that_are_not_finite_is_nan(extension, place, value):
    F, rest, gram = draw(17, 70, "float32")
    F[3, place] = value
    given = [Matrix(M, "float32") for M in (F, rest + 5, gram)]
    out = torch.zeros(2, 70)
    extension.kkt(view(out), *(one.view for one in given), (0.0, 0.0), 2)
    assert out[0].isnan().nonzero().tolist() == [[place]]


@on_all_cases
@pytest.mark.parametrize("p", [1, 9, 300])
def test_cross_is_the_product(extension, layout, K, m, dtype, p):
    rng = np.random.default_rng(0)
    X, B = (rounded(rng.standard_normal(shape), dtype) for shape in ((m, p), (p, K)))
    out, l1 = Matrix(np.full((K, m), np.nan), dtype, layout), 0.25
    data, fixed = Matrix(X, dtype), torch.tensor(B, dtype=getattr(torch, dtype))
    extension.cross(out.view, data.view, view(fixed), l1, 2)
    sizes = np.abs(B).T @ np.abs(X).T + l1
    assert (np.abs(out.values() - (B.T @ X.T - l1)) / sizes).max() < TOLERANCES["hals", dtype]


@pytest.mark.parametrize(
    ("layout", "K", "m", "p", "sweeps", "dtype"),
    [
        ("columns", 1, 1, 1, 1, "float32"),
        ("rows", 1, 65, 400, 2, "float64"),
        # features: one, a whole vector, with two left over, and more than a tile has
        ("columns", 17, 65, 1, 1, "float64"),
        ("columns", 17, 65, 16, 3, "float32"),
        ("columns", 17, 65, 130, 1, "float64"),
        ("columns", 17, 65, 400, 2, "float32"),
        # tails of samples and of concepts
        ("columns", 3, 7, 130, 1, "float32"),
        ("columns", 15, 63, 16, 3, "float64"),
        ("columns", 16, 8, 130, 1, "float32"),
        ("columns", 16, 64, 400, 2, "float64"),
        ("columns", 128, 65, 130, 1, "float32"),
        ("columns", 130, 63, 16, 3, "float64"),
        ("columns", 130, 65, 400, 2, "float32"),
        # few concepts, in one vector or two, and rows left over of those multiplied at once
        ("columns", 5, 107, 400, 2, "float32"),
        ("columns", 9, 107, 130, 1, "float32"),
        ("columns", 7, 53, 130, 3, "float64"),
        # layouts that are copied
        ("rows", 17, 65, 130, 1, "float32"),
        ("rows", 130, 64, 16, 3, "float64"),
        ("apart", 17, 65, 16, 3, "float32"),
        # enough samples for both threads
        ("columns", 17, 1000, 130, 1, "float64"),
        ("columns", 100, 1000, 16, 3, "float32"),
        # more features than concepts of them that stay in a cache
        ("columns", 10, 37, 1301, 2, "float32"),
        ("columns", 7, 37, 1301, 1, "float64"),
    ],
)
def test_hals_rows_is_sweeps_with_the_product(extension, layout, K, m, p, sweeps, dtype):
    rng, (before, _, _) = np.random.default_rng(3), draw(K, m, dtype)
    B, data, l1 = (np.abs(rng.standard_normal(shape)) for shape in ((K, p), (m, p), ()))
    B[1:2] = 0
    B, data, l1 = (rounded(M, dtype) for M in (B, data, l1))
    F, X, G = Matrix(before, dtype, layout), Matrix(data, dtype), Matrix(B @ B.T, dtype)
    Bt = torch.from_numpy(B.T.astype(dtype)).contiguous()
    sums = torch.tensor([1.0, 2.0]).double()
    extension.hals_rows(F.view, X.view, (view(Bt), G.view, float(l1)), sweeps, view(sums), 2)
    expected, totals = before, np.array([1.0, 2.0])
    for _ in range(sweeps):
        after, change = sweep(expected, B @ data.T - l1 - B @ B.T @ expected, B @ B.T)
        totals += (change**2).sum(), (after**2).sum()
        expected = after
    # C is a sum of p products: the more, the more rounding
    tolerance = 4 * TOLERANCES["hals", dtype]
    assert relative_difference(F.values(), expected) < tolerance
    assert relative_difference(sums.numpy(), totals) < tolerance


@pytest.mark.parametrize(
    ("K", "p", "dtype", "moves", "threads", "adds"),
    [
        (1, 1, "float32", True, 1, True),
        (1, 1, "float64", False, 3, False),
        (8, 49, "float32", False, 3, True),
        (8, 49, "float64", True, 1, False),
        (50, 130, "float32", True, 3, False),
        (50, 130, "float64", False, 1, True),
        (129, 200, "float32", False, 1, False),
        (129, 200, "float64", True, 3, True),
    ],
)
def test_hals_rows_extrapolates_codes_and_adds_their_products(
    extension, K, p, dtype, moves, threads, adds
):
    """As extrapolate and moments after the sweeps, of the new codes, in one pass."""
    for m in (1, 97, 1000):
        rng, (before, _, _) = np.random.default_rng(m), draw(K, m, dtype)
        shapes = (K, p), (m, p), (K, m), (K, p), (K, K)
        drawn = (rounded(np.abs(rng.standard_normal(shape)), dtype) for shape in shapes)
        B, data, swept, cross, gram = drawn
        gram = gram + gram.T
        unset = np.full((K, m), np.nan)
        F, S, begun = (Matrix(M, dtype, "columns") for M in (before, swept, unset))
        X, G, out, squares = (Matrix(M, dtype) for M in (data, B @ B.T, cross, gram))
        Bt, sums = torch.from_numpy(B.T.astype(dtype)).contiguous(), torch.tensor([1.0, 2.0])
        sums = sums.double()
        extrapolation = (S.view, begun.view, 0.7, 0.1) if moves else None
        extension.hals_rows(
            F.view, X.view, (view(Bt), G.view, 0.0), 2, view(sums), threads, extrapolation,
            (out.view, squares.view, adds),
        )  # fmt: skip
        expected, totals = before, np.array([1.0, 2.0])
        for _ in range(2):
            expected, change = sweep(expected, B @ data.T - B @ B.T @ expected, B @ B.T)
            totals += (change**2).sum(), (expected**2).sum()
        tolerance = 4 * TOLERANCES["hals", dtype]
        if moves:
            assert relative_difference(S.values(), expected) < tolerance
            assert np.array_equal(begun.values(), before)
            expected = np.maximum(0.1 * expected, expected + 0.7 * (expected - swept))
            # of the change in all, not of each sweep
            totals = [1 + ((expected - before) ** 2).sum(), 2 + (expected**2).sum()]
        assert relative_difference(F.values(), expected) < tolerance
        assert relative_difference(sums.numpy(), totals) < tolerance
        made = expected @ data + adds * cross, expected @ expected.T + adds * gram
        assert relative_difference(out.values(), made[0]) < tolerance
        assert relative_difference(squares.values(), made[1]) < tolerance
        assert np.array_equal(squares.values(), squares.values().T)


@pytest.mark.parametrize("layout", ["rows", "apart"])
def test_hals_rows_extrapolates_codes_of_any_layout(extension, layout):
    (K, m, p), rng = (17, 65, 20), np.random.default_rng(2)
    before, swept, data, B = (rng.random(shape) for shape in ((K, m), (K, m), (m, p), (K, p)))
    F, S, begun = (Matrix(M, "float64", layout) for M in (before, swept, np.full((K, m), np.nan)))
    X, G, sums = Matrix(data, "float64"), Matrix(B @ B.T, "float64"), torch.zeros(2).double()
    Bt = torch.from_numpy(B.T).contiguous()
    extrapolation = S.view, begun.view, 0.7, 0.0
    extension.hals_rows(F.view, X.view, (view(Bt), G.view, 0.0), 1, view(sums), 2, extrapolation)
    left, _ = sweep(before, B @ data.T - B @ B.T @ before, B @ B.T)
    expected = np.maximum(0, left + 0.7 * (left - swept))
    assert np.array_equal(begun.values(), before)
    tolerance = TOLERANCES["hals", "float64"]
    assert relative_difference(S.values(), left) < tolerance
    assert relative_difference(F.values(), expected) < tolerance
    totals = ((expected - before) ** 2).sum(), (expected**2).sum()
    assert relative_difference(sums.numpy(), np.array(totals)) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("K", "p"), [(1, 3), (10, 256), (11, 263), (10, 77), (40, 50)])
def test_codes_of_a_row_are_the_same_whatever_rows_are_beside_it(extension, K, p, dtype):
    """In tiles of any number of rows, from a dictionary in any layout, to the bit."""
    drawn = torch.Generator().manual_seed(K)
    X, D = (torch.rand(m, p, generator=drawn, dtype=dtype) for m in (70, K))
    start, G = torch.rand(70, K, generator=drawn, dtype=dtype), D @ D.T
    ends = []
    for step in (70, 33, 3, 1):
        for Bt in (D.T, D.T.contiguous(), torch.cat((D, D), 1)[:, p:].T):
            Z, sums = start.clone(), torch.zeros(2).double()
            for i in range(0, 70, step):
                part, rows = view(Z[i : i + step].T), view(X[i : i + step])
                extension.hals_rows(part, rows, (view(Bt), view(G), 0.1), 2, view(sums), 1)
            ends.append(Z.numpy().tobytes())
    assert len(set(ends)) == 1


def test_a_pass_has_the_same_codes_and_norms_whatever_the_threads(extension):
    (K, m, p), rng = (50, 1000, 64), np.random.default_rng(7)
    X, B = (torch.from_numpy(rng.random(shape, dtype=np.float32)) for shape in ((m, p), (K, p)))
    start, Bt, G = torch.from_numpy(rng.random((m, K), dtype=np.float32)), B.T.contiguous(), B @ B.T
    fixed = view(Bt), view(G), 0.0
    ends = []
    for threads in (1, 2, 3, 7):
        Z, sums = start.clone(), torch.zeros(2).double()
        cross, gram = torch.empty(K, p), torch.empty(K, K)
        statistics = view(cross), view(gram), False
        extension.hals_rows(view(Z.T), view(X), fixed, 2, view(sums), threads, None, statistics)
        ends.append((Z.numpy().tobytes(), sums.numpy().tobytes()))
    assert len(set(ends)) == 1


@pytest.mark.parametrize(
    ("K", "p", "dtype", "threads", "adds"),
    [
        # features: one, whole vectors, one less and one more than three of them, many
        (1, 1, "float32", 3, True),
        (1, 47, "float64", 1, False),
        (1, 130, "float32", 1, False),
        (8, 1, "float64", 3, False),
        (8, 16, "float32", 1, True),
        (8, 49, "float64", 3, True),
        (50, 16, "float64", 1, False),
        (50, 47, "float32", 3, True),
        (50, 49, "float32", 1, False),
        (50, 130, "float64", 3, True),
        (129, 1, "float32", 1, True),
        (129, 47, "float64", 3, False),
        (129, 49, "float32", 3, False),
        (129, 130, "float32", 1, True),
    ],
)
def test_moments_are_the_product(extension, K, p, dtype, threads, adds):
    for m in (1, 63, 700):
        rng = np.random.default_rng(m)
        factor, data, old = (
            rounded(rng.standard_normal(shape), dtype) for shape in ((K, m), (m, p), (K, p))
        )
        F, X, out = Matrix(factor, dtype, "columns"), Matrix(data, dtype), Matrix(old, dtype)
        extension.moments(F.view, X.view, out.view, False, adds, threads)
        expected = factor @ data + adds * old
        assert relative_difference(out.values(), expected) < TOLERANCES["hals", dtype]
        gram = Matrix(old[:, :1] @ old[:, :1].T, dtype)
        before = gram.values().copy()
        extension.moments(F.view, view(F.tensor.T), gram.view, True, adds, threads)
        expected = factor @ factor.T + adds * before
        assert relative_difference(gram.values(), expected) < TOLERANCES["hals", dtype]
        assert np.array_equal(gram.values(), gram.values().T)


@pytest.mark.parametrize(
    ("stride", "dtype"), [(0, "float32"), (1, "float64"), (3, "float32"), (20, "float64")]
)
def test_data_may_be_windows_that_overlap(extension, stride, dtype):
    """Fits of such data, which are not copied, raised an error about strides."""
    rng, K, m, p = np.random.default_rng(4), 5, 130, 20
    given = torch.from_numpy(rng.random(m * 20).astype(dtype))
    X = given.as_strided((m, p), (stride, 1))
    before, data = rounded(rng.random((K, m)), dtype), X.double().numpy()
    F, out = Matrix(before, dtype, "columns"), Matrix(np.zeros((K, p)), dtype)
    extension.moments(F.view, view(X), out.view, False, False, 2)
    assert relative_difference(out.values(), before @ data) < TOLERANCES["hals", dtype]
    B, sums = rounded(rng.random((K, p)), dtype), torch.zeros(2).double()
    Bt, G = torch.from_numpy(B.T.astype(dtype)).contiguous(), Matrix(B @ B.T, dtype)
    extension.hals_rows(F.view, view(X), (view(Bt), G.view, 0.0), 1, view(sums), 2)
    expected, _ = sweep(before, B @ data.T - B @ B.T @ before, B @ B.T)
    assert relative_difference(F.values(), expected) < 4 * TOLERANCES["hals", dtype]


def test_hals_rows_and_moments_refuse_wrong_arguments(checking):
    shapes = (4, 50), (50, 8), (8, 4), (4, 4), (4, 8), (2,)
    kept = [torch.rand(shape).double() for shape in shapes]
    rows, X, B, G, cross, sums = map(view, kept)
    codes = kept[0].T.contiguous()
    F = view(codes.T)
    backwards = X[0], X[1], (-8, 1), X[3]
    with pytest.raises(ValueError, match=r"X \(50, 8\) has strides \(-8, 1\): its rows must be"):
        checking.moments(F, backwards, cross, False, False, 1)
    with pytest.raises(ValueError, match=r"X has shape \(8, 4\): \(50, -1\) is needed"):
        checking.moments(F, B, cross, False, False, 1)
    with pytest.raises(ValueError, match=r"F has strides \(50, 1\): its concepts must be adjacent"):
        checking.moments(rows, X, cross, False, False, 1)
    with pytest.raises(ValueError, match="K = 4, p = 8: a symmetric result is square"):
        checking.moments(F, X, cross, True, False, 1)
    fixed = B, G, 0.0
    with pytest.raises(ValueError, match="l1 = -1 must not be negative"):
        checking.hals_rows(F, X, (B, G, -1.0), 1, sums, 1)
    with pytest.raises(ValueError, match="sweeps = -1 must not be negative"):
        checking.hals_rows(F, X, fixed, -1, sums, 1)
    with pytest.raises(ValueError, match=r"B has shape \(50, 8\): \(8, 4\) is needed"):
        checking.hals_rows(F, X, (X, G, 0.0), 1, sums, 1)
    with pytest.raises(ValueError, match=r"B \(8, 4\) has strides \(1, 1\): they must be positive"):
        checking.hals_rows(F, X, ((B[0], B[1], (1, 1), B[3]), G, 0.0), 1, sums, 1)
    nowhere = 0, *F[1:]
    with pytest.raises(ValueError, match="before is a null pointer"):
        checking.hals_rows(F, X, fixed, 1, sums, 1, (F, nowhere, 0.5, 0.0))
    with pytest.raises(ValueError, match="whose concepts are adjacent"):
        checking.hals_rows(rows, X, fixed, 1, sums, 1, None, (cross, G, False))


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as on Linux")
@pytest.mark.parametrize(
    ("K", "m", "p", "dtype"),
    [
        (17, 65, 33, "float32"),
        (17, 65, 33, "float64"),
        (3, 1, 1, "float64"),
        (50, 100, 130, "float32"),
        (1, 49, 17, "float32"),
        (10, 65, 259, "float32"),
        (5, 35, 257, "float64"),
    ],
)
def test_nothing_is_read_beyond_the_last_row(extension, K, m, p, dtype):
    """Matrices end at a page that no process may read."""
    rng = np.random.default_rng(5)
    B = rounded(rng.random((K, p)), dtype)
    drawn = (rounded(rng.random(shape), dtype) for shape in ((m, K), (m, p)))
    matrices = [*drawn, B.T, B @ B.T, np.empty((K, p))]
    Z, X, Bt, G, out = (guarded(M.astype(dtype)) for M in matrices)
    squares, sums = guarded(np.empty((K, K), dtype)), np.zeros(2)
    F, x, b, g, cross, gram, total = (
        view(torch.from_numpy(M)) for M in (Z.T, X, Bt, G, out, squares, sums)
    )
    extension.moments(F, x, cross, False, False, 2)
    assert relative_difference(out, matrices[0].T @ matrices[1]) < TOLERANCES["hals", dtype]
    before = Z.T.astype(np.float64)
    extension.hals_rows(F, x, (b, g, 0.0), 1, total, 2)
    expected, _ = sweep(before, B @ X.T - B @ B.T @ before, B @ B.T)
    assert relative_difference(Z.T, expected) < 4 * TOLERANCES["hals", dtype]
    extension.hals_rows(F, x, (b, g, 0.0), 1, total, 2, None, (cross, gram, False))
    assert relative_difference(out, Z.T @ X) < TOLERANCES["hals", dtype]
    assert relative_difference(squares, Z.T @ Z) < TOLERANCES["hals", dtype]


@pytest.mark.skipif(not PEAK.exists(), reason="the peak is read from Linux's /proc")
def test_moments_of_many_features_need_no_memory_for_each_thread(extension):
    """Each thread had sums of all features: 64 threads needed 64 times the result, 196 MB here. And
    the features in several parts have the same sums as in one."""
    K, m, p, stride_o = 128, 4096, 6000, 6005
    rng = np.random.default_rng(6)
    Z, X = (rng.random(shape, dtype=np.float32) for shape in ((m, K), (m, p)))
    out = np.full((K, stride_o), np.nan, np.float32)
    given = (view(torch.from_numpy(M)) for M in (Z.T, X, out[:, :p]))
    grown = peak_of(lambda: extension.moments(*given, False, False, 64))
    assert relative_difference(out[:, :p], Z.T @ X) < 1e-5
    assert np.isnan(out[:, p:]).all()
    assert grown < 100 << 20


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_hals_block_clips_to_exactly_zero_and_keeps_dead_concepts(extension, layout):
    before, rest, gram = draw(100, 1000, "float32")
    F, delta = Matrix(before, "float32", layout), Matrix(np.full((100, 1000), np.nan), "float32")
    sums = torch.zeros(2).double()
    hals_block(extension, F, Matrix(rest, "float32"), Matrix(gram, "float32"), delta, sums)
    clipped = delta.values() == -before
    assert clipped.mean() > 0.3
    assert (F.values()[clipped] == 0).all()
    for k in (1, 99):
        assert (F.values()[k] == before[k]).all()
        assert (delta.values()[k] == 0).all()


def test_hals_block_may_write_delta_over_R(extension):
    before, rest, gram = draw(33, 100, "float64")
    F, R, G = (Matrix(M, "float64") for M in (before, rest, gram))
    sums = torch.zeros(2).double()
    hals_block(extension, F, R, G, R, sums)
    assert (
        relative_difference(R.values(), sweep(before, rest, gram)[1])
        < TOLERANCES["hals", "float64"]
    )


def test_hals_passes_on_a_nan(extension):
    before, rest, gram = draw(5, 50, "float32")
    rest[3, 41] = np.nan
    F, R, G = (Matrix(M, "float32") for M in (before, rest, gram))
    hals_block(extension, F, R, G, R, torch.zeros(2).double())
    assert np.argwhere(np.isnan(F.tensor.numpy())).tolist() == [[3, 41]]


@on_all_cases
def test_mu_follows_the_formula(extension, layout, K, m, dtype):
    before, numerator, _ = draw(K, m, dtype, seed=1)
    denominator = rounded(np.abs(before[::-1]), dtype)
    denominator[1::3] = 0
    dead = denominator == 0
    ratio = np.where(dead, 1, np.abs(numerator) / np.where(dead, 1, denominator))
    other = "rows" if layout == "rows" else "columns"
    above, below = Matrix(ratio * denominator, dtype, other), Matrix(denominator, dtype, other)
    F, sums = Matrix(before, dtype, layout), torch.tensor([1.0, 2.0]).double()
    extension.mu_update(F.view, above.view, below.view, view(sums), 2)
    assert relative_difference(F.values(), before * ratio) < TOLERANCES["mu", dtype]
    assert np.array_equal(F.values()[dead], before[dead])
    assert_sums(sums, before, F.values(), dtype)


@on_all_cases
def test_pgd_follows_the_formula(extension, layout, K, m, dtype):
    before, gradient, _ = draw(K, m, dtype, seed=2)
    start, step, momentum = rounded(before + 0.1, dtype), 0.3, 0.7
    F, Y = Matrix(before, dtype, layout), Matrix(start, dtype, layout)
    sums = torch.tensor([1.0, 2.0]).double()
    other_layout = {"rows": "rows", "columns": "columns", "apart": "columns"}[layout]
    slope = Matrix(gradient, dtype, other_layout)
    extension.pgd_update(F.view, Y.view, slope.view, step, momentum, view(sums), 2)
    expected = np.maximum(0, start - step * gradient)
    assert relative_difference(F.values(), expected) < TOLERANCES["pgd", dtype]
    assert (
        relative_difference(Y.values(), expected + momentum * (expected - before))
        < TOLERANCES["pgd", dtype]
    )
    assert_sums(sums, before, F.values(), dtype)


# without and with a least share, and a step of zero
@pytest.mark.parametrize(
    ("layout", "K", "m", "dtype", "step", "least"),
    [
        (*case, *(((0.7, 0.0), (0.6, 0.5), (0.0, 0.0))[number % 3]))
        for number, case in enumerate(CASES)
    ],
)
def test_extrapolate_follows_the_formula(extension, layout, K, m, dtype, step, least):
    now, swept, before = (np.maximum(draw(K, m, dtype, seed)[0], 0) for seed in (3, 4, 5))
    other = {"rows": "rows", "columns": "columns", "apart": "columns"}[layout]
    moved = now + rounded(np.array(step), dtype) * (now - swept)
    expected = np.maximum(rounded(np.array(least), dtype) * now, moved)
    for measures in (True, False):
        F, S = Matrix(now, dtype, layout), Matrix(swept, dtype, other)
        begun, sums = Matrix(before, dtype, other), torch.tensor([1.0, 2.0]).double()
        change = (begun.view, view(sums)) if measures else None
        extension.extrapolate(F.view, S.view, step, least, 2, change)
        assert relative_difference(F.values(), expected) < TOLERANCES["pgd", dtype]
        assert (F.values() >= least * now).all()
        assert np.array_equal(S.values(), now)
        if measures:
            assert np.array_equal(begun.values(), before)
            assert_sums(sums, before, F.values(), dtype)
        else:
            assert sums.tolist() == [1, 2]
        if step == 0:
            assert np.array_equal(F.values(), now)


@on_all_cases
def test_rescale_follows_the_formula(extension, layout, K, m, dtype):
    now, swept, before = (np.maximum(draw(K, m, dtype, seed)[0], 0) for seed in (3, 4, 5))
    scale = rounded(np.random.default_rng(6).random((K, 1)) + 0.5, dtype)
    other = {"rows": "rows", "columns": "columns", "apart": "columns"}[layout]
    F, S = Matrix(now, dtype, layout), Matrix(swept, dtype, other)
    factors = torch.from_numpy(scale[:, 0].astype(dtype))
    sums = torch.tensor([1.0, 2.0]).double()
    for begun in (Matrix(before, dtype, other), Matrix(before, dtype)):
        F.tensor.copy_(torch.from_numpy(now))
        S.tensor.copy_(torch.from_numpy(swept))
        sums.copy_(torch.tensor([1.0, 2.0]))
        extension.rescale(F.view, S.view, view(factors), begun.view, view(sums), 2)
        assert relative_difference(F.values(), scale * now) < TOLERANCES["pgd", dtype]
        assert relative_difference(S.values(), scale * swept) < TOLERANCES["pgd", dtype]
        assert np.array_equal(begun.values(), before)
        assert_sums(sums, before, F.values(), dtype)


@pytest.mark.parametrize(
    ("K", "d", "dtype"), [(1, 1, "float32"), (5, 67, "float32"), (9, 40, "float64")]
)
def test_sums_of_a_dictionary_follow_the_formulas(extension, K, d, dtype):
    (now, before, _), (cross, gram, G) = (
        draw(K, d, dtype),
        (draw(K, n, dtype, 7)[0] for n in (d, K, K)),
    )
    F, old = Matrix(now, dtype), Matrix(before, dtype)
    C, H, norm = Matrix(cross, dtype), Matrix(gram, dtype), np.linalg.norm(now, axis=1)
    squares, sums = Matrix(G, dtype), torch.full((4,), 7.0, dtype=torch.float64)
    extension.measure(F.view, C.view, squares.view, H.view, 3.0, view(sums))
    expected = 3.0 + (gram * G).sum() - 2 * (cross * now).sum()
    size = np.abs(gram * G).sum() + 2 * np.abs(cross * now).sum()
    assert abs(sums[2].item() - expected) < TOLERANCES["pgd", dtype] * size
    norms = torch.from_numpy(norm.astype(dtype))
    assert not extension.moved(F.view, old.view, view(norms), 0.01, view(sums))
    assert_sums(sums[:2] + torch.tensor([1.0, 2.0]), before, now, dtype)
    norms[-1] *= 1.02
    assert extension.moved(F.view, old.view, view(norms), 0.01, view(sums))
    assert sums[3] == 7.0
    norms[-1] = 0
    assert not extension.moved(F.view, old.view, view(norms), 0.01, view(sums))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_have_the_bits_of_the_reference(extension, dtype):
    drawn = torch.Generator().manual_seed(0)
    before = torch.rand(2, 50, generator=drawn, dtype=getattr(torch, dtype))
    now = before * (1 + 0.02 * torch.rand(2, 50, generator=drawn).to(before))
    now[0, 3] = before[0, 5] = 0
    now[1] = before[1] * 1.005
    for norms, old in zip(now, before, strict=True):
        found, expected = norms.clone(), norms.clone()
        grew = reference.scales_(expected, old, 0.01)
        assert extension.scales(view(found), view(old), 0.01) == bool(grew)
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("extension")
def test_a_process_may_have_no_feature():
    from fastnmf.backends import cpp

    D, gram = torch.rand(4, 0), torch.rand(4, 4)
    for name, given in (
        ("moved_", (D, D, torch.ones(4), 0.01)),
        ("measure_", (D, D, gram, gram, 2)),
    ):
        found, expected = torch.ones(3).double(), torch.ones(3).double()
        cpp.OPERATIONS[name](found, *given)
        reference.REFERENCE[name](expected, *given)
        assert torch.allclose(found, expected), name


def test_sums_of_a_dictionary_refuse_wrong_arguments(checking):
    F, other, norms, sums = map(
        view, (torch.rand(4, 50), torch.rand(4, 49), torch.rand(4), torch.zeros(4).double())
    )
    with pytest.raises(ValueError, match="before has shape"):
        checking.moved(F, other, norms, 0.01, sums)
    with pytest.raises(ValueError, match="cross has shape"):
        checking.measure(F, other, view(torch.rand(4, 4)), view(torch.rand(4, 4)), 0.0, sums)
    with pytest.raises(ValueError, match="G has shape"):
        checking.measure(F, F, other, view(torch.rand(4, 4)), 0.0, sums)
    with pytest.raises(ValueError, match="before has shape"):
        checking.scales(norms, view(torch.rand(5)), 0.01)


def test_extrapolate_passes_on_a_nan(extension):
    now, swept, _ = draw(5, 50, "float32")
    now[3, 41] = np.nan
    F, S = Matrix(now, "float32"), Matrix(np.abs(swept), "float32")
    extension.extrapolate(F.view, S.view, 0.5, 0.5, 1)
    assert np.argwhere(np.isnan(F.tensor.numpy())).tolist() == [[3, 41]]


def test_extrapolate_refuses_null_pointers(checking):
    kept = torch.rand(4, 50), torch.zeros(2).double()
    F, sums = map(view, kept)
    for before, total, named in ((F, (0, *sums[1:]), "sums"), ((0, *F[1:]), sums, "before")):
        with pytest.raises(ValueError, match=f"{named} is a null pointer"):
            checking.extrapolate(F, F, 0.5, 0.0, 1, (before, total))


@pytest.mark.parametrize(("layout", "dtype"), [("rows", "float64"), ("columns", "float32")])
def test_threads_change_no_bit(extension, layout, dtype):
    K, m = 130, 1000
    before, rest, gram = draw(K, m, dtype)
    results = []
    for threads in (1, 2, 3):
        F, R, G = Matrix(before, dtype, layout), Matrix(rest, dtype), Matrix(gram, dtype)
        begun, sums = Matrix(before, dtype), torch.zeros(12).double()
        scale = torch.linspace(0.5, 1.5, K, dtype=F.tensor.dtype)
        hals_block(extension, F, R, G, R, sums[:2], threads)
        hals_normal(extension, F, R, G, sums[2:4], threads)
        extension.mu_update(F.view, R.view, R.view, view(sums[4:6]), threads)
        extension.pgd_update(F.view, R.view, R.view, 0.1, 0.2, view(sums[6:8]), threads)
        change = begun.view, view(sums[8:10])
        extension.extrapolate(F.view, R.view, 0.1, 0.2, threads, change)
        extension.rescale(F.view, R.view, view(scale), begun.view, view(sums[10:]), threads)
        results.append((F.tensor.clone(), R.tensor.clone(), sums))
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize(("K", "m"), [(0, 5), (5, 0)])
def test_empty_is_left_alone(extension, K, m):
    F, G, X, B = (view(torch.empty(shape)) for shape in ((K, m), (K, K), (m, 3), (3, K)))
    sums, scale = torch.zeros(2).double(), view(torch.empty(K))
    total = view(sums)
    extension.hals_block(F, F, G, F, total, 1)
    extension.hals_normal(F, F, G, total, 1)
    extension.hals_rows(F, X, (B, G, 0.0), 1, total, 1)
    extension.mu_update(F, F, F, total, 1)
    extension.pgd_update(F, F, F, 1.0, 0.0, total, 1)
    extension.extrapolate(F, F, 1.0, 0.0, 1, (F, total))
    extension.rescale(F, F, scale, F, total, 1)
    assert sums.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"F": {"dtype": "float16"}}, "F has dtype 'float16': 'float32' or 'float64' is needed"),
        ({"R": {"dtype": "float64"}}, "R has dtype 'float64': 'float32' is needed"),
        ({"sums": {"dtype": "float32"}}, "sums has dtype 'float32': 'float64' is needed"),
        ({"F": {"shape": (-4, 50)}}, r"F has shape \(-4, 50\): \(-1, -1\) is needed"),
        ({"F": {"shape": (4,), "strides": (1,)}}, r"F has shape \(4\): \(-1, -1\) is needed"),
        ({"R": {"shape": (4, 49)}}, r"R has shape \(4, 49\): \(4, 50\) is needed"),
        ({"sums": {"shape": (1,)}}, r"sums has shape \(1\): \(2\) is needed"),
        ({"threads": 0}, "threads = 0"),
        ({"F": {"address": 0}}, "F is a null pointer"),
        ({"sums": {"address": 0}}, "sums is a null pointer"),
        ({"R": {"address": 2}}, "R = 2 is not aligned to 4"),
        ({"R": {"strides": (49, 1)}}, r"R \(4, 50\) has strides \(49, 1\): they must be"),
        ({"G": {"strides": (1, 4)}}, r"G \(4, 4\) has strides \(1, 4\): its rows must be"),
        ({"delta": {"strides": (0, 1)}}, r"delta \(4, 50\) has strides \(0, 1\)"),
        ({"G": {"strides": (3, 1)}}, r"G \(4, 4\) has strides \(3, 1\)"),
        ({"F": {"strides": (1, 3)}}, r"F \(4, 50\) has strides \(1, 3\)"),
        ({"F": {"strides": (-50, 1)}}, r"F \(4, 50\) has strides \(-50, 1\)"),
    ],
    ids=str,
)
def test_hals_block_refuses_wrong_arguments(checking, changes, message):
    F, R, G = (torch.from_numpy(M).float() for M in draw(4, 50, "float32"))
    kept = {"F": F, "R": R, "G": G, "delta": R, "sums": torch.zeros(2).double()}
    given = {name: view(M) for name, M in kept.items()} | {"threads": 1}
    with pytest.raises(ValueError, match=message):
        checking.hals_block(**changed(given, changes))


def test_a_view_is_a_tuple_of_four(checking):
    kept = torch.ones(4, 50), torch.zeros(2).double()
    F, sums = map(view, kept)
    for broken in (F[:3], list(F), (None, *F[1:]), (*F[:2], (1,), F[3]), (*F[:3], 4), "F", None):
        with pytest.raises(TypeError, match=r"F: tuple\[int, tuple"):
            checking.hals_block(broken, F, F, F, sums, 1)


# around the lanes of a vector
@pytest.mark.parametrize(
    ("K", "dtype"),
    [
        (1, "float32"),
        (7, "float64"),
        (8, "float32"),
        (9, "float64"),
        (33, "float32"),
        (130, "float64"),
    ],
)
def test_nnls_satisfies_the_kkt_conditions(extension, K, dtype):
    rng = np.random.default_rng(K)
    A, D = (np.maximum(rng.standard_normal((m, 40)), 0).astype(dtype) for m in (25, K))
    Z = nnls(A, D, backend="cpp").numpy()
    assert kkt_residual(Z.T, A, D) <= TOLERANCES["anls", dtype]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": {"capacity": 0}}, "capacity = 0"),
        ({"limits": {"block": 0}}, "block = 0"),
        ({"limits": {"max_steps": -1}}, "max_steps = -1"),
        ({"G": {"address": 0}}, "G is a null pointer"),
        ({"G": {"shape": (4, 3)}}, r"G has shape \(4, 3\): \(4, 4\) is needed"),
        (
            {"G": {"shape": (50, 3, 3), "strides": (0, 3, 1)}},
            r"G \(50, 3, 3\) has strides \(0, 3, 1\): the first must be positive",
        ),
        ({"scale": {"address": 4}}, "scale = 4 is not aligned to 8"),
        ({"scale": {"shape": (3,)}}, r"scale has shape \(3\): \(4\) is needed"),
        ({"index": {"dtype": "int64"}}, "index has dtype 'int64': 'int32' is needed"),
        ({"index": {"shape": (49, 3)}}, r"index has shape \(49, 3\): \(50, -1\) is needed"),
        ({"index": {"strides": (4, 1)}}, r"index \(50, 3\) has strides \(4, 1\): it must be"),
        ({"report": {"shape": (50, 3)}}, r"report has shape \(50, 3\): \(50, 4\) is needed"),
        ({"C": {"strides": (0, 1)}}, r"C \(4, 50\) has strides \(0, 1\)"),
    ],
    ids=str,
)
def test_nnls_refuses_wrong_arguments(checking, changes, message):
    kept = {
        "F": torch.rand(4, 50).double(), "C": torch.rand(4, 50).double(),
        "G": torch.rand(4, 4).double(), "scale": torch.ones(4).double(),
        "index": torch.zeros(50, 3).int(), "report": torch.empty(50, 4).double(),
        "sums": torch.zeros(2).double(),
    }  # fmt: skip
    given = {name: view(M) for name, M in kept.items()}
    given |= {"limits": NnlsLimits(False, 1e-12, 1e-11, 9, 4, 2), "threads": 1}
    given = changed(given, changes)
    given["gram"] = tuple(given.pop(name) for name in ("G", "scale", "index"))
    with pytest.raises(ValueError, match=message):
        checking.nnls(**given)


def test_force_isa_lists_what_is_usable(extension):
    assert extension.isa() in instruction_sets()
    with pytest.raises(ValueError, match=r"'mmx' is not .* auto, baseline"):
        extension.force_isa("mmx")


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="no /proc to read mapped libraries from"
)
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_extension_shares_the_openmp_runtime_of_torch():
    script = """
import torch, fastnmf._C
mapped = {line.split()[-1].rsplit("/")[-1] for line in open("/proc/self/maps")}
print(sum(name.startswith(("libgomp", "libomp", "libiomp")) for name in mapped))
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "1"
