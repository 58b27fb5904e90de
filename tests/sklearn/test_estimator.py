"""NMF and non_negative_factorization: scikit-learn's iterates, parameters and tools."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
from joblib import parallel_backend  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402
from sklearn.utils._param_validation import InvalidParameterError  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import fastnmf  # noqa: E402
from fastnmf.sklearn import NMF, non_negative_factorization  # noqa: E402

K = 4
# the same arithmetic in another order
ROUNDING = {np.float64: 1e-9, np.float32: 2e-4}


def numbers(n=60, d=20, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).random((n, d)).astype(dtype)


def start(n=60, d=20, dtype=np.float64):
    return {"W": numbers(n, K, dtype, 1), "H": numbers(K, d, dtype, 2)}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn_passes():
    check_estimator(NMF())


PENALTIES = [
    {},
    {"alpha_W": 0.01, "l1_ratio": 0.5},
    {"alpha_W": 0.002, "alpha_H": 0.0005, "l1_ratio": 1.0},
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("penalties", PENALTIES, ids=["none", "both kinds", "l1 of two weights"])
@pytest.mark.parametrize("solver", ["cd", "mu"])
def test_same_start_and_iterations_give_scikit_learns_factors(solver, penalties, dtype):
    X = numbers(dtype=dtype)
    options = {"init": "custom", "solver": solver, "max_iter": 12, "tol": 0, **penalties}
    theirs = decomposition.NMF(K, **options)
    W = theirs.fit_transform(X, **{k: F.copy() for k, F in start(dtype=dtype).items()})
    ours = NMF(K, **options)
    found, bound = ours.fit_transform(X, **start(dtype=dtype)), ROUNDING[dtype]
    np.testing.assert_allclose(found, W, rtol=0, atol=bound * W.max())
    H = theirs.components_
    np.testing.assert_allclose(ours.components_, H, rtol=0, atol=bound * H.max())
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=bound)
    assert ours.n_iter_ == 12
    assert found.dtype == ours.components_.dtype == dtype


def test_error_is_no_higher_than_scikit_learns():
    X = numbers(300, 40) @ np.diag(np.linspace(0.1, 1, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = decomposition.NMF(8).fit(X).reconstruction_err_
        ours = NMF(8, random_state=0).fit(X).reconstruction_err_
    assert ours <= 1.001 * theirs


def test_reconstruction_error_and_summary_are_those_of_the_factors():
    X = numbers()
    model = NMF(K, random_state=0, max_iter=500)
    W = model.fit_transform(X)
    error = np.linalg.norm(X - W @ model.components_)
    assert model.reconstruction_err_ == pytest.approx(error, rel=1e-9)
    assert model.n_iter_ == model.fit_info_.iterations
    assert model.fit_info_.stopped_by == "error"
    assert model.n_components_ == len(model.components_) == K
    assert np.allclose(model.inverse_transform(W), W @ model.components_)


@pytest.mark.parametrize("penalties", PENALTIES[:2], ids=["none", "both kinds"])
def test_transform_is_the_optimum(penalties):
    X = numbers()
    model = NMF(K, random_state=0, **penalties).fit(X)
    W = model.transform(X)
    l1 = X.shape[1] * model.alpha_W * model.l1_ratio
    l2 = X.shape[1] * model.alpha_W * (1 - model.l1_ratio)
    slope = (W @ model.components_ - X) @ model.components_.T + l1 + l2 * W
    assert slope.min() > -1e-8
    assert np.abs(slope[W > 0]).max() < 1e-8


@pytest.mark.parametrize(
    ("given", "components"),
    [(3, 3), ("auto", 20), (None, 20)],
)
def test_number_of_components_is_scikit_learns(given, components):
    model = NMF(given, max_iter=2, tol=0).fit(numbers())
    assert model.n_components_ == components == model._n_components


@pytest.mark.parametrize("name", ["W", "H"])
def test_one_factor_is_enough_for_a_custom_start(name):
    X, model = numbers(), NMF(init="custom", max_iter=1, tol=0)
    model.fit(X, **{name: start()[name]})
    assert model.n_components_ == K
    # the other is the optimum, so that an iteration ends lower than from any other
    assert (
        model.reconstruction_err_
        < NMF(init="custom", max_iter=1, tol=0).fit(X, **start()).reconstruction_err_
    )


def test_starts_are_not_changed_and_ignored_ones_are_named():
    X, given = numbers(), start()
    before = {name: F.copy() for name, F in given.items()}
    NMF(K, init="custom", max_iter=3, tol=0).fit(X, **given)
    for name, F in given.items():
        assert np.array_equal(F, before[name])
    with pytest.warns(RuntimeWarning, match="provided W or H are ignored"):
        NMF(K, max_iter=3, tol=0).fit(X, **given)
    with pytest.raises(ValueError, match=r"init='custom' needs W, H or both"):
        NMF(K, init="custom").fit(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_loss": "kullback-leibler", "solver": "mu"}, r"beta_loss='kullback-leibler'.*sklea"),
        ({"beta_loss": 1.5}, r"beta_loss=1.5: .*sklearn.decomposition.NMF"),
        ({"shuffle": True}, r"shuffle=True: .*sklearn.decomposition.NMF"),
        ({"init": "nndsvd", "n_components": 21}, r"init = 'nndsvd' can only be used when"),
        ({"stop": "never"}, r"'stop' parameter of NMF must be a str among"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NMF(**options).fit(numbers())
    n_components = options.pop("n_components", "auto")
    with pytest.raises(ValueError, match=message):
        non_negative_factorization(numbers(), n_components=n_components, **options)


def test_beta_loss_2_is_frobenius():
    X = numbers()
    one, other = (NMF(K, beta_loss=loss, random_state=0).fit(X) for loss in (2.0, "frobenius"))
    assert np.array_equal(one.components_, other.components_)


def test_warning_of_max_iter_is_of_both_libraries_and_names_the_callers_line():
    with pytest.warns(ConvergenceWarning, match="iterations 2 reached. Increase it") as record:
        NMF(K, max_iter=2).fit(numbers())
    assert len(record) == 1
    assert issubclass(record[0].category, fastnmf.ConvergenceWarning)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NMF(K, max_iter=2, tol=0).fit(numbers())


@pytest.mark.parametrize("make", [int, np.random.RandomState])
def test_random_state_repeats_the_fit(make):
    X = numbers()
    first, again, other = (
        NMF(K, init="random", random_state=state, max_iter=5, tol=0).fit_transform(X)
        for state in (make(3), make(3), 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_random_state_numpys_generator_decides():
    X, fits = numbers(), []
    for _ in range(2):
        np.random.seed(5)
        fits.append(NMF(K, init="random", max_iter=5, tol=0).fit_transform(X))
    assert np.array_equal(*fits)


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ({"stop": "change"}, "stopped_by", "tol"),
        ({"accelerate": False}, "accelerated", False),
        ({"solver": "mu"}, "accelerated", False),
        ({"solver": "mu", "accelerate": True}, "accelerated", True),
        ({"solver": "pgd"}, "solver", "pgd"),
        ({"unit_norm": True}, "unit_norm", True),
        ({"backend": "torch"}, "backend", "torch"),
        ({"tuning": fastnmf.Tuning(form="residual")}, "form", "residual"),
        ({"init": "nndsvdar"}, "init", "nndsvdar"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_options_of_fastnmf_are_used(option, field, value):
    model = NMF(K, random_state=0, **option).fit(numbers())
    assert getattr(model.fit_info_, field) == value


def test_max_memory_and_device_reach_the_fit():
    with pytest.raises(ValueError, match="max_memory"):
        NMF(K, max_memory="much").fit(numbers())
    with pytest.raises(ValueError, match="device"):
        NMF(K, device="gpu").fit(numbers())


def test_model_is_cloned_pickled_searched_and_piped():
    X = numbers(80)
    model = NMF(K, random_state=0, stop="change", tuning=fastnmf.Tuning(form="normal"))
    assert clone(model).get_params() == model.get_params()
    W = model.fit_transform(X)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.transform(X), model.transform(X))
    assert again.fit_info_.iterations == model.n_iter_
    assert W.shape == (80, K)

    def score(model, X, y=None):
        return -np.linalg.norm(X - model.inverse_transform(model.transform(X)))

    with parallel_backend("threading", n_jobs=2):
        search = GridSearchCV(NMF(random_state=0), {"n_components": [1, 6]}, scoring=score, cv=2)
        assert search.fit(X).best_params_ == {"n_components": 6}
    piped = make_pipeline(MinMaxScaler(), NMF(K, random_state=0)).fit(X)
    assert piped.transform(X).shape == (80, K)


def test_names_of_features_go_in_and_come_out():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(numbers(), columns=[f"gene {i}" for i in range(20)])
    model = NMF(2, random_state=0).set_output(transform="pandas")
    W = model.fit_transform(frame)
    assert list(W.columns) == ["nmf0", "nmf1"] == list(model.get_feature_names_out())
    assert list(model.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame.rename(columns={"gene 0": "protein"}))


@pytest.mark.parametrize("given", [{}, {"n_components": K}], ids=["auto", "K"])
def test_function_is_the_estimator(given):
    X, H = numbers(), start()["H"]
    options = {"random_state": 0, "alpha_W": 0.01, "tol": 1e-3}
    W, D, iterations = non_negative_factorization(X, n_components=K, **options)
    model = NMF(K, **options)
    assert np.array_equal(model.fit_transform(X), W)
    assert np.array_equal(model.components_, D)
    assert model.n_iter_ == iterations
    W, same, iterations = non_negative_factorization(X, H=D, update_H=False, **options, **given)
    assert same is D
    assert iterations == 1
    assert np.array_equal(model.transform(X), W)
    with pytest.warns(RuntimeWarning, match="the provided initial W is not used"):
        non_negative_factorization(X, W=W, H=H, update_H=False, **given)


def test_function_takes_options_of_fastnmf_and_no_other():
    X = numbers()
    W, *_ = non_negative_factorization(X, n_components=K, unit_norm=True, random_state=0)
    assert W.shape == (60, K)
    with pytest.raises(TypeError, match="sparse"):
        non_negative_factorization(X, sparse=True)


def test_sparse_data_give_the_factors_of_dense_ones():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is an extra")
    X = np.where(numbers() > 0.7, numbers(), 0)
    options = {"n_components": K, "random_state": 0, "max_iter": 20, "tol": 0}
    expected = NMF(**options).fit(X)
    for kind in (sparse.csr_matrix, sparse.csc_array):
        model = NMF(**options).fit(kind(X))
        np.testing.assert_allclose(model.components_, expected.components_, rtol=0, atol=1e-8)
        np.testing.assert_allclose(model.transform(kind(X)), expected.transform(X), atol=1e-8)
        assert model.reconstruction_err_ == pytest.approx(expected.reconstruction_err_, rel=1e-9)
        given = {"H": model.components_, "n_components": K, "update_H": False}
        W, *_ = non_negative_factorization(kind(X), **given)
        assert np.array_equal(W, model.transform(kind(X)))
        started = NMF(init="custom", max_iter=1, tol=0).fit(kind(X), W=W)
        assert started.reconstruction_err_ == pytest.approx(model.reconstruction_err_, rel=0.01)


def test_error_counts_values_that_are_stored_in_parts():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is an extra")
    X = np.where(numbers() > 0.7, numbers(), 0)
    whole, options = sparse.csr_matrix(X), {"random_state": 0, "max_iter": 5, "tol": 0}
    parts = sparse.csr_matrix(
        (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), 2 * whole.indptr), X.shape
    )
    expected = NMF(K, **options).fit(whole).reconstruction_err_
    assert NMF(K, **options).fit(parts).reconstruction_err_ == pytest.approx(expected, rel=1e-9)
    assert parts.nnz == 2 * whole.nnz


def test_components_that_are_a_list_are_returned_as_an_array():
    H = start()["H"]
    _, same, _ = non_negative_factorization(numbers(), H=H.tolist(), update_H=False)
    assert np.array_equal(same, H)
    assert isinstance(same, np.ndarray)


@pytest.mark.parametrize("update_H", ["no", 0, None])
def test_update_H_that_is_no_bool_is_refused_as_by_scikit_learn(update_H):
    with pytest.raises(InvalidParameterError, match="'update_H' parameter"):
        non_negative_factorization(numbers(), H=start()["H"], n_components=K, update_H=update_H)


def test_codes_of_another_number_of_components_are_refused():
    model = NMF(K, random_state=0, max_iter=2, tol=0).fit(numbers())
    with pytest.raises(ValueError, match=rf"it must be \(n_samples, {K}\)"):
        model.inverse_transform(np.ones((3, K + 1)))
