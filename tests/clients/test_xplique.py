"""The calls that xplique 2.0 makes of Overcomplete's models: its factorizer is given the class,
fits arrays, encodes with and without gradients, and decodes."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

installed = importlib.util.find_spec("xplique") is not None
if installed and "torch" in sys.modules and "tensorflow" not in sys.modules:
    pytest.skip(
        "xplique loads TensorFlow, which may crash where torch or Triton was loaded before it; run "
        "pytest -n 0 tests/clients/test_xplique.py alone",
        allow_module_level=True,
    )
factorizer = pytest.importorskip(
    "xplique.concepts.torch.factorizer",
    reason="xplique is not installed: pip install 'fastnmf[clients]'",
    exc_type=ImportError,
)
import torch  # noqa: E402

import fastnmf  # noqa: E402

K = 4
ACTIVATIONS = np.random.default_rng(0).random((60, 12), np.float32)


@pytest.fixture
def patched():
    import overcomplete

    fastnmf.patch_overcomplete()
    try:
        yield overcomplete.optimization
    finally:
        fastnmf.unpatch_overcomplete()


@pytest.fixture
def made(patched):
    return factorizer.OvercompleteFactorizer(patched.NMF, K, device="cpu", tol=1e-4)


def error(A, coefficients, bank):
    return np.linalg.norm(A - coefficients @ bank) / np.linalg.norm(A)


def test_factorizer_fits_arrays_by_fastnmf(made):
    assert isinstance(made.concept_model, fastnmf.NMF)
    assert not made.is_fitted
    bank, coefficients = made.fit(ACTIVATIONS)
    assert (bank.shape, coefficients.shape) == ((K, 12), (60, K))
    assert made.is_fitted
    assert made.requires_positive_activations
    np.testing.assert_array_equal(made.get_concept_bank(), bank)
    _, D = fastnmf.NMF(K, seed=made.concept_model.fit_info_.seed).fit(ACTIVATIONS)
    np.testing.assert_array_equal(D.numpy(), bank)


def test_factorizer_encodes_and_decodes_arrays_and_tensors(made):
    bank, coefficients = made.fit(ACTIVATIONS)
    encoded = made.encode(ACTIVATIONS)
    assert error(ACTIVATIONS, encoded, bank) <= error(ACTIVATIONS, coefficients, bank) * 1.001
    np.testing.assert_allclose(made.decode(encoded), encoded @ bank, rtol=1e-5)
    decoded = made.decode(torch.tensor(encoded))
    np.testing.assert_allclose(decoded.numpy(), encoded @ bank, rtol=1e-5)


def test_differentiable_encoding_has_a_gradient(made):
    made.fit(ACTIVATIONS)
    X = torch.tensor(ACTIVATIONS[:8], requires_grad=True)
    codes = made.encode_differentiable(X)
    made.decode(codes).square().sum().backward()
    assert X.grad.isfinite().all()
    assert X.grad.any()
    np.testing.assert_array_equal(codes.detach().numpy(), made.encode(ACTIVATIONS[:8]))


def test_negative_activations_are_an_assertion_error(made):
    """As with Overcomplete, which asserts."""
    with pytest.raises(AssertionError, match="negative"):
        made.fit(-ACTIVATIONS)


def test_semi_nmf_takes_negative_activations_and_has_gradients(patched):
    """xplique asks whether the model is an instance of Overcomplete's SemiNMF."""
    signed = ACTIVATIONS - 0.5
    made = factorizer.OvercompleteFactorizer(patched.SemiNMF, K, device="cpu", tol=1e-4)
    assert isinstance(made.concept_model, fastnmf.SemiNMF)
    assert not made.requires_positive_activations
    bank, coefficients = made.fit(signed)
    assert (coefficients >= 0).all()
    encoded = made.encode(signed)
    assert error(signed, encoded, bank) <= error(signed, coefficients, bank) * 1.001
    np.testing.assert_allclose(made.decode(encoded), encoded @ bank, rtol=1e-4, atol=1e-6)
    X = torch.tensor(signed[:8], requires_grad=True)
    codes = made.encode_differentiable(X)
    made.decode(codes).square().sum().backward()
    assert X.grad.isfinite().all()
    assert X.grad.any()
    np.testing.assert_array_equal(codes.detach().numpy(), made.encode(signed[:8]))
