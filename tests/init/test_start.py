"""Starts: NNDSVDa as scikit-learn's, a randomised SVD as good as its, seeds, scale, given pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastnmf.errors import InvalidInput
from fastnmf.init import start as init
from fastnmf.init import svd

DTYPES = [torch.float32, torch.float64]
# entries of one start computed twice with different orders of summation, relative to the largest
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def activations(n, d, dtype=torch.float32, seed=0):
    """Non-negative, half zero, correlated."""
    generator = seeded(seed)
    codes = torch.randn(n, d, generator=generator, dtype=dtype).relu()
    mixing = torch.eye(d, dtype=dtype) + 0.1 * torch.randn(d, d, generator=generator, dtype=dtype)
    return (codes @ mixing).relu()


def low_rank(n, d, rank, dtype=torch.float32, seed=0):
    generator = seeded(seed)
    return torch.rand(n, rank, generator=generator, dtype=dtype) @ torch.rand(
        rank, d, generator=generator, dtype=dtype
    )


def decaying(n, d, dtype=torch.float32):
    """Condition number 1e8: the columns of a non-negative matrix, scaled."""
    return activations(n, d, dtype) * torch.logspace(0, -8, d, dtype=dtype)


def loss(A, Z, D):
    return (A.double() - Z.double() @ D.double()).square().sum().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "K"), [(60, 20, 7), (20, 60, 20), (30, 30, 1), (500, 40, 40)])
def test_nndsvda_equals_sklearn_given_the_same_svd(monkeypatch, n, d, K, dtype):
    module = pytest.importorskip("sklearn.decomposition._nmf", reason="scikit-learn is an extra")
    A = activations(n, d, dtype)
    svd = tuple(F.contiguous() for F in torch.linalg.svd(A, full_matrices=False))
    U, S, Vt = svd[0][:, :K], svd[1][:K], svd[2][:K]
    arrays = (U.numpy(), S.numpy(), Vt.numpy())
    monkeypatch.setattr(module, "_randomized_svd", lambda *_, **__: arrays)
    expected = module._initialize_nmf(A.numpy(), K, init="nndsvda")

    for F, F_expected in zip(init.nndsvda(A, K, svd=(U, S, Vt)), expected, strict=True):
        torch.testing.assert_close(
            F, torch.from_numpy(F_expected), rtol=0, atol=ROUNDING[dtype] * F_expected.max()
        )


def test_nndsvda_leaves_a_given_svd_alone():
    A = activations(20, 12)
    svd = torch.linalg.svd(A, full_matrices=False)
    before = [F.clone() for F in svd]
    init.nndsvda(A, 12, svd=svd)
    assert all(torch.equal(F, F_before) for F, F_before in zip(svd, before, strict=True))


def test_nndsvda_fills_small_entries_with_the_mean():
    A = activations(30, 10) * 1e-9
    Z, D = init.nndsvda(A, 4)
    assert bool((D == A.mean()).any())
    assert not bool(((Z > 0) & (Z < init.NNDSVD_EPS) & (Z != A.mean())).any())


def test_nndsvda_is_near_sklearns_own():
    module = pytest.importorskip("sklearn.decomposition._nmf", reason="scikit-learn is an extra")
    A = low_rank(300, 80, 6, torch.float64) + 0.01 * activations(300, 80, torch.float64)
    expected = module._initialize_nmf(A.numpy(), 4, init="nndsvda", random_state=0)
    for F, F_expected in zip(init.nndsvda(A, 4), expected, strict=True):
        assert np.abs(F.numpy() - F_expected).max() < 1e-4 * F_expected.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "d", "K"), [(1, 1, 1), (1, 9, 1), (9, 1, 1), (7, 5, 5), (5, 7, 5), (300, 200, 3)]
)
def test_nndsvda_has_shape_dtype_and_contiguous_rows(n, d, K, dtype):
    Z, D = init.nndsvda(activations(n, d, dtype) + 0.1, K)
    assert Z.shape == (n, K)
    assert D.shape == (K, d)
    for F in (Z, D):
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert bool((F >= 0).all())
        assert bool(F.isfinite().all())


def test_nndsvda_of_zero_is_exactly_zero():
    for n, d in ((40, 6), (6, 40), (300, 200)):
        Z, D = init.nndsvda(torch.zeros(n, d), 3)
        assert not Z.any()
        assert not D.any()


def test_nndsvda_of_zero_is_zero_whatever_is_drawn(monkeypatch):
    """A normal number above 4, once in 16,000 draws, became infinite and 0 · ∞ ended the fit."""
    monkeypatch.setattr(svd, "normal", lambda shape, A, generator: torch.full(shape, 6.0))
    for F in init.nndsvda(torch.zeros(300, 200), 3):
        assert not F.any()


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nndsvda_is_finite_when_rank_is_below_K(n, dtype):
    A = low_rank(n, 300, 1, dtype)
    A[:, 17] = 0
    Z, D = init.nndsvda(A, 5)
    assert bool(Z.isfinite().all())
    assert bool(D.isfinite().all())
    # the leading pair is all of A, but for the column of zeros that was filled
    A[:, 17] = D[0, 17] * Z[:, 0]
    assert loss(A, Z[:, :1], D[:1]) < 1e-6 * A.double().square().sum().item()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_nndsvda_is_finite_far_from_one(scale):
    for n, d in ((40, 12), (600, 300)):
        A = activations(n, d) * scale
        for F in init.start(A, 4, "nndsvda", seeded()):
            assert bool(F.isfinite().all())


def test_nndsvda_refuses_more_concepts_than_the_smaller_side():
    with pytest.raises(InvalidInput, match=r"nb_concepts=11 .*use init='random'"):
        init.nndsvda(torch.rand(20, 10), 11)


def test_nndsvda_takes_any_strides():
    A = activations(300, 200)
    expected = init.nndsvda(A, 4, seeded())
    strided = torch.empty(200, 300).T.copy_(A)
    for F, F_expected in zip(init.nndsvda(strided, 4, seeded()), expected, strict=True):
        torch.testing.assert_close(F, F_expected, rtol=0, atol=1e-4 * F_expected.max().item())


@pytest.mark.parametrize(
    ("A", "K"),
    [
        pytest.param(activations(2000, 384), 10, id="flat-K10"),
        pytest.param(activations(2000, 384), 60, id="flat-K60"),
        pytest.param(activations(384, 2000), 10, id="wide-K10"),
        pytest.param(activations(8000, 384), 10, id="many-rows-K10"),
        pytest.param(activations(8000, 384), 60, id="many-rows-K60"),
        pytest.param(decaying(1500, 400), 8, id="ill-conditioned-K8"),
        pytest.param(decaying(1500, 400), 60, id="ill-conditioned-K60"),
        pytest.param(decaying(1500, 400, torch.float64), 60, id="ill-conditioned-K60-float64"),
        pytest.param(low_rank(1000, 500, 30), 40, id="rank30-K40"),
        pytest.param(activations(500, 100), 100, id="all"),
    ],
)
def test_svd_captures_the_energy_that_sklearns_does(A, K):
    extmath = pytest.importorskip("sklearn.utils.extmath", reason="scikit-learn is an extra")
    expected = extmath.randomized_svd(A.numpy(), K, random_state=0)[1].astype(np.float64)
    U, S, Vt = init.leading_svd(A, K, seeded())
    assert S.double().square().sum().item() >= (1 - 1e-3) * np.square(expected).sum()
    approximation = (U * S).double() @ Vt.double()
    residual = (A.double() - approximation).square().sum().item()
    assert residual <= A.double().square().sum().item() - (1 - 1e-3) * np.square(expected).sum()


@pytest.mark.parametrize("shape", [(900, 300), (300, 900)], ids=["tall", "wide"])
def test_svd_resolves_small_singular_values(shape):
    """Six decades of singular values in float32 survive the passes, which square them."""
    n, d = shape
    left = torch.linalg.qr(torch.randn(n, 12, generator=seeded(1), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, 12, generator=seeded(2), dtype=torch.float64)).Q
    expected = torch.logspace(0, -5, 12, dtype=torch.float64)
    A = ((left * expected) @ right.T).float()
    S = init.leading_svd(A, 12, seeded())[1].double()
    torch.testing.assert_close(S, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize(("n", "d", "K"), [(600, 300, 5), (300, 600, 5), (60, 20, 20)])
def test_svd_has_orthonormal_vectors_and_fixed_signs(n, d, K):
    U, S, Vt = init.leading_svd(activations(n, d), K, seeded())
    one = torch.eye(K)
    torch.testing.assert_close(U.T @ U, one, rtol=0, atol=1e-4)
    torch.testing.assert_close(Vt @ Vt.T, one, rtol=0, atol=1e-4)
    assert bool((S.diff() <= 0).all())
    short = Vt.T if n >= d else U
    assert bool((short.gather(0, short.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_start_is_a_folded_normal_of_overcompletes_scale(dtype):
    A, K = activations(500, 300, dtype), 200
    scale = math.sqrt(A.mean().item() / K)
    for F, shape in (
        (init.random_codes(A, K, seeded()), (500, K)),
        (init.random_dictionary(A, K, seeded()), (K, 300)),
    ):
        assert F.shape == shape
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert bool((F >= 0).all())
        assert F.square().mean().sqrt().item() == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize(
    "draw",
    [
        lambda A, g: (init.random_codes(A, 4, g), init.random_dictionary(A, 4, g)),
        lambda A, g: init.nndsvda(A, 4, g),
        lambda A, g: init.start(A, 4, "auto", g),
        lambda A, g: init.start(A, 700, "auto", g),
    ],
    ids=["random", "nndsvda", "start-few", "start-many"],
)
def test_one_seed_gives_the_same_bits_twice(draw):
    A = activations(600, 300)
    first, again, other = draw(A, seeded(3)), draw(A, seeded(3)), draw(A, seeded(4))
    torch.manual_seed(3)
    unseeded = draw(A, None)
    for F, F_again, F_other, F_unseeded in zip(first, again, other, unseeded, strict=True):
        assert torch.equal(F, F_again)
        assert torch.equal(F, F_unseeded)
        assert not torch.equal(F, F_other)


def test_cpu_generator_serves_another_device(accelerator):
    A = activations(600, 300)
    for K, name in ((4, "nndsvda"), (4, "random")):
        here = init.start(A, K, name, seeded())
        there = init.start(A.to(accelerator), K, name, seeded())
        for F, F_there in zip(here, there, strict=True):
            assert F_there.device.type == accelerator
            torch.testing.assert_close(F_there.cpu(), F, rtol=0, atol=1e-2 * F.max().item())


@pytest.fixture
def accelerator():
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False")
    return "cuda"


def test_starts_do_not_track_gradients():
    A = activations(30, 10).requires_grad_()
    for K in (4, 20):
        assert not any(F.requires_grad for F in init.start(A, K, "auto", seeded()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["random", "nndsvda"])
def test_scale_is_the_best(name, dtype):
    A = activations(200, 30, dtype)
    Z, D = init.start(A, 6, name, seeded())
    best = loss(A, Z, D)
    for factor in (0.99, 0.999, 1.001, 1.01):
        assert loss(A, Z * factor, D) > best


def test_scale_is_shared_between_the_factors(monkeypatch):
    monkeypatch.setattr(svd, "WORKSPACE_BYTES", 7 * 30 * 8)
    A = activations(200, 30)
    Z, D = init.random_codes(A, 6, seeded()), init.random_dictionary(A, 6, seeded())
    Z0, D0 = Z.clone(), D.clone()
    init.scale_to_data_(Z, D, A)
    product = Z0.double() @ D0.double()
    root = ((A.double() * product).sum() / product.square().sum()).sqrt().item()
    torch.testing.assert_close(Z, Z0 * root)
    torch.testing.assert_close(D, D0 * root)


@pytest.mark.parametrize("name", ["random", "nndsvda"])
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_start_does_not_depend_on_the_unit_of_the_data(name, unit):
    A = activations(600, 300)
    plain, scaled = (init.start(X, 4, name, seeded()) for X in (A, A * unit))
    for F, F_scaled in zip(plain, scaled, strict=True):
        expected = F * math.sqrt(unit)
        torch.testing.assert_close(F_scaled, expected, rtol=0, atol=1e-3 * expected.max().item())


@pytest.mark.parametrize("zero", ["A", "Z", "D"])
def test_scale_leaves_zero_alone(zero):
    A = torch.zeros(8, 5) if zero == "A" else torch.rand(8, 5)
    Z = torch.zeros(8, 3) if zero == "Z" else torch.rand(8, 3)
    D = torch.zeros(3, 5) if zero == "D" else torch.rand(3, 5)
    Z0, D0 = Z.clone(), D.clone()
    init.scale_to_data_(Z, D, A)
    assert torch.equal(Z, Z0)
    assert torch.equal(D, D0)


def test_pieces_do_not_change_a_start(monkeypatch):
    A = activations(300, 200)
    for K, name in ((4, "nndsvda"), (60, "nndsvda"), (9, "random")):
        whole = init.start(A, K, name, seeded())
        with monkeypatch.context() as patch:
            patch.setattr(svd, "WORKSPACE_BYTES", 1)
            pieces = init.start(A, K, name, seeded())
        for F, F_pieces in zip(whole, pieces, strict=True):
            torch.testing.assert_close(F_pieces, F, rtol=0, atol=2e-3 * F.max().item())


@pytest.mark.parametrize(
    ("given", "K", "expected"),
    [
        ("auto", 5, "nndsvda"),
        ("auto", 6, "random"),
        ("random", 2, "random"),
        ("nndsvda", 5, "nndsvda"),
        ((None, None), 5, "given"),
    ],
)
def test_resolve_names_the_start(given, K, expected):
    assert init.resolve(given, 9, 5, K) == expected


@pytest.mark.parametrize(("wrong", "nearest"), [("nndsvd", "nndsvda"), ("rand", "random")])
def test_unknown_start_names_the_nearest(wrong, nearest):
    with pytest.raises(InvalidInput, match=f"'{wrong}' is no start .did you mean '{nearest}'"):
        init.start(torch.rand(9, 5), 3, wrong)


def test_start_of_zero_data_is_exactly_zero():
    for K in (3, 20):
        for F in init.start(torch.zeros(9, 5), K):
            assert not F.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "form",
    [
        lambda F: F,
        lambda F: F.T.contiguous().T,
        lambda F: F.double().requires_grad_(),
        lambda F: F.numpy(),
        lambda F: F.tolist(),
    ],
    ids=["tensor", "transposed", "differentiable", "array", "list"],
)
def test_given_pair_is_copied_as_it_is(form, dtype):
    A = activations(9, 5, dtype)
    Z0, D0 = torch.rand(9, 7, generator=seeded()), torch.rand(7, 5, generator=seeded())
    Z, D = init.start(A, 7, (form(Z0), form(D0)))
    for F, F0 in ((Z, Z0), (D, D0)):
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert not F.requires_grad
        torch.testing.assert_close(F, F0.to(dtype))
        F.fill_(-1)
        assert bool((F0 >= 0).all())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.rand(9, 4), torch.rand(3, 5)), r"Z0 is torch.float32 of shape \(9, 4\).*\(9, 3\)"),
        ((torch.rand(9, 3), torch.rand(5, 3)), r"D0 is .*shape \(5, 3\).*\(3, 5\)"),
        ((torch.rand(9, 3), -torch.eye(3, 5)), r"D0 has 3 entries.*row 0, column 0: -1"),
        ((torch.full((9, 3), torch.nan), torch.rand(3, 5)), r"Z0 has 27 entries.*nan"),
        ((np.full((9, 3), 1e300), torch.rand(3, 5)), r"Z0 has 27 entries.*inf"),
        ((torch.rand(9, 3) + 0j, torch.rand(3, 5)), r"Z0 is torch.complex64"),
        ((None, torch.rand(3, 5)), r"Z0 is a NoneType, no tensor"),
        (("Z", "D"), r"Z0 is a str"),
        ((torch.rand(9, 3),), r"init is a tuple of 1; give one of .* or a pair"),
        (torch.rand(2, 9), r"init is a Tensor; give one of"),
        (None, r"init is a NoneType; give one of"),
    ],
)
def test_given_pair_is_refused_when_it_does_not_fit(pair, message):
    with pytest.raises(InvalidInput, match=message):
        init.start(torch.rand(9, 5), 3, pair)
