"""fastnmf.NMF in the place of Overcomplete's: what its users and its tests rely on, the contract.

One test for each row of the contract; the rest is what Overcomplete's own tests check.
"""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from half_steps import saved_and_loaded

from fastnmf import NMF, InvalidInput
from fastnmf.solvers.registry import SOLVERS

N, D_IN, K = 50, 10, 5
MANY = 100


@pytest.fixture
def A():
    """Uniform in [0, 1): hard to compress, so that errors of all methods are far from zero."""
    return torch.rand(N, D_IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def global_seed():
    torch.manual_seed(0)


def squared_error(A, A_hat):
    return float((A.double() - A_hat.double()).square().sum())


def mean_relative_row_error(A, A_hat):
    """Mean over rows of ‖a − â‖ / ‖a‖: Overcomplete's relative_avg_l2_loss."""
    A, A_hat = (torch.as_tensor(M).double() for M in (A, A_hat))
    return float(((A - A_hat).norm(dim=1) / (A.norm(dim=1) + 1e-6)).mean())


# what Overcomplete's own tests check


def test_constructor_keeps_concepts_and_solver():
    for solver in SOLVERS:
        model = NMF(nb_concepts=K, solver=solver)
        assert (model.nb_concepts, model.solver) == (K, solver)


def test_unknown_solver_is_an_assertion_error():
    with pytest.raises(AssertionError, match=r"fastest.*hals, mu, pgd, anls"):
        NMF(nb_concepts=K, solver="fastest")


@pytest.mark.parametrize("solver", SOLVERS)
def test_factors_and_codes_are_non_negative_and_have_their_shapes(A, solver):
    model = NMF(nb_concepts=K, solver=solver, max_iter=2)
    Z, D = model.fit(A)
    assert Z.shape == (N, K)
    assert D.shape == (K, D_IN)
    assert (Z >= 0).all()
    assert (D >= 0).all()
    Z = model.encode(A)
    A_hat = model.decode(Z)
    assert Z.shape == (N, K)
    assert A_hat.shape == A.shape
    assert (Z >= 0).all()
    assert (A_hat >= 0).all()


def test_fit_beats_the_random_start(A):
    for solver in SOLVERS:
        model = NMF(nb_concepts=K, solver=solver, max_iter=100)
        started = squared_error(A, model.init_random_z(A) @ model.init_random_d(A))
        model.fit(A)
        assert squared_error(A, model.decode(model.encode(A))) < started


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_data_gives_exactly_zero_factors(solver):
    for concepts in (K, MANY):
        Z, D = NMF(nb_concepts=concepts, solver=solver).fit(torch.zeros(N, D_IN))
        assert torch.norm(Z) == 0
        assert torch.norm(D) == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_many_concepts_beat_a_single_one(A, solver):
    errors = []
    for concepts in (MANY, 1):
        model = NMF(nb_concepts=concepts, solver=solver)
        model.fit(A)
        errors.append(squared_error(A, model.decode(model.encode(A))))
    many, single = errors
    assert many <= single


@pytest.mark.parametrize("solver", SOLVERS)
def test_long_fit_is_not_far_from_scikit_learns(A, solver):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
    reference = decomposition.NMF(n_components=K, solver="mu", max_iter=1000)
    A_hat = reference.fit_transform(A.numpy()) @ reference.components_
    Z, D = NMF(nb_concepts=K, solver=solver, max_iter=10_000).fit(A)
    assert mean_relative_row_error(A, Z @ D) <= 2 * mean_relative_row_error(A, A_hat)


@pytest.mark.parametrize("solver", ["hals", "anls"])
def test_whole_model_saves_and_loads(A, solver):
    model = NMF(nb_concepts=K, solver=solver, max_iter=2)
    model.fit(A)
    again = saved_and_loaded(model)
    assert torch.equal(again.D, model.D)
    assert torch.equal(again.encode(A), model.encode(A))


# the contract


def test_positional_arguments_keep_their_order():
    parameters = list(inspect.signature(NMF).parameters)
    assert parameters[:5] == ["nb_concepts", "device", "solver", "tol", "verbose"]
    model = NMF(K, "cpu", "mu", 1e-3, True)
    assert (model.device, model.solver, model.tol, model.verbose) == ("cpu", "mu", 1e-3, True)


def test_max_iter_of_the_constructor_is_honoured_and_fits_own_wins(A):
    model = NMF(K, max_iter=3, tol=0)
    model.fit(A)
    assert model.fit_info_.iterations == 3
    model.fit(A, max_iter=4)
    assert model.fit_info_.iterations == 4
    model.fit(A, 5)
    assert model.fit_info_.iterations == 5


def test_max_iter_is_500_by_default(A):
    model = NMF(K, tol=0)
    model.fit(A)
    assert model.fit_info_.iterations == 500


def test_bad_values_are_both_kinds_of_error(A):
    model = NMF(K, max_iter=2)
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match="solver='als'"):
            NMF(K, solver="als")
        with pytest.raises(kind, match=r"negative.*row 3, column 7"):
            model.fit(A.index_put((torch.tensor(3), torch.tensor(7)), torch.tensor(-0.25)))
    model.fit(A)
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match="negative"):
            model.encode(-A)


