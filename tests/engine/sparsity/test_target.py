"""target_l0: the penalty that follows a mean number of active concepts, in every solver, form and
place of the data; when a fit then stops; what it goes with, and what it warns of."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from fits import idle_start, nmf
from oracle import relative_difference

from fastnmf import NMF, ConvergenceWarning, InvalidInput, SemiNMF, Tuning
from fastnmf.engine.sparsity.target import TargetL0
from fastnmf.solvers.registry import SOLVERS

K = 40


def planted(n=240, d=20, active=0.1, *, seed=0, signed=False, dtype=torch.float32):
    """Rows that are sums of few of K concepts."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.rand(K, d, generator=generator, dtype=torch.float64)
    used = torch.rand(n, K, generator=generator) < active
    Z = torch.rand(n, K, generator=generator, dtype=torch.float64) * used
    return (Z @ (D - 0.5 if signed else D)).to(dtype)


def mean_l0(Z):
    return float((Z > 0).sum(1).double().mean())


SPARSE = [name for name, solver in SOLVERS.items() if not solver.keeps_zeros]
CASES = [(name, form, 3) for name in SPARSE for form in SOLVERS[name].forms]
CASES += [("hals", "normal", 6.5), ("hals", "residual", 6.5), ("anls", "normal", 6.5)]


@pytest.mark.parametrize(("solver", "form", "target"), CASES)
def test_codes_have_the_mean_that_was_asked_for(solver, form, target):
    A = planted()
    model = nmf(K, solver=solver, form=form, target_l0=target, seed=0, max_iter=60, tol=0)
    Z, D = model.fit(A)
    assert abs(mean_l0(Z) / target - 1) <= 0.05
    info = model.fit_info_
    assert info.target_l0 == target
    assert info.mean_l0 == pytest.approx(mean_l0(Z))
    assert torch.linalg.vector_norm(D, dim=1).numpy() == pytest.approx(np.ones(K), abs=1e-5)
    assert model.alpha_Z_ == info.alpha_Z > 0
    # the penalty that is reported is that of the last half-step of the codes
    squares = float((A.double() - Z.double() @ D.double()).square().sum())
    objective = 0.5 * squares + 20 * info.alpha_Z * float(Z.double().sum())
    assert info.objective == pytest.approx(objective, rel=1e-5)
    half = 0.5 * float(A.double().square().sum())
    assert info.history[-1].relative_objective ** 2 * half == pytest.approx(objective, rel=1e-3)


def test_dictionaries_of_any_signs_have_it():
    Z, _ = SemiNMF(K, target_l0=5, seed=0, max_iter=60, tol=0).fit(planted(signed=True))
    assert abs(mean_l0(Z) / 5 - 1) <= 0.05


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_data_does_not_matter(scale):
    A = planted(dtype=torch.float64)
    given = {"target_l0": 5, "seed": 0, "max_iter": 30, "tol": 0, "init": "rows"}
    Z, D = NMF(K, **given).fit(A)
    scaled, same = NMF(K, **given).fit(A * scale)
    assert relative_difference(scaled / scale, Z) <= 1e-6
    assert relative_difference(same, D) <= 1e-6


def test_rows_that_are_repeated_have_the_same_penalty():
    A = planted(dtype=torch.float64)
    rows = torch.nn.functional.normalize(A[:K], dim=1)
    given = {"target_l0": 5, "max_iter": 25, "tol": 0}
    ends = []
    for data in (A, A.repeat(3, 1)):
        model = NMF(K, init=(torch.ones(len(data), K, dtype=A.dtype) / K, rows), **given)
        model.fit(data)
        ends.append(model.alpha_Z_)
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)


