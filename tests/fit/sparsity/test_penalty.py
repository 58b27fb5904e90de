"""Encoding with a mean number of active concepts: the penalty is found for the rows that are given;
and coefficients that are refitted without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import nmf

from fastnmf import NMF, ConvergenceWarning, InvalidInput, SemiNMF

K = 40


def planted(n, *, seed=0, signed=False):
    generator = torch.Generator().manual_seed(seed)
    D = torch.rand(K, 20, generator=torch.Generator().manual_seed(9))
    used = torch.rand(n, K, generator=generator) < 0.1
    Z = torch.rand(n, K, generator=generator) * used
    noise = 0.1 * torch.rand(n, 20, generator=generator)
    return Z @ (D - 0.5 if signed else D) + noise


def mean_l0(Z):
    return float((Z > 0).sum(1).double().mean())


@pytest.fixture(scope="module")
def model():
    return _fitted(NMF)


def _fitted(kind):
    A = planted(240, signed=kind is SemiNMF)
    model = kind(K, target_l0=4, seed=0, max_iter=40, tol=0)
    model.fit(A)
    return model


@pytest.mark.parametrize("kind", [NMF, SemiNMF])
def test_new_rows_have_the_mean_that_training_rows_have(kind, model):
    model = model if kind is NMF else _fitted(kind)
    X = planted(150, seed=1, signed=kind is SemiNMF)
    Z, info = model.encode(X, return_info=True)
    assert abs(mean_l0(Z) / 4 - 1) <= 0.01
    # with another penalty than in training
    assert info.alpha_Z != model.alpha_Z_
    assert info.converged
    assert float(info.kkt.max()) <= 1e-6
    same = nmf(K, alpha_Z=info.alpha_Z, l1_ratio=1.0, unit_norm=True, model=_name(kind))
    assert torch.equal(same.load_dictionary(model.D).encode(X), Z)


def _name(kind):
    return "semi" if kind is SemiNMF else "nmf"


def test_the_target_may_be_another_than_in_training(model):
    X = planted(150, seed=1)
    model.target_l0 = 2
    try:
        assert abs(mean_l0(model.encode(X)) / 2 - 1) <= 0.01
    finally:
        model.target_l0 = 4


def test_files_have_the_codes_of_data_in_memory(model, tmp_path):
    X = planted(1500, seed=1)
    np.save(tmp_path / "X.npy", X.numpy())
    Z = model.encode(tmp_path / "X.npy", codes=tmp_path / "Z.npy")
    assert torch.equal(torch.as_tensor(np.array(Z), device="cpu"), model.encode(X))
    assert abs(mean_l0(Z) / 4 - 1) <= 0.03


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_the_unit_does_not_matter(scale, model):
    X = planted(60, seed=1)
    assert (model.encode(X * scale) / scale).numpy() == pytest.approx(
        model.encode(X).numpy(), abs=1e-3
    )


def test_rows_without_a_code_of_that_size_warn_of_it(model):
    with pytest.warns(ConvergenceWarning, match=r"encode: target_l0=4 is not reached.*alpha_Z="):
        model.encode(torch.zeros(10, 20))


def test_top_k_takes_no_penalty(model):
    X = planted(50, seed=1)
    plain = NMF(K).load_dictionary(model.D)
    assert torch.equal(model.encode(X, top_k=3), plain.encode(X, top_k=3))


def test_a_gradient_is_that_of_the_penalty_that_was_found(model):
    X = planted(50, seed=1).requires_grad_()
    Z, info = model.encode(X, return_info=True)
    (mine,) = torch.autograd.grad(Z.square().sum(), X)
    same = NMF(K, alpha_Z=info.alpha_Z, l1_ratio=1.0, unit_norm=True).load_dictionary(model.D)
    (expected,) = torch.autograd.grad(same.encode(X).square().sum(), X)
    assert torch.equal(mine, expected)


def test_saved_models_encode_alike(model, tmp_path):
    X = planted(50, seed=1)
    model.save(tmp_path / "m.safetensors")
    loaded = NMF.load(tmp_path / "m.safetensors")
    assert loaded.target_l0 == 4
    assert loaded.alpha_Z_ == model.alpha_Z_
    assert torch.equal(loaded.encode(X), model.encode(X))


def test_refitted_codes_are_the_least_squares_on_the_support(model):
    X = planted(80, seed=1)
    Z = model.encode(X)
    refitted, info = model.encode(X, refit=True, return_info=True)
    assert not refitted[Z == 0].any()
    assert info.method == "exact, then refit"
    assert float(info.kkt.max()) <= 1e-6
    error = float((X - Z @ model.D).norm() / X.norm())
    assert info.relative_error < 0.9 * error
    row = X[0].double() @ torch.linalg.pinv(model.D[refitted[0] > 0].double())
    assert refitted[0][refitted[0] > 0].numpy() == pytest.approx(row.numpy(), rel=1e-3)


def test_refitted_codes_have_their_gradient():
    D = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = NMF(5, alpha_Z=0.01, l1_ratio=1.0, unit_norm=True).load_dictionary(D)
    X = torch.rand(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X.requires_grad_()
    assert torch.autograd.gradcheck(lambda A: model.encode(A, refit=True), X)


@pytest.mark.parametrize("options", [{"method": "sweeps"}, {"max_iter": 0}])
def test_codes_that_are_not_exact_are_not_refitted(options, model):
    with pytest.raises(InvalidInput, match=r"refit=True and .* cannot be combined"):
        model.encode(planted(5), refit=True, **options)