def test_unfitted_model_raises_value_error(A):
    model = NMF(K)
    assert not model.fitted
    for call in (model.encode, model.decode, lambda _: model.get_dictionary()):
        with pytest.raises(ValueError, match="fit"):
            call(A)


def test_dictionary_is_a_buffer_and_none_before_fit(A):
    model = NMF(K, max_iter=2)
    assert model.D is None
    assert "D" in model._buffers
    _, D = model.fit(A)
    assert model.fitted
    assert torch.equal(model.get_dictionary(), D)
    assert torch.equal(dict(model.named_buffers())["D"], D)
    assert next(model.buffers()).device == D.device
    assert list(model.parameters()) == []


def test_state_dict_loads_into_a_fresh_model(A):
    model = NMF(K, max_iter=2)
    model.fit(A)
    fresh = NMF(K)
    fresh.load_state_dict(model.state_dict())
    assert fresh.fitted
    assert torch.equal(fresh.D, model.D)
    assert torch.equal(fresh.encode(A), model.encode(A))


@pytest.mark.parametrize(("concepts", "expected"), [(D_IN, "nndsvda"), (D_IN + 1, "random")])
def test_start_is_nndsvda_when_concepts_fit_into_the_data(A, concepts, expected):
    starts = [NMF(concepts, init=init, seed=0).fit(A, 0) for init in ("auto", expected)]
    for F, F_expected in zip(*starts, strict=True):
        assert torch.equal(F, F_expected)


def test_nndsvda_is_scikit_learns_up_to_its_random_svd(A):
    sklearn_nmf = pytest.importorskip(
        "sklearn.decomposition._nmf", reason="scikit-learn is an extra"
    )
    expected = sklearn_nmf._initialize_nmf(A.numpy(), K, init="nndsvda", random_state=0)
    for F, F_expected in zip(NMF(K).init_nndsvda(A), expected, strict=True):
        np.testing.assert_allclose(F.numpy(), F_expected, rtol=0, atol=1e-2 * F_expected.max())


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_stops_at_the_first_change_of_both_factors_below_tol(A, solver):
    pairs = [NMF(K, solver=solver, seed=0, tol=0).fit(A, i) for i in range(12)]
    changes = [
        max(float((F - F0).double().norm() / F.double().norm()) for F0, F in zip(*two, strict=True))
        for two in itertools.pairwise(pairs)
    ]
    tol = 1.1 * min(changes)
    expected = 1 + next(i for i, change in enumerate(changes) if change <= tol)
    model = NMF(K, solver=solver, seed=0, tol=tol)
    model.fit(A)
    assert model.fit_info_.iterations == expected


def test_unfitted_model_moves_to_meta():
    model = NMF(K).to("meta")
    assert torch.device(model.device).type == "meta"
    assert model.D is None


def test_unfitted_model_saves_and_loads(A):
    again = saved_and_loaded(NMF(K, solver="mu"))
    assert again.solver == "mu"
    assert not again.fitted
    again.fit(A, 2)


def test_data_may_be_an_array_or_an_iterable(A):
    expected, _ = NMF(K, max_iter=5, seed=0).fit(A)
    DataLoader, TensorDataset = torch.utils.data.DataLoader, torch.utils.data.TensorDataset
    for given in (
        A.numpy(),
        DataLoader(TensorDataset(A), batch_size=16),
        DataLoader(A, batch_size=16),
        iter(A.split(16)),
    ):
        Z, _ = NMF(K, max_iter=5, seed=0).fit(given)
        torch.testing.assert_close(Z, expected)


