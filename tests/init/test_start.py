"""Starts of all kinds: seeds, scale, dtypes, chunks, given pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from starts import DTYPES, activations, loss, seeded, started

from fastnmf import NMF
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.errors import InvalidInput
from fastnmf.init import drawn, start, svd
from fastnmf.init.start import cold_start, random_codes, random_dictionary


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_start_is_a_folded_normal_of_overcompletes_scale(dtype):
    A, K = activations(500, 300, dtype), 200
    scale = math.sqrt(A.mean().item() / K)
    for F, shape in (
        (random_codes(A, K, seeded()), (500, K)),
        (random_dictionary(A, K, seeded()), (K, 300)),
    ):
        assert F.shape == shape
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert bool((F >= 0).all())
        assert F.square().mean().sqrt().item() == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize(
    "draw",
    [
        lambda A, g: (random_codes(A, 4, g), random_dictionary(A, 4, g)),
        lambda A, g: started(A, 4, "auto", g),
        lambda A, g: started(A, 700, "auto", g),
    ],
    ids=["random", "start-few", "start-many"],
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


@pytest.mark.parametrize("n", [1, 16, 17, 47])
def test_draws_in_groups_are_one_draw(n):
    groups = list(drawn.groups(n, 16))
    assert [part.start for part in groups[1:]] == [part.stop for part in groups[:-1]]
    assert groups[-1].stop == n
    for dtype in DTYPES:
        generator = seeded(5)
        sizes = [part.stop - part.start for part in groups]
        numbers = [torch.randn(rows, 3, generator=generator, dtype=dtype) for rows in sizes]
        whole = torch.randn(n, 3, generator=seeded(5), dtype=dtype)
        assert torch.equal(torch.cat(numbers), whole)


def test_cpu_generator_serves_another_device(accelerator):
    A = activations(600, 300)
    for K, name in ((4, "nndsvda"), (4, "random")):
        here = started(A, K, name, seeded())
        there = started(A.to(accelerator), K, name, seeded())
        for F, F_there in zip(here, there, strict=True):
            assert F_there.device.type == accelerator
            torch.testing.assert_close(F_there.cpu(), F, rtol=0, atol=1e-2 * F.max().item())


@pytest.fixture
def accelerator():
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False")
    return "cuda"


@pytest.mark.parametrize("name", ["nndsvda", "spread"])
def test_starts_do_not_track_gradients(name):
    A = activations(30, 10).requires_grad_()
    for K in (4, 20):
        assert not any(F.requires_grad for F in started(A, K, name, seeded()))
        assert not any(F.requires_grad for F in (random_codes(A, K), random_dictionary(A, K)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("random", torch.float32), ("nndsvda", torch.float64)],
)
def test_scale_is_the_best(name, dtype):
    A = activations(200, 30, dtype)
    Z, D = started(A, 6, name, seeded())
    best = loss(A, Z, D)
    for factor in (0.99, 0.999, 1.001, 1.01):
        assert loss(A, Z * factor, D) > best


def test_scale_is_shared_between_the_factors(monkeypatch):
    monkeypatch.setattr(svd, "WORKSPACE_BYTES", 7 * 30 * 8)
    A = activations(200, 30)
    Z, D = random_codes(A, 6, seeded()), random_dictionary(A, 6, seeded())
    Z0, D0 = Z.clone(), D.clone()
    start.scale_to_data_(InMemory(Z), D, Data(A))
    product = Z0.double() @ D0.double()
    root = ((A.double() * product).sum() / product.square().sum()).sqrt().item()
    torch.testing.assert_close(Z, Z0 * root)
    torch.testing.assert_close(D, D0 * root)


@pytest.mark.parametrize(("name", "unit"), [("random", 1e12), ("nndsvda", 1e-12)])
def test_start_does_not_depend_on_the_unit_of_the_data(name, unit):
    A = activations(600, 300)
    plain, scaled = (started(X, 4, name, seeded()) for X in (A, A * unit))
    for F, F_scaled in zip(plain, scaled, strict=True):
        expected = F * math.sqrt(unit)
        torch.testing.assert_close(F_scaled, expected, rtol=0, atol=1e-3 * expected.max().item())


@pytest.mark.parametrize("zero", ["A", "D"])
def test_scale_leaves_zero_alone(zero):
    A = torch.zeros(8, 5) if zero == "A" else torch.rand(8, 5)
    Z = torch.rand(8, 3)
    D = torch.zeros(3, 5) if zero == "D" else torch.rand(3, 5)
    Z0, D0 = Z.clone(), D.clone()
    start.scale_to_data_(InMemory(Z), D, Data(A))
    # rows of zeros have no codes
    assert torch.equal(Z, torch.zeros(8, 3) if zero == "A" else Z0)
    assert torch.equal(D, D0)


def test_cold_start_is_scaled_to_each_row_and_zero_where_a_concept_is():
    A, D = torch.rand(7, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    A[2], D[1] = 0, 0
    total = D.sum(0)
    expected = (A @ total / (total @ total))[:, None] * torch.tensor([1.0, 0.0, 1.0])
    out = torch.full((7, 3), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(cold_start(A, D), expected)
    assert torch.equal(cold_start(A, D, out=out), out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("K", "name"), [(4, "nndsvda"), (60, "nndsvda"), (9, "random"), (9, "spread")]
)
def test_tiles_do_not_change_a_start(K, name, monkeypatch):
    A = activations(300, 200)
    whole = started(A, K, name, seeded())
    monkeypatch.setattr(svd, "WORKSPACE_BYTES", 1)
    tiles = started(A, K, name, seeded())
    for F, F_tiles in zip(whole, tiles, strict=True):
        torch.testing.assert_close(F_tiles, F, rtol=0, atol=2e-3 * F.max().item())


@pytest.mark.parametrize(
    ("given", "K", "expected"),
    [
        ("auto", 5, "nndsvda"),
        ("auto", 6, "random"),
        ((None, None), 5, "given"),
    ],
)
def test_resolve_names_the_start(given, K, expected):
    assert start.resolve(given, 9, 5, K) == expected


def test_unknown_start_names_the_nearest():
    with pytest.raises(InvalidInput, match=r"'rand' is no start .did you mean 'random'"):
        started(torch.rand(9, 5), 3, "rand")


def test_start_of_zero_data_is_exactly_zero():
    for K in (3, 20):
        for F in started(torch.zeros(9, 5), K):
            assert not F.any()


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (lambda F: F, torch.float32),
        (lambda F: F, torch.float64),
        (lambda F: F.T.contiguous().T, torch.float32),
        (lambda F: F.double().requires_grad_(), torch.float64),
        (lambda F: F.numpy(), torch.float32),
        (lambda F: F.tolist(), torch.float32),
    ],
    ids=["tensor", "widened", "transposed", "differentiable", "array", "list"],
)
def test_given_pair_is_copied_as_it_is(form, dtype):
    A = activations(9, 5, dtype)
    Z0, D0 = torch.rand(9, 7, generator=seeded()), torch.rand(7, 5, generator=seeded())
    Z, D = started(A, 7, (form(Z0), form(D0)))
    for F, F0 in ((Z, Z0), (D, D0)):
        assert F.dtype == dtype
        assert F.is_contiguous()
        assert not F.requires_grad
        torch.testing.assert_close(F, F0.to(dtype))
        F.fill_(-1)
        assert bool((F0 >= 0).all())


def test_codes_that_are_not_given_are_a_cold_start():
    A, D0 = activations(9, 5, torch.float32), torch.rand(7, 5, generator=seeded())
    Z, D = started(A, 7, (None, D0))
    assert torch.equal(D, D0)
    assert torch.equal(Z, cold_start(A, D0))


@pytest.mark.parametrize("codes", ["memory", "sparse", "Z.npy"])
def test_a_dictionary_alone_starts_a_fit(codes, tmp_path):
    """It ended with a message about the type of Z0 wherever codes were kept."""
    A, D0 = activations(40, 12, torch.float64), torch.rand(3, 12, generator=seeded())
    model = NMF(3, init=(None, D0.double()), max_iter=5, tol=0)
    model.fit(A, codes=tmp_path / codes if "." in codes else codes)
    loop = NMF(3, init=(cold_start(A, D0.double()), D0.double()), max_iter=5, tol=0)
    if codes != "sparse":
        assert torch.allclose(model.D, loop.fit(A)[1])
    Z = cold_start(A, D0.double())
    assert model.fit_info_.relative_error < 0.9 * float((A - Z @ D0.double()).norm() / A.norm())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.rand(9, 4), torch.rand(3, 5)), r"Z0 is torch.float32 of shape \(9, 4\).*\(9, 3\)"),
        ((torch.rand(9, 3), -torch.eye(3, 5)), r"D0 has 3 entries.*row 0, column 0: -1"),
        ((torch.full((9, 3), torch.nan), torch.rand(3, 5)), r"Z0 has 27 entries.*nan"),
        ((np.full((9, 3), 1e300), torch.rand(3, 5)), r"Z0 has 27 entries.*inf"),
        ((torch.rand(9, 3) + 0j, torch.rand(3, 5)), r"Z0 is torch.complex64"),
        ((torch.rand(9, 3), None), r"D0 is a NoneType, no tensor"),
        (("Z", "D"), r"Z0 is a str"),
        ((torch.rand(9, 3),), r"init is a tuple of 1; give one of .* or a pair"),
        (torch.rand(2, 9), r"init is a Tensor; give one of"),
    ],
)
def test_given_pair_is_refused_when_it_does_not_fit(pair, message):
    with pytest.raises(InvalidInput, match=message):
        started(torch.rand(9, 5), 3, pair)
