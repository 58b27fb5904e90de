"""hals with products in tf32, emulated: what is rounded, how often, and that it costs no loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from fits import start_of
from tensor_cores import hals_block_, tensor_cores
from torch import Tensor

from fastnmf.backends.torch import REFERENCE
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.planning.plan import Plan
from fastnmf.precision import products_in
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties
from fastnmf.solvers.registry import SOLVERS

K, BLOCK = 16, 8
BLOCKS = K // BLOCK
OPS = {**REFERENCE, "hals_block_": hals_block_}


class Fitted(NamedTuple):
    loss: float
    drift: float | None


def fit_of(A, iterations, ops=OPS, tile_rows=1000, penalties=NO_PENALTIES):
    """A function that fits A in residual form, in the precision it is called in."""
    start = start_of(A, K)

    def fit():
        Z, D = (M.clone() for M in start)
        state, method = (
            State(InMemory(Z), D),
            Method(SOLVERS["hals"], "torch", ops, penalties=penalties),
        )
        plan = Plan("residual", "residual", BLOCK, tile_rows, 0.0)
        factorize_(state, Data(A), method, plan, Stopping(iterations, 0.0))
        return Fitted(float((A.double() - Z.double() @ D.double()).square().sum()), state.drift)

    return fit


def data_of(kind):
    if kind == "digits":
        datasets = pytest.importorskip("sklearn.datasets", reason="no scikit-learn")
        return torch.tensor(datasets.load_digits().data[:300], dtype=torch.float32)
    random = np.random.default_rng(0)
    factors, noise = (
        [random.standard_normal(s) for s in ((300, 8), (8, 40))],
        random.standard_normal((300, 40)),
    )
    low = np.maximum(factors[0], 0) @ np.maximum(factors[1], 0)
    return torch.tensor(
        np.maximum(low + noise if kind == "low rank and noise" else noise, 0)
    ).float()


@pytest.mark.parametrize(
    "kind",
    [
        "digits",
        *(
            pytest.param(kind, marks=pytest.mark.thorough)
            for kind in ("low rank and noise", "noise")
        ),
    ],
)
def test_products_in_tf32_cost_no_loss(kind):
    fit = fit_of(data_of(kind), 200)
    expected = fit()
    with tensor_cores() as cores:
        found = fit()
    # of a block of codes and one of concepts, three each
    assert cores.products == 200 * 2 * BLOCKS * 3
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)


def hals_block_exact_(*given):
    """Δ is not rounded."""
    with products_in("highest"):
        hals_block_(*given)


CUT = {
    "B": {"round_tf32_": lambda out, X: out.copy_(X)},
    "delta": {"hals_block_": hals_block_exact_},
}


@pytest.mark.parametrize("what", CUT)
def test_rounding_keeps_the_residual_from_drifting(what):
    """Where an operand is cut off instead, its errors add up."""
    A = data_of("digits")
    rounded, cut = fit_of(A, 40), fit_of(A, 40, OPS | CUT[what])
    with tensor_cores():
        drifts = rounded().drift, cut().drift
    assert 1e-5 < drifts[0] < 0.7 * drifts[1]


def seen_by(name, ops=OPS):
    """The operations, and a list of copies of what one of them is given."""
    seen = []

    def watched(*given, **named):
        seen.append([M.clone() if isinstance(M, Tensor) else M for M in given])
        ops[name](*given, **named)

    return {**ops, name: watched}, seen


def test_gram_matrices_have_no_bias():
    """They are of numbers rounded to nearest; of numbers cut off, 7e-4 of them were missing."""
    A = data_of("digits") + 1
    ops, seen = seen_by("hals_block_")
    fit, (_, D) = fit_of(A, 1, ops), start_of(A, K)
    with tensor_cores():
        fit()
    grams = torch.block_diag(*(given[2] for given in seen[:BLOCKS]))
    off = grams.diagonal().double() / D.double().square().sum(1) - 1
    assert off.abs().max() > 1e-7
    assert off.mean().abs() < 5e-5


def test_a_block_is_rounded_once_in_a_half_step():
    ops, seen = seen_by("round_tf32_")
    fit = fit_of(data_of("noise"), 3, ops)
    with tensor_cores():
        fit()
    assert len(seen) == 3 * 2 * BLOCKS


@pytest.mark.parametrize(
    "penalties",
    [NO_PENALTIES, Penalties(0.01, 0.01, 0.5), Penalties(0.01, 0.0, 0.5, unit_norm=True)],
    ids=["plain", "penalised", "unit norm"],
)
def test_tiles_of_codes_share_the_gram_matrices(penalties):
    ops, seen = seen_by("moments_")
    A, losses = data_of("noise"), []
    for tile_rows in (1000, 70):
        seen.clear()
        losses.append(fit_of(A, 3, ops, tile_rows, penalties)().loss)
        assert len(seen) == 3 * 2 * BLOCKS
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
