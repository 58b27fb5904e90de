"""Norms; and reduced precision: where it is used, what bounds it, and that 'strict' excludes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fits import start_of
from oracle import problem

from fastnmf import NMF, InvalidInput, Tuning, nnls
from fastnmf.backends.torch import REFERENCE, round_tf32_
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine import history
from fastnmf.engine.codes import Encoder
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.numerics import (
    compute_dtype,
    exponents,
    inner,
    squared_norm,
    times_power,
)
from fastnmf.planning.plan import Plan
from fastnmf.precision import products_in
from fastnmf.solvers import half_step, hals, mu
from fastnmf.solvers.registry import SOLVERS


@pytest.fixture
def allowed_high(monkeypatch):
    take_products_for_tf32(monkeypatch)
    with products_in("high"):
        yield


@pytest.mark.parametrize("shape", [(3, 7), (1, 1 << 21), (700, 1503)], ids=str)
def test_inner_product_is_that_in_float64_in_either_order(shape):
    """Formed whole, a line at a time, and some lines at a time."""
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.rand(shape, generator=generator) for _ in range(2))
    expected = float((X.double() * Y.double()).sum())
    for A, B in ((X, Y), (X.T, Y.T), (X.T.contiguous().T, Y)):
        found = inner(A, B)
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(expected, rel=1e-7)


# fewer entries than are summed in float32 at once, no multiple of them, and a multiple
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 4097), (4096, 2), (90, 101)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_squared_norm_is_that_in_float64(shape, dtype):
    X = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = float(X.double().square().sum())
    wide = torch.full((shape[0], shape[1] + 2), torch.nan, dtype=dtype)
    wide[:, 1:-1] = X
    for view in (X, X.T, wide[:, 1:-1]):
        norm = squared_norm(view)
        assert norm.dtype == torch.float64
        # 20,000 roundings at most; in float32 those of some 4,096 entries, in pairs
        assert float(norm) == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        # integers are computed in float32, however wide
        (torch.int64, torch.float32),
        (np.dtype("float64"), torch.float64),
        (np.dtype("int64"), torch.float32),
    ],
    ids=str,
)
def test_compute_dtype_is_single_unless_the_data_are_double(dtype, expected):
    array = np.empty(0, dtype) if isinstance(dtype, np.dtype) else torch.empty(0, dtype=dtype)
    assert compute_dtype(array) == expected


def watched(seen):
    """The reference, noting the precision of products at every block sweep."""

    def hals_block_(*given):
        seen.add(torch.get_float32_matmul_precision())
        REFERENCE["hals_block_"](*given)

    return {**REFERENCE, "hals_block_": hals_block_}


@pytest.fixture
def in_coarse_products():
    """The CPU behaves as a GPU whose tf32 products round R, Δ and the fixed factor."""

    def hals_block_(F, R, G, delta, sums, bounded):
        round_tf32_(R, R)
        REFERENCE["hals_block_"](F, R, G, delta, sums, bounded)

    return {**REFERENCE, "hals_block_": hals_block_}


def take_products_for_tf32(monkeypatch):
    """Where torch allows it, as on a card."""
    monkeypatch.setattr("fastnmf.precision.TF32_ON", ("cpu",))


def factorized(solver, ops, A, Z, D, plan, *stopping, saver=None):
    """The State after a run on these factors, which it changes."""
    state, method = State(InMemory(Z), D), Method(SOLVERS[solver], "torch", ops)
    factorize_(state, Data(A), method, plan, Stopping(*stopping), saver=saver)
    return state


def in_float32(n=60, d=20, K=35):
    return [torch.tensor(M, dtype=torch.float32) for M in problem(n, d, K)]


def run(ops, max_iter, tol=0.0, each=None):
    A, Z, D = in_float32()
    plan = Plan("residual", "residual", 16, 25, 0.0)
    return A, Z, D, factorized("hals", ops, A, Z, D, plan, max_iter, tol, each)


def test_extrapolation_is_not_taken_for_drift(in_coarse_products, allowed_high):
    """A residual that factors have moved away from is not one that rounding has changed."""
    plan = Plan("residual", "residual", 16, 25, 0.0, accelerates=True)
    state = factorized("hals", in_coarse_products, *in_float32(), plan, 12, 0.0)
    assert state.drift is None


def test_round_tf32_is_to_nearest():
    X = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    kept, rounded = X.clone(), torch.empty_like(X)
    round_tf32_(rounded, X)
    assert torch.equal(X, kept)
    exponent = torch.frexp(X.double()).exponent
    unit = torch.ldexp(torch.ones(1000, dtype=torch.float64), exponent - 11)
    assert torch.equal(
        rounded.double(), (X.double() / unit).abs().add(0.5).floor() * unit * X.sign()
    )


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_only_the_residual_form_uses_what_is_allowed(form, allowed_high):
    seen, plan = set(), Plan(form, form, 16, 11, 0.0)
    factorized("hals", watched(seen), *in_float32(23, 17, 40), plan, 2, 0.0)
    assert seen == {"high" if form == "residual" else "highest"}
    assert torch.get_float32_matmul_precision() == "high"


def test_strict_is_float32_everywhere(allowed_high, monkeypatch):
    seen = set()
    monkeypatch.setattr("fastnmf.fit.options.select", lambda *_: ("torch", watched(seen)))
    for asked, expected in (("strict", {"highest"}), ("auto", {"high"})):
        seen.clear()
        model = NMF(40, max_iter=2, tol=0, seed=0, tuning=Tuning(form="residual", precision=asked))
        model.fit(torch.rand(23, 17))
        model.encode(torch.rand(5, 17), 2)
        assert seen == expected
    assert torch.get_float32_matmul_precision() == "high"


def test_unknown_precision_is_refused():
    with pytest.raises(InvalidInput, match="precision='fast'"):
        NMF(3, tuning=Tuning(precision="fast"))


def test_drift_is_measured_and_stays_small(in_coarse_products, allowed_high):
    A, Z, D, outcome = run(in_coarse_products, 30)
    with products_in("highest"):
        *_, exact = run(REFERENCE, 30)
    assert 1e-7 < outcome.drift < 0.05
    error = np.linalg.norm(A - Z @ D) / np.linalg.norm(A)
    assert error < 1.1 * exact.history[-1].relative_error
    assert exact.drift is None


def test_large_drift_brings_the_refresh_forward(in_coarse_products, allowed_high, monkeypatch):
    monkeypatch.setattr(history, "_MOST_DRIFT", 1e-9)
    fresh = []
    monkeypatch.setattr(hals, "_refresh_", lambda *given: (fresh.append(1), refresh(*given)))
    run(in_coarse_products, 24, each=lambda _: None)
    # three pieces of rows; the iterations 1, 9, 13, 15, and 17 to 24
    assert len(fresh) == 3 * (4 + 8)


refresh = hals._refresh_


def test_stop_is_decided_with_a_new_residual(in_coarse_products, allowed_high, monkeypatch):
    fresh = []
    monkeypatch.setattr(hals, "_refresh_", lambda *given: (fresh.append(1), refresh(*given)))
    ended = []
    run(
        in_coarse_products,
        max_iter=50,
        tol=0.2,
        each=lambda iteration: ended.append((iteration.relative_change, len(fresh) // 3)),
    )
    assert ended[-1][0] <= 0.2
    # the last iteration began with a residual computed anew, right after one that met the rule
    assert ended[-1][1] == ended[-2][1] + 1
    assert [change <= 0.2 for change, _ in ended] == [False] * (len(ended) - 2) + [True] * 2


@pytest.mark.parametrize(
    ("rows", "options"),
    [(9, {}), (9, {"return_info": True}), (9, {"Z0": torch.zeros(9, 3)}), (40, {"max_iter": 50})],
    ids=["few", "few with info", "from a start", "many"],
)
def test_nnls_takes_no_products_in_tf32(rows, options, monkeypatch):
    """Codes from a Gram matrix in tf32 would be off by 1e-3, and called exact."""
    seen = []

    def nnls_(F, C, G, sums, **asked):
        seen.append(torch.get_float32_matmul_precision())
        return REFERENCE["nnls_"](F, C, G, sums, **asked)

    operations = None, {**REFERENCE, "nnls_": nnls_}
    monkeypatch.setattr("fastnmf.fit.nnls._operations", lambda *asked: operations)
    with products_in("high"):
        nnls(torch.rand(rows, 5), torch.rand(3, 5), **options)
        assert torch.get_float32_matmul_precision() == "high"
    assert seen == ["highest"]


@pytest.fixture
def residuals_in_tf32(monkeypatch):
    """The CPU rounds what mu and pgd form their residual of, as where products are tf32; notes in
    which precision each was formed."""
    seen = []
    add_product_ = half_step.add_product_

    def noted(E, B, F, compute, **rest):
        seen.append(compute.residual)
        return add_product_(E, B, F, compute, **rest)

    for module in (mu, half_step):
        monkeypatch.setattr(module, "add_product_", noted)
    take_products_for_tf32(monkeypatch)
    return seen


def by(solver, A, K, iterations, precision="high", form="residual", each=None, saver=None):
    """(Z, D, State) of a run from a drawn start."""
    A = torch.tensor(A, dtype=torch.float32)
    Z, D = start_of(A, K)
    plan = Plan(form, form, 16, 250, 0.0)
    with products_in(precision):
        state = factorized(solver, REFERENCE, A, Z, D, plan, iterations, 0.0, each, saver=saver)
    return Z, D, state


def data_of(kind):
    if kind == "digits":
        datasets = pytest.importorskip("sklearn.datasets", reason="no scikit-learn")
        return datasets.load_digits().data[:500] / 16
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((300, 8)), rng.standard_normal((8, 40))
    low = np.maximum(factors[0], 0) @ np.maximum(factors[1], 0)
    if kind == "exact":
        return low
    noise = rng.standard_normal((300, 40))
    return np.maximum(noise if kind == "noise" else low + noise, 0)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        ("low rank and noise", "mu"),
        ("noise", "pgd"),
        pytest.param("digits", "mu", marks=pytest.mark.thorough),
        pytest.param("digits", "pgd", marks=pytest.mark.thorough),
    ],
)
def test_a_residual_in_tf32_costs_no_loss(kind, solver, residuals_in_tf32):
    A = data_of(kind)
    errors, codes = [], []
    for chosen in ("highest", "high"):
        Z, D, _ = by(solver, A, 24, 200, chosen)
        errors.append(np.linalg.norm(A - Z.double().numpy() @ D.double().numpy()) ** 2)
        codes.append(Z)
    assert errors[1] <= 1.001 * errors[0]
    assert not torch.equal(*codes)
    assert set(residuals_in_tf32) == {"highest", "high"}


@pytest.mark.parametrize("watched", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_small_residual_is_formed_in_float32(watched, residuals_in_tf32, monkeypatch):
    """Rounding alone leaves an error of 2e-4."""
    each = {"each": lambda _: None} if watched else {}
    *_, outcome = by("pgd", data_of("exact"), 8, 400, **each)
    assert outcome.history[-1].relative_error < 1e-5
    assert len(outcome.history) == 400
    assert set(residuals_in_tf32[:10]) == {"high"}
    assert set(residuals_in_tf32[-10:]) == {"highest"}
    monkeypatch.setattr(history, "_COARSE_DOWN_TO", 0)
    *_, outcome = by("pgd", data_of("exact"), 8, 400, **each)
    assert outcome.history[-1].relative_error > 1e-4


@pytest.mark.parametrize(("solver", "form"), [("mu", "normal"), ("pgd", "normal")])
def test_the_normal_form_has_no_residual_in_tf32(solver, form, residuals_in_tf32):
    given = [
        by(solver, data_of("noise"), 8, 3, precision, form) for precision in ("high", "highest")
    ]
    assert torch.equal(given[0][0], given[1][0])
    assert residuals_in_tf32 == []


def test_codes_of_a_known_dictionary_have_a_float32_residual(residuals_in_tf32):
    """Where nothing tells the error."""
    A, _, D = in_float32(300, 40, 8)
    method = Method(SOLVERS["pgd"], "torch", REFERENCE, Tuning(form="residual"))
    with products_in("high"):
        Encoder(D, method, max_iter=3)(A)
    assert set(residuals_in_tf32) == {"highest"}


def test_a_run_that_goes_on_takes_the_precision_it_had(residuals_in_tf32):
    A, states = data_of("exact"), []

    class Saver:
        def due(self):
            return True

        def save(self, state):
            if len(state.history) == 300:
                Z, history = InMemory(state.codes.clone()), [*state.history]
                states.append(replace(state, Z=Z, D=state.D.clone(), history=history))

    Z, D, _ = by("pgd", A, 8, 310, saver=Saver())
    (state,) = states
    data, plan = (
        Data(torch.tensor(A, dtype=torch.float32)),
        Plan("residual", "residual", 16, 250, 0.0),
    )
    method, stopping = Method(SOLVERS["pgd"], "torch", REFERENCE), Stopping(310, 0.0)
    with products_in("high"):
        factorize_(state, data, method, plan, stopping, saver=Saver())
    assert torch.equal(state.codes, Z)
    assert torch.equal(state.D, D)
    assert len(state.history) == 310
    assert state.history[-1].relative_error < history._COARSE_DOWN_TO


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two_scale_rows_exactly(dtype):
    info = torch.finfo(dtype)
    largest = [info.max, -info.max, 1.0, 0.75, info.tiny, info.tiny * 2**-10, 0.0]
    X = torch.tensor(largest, dtype=dtype)[:, None] * torch.tensor([0.5, 1.0], dtype=dtype)
    power = exponents(X)
    scaled = times_power(X, -power[:, None])
    assert (scaled[:-1].abs().amax(1) >= 0.5).all()
    assert (scaled.abs() <= 1).all()
    assert power[-1] == 0
    assert torch.equal(times_power(scaled, power[:, None]).to(dtype), X)


def test_rows_of_moderate_size_are_not_scaled():
    X = torch.tensor([[2.0**30], [2.0**-30], [2.0**40]])
    assert exponents(X, 32).tolist() == [0, 0, 41]