@pytest.mark.parametrize("codes", ["memory", "file", None])
def test_data_that_are_read_in_passes_have_it(codes, tmp_path, small_budgets):
    A = planted(3000, 20)
    np.save(tmp_path / "A.npy", A.numpy())
    place = tmp_path / "Z.npy" if codes == "file" else codes
    model = NMF(K, target_l0=4, seed=0, max_iter=25, tol=0, max_memory="1MB")
    Z, _ = model.fit(tmp_path / "A.npy", codes=place)
    info = model.fit_info_
    assert info.chunk_rows < 3000
    assert abs(info.mean_l0 / 4 - 1) <= 0.05
    if Z is not None:
        resident = NMF(K, target_l0=4, seed=0, max_iter=25, tol=0, tuning=Tuning(form="normal"))
        resident.fit(A)
        errors = [[i.relative_error for i in m.fit_info_.history[:5]] for m in (model, resident)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_a_fit_that_was_left_resumes_to_the_same_bits(form, tmp_path):
    A, path = planted(), tmp_path / "fit.safetensors"
    options = {"target_l0": 5, "seed": 0, "max_iter": 16, "tol": 0}
    tuning = Tuning(form=form, checkpoint_seconds=0)
    whole = NMF(K, tuning=tuning, **options)
    Z, D = whole.fit(A)

    def leave(info):
        if info.iteration == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NMF(K, tuning=tuning, **options).fit(A, checkpoint=path, callback=leave)
    resumed = NMF(K, tuning=tuning, **options)
    again, same = resumed.fit(A, checkpoint=path, resume=True)
    assert torch.equal(again, Z)
    assert torch.equal(same, D)
    assert resumed.alpha_Z_ == whole.alpha_Z_
    with pytest.raises(InvalidInput, match=r"target_l0=5\.0 there, 6\.0 here"):
        NMF(K, tuning=tuning, **{**options, "target_l0": 6}).fit(A, checkpoint=path, resume=True)


@pytest.mark.parametrize("stop", ["change", "error"])
def test_a_fit_does_not_stop_while_the_penalty_moves(stop):
    A = planted()
    # with a tol that large a rule is met at once
    model = NMF(K, target_l0=3, seed=0, tol=0.9, stop=stop, max_iter=200)
    Z, _ = model.fit(A)
    info = model.fit_info_
    assert info.converged
    assert 10 < info.iterations < 200
    assert abs(mean_l0(Z) / 3 - 1) <= 0.05


def test_concepts_are_revived_under_the_penalty_of_the_moment():
    A = planted()
    options = {"target_l0": 4, "init": idle_start(A, K), "max_iter": 40, "tol": 0}
    model = NMF(K, revive=True, **{**options, "target_l0": 15})
    Z, _ = model.fit(A)
    assert model.fit_info_.revived > 0
    assert abs(mean_l0(Z) / 15 - 1) <= 0.05


def test_a_target_above_what_the_data_use_warns_of_it():
    A = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    model = NMF(20, target_l0=19.9, seed=0, max_iter=120, tol=0)
    with pytest.warns(ConvergenceWarning, match=r"target_l0=19.9 .*use no more even"):
        model.fit(A)
    assert model.fit_info_.mean_l0 < 19
    assert not model.fit_info_.reaches_target


def test_too_few_iterations_warn_of_it():
    """Where codes are kept, they end exactly at the target."""
    model = NMF(K, target_l0=2, seed=0, max_iter=2, tol=0)
    with pytest.warns(ConvergenceWarning, match=r"not reached: .* after 2 iterations by max_iter"):
        model.fit(planted(), codes=None)
    Z, _ = model.fit(planted())
    assert abs(mean_l0(Z) / 2 - 1) <= 0.05
    assert model.fit_info_.exact_codes


def test_a_target_that_is_reached_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NMF(K, target_l0=4, seed=0, max_iter=50, tol=0).fit(planted())


REFUSED = [
    ({"alpha_Z": 0.1}, "finds the penalty of the codes.*leave alpha_Z"),
    ({"alpha_D": 0.1}, "finds the penalty of the codes"),
    ({"l1_ratio": 0.5}, "takes an l1 penalty"),
    ({"solver": "mu"}, "never become zero; give solver='hals'"),
    ({"target_l0": 0}, "above 0 and at most nb_concepts=40"),
    ({"target_l0": 41}, "above 0 and at most nb_concepts=40"),
    ({"target_l0": math.nan}, "above 0 and at most"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_does_not_go_with_it_is_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        NMF(K, **{"target_l0": 4, **options})


def test_multiplied_codes_of_a_free_dictionary_are_refused_too():
    """All concepts died, and a warning said that the data used no more."""
    with pytest.raises(InvalidInput, match="never become zero; give solver='hals'"):
        SemiNMF(K, target_l0=4, solver="mu")


@pytest.mark.parametrize("value", ["4", True, [4]])
def test_other_than_a_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"target_l0=.* must be a number of concepts per row"):
        NMF(K, target_l0=value)


def test_acceleration_graphs_and_online_learning_are_refused():
    A = planted()
    with pytest.raises(InvalidInput, match="accelerate=True does not go with"):
        NMF(K, target_l0=4, accelerate=True).fit(A)
    with pytest.raises(InvalidInput, match="partial_fit has no penalty that could follow"):
        NMF(K, target_l0=4).partial_fit(A)
    with pytest.raises(InvalidInput, match="cuda_graph=True is not possible"):
        NMF(K, target_l0=4, tuning=Tuning(cuda_graph=True)).fit(A)


def follow(target, *means):
    """The penalties after half-steps that left these means."""
    found = []
    for mean in means:
        target.mean_l0 = mean
        target.follow()
        found.append(target.l1)
    return found


def test_the_penalty_follows_the_mean():
    target = TargetL0.begin(8.0, squared_norm=400.0, n=4)
    assert target.l1 == pytest.approx(0.1)
    target.follow()
    assert target.l1 == pytest.approx(0.1)
    # by what it is off, within bounds; not within 2 %
    assert follow(target, 12.0, 1000.0, 8.1) == pytest.approx([0.15, 0.3, 0.3])
    assert target.held == 1
    assert follow(target, 1.0) == pytest.approx([0.075])
    assert target.held == 0


def test_a_mean_that_does_not_answer_is_followed_faster():
    target = TargetL0(8.0, 1.0, 1e-9)
    means = follow(target, *[6.0] * 12)
    assert means[1] / means[0] > means[-1] / means[-2] == pytest.approx(0.75**3)


def test_a_penalty_that_swings_moves_less():
    target = TargetL0(8.0, 1.0, 1e-9)
    moves = follow(target, 16.0, 4.0, 16.0, 4.0, 16.0)
    assert moves == pytest.approx([2, 2 * 0.5**0.5, 2**0.75, 2**0.625, 2**0.6875])


def test_the_penalty_stays_above_zero():
    target = TargetL0(8.0, 1.0, 1e-3)
    follow(target, *[1.0] * 30)
    assert target.l1 == 1e-3
    assert target.is_least
    assert target.settled
