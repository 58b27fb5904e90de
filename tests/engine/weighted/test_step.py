"""Iterations in which each entry has a weight."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

from fastnmf import NMF, SemiNMF, Tuning
from fastnmf.errors import FastnmfWarning, InvalidInput

DRAWN = torch.Generator().manual_seed(1)
N, P, K = 25, 14, 3


def rand(*shape):
    return torch.rand(*shape, generator=DRAWN, dtype=torch.float64)


A, Z0, D0 = rand(N, P), rand(N, K), rand(K, P)
MASK = rand(N, P) > 0.3
NUMBERS = torch.where(MASK, 3 * rand(N, P), 0)
HIDDEN = torch.where(MASK, A, torch.nan)


def weighted_error(W, Z, D):
    return float(((W * (A - Z @ D).square()).sum() / (W * A.square()).sum()).sqrt())


@pytest.mark.parametrize("weights", [MASK, NUMBERS, MASK.float().numpy()])
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_an_iteration_is_that_of_the_loops(weights, backend):
    nmf = NMF(K, init=(Z0, D0), tol=0, accelerate=False, backend=backend)
    Z, D = nmf.fit(HIDDEN, 1, weights=weights)
    W, F, E = np.asarray(weights, float), Z0.numpy().T, D0.numpy()
    for _ in range(nmf.fit_info_.inner_half_steps[0]):
        F = oracle.weighted_hals_half_step(F, A.numpy(), E, W)
    for _ in range(nmf.fit_info_.inner_half_steps[1]):
        E = oracle.weighted_hals_half_step(E, A.numpy().T, F, W.T)
    tolerance = oracle.TOLERANCES["hals", "float64"]
    assert np.allclose(Z.numpy().T, F, atol=tolerance)
    assert np.allclose(D.numpy(), E, atol=tolerance)
    error = weighted_error(torch.from_numpy(W), Z, D)
    assert nmf.fit_info_.relative_error == pytest.approx(error, rel=1e-9)
    assert nmf.fit_info_.history[0].relative_error == pytest.approx(error, rel=1e-9)


def test_float32_is_as_exact_as_the_dtype():
    pair = Z0.float(), D0.float()
    found, wide = (
        NMF(K, init=start, tol=0, accelerate=False).fit(X, 5, weights=MASK)
        for start, X in ((pair, HIDDEN.float()), ((Z0, D0), HIDDEN))
    )
    assert found[1].dtype == torch.float32
    assert torch.allclose(found[1].double(), wide[1], atol=1e-4)


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("weights", [MASK, NUMBERS])
def test_the_error_never_rises_and_ends_at_a_kkt_point(weights, accelerate):
    nmf = NMF(K, init=(Z0, D0), tol=0, accelerate=accelerate)
    Z, D = nmf.fit(HIDDEN, 3000, weights=weights)
    errors = np.array([one.relative_error for one in nmf.fit_info_.history])
    assert (np.diff(errors) <= 1e-12).all()
    residual = weights * (torch.where(MASK, A, 0) - Z @ D)
    for F, slope in ((Z, residual @ D.T), (D, Z.T @ residual)):
        assert float(slope.clamp(min=0).max()) < 1e-5
        assert float((slope.abs() * (F > 1e-9)).max()) < 1e-5


def test_it_reaches_the_error_of_exact_alternation():
    start = {"init": (Z0, D0), "tol": 0.0, "accelerate": True}
    nmf = NMF(K, **start)
    nmf.fit(HIDDEN, 300, weights=MASK)
    filled = torch.where(MASK, A, 0).numpy()
    *_, error = oracle.weighted_als(filled, MASK.numpy(), Z0.numpy(), D0.numpy(), 60)
    assert nmf.fit_info_.relative_error <= error * 1.001


def test_weights_of_one_have_the_path_of_the_unweighted_objective():
    ones = torch.ones(N, P, dtype=torch.bool)
    how = {"init": (Z0, D0), "tol": 0.0, "accelerate": False}
    weighted, plain = NMF(K, **how), NMF(K, **how)
    one = weighted.fit(A, 1, weights=ones)
    # as many sweeps of the same problem
    steps = weighted.fit_info_.inner_half_steps
    Z, D = Z0.numpy().T, D0.numpy()
    for _ in range(10):
        for _ in range(steps[0]):
            Z = oracle.hals_half_step(Z, A.numpy(), D)
        for _ in range(steps[1]):
            D = oracle.hals_half_step(D, A.numpy().T, Z)
    Y, E = weighted.fit(A, 10, weights=ones)
    assert np.allclose(Y.numpy().T, Z, atol=1e-6)
    assert np.allclose(E.numpy(), D, atol=1e-6)
    assert one[0].shape == plain.fit(A, 1)[0].shape


def test_planted_factors_are_recovered_at_half_missing():
    n, d, planted = 200, 80, 4
    Z = rand(n, planted) * (rand(n, planted) < 0.4)
    D = rand(planted, d) * (rand(planted, d) < 0.5)
    seen = rand(n, d) > 0.5
    X = torch.where(seen, Z @ D, torch.nan)
    nmf = NMF(planted, seed=0, tol=0)
    Y, E = nmf.fit(X, 500, weights=seen)
    unseen = (Z @ D - Y @ E)[~seen]
    assert float(unseen.square().sum() / (Z @ D)[~seen].square().sum()) < 1e-4
    cosine = torch.nn.functional.normalize(D) @ torch.nn.functional.normalize(E).T
    assert float(cosine.amax(1).min()) > 0.999


def test_rows_and_features_without_weight_keep_what_is_documented():
    weights = MASK.clone()
    weights[4], weights[:, 2] = False, False
    X = torch.where(weights, A, torch.nan)
    nmf = NMF(K, init=(Z0, D0), tol=0)
    with pytest.warns(FastnmfWarning, match="1 row of A") as warned:
        Z, D = nmf.fit(X, 5, weights=weights)
    assert any("1 feature of A" in str(one.message) for one in warned)
    assert not Z[4].any()
    assert torch.equal(D[:, 2], D0[:, 2])
    assert sum(nmf.fit_info_.l0_histogram) == N - 1


@pytest.mark.parametrize(
    "penalties",
    [{"alpha_Z": 0.02, "l1_ratio": 0.5}, {"alpha_Z": 0.02, "l1_ratio": 1.0, "unit_norm": True}],
)
def test_penalties_are_those_without_weights(penalties):
    nmf = NMF(K, init=(Z0, D0), tol=0, **penalties)
    Z, D = nmf.fit(HIDDEN, 100, weights=NUMBERS)
    objective = [one.relative_objective for one in nmf.fit_info_.history]
    assert (np.diff(objective) <= 1e-9).all()
    l1 = nmf.fit_info_.alpha_Z * nmf.l1_ratio * P
    l2 = nmf.fit_info_.alpha_Z * (1 - nmf.l1_ratio) * P
    value = 0.5 * (NUMBERS * (A - Z @ D).square()).sum() + l1 * Z.sum() + l2 / 2 * Z.square().sum()
    if nmf.fit_info_.alpha_D:
        value += N * nmf.fit_info_.alpha_D * (0.5 * D.sum() + 0.25 * D.square().sum())
    assert nmf.fit_info_.objective == pytest.approx(float(value), rel=1e-9)
    if penalties.get("unit_norm"):
        assert torch.allclose(torch.linalg.vector_norm(D, dim=1), torch.ones(K).double())


def test_weights_of_rows_with_a_penalty_are_those_of_entries():
    rows = rand(N, 1)
    how = {"init": (Z0, D0), "tol": 0.0, "alpha_Z": 0.01, "l1_ratio": 0.5}
    one = NMF(K, **how).fit(A, 5, weights=rows)
    other = NMF(K, **how).fit(A, 5, weights=rows.expand(N, P))
    assert torch.allclose(one[1], other[1])


def test_a_dictionary_of_any_signs_is_learned():
    X = HIDDEN - 0.5
    nmf = SemiNMF(K, init=(Z0, D0 - 0.5), tol=0)
    Z, D = nmf.fit(X, 400, weights=MASK)
    errors = np.array([one.relative_error for one in nmf.fit_info_.history])
    assert (np.diff(errors) <= 1e-12).all()
    assert bool((D < 0).any())
    # the least squares solution of each feature is hardly better
    left = best = 0.0
    for j in range(P):
        codes, values = Z[MASK[:, j]], A[MASK[:, j], j] - 0.5
        solution = torch.linalg.lstsq(codes, values[:, None]).solution[:, 0]
        left += float((values - codes @ D[:, j]).square().sum())
        best += float((values - codes @ solution).square().sum())
    assert left <= 1.001 * best


def test_a_fit_resumes_to_the_same_bits(tmp_path):
    how = {"init": "random", "seed": 0, "tol": 0.0, "accelerate": True}
    whole = NMF(K, **how).fit(HIDDEN, 8, weights=MASK)
    saving = {"checkpoint": tmp_path / "fit.safetensors", "resume": True}
    tuning = Tuning(checkpoint_seconds=0)
    NMF(K, tuning=tuning, **how).fit(HIDDEN, 4, weights=MASK, **saving)
    found = NMF(K, tuning=tuning, **how).fit(HIDDEN, 8, weights=MASK, **saving)
    assert all(map(torch.equal, whole, found))
    other = MASK.clone()
    other[0, 0] = ~other[0, 0]
    with pytest.raises(InvalidInput, match="weights="):
        NMF(K, tuning=tuning, **how).fit(A, 9, weights=other, **saving)


@pytest.mark.parametrize("accelerate", [False, True])
def test_concepts_stay_as_large_as_their_codes(accelerate):
    """With more concepts than are needed some become tiny, and their codes large."""
    drawn = torch.Generator().manual_seed(0)
    X, seen = torch.rand(40, 12, generator=drawn), torch.rand(40, 12, generator=drawn) > 0.2
    nmf = NMF(400, init="random", seed=0, tol=0, accelerate=accelerate)
    Z, D = nmf.fit(X, 40, weights=seen)
    sizes = torch.linalg.vector_norm(Z, dim=0) / torch.linalg.vector_norm(D, dim=1)
    sizes = sizes[sizes.isfinite() & (sizes > 0)]
    assert 2**-25 < float(sizes.min())
    assert float(sizes.max()) < 2**25
    errors = [one.relative_error for one in nmf.fit_info_.history]
    assert (np.diff(errors) <= 1e-6).all()
    error = (seen * (X - Z @ D).square()).sum() / (seen * X.square()).sum()
    assert float(error.sqrt()) == pytest.approx(nmf.fit_info_.relative_error, abs=1e-6)
