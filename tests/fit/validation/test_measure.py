"""Rows that a fit is not trained on: what is measured of them, that nothing else changes, and
stop='validation'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import nmf

from fastnmf import NMF, ConvexNMF, InvalidInput, SemiNMF
from fastnmf.engine.state import STOPPING_RULES, Best, Iteration
from fastnmf.solvers.registry import SOLVERS


def data(n=90, d=10, *, signed=False):
    drawn = torch.Generator().manual_seed(0)
    A = torch.rand(n, 4, generator=drawn) @ torch.rand(4, d, generator=drawn)
    A += 0.2 * torch.rand(A.shape, generator=drawn)
    A = A - 0.8 if signed else A
    return A[:60], A[60:]


def measured(info):
    return {i.iteration: i for i in info.history if i.validation_error is not None}


KINDS = [(NMF, {"solver": name}) for name in SOLVERS]
KINDS += [(NMF, {"top_k": 2}), (NMF, {"target_l0": 3}), (NMF, {"alpha_Z": 1e-3})]
KINDS += [(SemiNMF, {}), (SemiNMF, {"offset": True}), (ConvexNMF, {})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_error_and_l0_are_those_of_encode_and_the_fit_is_the_same(kind, options):
    A, V = data(signed=kind is SemiNMF)
    given = {"seed": 0, "max_iter": 15, "tol": 0, **options}
    model = kind(12, **given)
    Z, D = model.fit(A, validation=V)
    info = model.fit_info_
    assert list(measured(info)) == [10, 15]
    codes, of_rows = model.encode(V, return_info=True)
    assert info.validation_error == pytest.approx(of_rows.relative_error, rel=2e-2)
    mean = float((codes > 0).sum(1).double().mean())
    assert info.validation_l0 == pytest.approx(mean, rel=5e-2)
    assert info.validation_error == measured(info)[15].validation_error
    assert f"error {info.validation_error:.6g}, mean L0" in str(info)
    assert info.best_iteration is None
    plain = kind(12, **given)
    expected = plain.fit(A)
    assert torch.equal(Z, expected[0])
    assert torch.equal(D, expected[1])
    assert plain.fit_info_.validation_error is None
    assert not measured(plain.fit_info_)


@pytest.mark.parametrize("codes", ["memory", "sparse", None])
def test_data_that_are_read_in_passes_and_files_of_rows(codes, tmp_path, small_budgets):
    drawn = torch.Generator().manual_seed(0)
    A = torch.rand(900, 4, generator=drawn) @ torch.rand(4, 10, generator=drawn)
    for name, rows in (("A", A[:600]), ("V", A[600:])):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    model = NMF(5, seed=0, max_iter=10, tol=0, max_memory="70kB")
    model.fit(tmp_path / "A.npy", validation=tmp_path / "V.npy", codes=codes)
    info = model.fit_info_
    assert info.chunk_rows < 600
    expected = model.encode(A[600:], return_info=True)[1].relative_error
    assert info.validation_error == pytest.approx(expected, rel=1e-3)


def noisy():
    """Few rows of which most is noise, and as many others."""
    drawn = torch.Generator().manual_seed(0)
    A = torch.rand(30, 2, generator=drawn) @ torch.rand(2, 12, generator=drawn)
    A += torch.rand(A.shape, generator=drawn)
    return A[:15], A[15:]


OVERFITTED = [{}, {"solver": "pgd"}, {"top_k": 3}, {"target_l0": 3}]


@pytest.mark.parametrize("options", OVERFITTED)
def test_a_fit_stops_where_the_rows_no_longer_improve_and_keeps_the_best(options):
    A, V = noisy()
    model = nmf(6, seed=0, max_iter=400, tol=1e-4, stop="validation", **options)
    Z, D = model.fit(A, validation=V)
    info = model.fit_info_
    errors = {number: i.validation_error for number, i in measured(info).items()}
    assert info.stopped_by == "validation"
    assert info.converged
    best = min(errors, key=errors.__getitem__)
    assert info.best_iteration == best < info.iterations
    assert info.validation_error == errors[best]
    assert f"(iteration {best})" in str(info)
    # the dictionary is that of the best iteration, and the codes are for it
    again = nmf(6, seed=0, max_iter=best, tol=0, **options)
    _, expected = again.fit(A)
    torch.testing.assert_close(D, expected, rtol=1e-5, atol=1e-6)
    error = float((A - Z @ D).norm() / A.norm())
    assert info.relative_error == pytest.approx(error, rel=1e-4)
    exact = model.encode(A, return_info=True)[1].relative_error
    assert error == pytest.approx(exact, rel=5e-2)


def test_it_needs_rows_to_stop_by():
    A, _ = data()
    with pytest.raises(
        InvalidInput, match=r"stop='validation' needs rows .*fit\(A, validation=…\)"
    ):
        NMF(3, stop="validation").fit(A)


def test_rows_that_do_not_suit_the_data_are_refused():
    A, V = data()
    with pytest.raises(InvalidInput, match="validation has 3 features"):
        NMF(3).fit(A, validation=V[:, :3])
    with pytest.raises(InvalidInput, match=r"validation has .* negative"):
        NMF(3).fit(A, validation=-V)
    with pytest.raises(FileNotFoundError):
        NMF(3).fit(A, validation="no such file.npy")


@pytest.mark.parametrize("model", ["nmf", "semi"])
def test_a_fit_that_was_left_resumes_to_the_same_bits(model, tmp_path):
    A, V = noisy()
    given = {"model": model, "seed": 0, "max_iter": 60, "stop": "validation"}
    given |= (
        {"checkpoint_seconds": 0, "offset": True} if model == "semi" else {"checkpoint_seconds": 0}
    )
    Z, D = nmf(6, **given).fit(A, validation=V)
    path = tmp_path / "fit.safetensors"

    def leave(info):
        if info.iteration == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nmf(6, **given).fit(A, validation=V, checkpoint=path, callback=leave)
    resumed = nmf(6, **given)
    again, same = resumed.fit(A, validation=V, checkpoint=path, resume=True)
    assert torch.equal(same, D)
    assert torch.equal(again, Z)
    assert 10 in measured(resumed.fit_info_)
    with pytest.raises(InvalidInput, match="validation="):
        nmf(6, **given).fit(A, validation=V[1:], checkpoint=path, resume=True)


def test_callbacks_and_the_bar_get_what_was_measured(capsys):
    A, V = data()
    seen = []
    model = NMF(3, seed=0, max_iter=10, tol=0, verbose=True)
    model.fit(A, validation=V, callback=lambda i: seen.append(i.validation_error))
    assert seen[:9] == [None] * 9
    assert f"validation={seen[9]:.5f}" in capsys.readouterr().err


def history(*errors):
    return [Iteration(k + 1, 0.1, 0.1, 0.1, validation_error=e) for k, e in enumerate(errors)]


def test_the_rule_counts_measurements_without_an_improvement():
    rule = STOPPING_RULES["validation"]
    assert not rule.met(history(None, 0.5, None, 0.4, 0.41, 0.42), 1e-4)
    assert rule.met(history(None, 0.5, None, 0.4, 0.41, 0.42, None, 0.4), 1e-4)
    assert not rule.met(history(0.5, 0.4, 0.41, 0.42, 0.399), 1e-4)
    assert rule.met(history(0.5, 0.4, 0.41, 0.42, 0.399), 1e-2)
    assert not rule.of_training


def test_the_best_is_a_copy():
    D = torch.rand(2, 3)
    best = Best.of(history(0.5)[0], D, None, None, None)
    before = D.clone()
    D.zero_()
    assert torch.equal(best.D, before)
    assert best.error == 0.5
