"""fastnmf.nnls_gram: the codes of nnls from cross products and a Gram matrix, and what is none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from half_steps import backends_of
from hypothesis import given, settings
from hypothesis import strategies as st
from nnls_problems import draw, family

from fastnmf import InvalidInput, nnls, nnls_gram
from fastnmf.backends.nnls.result import CAPPED, SOLVED, UNSOLVED
from fastnmf.errors import ConvergenceWarning

EVERY_BACKEND = pytest.mark.parametrize("backend", backends_of("anls"))
EVERY_SIGN = pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
WEIGHTS = [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (0.4, 0.3)]
# d, K: fewer and more concepts than features
SIZES = [(9, 6), (20, 60)]


def exactness(C, G, Z, l1=0.0, l2=0.0):
    """The KKT residual (n,) of C and G."""
    C, G, Z = (np.asarray(M, np.float64) for M in (C, G, Z))
    slope = C - Z @ G - l1 - l2 * Z
    scale = np.abs(C) + Z @ np.abs(G) + l1
    worst = np.where(Z > 0, np.abs(slope), np.maximum(slope, 0)).max(1)
    return worst / np.maximum(scale.max(1), 1e-300)


@EVERY_BACKEND
@EVERY_SIGN
@pytest.mark.parametrize(("d", "K"), SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_are_those_of_the_data(d, K, signed, dtype, backend):
    A, D = draw(15, d, K, signed, dtype)
    C, G = A @ D.T, D @ D.T
    wide = A.double(), D.double()
    size = A.double().square().sum(1)
    for l1, l2 in WEIGHTS:
        Z, info = nnls_gram(C, G, l1=l1, l2=l2, backend=backend, return_info=True)
        assert Z.dtype == A.dtype
        assert (Z >= 0).all()
        assert (info.status == SOLVED).all()
        kkt = exactness(C, (G + G.T) / 2, Z, l1, l2)
        assert (kkt <= {"float32": 1e-6, "float64": 1e-11}[dtype]).all()
        np.testing.assert_allclose(info.kkt, kkt, rtol=1e-3, atol=1e-14)
        assert torch.equal(info.support, (Z > 0).sum(1).int())
        assert torch.equal(nnls_gram(C, G, l1=l1, l2=l2, backend=backend), Z)

        def objective(Z, l1=l1, l2=l2):
            squares = (wide[0] - Z.double() @ wide[1]).square().sum(1)
            return squares / 2 + l1 * Z.double().sum(1) + l2 / 2 * Z.double().square().sum(1)

        least = objective(nnls(*wide, l1=l1, l2=l2))
        assert (objective(Z) <= least + {"float32": 1e-6, "float64": 1e-10}[dtype] * size).all()


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name", ["exact_duplicates", "near_duplicates", "rank_6", "scales", "bumps"]
)
def test_concepts_that_depend_on_each_other_do_no_harm(name, dtype, backend):
    A, D = (torch.from_numpy(M.astype(dtype)) for M in family(name))
    C, G = A @ D.T, D @ D.T
    Z, info = nnls_gram(C, G, backend=backend, return_info=True)
    assert Z.isfinite().all()
    assert (exactness(C, G, Z) <= UNSOLVED[Z.dtype]).all()
    assert (info.status == SOLVED).all()


@EVERY_BACKEND
def test_rounding_of_a_signed_gram_matrix_makes_no_large_codes(backend):
    """Concepts that span the space positively: along some z ≥ 0 the objective of the rounded
    matrix may fall without bound."""
    rng = np.random.default_rng(0)
    A, D = (rng.standard_normal(shape).astype(np.float32) for shape in ((60, 8), (40, 8)))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        Z, info = nnls_gram(A @ D.T, D @ D.T, backend=backend, return_info=True)
    assert Z.isfinite().all()
    G = (D @ D.T + (D @ D.T).T) / 2
    np.testing.assert_allclose(info.kkt, exactness(A @ D.T, G, Z), rtol=1e-3, atol=1e-14)
    assert (info.kkt[info.status == SOLVED] <= 1e-5).all()
    left = ((A - Z.numpy() @ D).astype(np.float64) ** 2).sum(1) / (A.astype(np.float64) ** 2).sum(1)
    assert (left <= 1 + 1e-5).all()
    assert (info.status == SOLVED).double().mean() > 0.9


@EVERY_BACKEND
def test_zero_rows_and_concepts_and_the_cap(backend):
    A, D = draw(12, 9, 30, False)
    A[2], D[4] = 0, 0
    C, G = A @ D.T, D @ D.T
    for options in ({}, {"l1": 0.1}, {"l2": 0.1}):
        Z = nnls_gram(C, G, backend=backend, **options)
        assert not Z[2].any()
        assert not Z[:, 4].any()
    with pytest.warns(ConvergenceWarning, match="nnls_gram: .* reached max_iter"):
        Z, info = nnls_gram(C, G, max_iter=0, backend=backend, return_info=True)
    assert not Z.any()
    assert (info.status[info.kkt > 0] == CAPPED).all()


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("of_rows", "of_concepts", "dtype"),
    [(1e-25, 1.0, "float32"), (1e10, 1e-15, "float32"), (1e-100, 1e100, "float64")],
)
def test_codes_follow_the_scale_of_data_and_dictionary(of_rows, of_concepts, dtype, backend):
    A, D = draw(12, 9, 6, True, dtype)
    C, G = A @ D.T, D @ D.T
    tolerance = {"float32": 1e-4, "float64": 1e-10}[dtype]
    for l1, l2 in WEIGHTS:
        expected = nnls_gram(C, G, l1=l1, l2=l2, backend=backend)
        Z, info = nnls_gram(
            C * (of_rows * of_concepts),
            G * of_concepts**2,
            l1=l1 * of_rows * of_concepts,
            l2=l2 * of_concepts**2,
            backend=backend,
            return_info=True,
        )
        found = Z.double() / of_rows * of_concepts
        torch.testing.assert_close(found, expected.double(), rtol=tolerance, atol=tolerance)
        assert (info.status == SOLVED).all()


def test_codes_out_of_range_are_refused_with_the_row():
    C, G = torch.ones(3, 2), torch.eye(2) * 1e-20
    C[0], C[1] = 0, 1e30
    with pytest.raises(ArithmeticError, match="codes of row 1 are too large for float32"):
        nnls_gram(C, G)


def test_rows_in_tiles_have_the_codes_of_all(monkeypatch):
    A, D = draw(30, 9, 6, True)
    expected, info = nnls_gram(A @ D.T, D @ D.T, l1=0.2, return_info=True)
    monkeypatch.setattr("fastnmf.exact.gram._SCRATCH", 42)
    Z, found = nnls_gram(A @ D.T, D @ D.T, l1=0.2, return_info=True)
    torch.testing.assert_close(Z, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(found.status, info.status)


@pytest.mark.parametrize(("n", "K"), [(0, 3), (4, 0), (0, 0)])
def test_no_rows_and_no_concepts_have_empty_codes(n, K):
    D = torch.rand(K, 5, dtype=torch.float64)
    for options in ({}, {"l1": 0.1, "l2": 0.1, "max_iter": 3}):
        Z, info = nnls_gram(torch.rand(n, 5).double() @ D.T, D @ D.T, **options, return_info=True)
        assert (Z.shape, Z.dtype) == ((n, K), torch.float64)
        assert len(info.kkt) == n


def wrong():
    """C, G and what the message says."""
    A, D = draw(7, 9, 4, True)
    C, G = A @ D.T, D @ D.T
    skew, negative, apart = G.clone(), G.clone(), G.clone()
    skew[0, 1] += 1
    negative[2, 2] = -1
    apart[3, 3] = 0
    other = torch.full((4, 4), 2.0).fill_diagonal_(1)
    dead = G.clone()
    dead[1], dead[:, 1] = 0, 0
    return [
        (C.T, G, r"C has shape \(4, 7\) and G \(4, 4\).*C\.T fits"),
        (C[:, :3], G, r"C must be \(n, K\) and G \(K, K\)"),
        (C, G[:3], r"C must be \(n, K\) and G \(K, K\)"),
        (C[0], G, r"C must be \(n, K\)"),
        (C, skew, r"G is not symmetric: G\[0, 1\]"),
        (C, negative, r"G\[2, 2\] is -1"),
        (C, apart, r"G\[3, 3\] is 0, but row 3 of G is not"),
        (C, other, "G has a negative eigenvalue"),
        (C, dead, r"G\[1, 1\] is 0, but column 1 of C is not"),
        (C * torch.nan, G, "C.*nan"),
        (C, G * torch.inf, "G.*inf"),
    ]


@pytest.mark.parametrize(("C", "G", "message"), wrong())
def test_what_is_no_cross_product_or_gram_matrix_is_refused(C, G, message):
    with pytest.raises(InvalidInput, match=message):
        nnls_gram(C, G)


def test_what_else_cannot_be_used_is_refused():
    C, G = torch.rand(3, 2), torch.eye(2)
    with pytest.raises(TypeError, match="G is a str"):
        nnls_gram(C, "G.npy")
    assert torch.equal(nnls_gram(C.tolist(), G.tolist()).float(), C)
    with pytest.raises(InvalidInput, match="G requires a gradient, and nnls_gram has none"):
        nnls_gram(C, G.clone().requires_grad_())
    with pytest.raises(InvalidInput, match="l2=-1"):
        nnls_gram(C, G, l2=-1)
    # rounding of products is no asymmetry, nor a negative eigenvalue
    _, D = draw(1, 30, 200, True, "float32")
    G = D @ D.T
    G[0, 1] *= 1 + 1e-6
    nnls_gram(torch.rand(2, 30) @ D.T, G)
    assert nnls_gram(C.numpy(), np.eye(2, dtype=np.float32)).shape == (3, 2)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from(WEIGHTS),
)
def test_any_problem_has_the_codes_of_nnls(d, K, signed, seed, weights):
    A, D = draw(5, d, K, signed, seed=seed)
    l1, l2 = weights
    Z, info = nnls_gram(A @ D.T, D @ D.T, l1=l1, l2=l2, return_info=True)
    assert (info.status == SOLVED).all()
    expected = nnls(A, D, l1=l1, l2=l2)
    # solutions may be many, what they rebuild is one
    torch.testing.assert_close(Z @ D, expected @ D, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_codes_whose_terms_cancel_are_bounded(backend):
    """The search followed rounding there, until codes were 1e46 and nothing could be told of them:
    zero KKT residuals and negative values were rounding too."""
    draw = torch.Generator().manual_seed(3)
    D = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    D[:, 0] = D[:, 0].abs()
    D[:3, 0] *= -1e-3
    A = torch.randn(30, 3, generator=draw, dtype=torch.float64)
    best = torch.linalg.vector_norm(A - nnls(A, D) @ D, dim=1)
    Z = nnls_gram(A @ D.T, D @ D.T, backend=backend)
    # the Gram matrix has half of the digits of D
    assert (torch.linalg.vector_norm(A - Z @ D, dim=1) <= best + 1e-3).all()
