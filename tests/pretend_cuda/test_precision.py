"""tf32 on a pretended device, allowed by either of torch's interfaces: blocks are rounded by one
kernel, once in a half-step, and the settings are as they were."""

from __future__ import annotations

import pytest
import torch
from precisions import NEWER, Setting, told

from fastnmf import NMF, Tuning
from pretend_cuda import on_cuda, on_host

A = torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
K, BLOCK, ITERATIONS = 20, 16, 3
BLOCKS = -(-K // BLOCK)
ALLOWED = [Setting("high"), Setting("medium")]
REFUSED = [Setting()]
if NEWER:
    ALLOWED += [Setting(cuda="tf32"), Setting(cuda="none", all="tf32")]
    REFUSED += [Setting("high", cuda="ieee"), Setting(cuda="none", all="bf16")]


def first_of(settings):
    """The settings, of which all but the first are slow to interpret."""
    first, *others = settings
    slow = (pytest.param(one, marks=pytest.mark.compiles, id=str(one)) for one in others)
    return [pytest.param(first, id=str(first)), *slow]


def fit(device, precision="auto", backend="triton"):
    tuning = Tuning(form="residual", block=BLOCK, precision=precision)
    given = {"device": "cuda", "backend": backend, "seed": 0, "init": "random", "tuning": tuning}
    model = NMF(K, max_iter=ITERATIONS, tol=0, **given)
    begun = len(device.launched)
    factors = [on_host(M) for M in model.fit(on_cuda(A))]
    rounded = sum("round" in name for name in device.launched[begun:])
    return factors, rounded, model.fit_info_.precision


@pytest.mark.parametrize("setting", first_of(ALLOWED))
def test_a_block_is_rounded_by_one_launch_where_tf32_is_allowed(setting, device):
    with setting():
        before = told()
        factors, rounded, precision = fit(device)
        assert told() == before
    assert (rounded, precision) == (ITERATIONS * 2 * BLOCKS, "tf32")
    exact, *_ = fit(device)
    for mine, theirs in zip(factors, exact, strict=True):
        assert not torch.equal(mine, theirs)
        # a few roundings to 11 bits
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.compiles
@pytest.mark.parametrize("setting", REFUSED, ids=str)
def test_nothing_is_rounded_where_tf32_is_not_allowed(setting, device):
    exact, *_ = fit(device)
    with setting():
        before = told()
        factors, rounded, precision = fit(device)
        assert told() == before
    assert (rounded, precision) == (0, "float32")
    assert all(map(torch.equal, factors, exact))


@pytest.mark.compiles
def test_strict_is_float32_on_the_device(device):
    exact, *_ = fit(device)
    with Setting("high")():
        factors, rounded, precision = fit(device, "strict")
    assert (rounded, precision) == (0, "float32")
    assert all(map(torch.equal, factors, exact))
