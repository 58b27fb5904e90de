"""The leading singular vectors: as good as scikit-learn's, also of small singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from starts import activations, leading_svd, low_rank, seeded


def decaying(n, d):
    """Condition number 1e8: the columns of a non-negative matrix, scaled."""
    return activations(n, d) * torch.logspace(0, -8, d)


@pytest.mark.parametrize(
    ("make", "K"),
    [
        pytest.param(lambda: activations(384, 2000), 60, id="wide-K60"),
        # from 7 times as many rows as features on, most passes read a quarter of them
        pytest.param(lambda: activations(8000, 384), 10, id="many-rows-K10"),
        pytest.param(lambda: decaying(1500, 400), 8, id="ill-conditioned-K8"),
        pytest.param(lambda: low_rank(1000, 500, 30), 40, id="rank30-K40"),
    ],
)
def test_svd_captures_the_energy_that_sklearns_does(make, K):
    extmath = pytest.importorskip("sklearn.utils.extmath", reason="scikit-learn is an extra")
    A = make()
    expected = extmath.randomized_svd(A.numpy(), K, random_state=0)[1].astype(np.float64)
    U, S, Vt = leading_svd(A, K, seeded())
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
    S = leading_svd(A, 12, seeded())[1].double()
    torch.testing.assert_close(S, expected, rtol=0.05, atol=0)


# a random basis of either side, and all of it
@pytest.mark.parametrize(
    ("n", "d", "K"), [(600, 300, 5), (300, 600, 5), (60, 20, 20), (20, 60, 20)]
)
def test_svd_has_orthonormal_vectors_and_fixed_signs(n, d, K):
    U, S, Vt = leading_svd(activations(n, d), K, seeded())
    one = torch.eye(K)
    torch.testing.assert_close(U.T @ U, one, rtol=0, atol=1e-4)
    torch.testing.assert_close(Vt @ Vt.T, one, rtol=0, atol=1e-4)
    assert bool((S.diff() <= 0).all())
    short = Vt.T if n >= d else U
    assert bool((short.gather(0, short.abs().argmax(0, keepdim=True)) > 0).all())
