"""Codes of rows whose entries have weights: encode and nnls."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF, SemiNMF, nnls
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
A, D = torch.rand(20, 9, generator=DRAWN), torch.rand(4, 9, generator=DRAWN)
W = torch.rand(20, 9, generator=DRAWN) * (torch.rand(20, 9, generator=DRAWN) > 0.3)
W[5] = 0
HIDDEN = torch.where(W > 0, A, torch.nan)
EACH = torch.cat([nnls(A[i, None] * W[i].sqrt(), D * W[i].sqrt()) for i in range(20)])


def test_codes_are_those_of_each_row_by_itself():
    nmf = NMF(4).load_dictionary(D)
    Z, info = nmf.encode(HIDDEN, weights=W, return_info=True)
    assert torch.allclose(Z, EACH, atol=1e-5)
    assert info.converged
    assert float(info.kkt.max()) < 1e-6
    error = (W * (A - Z @ D).square()).sum() / (W * A.square()).sum()
    assert info.relative_error == pytest.approx(float(error.sqrt()), rel=1e-4)
    found, each = nnls(HIDDEN, D, weights=W, return_info=True)
    assert torch.allclose(found, EACH, atol=1e-5)
    assert bool((each.status == 0).all())
    assert not found[5].any()


def test_a_start_does_not_change_them():
    Z0 = torch.rand(20, 4)
    assert torch.allclose(nnls(HIDDEN, D, Z0, weights=W), EACH, atol=1e-5)


def test_the_penalty_is_the_same_for_all_rows():
    Z = NMF(4, alpha_Z=0.02, l1_ratio=0.5).load_dictionary(D).encode(HIDDEN, weights=W)
    expected = [
        nnls(A[i, None] * W[i].sqrt(), D * W[i].sqrt(), l1=0.09, l2=0.09) for i in range(20)
    ]
    assert torch.allclose(Z, torch.cat(expected), atol=1e-5)


def test_weights_of_rows_with_a_penalty_are_those_of_their_entries():
    rows = W[:, :1] + 0.1
    how = {"l1": 0.1, "l2": 0.2}
    one, other = nnls(A, D, weights=rows, **how), nnls(A, D, weights=rows.expand(20, 9), **how)
    assert torch.allclose(one, other)


def test_an_offset_is_subtracted():
    b = torch.full((9,), 0.2)
    model = SemiNMF(4, offset=True).load_dictionary(D - 0.5, b)
    Z = model.encode(HIDDEN, weights=W)
    each = [nnls((A[i, None] - b) * W[i].sqrt(), (D - 0.5) * W[i].sqrt()) for i in range(20)]
    assert torch.allclose(Z, torch.cat(each), atol=1e-4)


@pytest.mark.parametrize(
    "how", [{"method": "sweeps"}, {"top_k": 2}, {"refit": True}, {"codes": "Z.npy"}]
)
def test_what_needs_one_gram_matrix_is_refused(how):
    with pytest.raises(InvalidInput, match="weights of entries"):
        NMF(4).load_dictionary(D).encode(HIDDEN, weights=W, **how)


def test_a_gradient_is_refused():
    with pytest.raises(InvalidInput, match="gradient"):
        nnls(A.clone().requires_grad_(), D, weights=W)