# Overcomplete's NMF fails in the first two, and mostly in float64
@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        ("mu", torch.float16),
        ("hals", torch.bfloat16),
        ("anls", torch.float32),
        ("pgd", torch.float64),
    ],
    ids=str,
)
def test_every_floating_dtype_fits_and_encodes(A, solver, dtype):
    model = NMF(K, solver=solver, max_iter=20)
    Z, D = model.fit(A.to(dtype))
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    assert Z.dtype == D.dtype == computed
    assert model.encode(A.to(dtype)).dtype == computed
    assert mean_relative_row_error(A, Z @ D) < 0.5


def test_verbose_shows_a_progress_bar(A, capsys):
    for verbose in (True, False):
        NMF(K, max_iter=5, verbose=verbose).fit(A)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("error" in shown.err) is verbose
        assert ("/5" in shown.err) is verbose


def test_anls_encodes_exactly(A):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is an extra")
    model = NMF(K, solver="anls", max_iter=20)
    _, D = model.fit(A.double())
    expected = [optimize.nnls(D.numpy().T, row)[0] for row in A.double().numpy()]
    np.testing.assert_allclose(model.encode(A.double()).numpy(), expected, rtol=0, atol=1e-9)


def test_anls_does_not_stall_where_an_exact_factorisation_exists():
    factors = torch.rand(60, 4).relu(), torch.rand(4, 30)
    A = factors[0] @ factors[1]
    Z, D = NMF(4, solver="anls", tol=0, max_iter=300).fit(A)
    assert squared_error(A, Z @ D) < 1e-4 * float(A.square().sum())


# from the first iteration to the last, with fewer concepts than features, as many, and more
@pytest.mark.parametrize(
    ("concepts", "iterations"), [(3, 1), (3, 20), (D_IN, 5), (D_IN, 100), (25, 1), (25, 100)]
)
def test_pgd_is_never_worse_than_overcompletes(A, concepts, iterations):
    try:
        from overcomplete.optimization.nmf import NMF as theirs
    except (ImportError, AttributeError) as error:
        pytest.skip(f"Overcomplete cannot be imported here: {error}")
    Z, D = NMF(concepts, solver="pgd", tol=0).fit(A, iterations)
    Z_theirs, D_theirs = theirs(concepts, solver="pgd", tol=0).fit(A, iterations)
    assert squared_error(A, Z @ D) <= squared_error(A, Z_theirs @ D_theirs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_encode_is_differentiable(A, solver):
    model = NMF(K, solver=solver, max_iter=50)
    model.fit(A)
    X = A[:8].clone().requires_grad_()
    model.encode(X).sum().backward()
    assert X.grad.isfinite().all()
    assert X.grad.abs().max() > 0
    assert not model.encode(A[:8]).requires_grad


def test_decode_takes_codes_of_any_shape(A):
    """These were refused, and Overcomplete's decode takes them."""
    model = NMF(5, seed=0)
    _, D = model.fit(A, max_iter=2)
    for leading in ((), (2, 3)):
        Z = torch.rand(*leading, 5)
        assert torch.equal(model.decode(Z), Z @ D)
        with pytest.raises(InvalidInput, match="6"):
            model.decode(torch.rand(*leading, 6))


def test_decode_is_differentiable(A):
    model = NMF(K, max_iter=5)
    model.fit(A)
    Z = torch.rand(8, K, requires_grad=True)
    model.decode(Z).sum().backward()
    torch.testing.assert_close(Z.grad, model.D.sum(dim=1).expand(8, K))


def test_sanitizers_give_float32_arrays(A):
    model = NMF(K)
    for x in (model.sanitize_np_input(A.double()), model.sanitize_np_codes(A[:, :K])):
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float32
    for call, x in ((model.sanitize_np_input, A[0]), (model.sanitize_np_codes, A)):
        with pytest.raises(AssertionError):
            call(x)


def test_private_names_that_overcompletes_users_touch_exist(A):
    model = NMF(K, max_iter=2)
    assert list(NMF._SOLVERS) == ["hals", "mu", "pgd", "anls"]
    with pytest.raises(ValueError, match="fit"):
        model._assert_fitted()
    model._set_fitted(note=1)
    assert model.fitted
    assert model._fitted_info == {"note": 1}


def test_device_may_be_assigned_after_a_move(A):
    """xplique moves a model and then writes `.device` itself."""
    model = NMF(K, max_iter=2)
    model.fit(A)
    model.to("cpu")
    model.device = torch.device("cpu")
    assert model.encode(A).device.type == "cpu"
