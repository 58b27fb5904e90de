"""MiniBatchNMF: scikit-learn's iterates with 'mu', lower errors with 'hals', online learning."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from fastnmf.sklearn import NMF, MiniBatchNMF  # noqa: E402

K = 4


def numbers(n=90, d=20, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((n, 6)) @ generator.random((6, d)) + 0.1 * generator.random((n, d))


def start(n=90, d=20):
    generator = np.random.default_rng(1)
    return {"W": generator.random((n, K)), "H": generator.random((K, d))}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn_passes():
    """With the options with which scikit-learn checks its own: without fresh restarts the codes of
    fit_transform are those with which H was learned, and not those of transform."""
    check_estimator(MiniBatchNMF(batch_size=20, fresh_restarts=True, max_iter=50))


PENALTIES = {"alpha_W": 0.002, "alpha_H": 0.0005, "l1_ratio": 0.5}


@pytest.mark.parametrize(
    ("options", "max_iter"),
    [
        ({"batch_size": 40}, 5),
        ({"batch_size": 40, "forget_factor": 0.2, **PENALTIES}, 5),
        ({"batch_size": 30, "fresh_restarts": True, "fresh_restarts_max_iter": 7}, 2),
        # ends by either rule, at the same step
        ({"batch_size": 30, "tol": 3e-3, "max_no_improvement": None}, 200),
        ({"batch_size": 9, "max_no_improvement": 3}, 200),
        # its objective counts l2 twice, which ends a fit elsewhere
        ({"batch_size": 20, "max_no_improvement": 3, "alpha_W": 0.05, "alpha_H": 0.005}, 30),
    ],
    ids=["batches", "penalties", "fresh restarts", "by tol", "no improvement", "penalties, too"],
)
def test_same_start_gives_scikit_learns_components(options, max_iter):
    X, given = numbers(), start()
    options = {"tol": 0, "max_no_improvement": None, **options}
    options |= {"init": "custom", "max_iter": max_iter}
    theirs = decomposition.MiniBatchNMF(K, **options)
    W = theirs.fit_transform(X, **{name: F.copy() for name, F in given.items()})
    ours = MiniBatchNMF(K, **options)
    found = ours.fit_transform(X, **given)
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-7)
    assert (ours.n_steps_, ours.n_iter_) == (theirs.n_steps_, theirs.n_iter_)
    if options.get("fresh_restarts"):
        # ours are the optimum
        assert ours.reconstruction_err_ < theirs.reconstruction_err_
    else:
        np.testing.assert_allclose(found, W, rtol=1e-7)
        assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-9)
    error = np.linalg.norm(X - found @ ours.components_)
    assert ours.reconstruction_err_ == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("penalties", [{}, PENALTIES], ids=["plain", "penalties"])
def test_partial_fit_gives_scikit_learns_components(penalties):
    X, H = numbers(), start()["H"]
    given = {"W": start(30)["W"], "H": H}
    models = [
        kind(K, init="custom", forget_factor=0.5, batch_size=10, **penalties)
        for kind in (decomposition.MiniBatchNMF, MiniBatchNMF)
    ]
    for model in models:
        for batch in (X[:30], X[30:50], X[50:]):
            copies = {name: F.copy() for name, F in given.items()}
            model.partial_fit(batch, **copies)
    theirs, ours = models
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-7)
    assert ours.n_steps_ == theirs.n_steps_ == 3


def test_hals_leaves_a_lower_error_after_as_many_steps():
    X, errors = numbers(600, 30), {}
    for solver in ("mu", "hals", "pgd", "anls"):
        model = MiniBatchNMF(K, solver=solver, batch_size=100, max_iter=5, tol=0, random_state=0)
        errors[solver] = model.fit(X).reconstruction_err_
    best = NMF(K, random_state=0, max_iter=500).fit(X).reconstruction_err_
    assert errors["hals"] < 0.9 * errors["mu"]
    assert errors["hals"] < 1.5 * best
    assert max(errors.values()) < 2.5 * best


def test_penalties_of_hals_are_those_of_the_whole_data():
    """One batch has the objective of NMF: the slopes of H end at zero."""
    X = numbers(30, 10)
    options = {"alpha_W": 0.002, "alpha_H": 0.004, "l1_ratio": 0.5, "random_state": 0}
    ends = {"max_iter": 800, "tol": 0, "max_no_improvement": None}
    model = MiniBatchNMF(K, solver="hals", forget_factor=0.5, **options, **ends)
    W, H = model.fit_transform(X), model.components_
    weight = len(X) * model.alpha_H / 2
    slope = W.T @ (W @ H - X) + weight + weight * H
    # sums that counted twice as many rows would be off by the weight
    assert slope.min() > -0.4 * weight
    assert np.abs(slope[H > 0]).max() < 0.4 * weight


def test_learning_goes_on_after_a_fit_and_a_pickle():
    X = numbers()
    model = MiniBatchNMF(K, solver="hals", batch_size=30, random_state=0).fit(X)
    again = pickle.loads(pickle.dumps(model))
    for each in (model, again):
        each.partial_fit(X[:30])
    assert np.array_equal(model.components_, again.components_)
    assert model.n_steps_ == again.n_steps_
    assert not hasattr(clone(model), "components_")


@pytest.mark.parametrize(("first", "then"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_learning_goes_on_with_batches_of_another_dtype(first, then):
    X = numbers()
    model, same = (MiniBatchNMF(K, random_state=0).partial_fit(X.astype(first)) for _ in range(2))
    model.partial_fit(X.astype(then))
    same.partial_fit(X.astype(np.float32).astype(first))
    assert model.components_.dtype == first
    np.testing.assert_allclose(model.components_, same.components_, rtol=1e-5)


def test_transform_is_the_optimum_and_its_sweeps_are_limited():
    X = numbers()
    model = MiniBatchNMF(K, random_state=0, batch_size=30, transform_max_iter=2).fit(X)
    slope = (model.transform(X) @ model.components_ - X) @ model.components_.T
    assert slope.min() > -1e-8
    assert model._sweeps == 2


def test_ends_are_reported_and_printed(capsys):
    X = numbers()
    with pytest.warns(ConvergenceWarning, match="iterations 1 reached") as record:
        MiniBatchNMF(K, max_iter=1, batch_size=30, random_state=0).fit(X)
    assert record[0].filename == __file__
    MiniBatchNMF(K, batch_size=30, random_state=0, verbose=1, tol=0.1).fit(X)
    printed = capsys.readouterr().out
    assert "Minibatch step 1/600: mean batch cost: " in printed
    assert "Converged (small H change) at step" in printed


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_what_cannot_be_done_is_refused(call):
    for options, message in (
        ({"beta_loss": "itakura-saito"}, r"sklearn.decomposition.MiniBatchNMF"),
        ({"init": "nndsvd", "n_components": 21}, r"can only be used when"),
        ({"batch_size": 0}, r"'batch_size' parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(MiniBatchNMF(**options), call)(numbers())


@pytest.mark.parametrize("d", [20, K], ids=["d > K", "d = K"])
@pytest.mark.parametrize(("first", "second"), [("mu", "hals"), ("hals", "mu")])
def test_solver_with_other_sums_is_refused_while_learning(first, second, d):
    """With as many features as components the sums have equal shapes, and other meanings."""
    model = MiniBatchNMF(K, solver=first, random_state=0).partial_fit(numbers(d=d))
    components = model.components_.copy()
    with pytest.raises(ValueError, match="other sums over batches"):
        model.set_params(solver=second).partial_fit(numbers(d=d))
    assert np.array_equal(model.components_, components)
    model.set_params(solver=first).partial_fit(numbers(d=d))


def test_solvers_with_the_same_sums_go_on_from_each_other():
    model = MiniBatchNMF(K, solver="hals", random_state=0).partial_fit(numbers())
    model.set_params(solver="anls").partial_fit(numbers())
    assert model.n_steps_ == 2
