"""nnls at any scale of A and D, and in any surroundings: the same codes, or an error at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import backends_of

import fastnmf
from fastnmf import InvalidInput

EVERY_BACKEND = pytest.mark.parametrize("backend", backends_of("anls"))
# factors of A and D, and the dtype: squares, norms or products of these overflow, or vanish
SCALES = [
    (1e-30, 1, "float32"),
    (1, 1e-30, "float32"),
    (1e30, 1, "float32"),
    (1, 1e30, "float32"),
    (1e30, 1e30, "float32"),
    (1e-30, 1e-30, "float32"),
    (1e-200, 1, "float64"),
    (1, 1e-200, "float64"),
    (1e200, 1, "float64"),
    (1, 1e200, "float64"),
    (1e300, 1e300, "float64"),
    (1e-300, 1e-300, "float64"),
]


def draw(signed, dtype="float32"):
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(20, 12, generator=generator, dtype=torch.float64)
    D = torch.rand(8, 12, generator=generator, dtype=torch.float64) - 0.4 * signed
    return A.to(getattr(torch, dtype)), D.to(getattr(torch, dtype))


@EVERY_BACKEND
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
@pytest.mark.parametrize(("rows", "concepts", "dtype"), SCALES)
def test_codes_follow_the_scale_of_data_and_dictionary(rows, concepts, dtype, signed, backend):
    A, D = draw(signed, dtype)
    expected, info = fastnmf.nnls(A, D, backend=backend, return_info=True)
    Z, scaled_info = fastnmf.nnls(A * rows, D * concepts, backend=backend, return_info=True)
    Z = Z.double() / rows * concepts
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    torch.testing.assert_close(Z, expected.double(), rtol=tolerance, atol=tolerance)
    assert torch.equal(scaled_info.status, info.status)
    assert scaled_info.kkt.max() <= tolerance
    from_codes = fastnmf.nnls(A * rows, D * concepts, expected * (rows / concepts))
    torch.testing.assert_close(from_codes.double() / rows * concepts, Z, rtol=1e-4, atol=1e-5)


def test_powers_of_two_change_no_bit():
    A, D = draw(True)
    Z = fastnmf.nnls(A, D)
    powers = torch.arange(-60.0, 60, 6)[:, None]
    assert torch.equal(fastnmf.nnls(A * 2**powers, D), Z * 2**powers)
    assert torch.equal(fastnmf.nnls(A, D * 2.0**70), Z * 2.0**-70)


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("rows", "concepts", "dtype", "message"),
    [
        (1, 1e-42, "float32", "row 0 are too large for float32: D is too small.* or give float64"),
        (1e30, 1e-30, "float32", "too large for float32"),
        (1e-30, 1e30, "float32", "too small for float32: D is too large"),
        (1e200, 1e-200, "float64", "too large for float64: D is too small for the rows of A"),
        (1e-200, 1e200, "float64", "too small for float64"),
    ],
)
def test_codes_out_of_range_are_refused(rows, concepts, dtype, message, backend):
    A, D = draw(False, dtype)
    with pytest.raises(ArithmeticError, match=message):
        fastnmf.nnls(A * rows, D * concepts, backend=backend)


def test_tiny_concepts_without_use_are_allowed():
    A, D = draw(False)
    D = torch.cat((D, torch.full((4, 12), 1e-42)))
    Z = fastnmf.nnls(A - 0.5, D)
    assert Z.isfinite().all()


def test_rows_of_many_scales_are_solved_each_by_itself():
    A, D = draw(False)
    factors = 10.0 ** torch.linspace(-35, 35, 20)[:, None]
    expected = fastnmf.nnls(A, D)
    Z = fastnmf.nnls(A * factors, D)
    torch.testing.assert_close(Z / factors, expected, rtol=1e-5, atol=1e-6)


@EVERY_BACKEND
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_surroundings_change_nothing(signed, backend):
    A, D = draw(signed)
    arrays = A.numpy(), D.numpy()
    expected = fastnmf.nnls(A, D, backend=backend)
    with torch.autocast("cpu"):
        assert torch.equal(fastnmf.nnls(A, D, backend=backend), expected)
    with torch.inference_mode():
        assert torch.equal(fastnmf.nnls(A, D, backend=backend), expected)
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            assert torch.equal(fastnmf.nnls(*arrays, backend=backend), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    try:
        torch.set_default_device("meta")
        assert torch.equal(fastnmf.nnls(*arrays, backend=backend), expected)
        assert torch.equal(fastnmf.nnls(A, D, backend=backend), expected)
    finally:
        torch.set_default_device(None)


def test_a_start_of_other_rows_is_refused():
    A, D = draw(False)
    with pytest.raises(InvalidInput, match="Z0 has 1 rows, A has 20"):
        fastnmf.nnls(A, D, np.ones((1, 8)))


def test_a_on_the_meta_device_is_refused():
    A, D = draw(False)
    with pytest.raises(InvalidInput, match="A is on the meta device"):
        fastnmf.nnls(A.to("meta"), D)
