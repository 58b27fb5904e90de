"""Fits with weights of entries on data that are read in passes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from fastnmf import NMF, SemiNMF, Tuning
from fastnmf.errors import InvalidInput
from fastnmf.planning import memory

DRAWN = torch.Generator().manual_seed(2)
N, P, K = 1100, 9, 3
A = torch.rand(N, K, generator=DRAWN) @ torch.rand(K, P, generator=DRAWN)
A = (A + 0.1 * torch.rand(N, P, generator=DRAWN)).double()
MASK = torch.rand(N, P, generator=DRAWN) > 0.3
NUMBERS = torch.where(MASK, 3 * torch.rand(N, P, generator=DRAWN).double(), 0)
HIDDEN = torch.where(MASK, A, torch.nan)
START = torch.rand(N, K, generator=DRAWN).double(), torch.rand(K, P, generator=DRAWN).double()
HOW = {"tol": 0.0, "accelerate": False, "seed": 0}


@pytest.fixture
def passes(monkeypatch):
    """A limit of memory in which A is read in chunks, with Gram matrices of so many features."""
    monkeypatch.setattr(memory, "_OVERHEAD", 0)
    monkeypatch.setattr(memory, "LEAST_ROWS", 100)

    def limit(features: int, start: str = "given", itemsize: int = 8) -> int:
        needs = memory.Needs(N, P, K, itemsize, "file", start, N, beside=4 * itemsize)
        return needs.streamed(100) + 2 * features * (K * (K + 1) // 2 + 3 * K) * itemsize

    return limit


def files(tmp_path, X, W):
    for name, M in (("A", X), ("W", W)):
        np.save(tmp_path / f"{name}.npy", M.numpy())
    return tmp_path / "A.npy", tmp_path / "W.npy"


@pytest.mark.parametrize("features", [P, 4, 1])
@pytest.mark.parametrize("weights", [MASK, NUMBERS], ids=["mask", "numbers"])
def test_a_fit_in_passes_is_that_in_memory(weights, features, passes, tmp_path):
    given, W = files(tmp_path, HIDDEN, weights)
    Z, D = NMF(K, init=START, **HOW).fit(HIDDEN, 6, weights=weights)
    nmf = NMF(K, init=START, max_memory=passes(features), **HOW)
    Y, E = nmf.fit(given, 6, weights=W, codes=tmp_path / "Z.npy")
    assert torch.allclose(Z, Y, atol=1e-9)
    assert torch.allclose(D, E, atol=1e-9)
    info = nmf.fit_info_
    assert info.chunk_rows < N
    # the statistics, the checks, the summary, and one for each block of features in an iteration
    assert info.passes == 3 + 6 * -(-P // features)
    error = (weights * (A - Y @ E).square()).sum() / (weights * A.square()).sum()
    assert info.relative_error == pytest.approx(float(error.sqrt()), rel=1e-9)


@pytest.mark.filterwarnings("ignore:1 features of A")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (NMF, {"alpha_Z": 0.01, "l1_ratio": 1.0, "unit_norm": True}),
        (NMF, {"alpha_Z": 0.01, "alpha_D": 0.02, "l1_ratio": 0.5}),
        (SemiNMF, {}),
    ],
)
def test_starts_penalties_and_signs_are_those_in_memory(model, options, passes, tmp_path):
    weights = NUMBERS.clone()
    weights[7], weights[:, 2] = 0, 0
    X = HIDDEN - 0.4 if model is SemiNMF else HIDDEN
    given, W = files(tmp_path, X, weights)
    how = {**HOW, **options}
    one = model(K, init="random", **how)
    other = model(K, init="random", max_memory=passes(4, "random"), **how)
    with pytest.warns(match="1 row of A"):
        Z, D = one.fit(X, 5, weights=weights)
    with pytest.warns(match="1 row of A"):
        Y, E = other.fit(given, 5, weights=W, codes=tmp_path / "Z.npy")
    assert torch.allclose(Z, Y, atol=1e-7)
    assert torch.allclose(D, E, atol=1e-7)
    assert not Y[7].any()
    for name in ("relative_error", "r_squared", "objective", "mean_l0"):
        values = [getattr(nmf.fit_info_, name) for nmf in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-6), name


def test_batches_and_arrays_are_read_in_passes_too(passes):
    Z, D = NMF(K, init=START, **HOW).fit(HIDDEN, 3, weights=NUMBERS)
    limit = passes(4) + N * K * 8
    for given in ([*HIDDEN.split(300)], HIDDEN.numpy()):
        nmf = NMF(K, init=START, max_memory=limit, **HOW)
        Y, E = nmf.fit(given, 3, weights=NUMBERS)
        assert nmf.fit_info_.passes > 3
        assert torch.allclose(Z, Y, atol=1e-9)
        assert torch.allclose(D, E, atol=1e-9)


def test_a_fit_in_passes_resumes(passes, tmp_path):
    given, W = files(tmp_path, HIDDEN, NUMBERS)
    tuning = Tuning(checkpoint_seconds=0)
    fit = functools.partial(NMF, K, init=START, max_memory=passes(4), tuning=tuning, **HOW)
    whole = fit().fit(given, 6, weights=W, codes=tmp_path / "whole.npy")
    saving = {"checkpoint": tmp_path / "fit.safetensors", "codes": tmp_path / "Z.npy"}
    fit().fit(given, 3, weights=W, **saving)
    found = fit().fit(given, 6, weights=W, resume=True, **saving)
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))


def test_too_little_memory_for_a_gram_matrix_is_refused(passes, tmp_path):
    given, W = files(tmp_path, HIDDEN, NUMBERS)
    nmf = NMF(K, init=START, max_memory=passes(0) + 10, **HOW)
    with pytest.raises(InvalidInput, match="Gram matrix of one feature"):
        nmf.fit(given, 6, weights=W, codes=tmp_path / "Z.npy")
    assert nmf.D is None
    assert not (tmp_path / "Z.npy").exists()


def test_acceleration_is_refused_in_passes(passes, tmp_path):
    given, W = files(tmp_path, HIDDEN, NUMBERS)
    nmf = NMF(K, init=START, max_memory=passes(4), tol=0.0, accelerate=True)
    with pytest.raises(InvalidInput, match="accelerate"):
        nmf.fit(given, 6, weights=W, codes=tmp_path / "Z.npy")
