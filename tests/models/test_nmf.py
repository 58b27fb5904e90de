"""The class NMF: arguments, state, errors, progress, summary, and the quality of a default fit."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from oracle import problem

from fastnmf import NMF, ConvergenceWarning, ConvexNMF, InvalidInput, NotFitted, Tuning
from fastnmf.init.start import nndsvda
from fastnmf.solvers.registry import SOLVERS


def numbers(n=60, d=20, seed=0, dtype=torch.float32):
    return torch.tensor(problem(n, d, 5, seed=seed)[0], dtype=dtype)


def error_of(A, Z, D):
    A, Z, D = (torch.as_tensor(M).double() for M in (A, Z, D))
    return float((A - Z @ D).norm() / A.norm())


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("max_iters", "; did you mean 'max_iter'?"),
        ("zzz", "."),
    ],
)
def test_unknown_option_raises_type_error_with_the_nearest(option, hint):
    message = re.escape(f"NMF has no option {option!r}{hint} It has: nb_concepts, device")
    with pytest.raises(TypeError, match=message) as raised:
        NMF(5, **{option: 1})
    assert "_self" not in str(raised.value)
    assert str(raised.value).endswith("distributed, tuning")


def new(**options):
    return NMF(5, **options)


def new_convex(**options):
    return ConvexNMF(5, **options)


def fit(**options):
    return NMF(5, seed=0).fit(numbers(), **options)


def partial_fit(**options):
    return NMF(5, seed=0).partial_fit(numbers(), **options)


@pytest.mark.parametrize(
    ("call", "option", "belongs"),
    [
        # how one run goes
        (new, "callback", "fit(A, callback=…)"),
        (new, "checkpoint", "fit(A, checkpoint=…)"),
        (partial_fit, "codes", "fit(A, codes=…)"),
        (new, "resume", "fit(A, checkpoint=…, resume=True)"),
        (new, "half_life", "partial_fit(A, half_life=…)"),
        # what the model is
        (fit, "tol", "NMF(tol=…)"),
        (partial_fit, "max_iter", "NMF(max_iter=…)"),
        # scikit-learn's
        (new, "n_components", "NMF(nb_concepts=…)"),
        (new, "random_state", "NMF(seed=…)"),
        (new, "alpha_W", "NMF(alpha_Z=…)"),
        (fit, "W", "NMF(init=(Z0, D0))"),
        # of other models
        (new, "offset", "SemiNMF(offset=…)"),
        (new_convex, "offset", "SemiNMF(offset=…)"),
        (new_convex, "top_k", "NMF(top_k=…)"),
        (new_convex, "n_components", "ConvexNMF(nb_concepts=…)"),
    ],
)
def test_option_in_the_wrong_place_is_refused_with_where_it_belongs(call, option, belongs):
    where = {new: "NMF", new_convex: "ConvexNMF"}.get(call, call.__name__)
    message = f"{where} has no option {option!r}; write {belongs}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(**{option: 1})


def test_field_of_tuning_is_refused_elsewhere_with_where_it_belongs():
    for field in fields(Tuning):
        message = re.escape(f"write NMF(tuning=fastnmf.Tuning({field.name}=…))")
        for call in (new, fit, partial_fit):
            with pytest.raises(TypeError, match=message):
                call(**{field.name: 1})


def test_number_of_concepts_by_another_name_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=re.escape("write NMF(nb_concepts=…)")):
        NMF(n_components=5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'nb_concepts'"):
        NMF()


def test_attribute_that_no_model_has_is_not_set_but_says_where_it_belongs():
    model = NMF(2)
    with pytest.raises(AttributeError, match=re.escape("write fit(A, callback=…)")):
        model.callback = print
    with pytest.raises(
        AttributeError, match=re.escape("write NMF(tuning=fastnmf.Tuning(block=…))")
    ):
        model.block = 3
    model.tol = 1e-3
    assert model.tol == 1e-3


def test_attribute_of_scikit_learns_is_refused_with_its_name_here():
    for name, here in [
        ("transform", "encode(A)"),
        ("fit_transform", "fit(A), which returns (Z, D)"),
        ("inverse_transform", "decode(Z)"),
        ("components_", "get_dictionary() or D"),
        ("n_iter_", "fit_info_.iterations"),
        ("reconstruction_err_", "fit_info_.relative_error"),
    ]:
        message = re.escape(f"NMF has no {name!r}; it is {here} here")
        with pytest.raises(AttributeError, match=message):
            getattr(NMF(5), name)
    assert not hasattr(NMF(5), "nonsense")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"nb_concepts": 0}, InvalidInput),
        ({"nb_concepts": True}, TypeError),
        ({"device": "magic"}, InvalidInput),
        ({"solver": "hal"}, InvalidInput),
        ({"solver": None}, TypeError),
        ({"tol": float("nan")}, InvalidInput),
        ({"max_iter": -1}, InvalidInput),
        ({"init": "nndsvdb"}, InvalidInput),
        ({"init": 3}, TypeError),
        ({"seed": -1}, InvalidInput),
        ({"seed": "0"}, TypeError),
        ({"backend": "tritn"}, InvalidInput),
        ({"tuning": {"block": 3}}, TypeError),
    ],
    ids=str,
)
def test_bad_option_is_refused_by_the_constructor(options, kind):
    with pytest.raises(kind, match=next(reversed(options))):
        NMF(**{"nb_concepts": 4, **options})


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"form": "norml"}, InvalidInput),
        ({"block": 0}, InvalidInput),
        ({"precision": "half"}, InvalidInput),
        ({"cuda_graph": "auto"}, TypeError),
        ({"checkpoint_seconds": -1}, InvalidInput),
    ],
    ids=str,
)
def test_bad_tuning_is_refused_when_it_is_made(options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        Tuning(**options)


def test_tuning_is_frozen_and_leaves_all_to_the_plan_by_default():
    assert Tuning() == Tuning(form=None, block=None, chunk_rows=None)
    assert hash(Tuning(block=3)) != hash(Tuning(block=4))
    with pytest.raises(AttributeError):
        Tuning().block = 3
    plain, tuned = (NMF(4, seed=0, max_iter=5, tol=0, tuning=t) for t in (None, Tuning()))
    assert torch.equal(plain.fit(numbers())[0], tuned.fit(numbers())[0])


def test_tuning_is_followed():
    model = NMF(9, max_iter=2, tol=0, tuning=Tuning(form="residual", block=3, chunk_rows=7))
    model.fit(numbers())
    info = model.fit_info_
    assert (info.form, info.block, info.tile_rows) == ("residual", 3, 7)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"callback": 3}, TypeError),
        ({"max_seconds": 0}, InvalidInput),
        ({"checkpoint": 3}, TypeError),
        ({"codes": 3}, TypeError),
    ],
    ids=str,
)
def test_bad_option_is_refused_by_fit(options, kind):
    model = NMF(4)
    with pytest.raises(kind, match=next(iter(options))):
        model.fit(numbers(), **options)
    assert not model.fitted


# every solver as most use it; what dtypes change is before the solvers
@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        *((solver, torch.float32) for solver in SOLVERS),
        ("hals", torch.float16),
        ("mu", torch.bfloat16),
        ("anls", torch.float64),
    ],
    ids=str,
)
def test_fit_returns_contiguous_factors_in_the_dtype_it_computes_in(solver, dtype):
    model = NMF(4, solver=solver, max_iter=3, tol=0, seed=0)
    Z, D = model.fit(numbers().to(dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert (Z.shape, D.shape) == ((60, 4), (4, 20))
    assert Z.dtype == D.dtype == expected
    assert Z.is_contiguous()
    assert D.is_contiguous()
    assert (Z >= 0).all()
    assert (D >= 0).all()
    assert model.fit_info_.relative_error == pytest.approx(
        error_of(numbers().to(dtype), Z, D), rel=1e-4
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_works_for_the_smallest_shapes_and_many_concepts(solver):
    for n, d, K in [(1, 9, 3), (9, 1, 3), (9, 6, 1), (1, 1, 1), (12, 5, 40)]:
        A = numbers(n, d) + 0.1
        model = NMF(K, solver=solver, max_iter=50, seed=0)
        Z, D = model.fit(A)
        assert torch.isfinite(Z).all(), (n, d, K)
        assert torch.isfinite(D).all(), (n, d, K)
        if min(n, d) == 1:
            assert error_of(A, Z, D) < 1e-3, (n, d, K)
        assert model.decode(model.encode(A)).shape == (n, d)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_does_not_depend_on_strides_or_on_the_kind_of_input(solver):
    A = numbers()
    options = {"solver": solver, "max_iter": 5, "tol": 0, "seed": 1}
    expected, _ = NMF(4, **options).fit(A)
    wide = torch.full((60, 41), torch.nan)
    wide[:, 1::2] = A
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(A), batch_size=7)
    for given in (
        wide[:, 1::2],
        A.T.contiguous().T,
        A.numpy(),
        loader,
        [A[:50], A[50:]],
        iter([A]),
    ):
        Z, _ = NMF(4, **options).fit(given)
        assert torch.allclose(Z, expected, rtol=1e-4, atol=1e-5)


# nndsvda could start K = 4, not K = 30
@pytest.mark.parametrize(("solver", "K"), [("hals", 4), ("mu", 30), ("pgd", 4), ("anls", 30)])
def test_seed_gives_the_same_bits_twice(solver, K):
    A = numbers()
    options = {"solver": solver, "max_iter": 5, "tol": 0}
    first, second, other = (
        NMF(K, seed=seed, init="random", **options).fit(A)[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_global_seed_gives_the_same_bits_twice():
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(NMF(30, max_iter=5, tol=0).fit(numbers())[0])
    assert torch.equal(*drawn)
    assert not torch.equal(NMF(30, max_iter=5, tol=0).fit(numbers())[0], drawn[0])


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    NMF(30, max_iter=2, tol=0, seed=0).fit(numbers())
    assert torch.equal(torch.rand(3), expected)


def test_random_starts_of_a_seed_are_independent_of_each_other():
    model = NMF(20, seed=0)
    A = numbers(60, 60)
    z, d = model.init_random_z(A).flatten(), model.init_random_d(A).flatten()
    assert abs(float(torch.corrcoef(torch.stack((z, d)))[0, 1])) < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_chunks_of_rows_do_not_change_the_fit(solver):
    A = numbers(dtype=torch.float64)
    fits = [
        NMF(6, solver=solver, max_iter=8, tol=0, seed=0, tuning=Tuning(chunk_rows=rows)).fit(A)[1]
        for rows in (None, 7, 1)
    ]
    assert torch.allclose(fits[0], fits[1], rtol=1e-8, atol=1e-10)
    assert torch.allclose(fits[0], fits[2], rtol=1e-8, atol=1e-10)


# K < d and K > d
@pytest.mark.parametrize(("solver", "K"), [("hals", 6), ("mu", 50), ("pgd", 6)])
def test_both_forms_give_the_same_fit(solver, K):
    A = numbers(dtype=torch.float64)
    normal, residual = (
        NMF(K, solver=solver, max_iter=8, tol=0, seed=0, tuning=Tuning(form=form))
        for form in ("normal", "residual")
    )
    Z1, Z2 = normal.fit(A)[0], residual.fit(A)[0]
    assert torch.allclose(Z1, Z2, rtol=1e-6, atol=1e-8)
    assert (normal.fit_info_.form, residual.fit_info_.form) == ("normal", "residual")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("fail", [Interrupted, KeyboardInterrupt])
def test_failed_fit_leaves_the_model_as_it_was(fail):
    model = NMF(4, seed=0, max_iter=3, tol=0)
    _, D = model.fit(numbers())
    before, info = D.clone(), model.fit_info_

    def interrupt(_):
        raise fail

    with pytest.raises(fail):
        model.fit(numbers(seed=1), callback=interrupt)
    assert model.fitted
    assert model.D is D
    assert torch.equal(D, before)
    assert model.fit_info_ is info
    fresh = NMF(4)
    with pytest.raises(fail):
        fresh.fit(numbers(), callback=interrupt)
    assert not fresh.fitted
    assert fresh.D is None


@pytest.mark.parametrize("bad", [torch.nan, -1.0])
def test_bad_data_is_refused_before_anything_is_computed(bad):
    A = numbers()
    A[17, 4] = bad
    model = NMF(4)
    with pytest.raises(InvalidInput, match="row 17, column 4"):
        model.fit(A, callback=lambda info: pytest.fail("computed on bad data"))
    good = NMF(4, max_iter=2, tol=0)
    good.fit(numbers())
    with pytest.raises(InvalidInput, match="row 17, column 4"):
        good.encode(A)


def test_wrong_number_of_features_is_refused():
    model = NMF(4, max_iter=2, tol=0)
    model.fit(numbers())
    with pytest.raises(InvalidInput, match="19"):
        model.encode(numbers()[:, :19])
    with pytest.raises(InvalidInput, match="4"):
        model.decode(torch.ones(3, 5))


def test_factors_that_overflow_are_an_error_and_not_nan():
    # each square is a float32, their sum is none
    with pytest.raises(ArithmeticError, match=r"of A is 1.* and ‖A‖² inf, too large .* float64"):
        NMF(4, seed=0).fit(numbers() * 5e18)


# small and large, of an array and of batches
@pytest.mark.parametrize(
    ("dtype", "scale", "batches"),
    [
        (torch.float32, 1e-30, False),
        (torch.float32, 1e30, True),
        (torch.float64, 1e-200, True),
        (torch.float64, 1e200, False),
    ],
    ids=str,
)
def test_data_whose_squares_are_no_numbers_are_refused(dtype, scale, batches):
    """Small data had a fit that stopped at once with relative_error 0 where it was 0.6; large
    float64 data failed in LAPACK."""
    model, A = NMF(4, seed=0), numbers(dtype=dtype) * scale
    with pytest.raises(ArithmeticError, match=r"largest entry of A is .*A / abs\(A\)\.max\(\)"):
        model.fit(list(A.split(20)) if batches else A, max_iter=0)
    assert not model.fitted


# squares at both ends of the dtype for every solver; nndsvda (K = 4) and random (K = 30) starts
@pytest.mark.parametrize(
    ("solver", "dtype", "scale", "concepts"),
    [
        *((solver, torch.float64, 1e-140, 4) for solver in SOLVERS),
        ("hals", torch.float32, 1e15, 4),
        ("anls", torch.float64, 1e140, 30),
        ("mu", torch.float32, 1e-18, 30),
        ("pgd", torch.float32, 1e-18, 30),
    ],
    ids=str,
)
def test_fit_does_not_depend_on_the_scale_of_the_data(solver, dtype, scale, concepts):
    """In float64 nndsvda took means below 1e-38 for zero, and mu and pgd then ended at once."""
    A = numbers(dtype=dtype)
    plain, scaled = (NMF(concepts, solver=solver, max_iter=20, tol=0, seed=0) for _ in range(2))
    plain.fit(A)
    scaled.fit(A * scale)
    assert scaled.fit_info_.relative_error == pytest.approx(
        plain.fit_info_.relative_error, rel=1e-2
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_never_raises_loss(solver):
    model = NMF(6, solver=solver, max_iter=40, tol=0, seed=0)
    model.fit(numbers(dtype=torch.float64))
    errors = [iteration.relative_error for iteration in model.fit_info_.history]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_callback_sees_every_iteration_and_may_stop():
    seen = []

    def third(info):
        seen.append(info)
        return info.iteration == 3

    model = NMF(4, tol=0)
    model.fit(numbers(), callback=third)
    assert [info.iteration for info in seen] == [1, 2, 3]
    assert all(0 < info.relative_error < 1 and info.relative_change > 0 for info in seen)
    assert model.fit_info_.stopped_by == "callback"
    *earlier, last = model.fit_info_.history
    assert earlier == seen[:-1]
    # of the factors that are returned, by the residual
    assert last.relative_error == pytest.approx(seen[-1].relative_error, rel=1e-5)


def test_verbose_shows_iteration_change_and_error(capsys):
    NMF(4, verbose=True, max_iter=3, tol=0).fit(numbers())
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "change=" in shown
    assert "error=0." in shown
    NMF(4, max_iter=3, tol=0).fit(numbers())
    assert capsys.readouterr().err == ""


def test_fit_info_is_true_and_readable():
    model = NMF(4, max_iter=400, tol=1e-3, seed=0)
    A = numbers()
    Z, D = model.fit(A)
    info = model.fit_info_
    assert info.converged
    assert info.history[-1].relative_change <= 1e-3 < info.history[-2].relative_change
    assert info.mean_l0 == pytest.approx(float((Z > 0).sum(1).float().mean()))
    assert info.dead_concepts == int(((Z == 0).all(0) | (D == 0).all(1)).sum())
    assert info.relative_error == pytest.approx(error_of(A, Z, D), rel=1e-4)
    assert info.seconds > info.history[-1].seconds > 0
    for word in ("hals", "normal", "backend", "converged", "relative error", "60 × 20"):
        assert word in str(info)
    assert info.as_dict()["iterations"] == info.iterations == len(info.history)


def test_not_converged_is_one_warning_that_says_what_to_do():
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol") as caught:
        NMF(4, max_iter=2).fit(numbers())
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NMF(4, max_iter=2, tol=0).fit(numbers())
        # a start was asked for
        NMF(4, seed=0).fit(numbers(), max_iter=0)


def test_zero_iterations_give_the_start():
    Z0, D0 = torch.rand(60, 4), torch.rand(4, 20)
    Z, D = NMF(4, init=(Z0, D0)).fit(numbers(), max_iter=0)
    assert torch.equal(Z, Z0)
    assert torch.equal(D, D0)


def test_given_start_is_taken_as_it_is_and_not_changed():
    Z0, D0 = torch.rand(60, 4), torch.rand(4, 20)
    kept = Z0.clone(), D0.clone()
    NMF(4, init=(Z0, D0), max_iter=3, tol=0).fit(numbers())
    assert torch.equal(Z0, kept[0])
    assert torch.equal(D0, kept[1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_concepts_do_not_die_from_an_unscaled_start(solver):
    """NNDSVDa as published overshoots the data, so that the first sweep sets many concepts to zero
    for good."""
    rng = np.random.default_rng(0)
    codes = rng.gamma(0.3, 1.0, (300, 12)) * (rng.random((300, 12)) < 0.3)
    A = torch.tensor(codes @ rng.gamma(0.5, 1.0, (12, 40)) + 0.1 * rng.random((300, 40)))
    unscaled = nndsvda(A, 20, torch.Generator().manual_seed(0))
    model = NMF(20, solver=solver, seed=0, max_iter=30, tol=0)
    model.fit(A)
    given = NMF(20, solver=solver, init=unscaled, max_iter=30, tol=0)
    given.fit(A)
    assert model.fit_info_.dead_concepts == given.fit_info_.dead_concepts == 0
    assert model.fit_info_.relative_error <= given.fit_info_.relative_error * 1.1


def test_concept_that_lost_its_codes_returns():
    """A concept with zero codes keeps its row of D, so that the next sweep can use it again."""
    A = numbers()
    Z0, D0 = torch.rand(60, 4), torch.rand(4, 20)
    Z0[:, 2] = 0
    model = NMF(4, init=(Z0, D0), max_iter=20, tol=0)
    Z, D = model.fit(A)
    assert Z[:, 2].any()
    assert D[2].any()
    assert model.fit_info_.dead_concepts == 0


def test_model_pickles_copies_and_loads_its_state():
    model = NMF(4, max_iter=500, seed=0)
    _, D = model.fit(numbers())
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin.D, D)
        assert twin.fit_info_ == model.fit_info_
    fresh = NMF(4)
    fresh.load_state_dict(model.state_dict())
    assert fresh.fitted
    assert torch.equal(fresh.encode(numbers()), model.encode(numbers()))
    with pytest.raises(RuntimeError, match="D"):
        NMF(5).load_state_dict(model.state_dict())


def test_device_follows_to():
    unfitted = NMF(4).to("meta")
    assert torch.device(unfitted.device).type == "meta"
    assert torch.device(unfitted.to("cpu").device).type == "cpu"
    assert NMF(4, device="cuda").double().device == "cuda"
    assert torch.device(NMF(4, device="cuda").to("cpu").device).type == "cpu"
    assert NMF(4).double().device == "cpu"
    model = NMF(4, max_iter=1, tol=0)
    model.fit(numbers())
    assert model.double().D.dtype == torch.float64
    model.device = torch.device("cpu")
    assert model.encode(numbers()).dtype == torch.float64


def test_autocast_does_not_reach_the_fit():
    A = numbers()
    plain, _ = NMF(4, max_iter=3, tol=0, seed=0).fit(A)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = NMF(4, max_iter=3, tol=0, seed=0).fit(A)
    assert torch.equal(plain, cast)


def test_load_dictionary_makes_a_fitted_model():
    D = torch.rand(4, 20)
    model = NMF(4).load_dictionary(D)
    assert torch.equal(model.get_dictionary(), D)
    assert model.encode(numbers()).shape == (60, 4)
    with pytest.raises(InvalidInput, match="5"):
        NMF(5).load_dictionary(D)
    with pytest.raises(NotFitted, match="fit"):
        NMF(4).get_dictionary()


def test_encode_takes_any_leading_shape():
    model = NMF(4, max_iter=20, seed=0)
    model.fit(numbers())
    A = numbers().reshape(3, 4, 5, 20)
    expected = model.encode(numbers())
    for given in (A, A.numpy(), A.transpose(0, 1)):
        Z = model.encode(given)
        assert Z.shape == (*given.shape[:-1], 4)
    assert torch.equal(model.encode(A).reshape(60, 4), expected)
    assert torch.equal(model.encode(A.transpose(0, 1)).transpose(0, 1), model.encode(A))
    with pytest.raises(InvalidInput, match="19"):
        model.encode(A[..., :19])
    A.requires_grad_()
    model.encode(A).sum().backward()
    assert A.grad.shape == A.shape
    assert A.grad.abs().max() > 0


def test_repr_says_what_the_model_is():
    assert repr(NMF(4, solver="mu")) == "NMF(4, device='cpu', solver='mu', not fitted)"


def patches(count):
    """Non-negative image patches (count, 192) with the statistics of photographs: smooth, with
    edges; 8 × 8 × 3."""
    image = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    photograph = image.load_sample_image("china.jpg") / 255.0
    rng = np.random.default_rng(0)
    top = rng.integers(0, photograph.shape[0] - 8, count)
    left = rng.integers(0, photograph.shape[1] - 8, count)
    return np.stack(
        [photograph[i : i + 8, j : j + 8].ravel() for i, j in zip(top, left, strict=True)]
    )


@pytest.mark.parametrize(
    ("which", "K"), [("digits", 32), pytest.param("patches", 64, marks=pytest.mark.thorough)]
)
def test_default_fit_reaches_the_error_of_scikit_learn(which, K):
    decomposition = pytest.importorskip(
        "sklearn.decomposition", reason="scikit-learn is not installed"
    )
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    A = datasets.load_digits().data if which == "digits" else patches(3000)
    A = A.astype(np.float32)
    theirs = decomposition.NMF(K, random_state=0).fit(A)
    expected = theirs.reconstruction_err_ / np.linalg.norm(A)
    model = NMF(K, seed=0)
    model.fit(A)
    assert model.fit_info_.relative_error <= 1.005 * expected
