"""Fits that converge with more concepts than features end with exact codes, where these lower the
objective; other fits do not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import nmf
from scipy import sparse
from streams import tight

from fastnmf.backends.registry import select
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.state import Method, State
from fastnmf.exact import final
from fastnmf.exact.final import take_exact_codes_
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties
from fastnmf.solvers.registry import SOLVERS

D_IN, CONCEPTS = 8, 12
A = torch.randn(200, D_IN, generator=torch.Generator().manual_seed(0)).abs()


def fitted(data=A, K=CONCEPTS, fit=None, **options):
    model = nmf(K, **{"seed": 0, "init": "random", "tol": 1e-3, "max_iter": 1000, **options})
    Z, D = model.fit(data, **(fit or {}))
    return Z, D, model.fit_info_


@pytest.fixture
def as_they_are(monkeypatch):
    """fitted(…), without exact codes."""

    def run(*given, **named):
        with monkeypatch.context() as patch:
            patch.setattr(final, "gains", lambda *_: False)
            return fitted(*given, **named)

    return run


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha_Z": 1e-3, "l1_ratio": 0.5}, {"unit_norm": True}, {"solver": "pgd"}],
    ids=str,
)
def test_fits_with_more_concepts_than_features_end_with_exact_codes(options, as_they_are):
    Z, D, info = fitted(**options)
    _, dictionary, before = as_they_are(**options)
    assert info.converged
    assert (info.exact_codes, before.exact_codes) == (True, False)
    assert torch.equal(D, dictionary)
    assert info.iterations == before.iterations
    assert info.objective <= before.objective
    assert info.mean_l0 < before.mean_l0
    assert info.history[-1].relative_error == info.relative_error
    penalty = Penalties(options.get("alpha_Z", 0), 0, options.get("l1_ratio", 0)).of_codes(D_IN)
    assert float(kkt_residual(A, D, Z, penalty).max()) <= 1e-6
    assert "exact" in str(info)


UNCHANGED = {
    "K <= d": {"K": 5},
    "mu": {"solver": "mu", "tol": 5e-3},
    "anls": {"solver": "anls"},
    "max_iter": {"max_iter": 60},
    "few iterations": {"tol": 0.01},
    "no tol": {"tol": 0, "max_iter": 60},
    "callback": {"fit": {"callback": lambda info: info.iteration == 70}},
    "no codes": {"fit": {"codes": None}, "max_iter": 60, "tol": 0.5},
    "no time left": {"fit": {"max_seconds": 1e-9}},
}


@pytest.mark.parametrize("named", UNCHANGED.values(), ids=UNCHANGED)
@pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
def test_other_fits_keep_their_bits(named, as_they_are):
    found, expected = fitted(**named), as_they_are(**named)
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one is other or torch.equal(one, other)
    assert not found[2].exact_codes


@pytest.mark.parametrize("kind", ["passes", "file of codes", "float16", "sparse", "float64"])
def test_all_kinds_of_data_end_so(kind, tmp_path):
    data, named = A, {}
    if kind == "float16":
        data = A.half()
    if kind == "float64":
        data = A.double()
    if kind == "sparse":
        data = sparse.csr_array(A.numpy())
    if kind in ("passes", "file of codes"):
        # at least 512 rows are read at a time
        data = A.repeat(8, 1)
        codes = "memory" if kind == "passes" else "file"
        named = {"max_memory": tight(codes, "random", 512, data, CONCEPTS)}
        np.save(tmp_path / "A.npy", data.numpy())
        data = tmp_path / "A.npy"
    if kind == "file of codes":
        named["fit"] = {"codes": tmp_path / "Z.npy"}
    Z, D, info = fitted(data, **named)
    assert info.exact_codes
    rows = A.repeat(len(Z) // len(A), 1)
    kkt = kkt_residual(rows.half() if kind == "float16" else rows, D, Z, NO)
    assert float(kkt.max()) <= 1e-6
    assert info.relative_error < 1e-2
    if kind in ("passes", "file of codes"):
        assert info.passes > 1


NO = NO_PENALTIES.of_codes(1)


def test_a_resumed_fit_ends_as_one_that_was_not_left(tmp_path):
    Z, D, _ = fitted()
    part = {"checkpoint": tmp_path / "fit.safetensors"}
    with pytest.warns(match="not converged"):
        _, _, first = fitted(max_iter=60, fit=part, checkpoint_seconds=0)
    assert not first.exact_codes
    again = fitted(fit={**part, "resume": True}, checkpoint_seconds=0)
    assert torch.equal(again[0], Z)
    assert torch.equal(again[1], D)
    assert again[2].exact_codes


def test_rows_that_would_get_worse_stay():
    """A dictionary whose products are out of the range of float32 has no exact codes."""
    _, ops = select(SOLVERS["anls"].operations, torch.device("cpu"), "auto")
    D = torch.rand(CONCEPTS, D_IN) * 1e-24
    Z = torch.rand(len(A), CONCEPTS) * 1e22
    state = State(InMemory(Z.clone()), D.clone())
    take_exact_codes_(state, Data(A), Method(SOLVERS["anls"], "auto", ops))
    before, after = ((A.double() - F.double() @ D.double()).norm(dim=1) for F in (Z, state.codes))
    assert (after <= before).all()
    assert torch.equal(state.D, D)
