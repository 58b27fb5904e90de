"""nnls with concepts of any signs: exact, finite, and truly reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuzz_nnls import KINDS, draw, faults

import fastnmf
from fastnmf.backends.nnls.residual import measure
from fastnmf.backends.nnls.result import CAPPED

# (kind, d, K, dtype): fewer, more and many more concepts than features; each kind in float32, where
# the Gram matrix is coarse, and the two that leave float64 rows to the residual
CASES = [
    *((kind, 20, 60, torch.float32) for kind in KINDS),
    ("gaussian", 3, 8, torch.float32),
    ("gaussian", 64, 128, torch.float32),
    ("gaussian", 20, 60, torch.float64),
    ("nearly dependent", 10, 40, torch.float64),
    ("integers", 64, 128, torch.float64),
]


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(("kind", "d", "K", "dtype"), CASES)
def test_codes_are_exact_and_never_worse_than_zero(kind, d, K, dtype, backend):
    rows = 200 if backend == "cpp" else 20
    A, D = (torch.from_numpy(M).to(dtype) for M in draw(kind, d, K, rows, np.random.default_rng(1)))
    assert faults(A, D, backend, compared=5) == []


def test_directions_without_bound_are_no_solution():
    D = torch.tensor([[-1.0, 3], [-3, -3], [1, -2], [-1, -1]])
    Z, info = fastnmf.nnls(torch.tensor([[1.0, 2]]), D, return_info=True)
    torch.testing.assert_close(Z, torch.tensor([[4.0, 0, 5, 0]]))
    assert info.kkt.item() <= 1e-6
    assert info.status.item() == 0


def test_rows_that_max_iter_ends_are_never_worse_than_zero_and_say_so(caplog):
    A, D = (torch.from_numpy(M) for M in draw("gaussian", 20, 60, 50, np.random.default_rng(0)))
    Z, info = fastnmf.nnls(A, D, max_iter=1, return_info=True)
    above_zero = measure(A, D, Z).change
    assert not (above_zero > 0).any()
    assert (info.status == CAPPED).any()
    assert "rows are not solved" in caplog.text


@pytest.mark.parametrize("kind", ["gaussian", "nearly dependent"])
def test_codes_are_the_same_with_their_info(kind):
    A, D = draw(kind, 10, 40, 100, np.random.default_rng(2))
    for signs in (D, abs(D)):
        with_info, _ = fastnmf.nnls(A, signs, return_info=True)
        assert torch.equal(fastnmf.nnls(A, signs), with_info)
