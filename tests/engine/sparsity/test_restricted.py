"""Iterations restricted to few concepts of each row: those of a loop in float64, wherever the data
and the codes are; when they are taken."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from fits import nmf
from half_steps import backends_of
from oracle import TOLERANCES, relative_difference, restricted_hals

from fastnmf import NMF, FastnmfWarning, Tuning
from fastnmf.backends.registry import BACKENDS, select
from fastnmf.engine.sparsity import restricted
from fastnmf.engine.sparsity.restricted import active, replace_
from fastnmf.solvers.supports.restricted import SWEEPS

K, ALPHA = 50, 0.004


def planted(n=150, d=20, *, signed=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    D = torch.rand(K, d, generator=generator, dtype=torch.float64) - 0.5 * signed
    Z = torch.rand(n, K, generator=generator, dtype=torch.float64)
    return (Z * (torch.rand(n, K, generator=generator) < 0.1) @ D).to(dtype)


def start(A, *, signed=False):
    """Codes and concepts of any norms, of which the last is zero in all rows."""
    generator = torch.Generator().manual_seed(1)
    Z = torch.rand(len(A), K, generator=generator, dtype=torch.float64)
    Z[torch.rand(len(A), K, generator=generator) < 0.8] = 0
    Z[:, -1] = 0
    D = torch.rand(K, A.shape[1], generator=generator, dtype=torch.float64) - 0.5 * signed
    return Z.to(A), D.to(A)


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """Also fits so small that restricted iterations never pay."""
    monkeypatch.setattr(restricted, "restricting_may_pay", lambda *given: True)


@pytest.fixture
def always(monkeypatch):
    """All iterations are restricted; the list has the mean that each was decided by."""
    means = []
    monkeypatch.setattr(restricted, "restricting_pays", lambda *given: not means.append(given[-1]))
    return means


def penalised(backend="auto", **options):
    penalty = {"alpha_Z": ALPHA, "alpha_D": 0.0, "l1_ratio": 1.0, "unit_norm": True}
    return nmf(K, backend=backend, tol=0, **penalty, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", backends_of("hals"))
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("model", ["nmf", "semi"])
def test_iterates_are_those_of_the_loop(model, form, backend, dtype, always):
    signed = model == "semi"
    A = planted(signed=signed, dtype=dtype)
    init, l1 = start(A, signed=signed), ALPHA * A.shape[1]
    given = penalised(backend, model=model, form=form, init=init, max_iter=3)
    Z, D = given.fit(A)
    by = {"sweeps": SWEEPS, "signed": signed}
    expected, concepts, objectives = restricted_hals(*(M.numpy() for M in (A, *init)), l1, 3, **by)
    name = str(dtype).removeprefix("torch.")
    # of three iterations
    tolerance = 30 * TOLERANCES["hals", name]
    assert relative_difference(Z, expected) <= tolerance
    assert relative_difference(D, concepts) <= tolerance
    half = 0.5 * float(A.double().square().sum())
    history = [one.relative_objective**2 * half for one in given.fit_info_.history]
    assert history == pytest.approx(objectives, rel=1e-6 if dtype == torch.float64 else 1e-3)
    assert all(now <= before for before, now in itertools.pairwise(objectives))
    before, *_ = restricted_hals(*(M.numpy() for M in (A, *init)), l1, 2, **by)
    assert math.isnan(always[0])
    assert always[2] == float(np.count_nonzero(before) / len(A))


@pytest.mark.parametrize("codes", ["memory", "file", "sparse"])
def test_data_read_in_passes_have_the_same_iterates(codes, tmp_path, small_budgets, always):
    A = planted(1500)
    init = start(A)
    np.save(tmp_path / "A.npy", A.numpy())
    whole, _ = penalised(init=init, max_iter=5).fit(A)
    model = penalised(init=init, max_iter=5, max_memory="1MB")
    place = tmp_path / "Z.npy" if codes == "file" else codes
    Z, _ = model.fit(tmp_path / "A.npy", codes=place)
    assert model.fit_info_.chunk_rows < 1500
    assert relative_difference(Z.to_dense() if codes == "sparse" else Z, whole) <= 1e-8


def test_codes_that_are_stored_sparse_have_the_same_iterates(always):
    A = planted()
    init = start(A)
    whole, _ = penalised(init=init, max_iter=5).fit(A)
    Z, _ = penalised(init=init, max_iter=5).fit(A, codes="sparse")
    assert relative_difference(Z.to_dense(), whole) <= 1e-8


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("target_l0", 3.6, 5.0), ("alpha_Z", 21.0, 24.5)]
)
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_a_fit_that_was_left_resumes_to_the_same_bits(
    asked, least, most, form, tmp_path, monkeypatch
):
    """Also where it changes from iterations of all concepts to restricted ones, and back."""
    decided = []

    def pays(*given):
        decided.append(least < given[-1] < most)
        return decided[-1]

    monkeypatch.setattr(restricted, "restricting_pays", pays)
    A, path = planted(dtype=torch.float32), tmp_path / "fit.safetensors"
    penalty = {"alpha_Z": ALPHA, "alpha_D": 0.0, "l1_ratio": 1.0, "unit_norm": True}
    options = {"target_l0": 4.0} if asked == "target_l0" else penalty
    options |= {"seed": 0, "max_iter": 12, "tol": 0, "tuning": Tuning(form, checkpoint_seconds=0)}
    Z, D = NMF(K, **options).fit(A)
    assert {True, False} == set(decided)
    for last in (2, 5, 8):

        def leave(info, last=last):
            if info.iteration == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            NMF(K, **options).fit(A, checkpoint=path, callback=leave)
        again, same = NMF(K, **options).fit(A, checkpoint=path, resume=True)
        assert torch.equal(again, Z)
        assert torch.equal(same, D)


def test_the_mean_that_was_asked_for_is_reached(always):
    A = planted(400, dtype=torch.float32)
    model = NMF(K, target_l0=5, seed=0, max_iter=60, tol=0)
    Z, _ = model.fit(A)
    assert abs(float((Z > 0).sum(1).double().mean()) / 5 - 1) <= 0.05


@pytest.mark.parametrize(
    "options",
    [{"unit_norm": False}, {"solver": "anls"}, {"solver": "pgd"}, {"l1_ratio": 0.0}],
    ids=str,
)
def test_other_fits_are_not_restricted(options, always):
    penalty = {"alpha_Z": ALPHA, "alpha_D": 0.0, "l1_ratio": 1.0, "unit_norm": True}
    with warnings.catch_warnings():
        # without unit norm the objective has no minimum
        warnings.simplefilter("ignore", FastnmfWarning)
        NMF(K, max_iter=2, tol=0, seed=0, **{**penalty, **options}).fit(planted())
    NMF(K, max_iter=2, tol=0, seed=0).fit(planted())
    assert not always


@pytest.mark.parametrize("backend", [name for name in ("cpp", "torch") if name in BACKENDS])
def test_codes_come_from_dense_rows_and_go_back(backend):
    if BACKENDS[backend].reason is not None:
        pytest.skip(BACKENDS[backend].reason)
    ops = select(("hals_block_",), torch.device("cpu"), backend)[1]
    Z = torch.rand(9, 14, generator=torch.Generator().manual_seed(0))
    Z[Z < 0.6] = 0
    Z[4] = 0
    codes = active(Z, ops)
    assert codes.to_dense().equal(Z)
    other = torch.zeros(9, 14)
    other[2, 3], other[4, 0] = 1.0, 2.0
    replace_(Z, codes, active(other, ops))
    assert Z.equal(other)
    assert active(torch.zeros(3, 4), ops).nnz == 0
