"""Data, dictionaries, starts and penalties at the limits of a dtype: the same result at any scale
in the range that is stated, or an error at once that names what is too large or too small."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.solvers.registry import SOLVERS

K = 4
A = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
D = torch.rand(K, 12, generator=torch.Generator().manual_seed(1))


def error_of(A, Z, D):
    A, Z, D = (M.double() for M in (A, Z, D))
    return float((A - Z @ D).norm() / A.norm())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_codes_do_not_depend_on_the_scale_of_data_and_dictionary(solver):
    expected = error_of(A, NMF(K, solver=solver).load_dictionary(D).encode(A), D)
    for of_A, of_D in ((1e-15, 1), (1e15, 1), (1, 1e-15), (1, 1e18), (1e-10, 1e10), (1e-15, 1e18)):
        model = NMF(K, solver=solver).load_dictionary(D * of_D)
        Z = model.encode(A * of_A)
        assert error_of(A * of_A, Z, D * of_D) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("of_A", "of_D", "word"), [(1e-30, 1e30, "small"), (1e30, 1e-30, "large")])
def test_codes_that_are_no_numbers_of_the_dtype_are_named(of_A, of_D, word):
    with pytest.raises(ArithmeticError, match=f"codes are too {word} for float32"):
        NMF(K).load_dictionary(D * of_D).encode(A * of_A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_cannot_be_squared_is_named(solver, dtype):
    small, large = (1e-25, 1e25) if dtype == torch.float32 else (1e-180, 1e180)
    X, B = A.to(dtype), D.to(dtype)
    for scale, word in ((small, "small"), (large, "large")):
        named = "the dictionary D", "A"
        dictionary, data = (rf"largest entry of {F} is .* too {word}" for F in named)
        with pytest.raises(ArithmeticError, match=dictionary):
            NMF(K, solver=solver).load_dictionary(B * scale).partial_fit(X)
        for act in (
            NMF(K, solver=solver).load_dictionary(B).partial_fit,
            NMF(K, solver=solver).partial_fit,
            NMF(K, solver=solver).fit,
        ):
            with pytest.raises(ArithmeticError, match=data):
                act(X * scale)
        start = torch.rand(40, K, dtype=dtype) * scale
        with pytest.raises(InvalidInput, match=f"the start Z0 is .* too {word}"):
            NMF(K, solver=solver, init=(start, B)).fit(X)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_norm_that_overflows_is_named(solver):
    with pytest.raises(ArithmeticError, match=r"largest entry of A is 1.8.*‖A‖² .* too large"):
        NMF(K, solver=solver).fit(A * 1.8e19)


def test_a_dictionary_that_is_not_finite_is_named():
    model = NMF(K).load_dictionary(D)
    model.D = torch.full_like(D, float("nan"))
    for act in (model.encode, model.partial_fit):
        with pytest.raises((InvalidInput, ArithmeticError), match=r"the dictionary D .*nan"):
            act(A)


@pytest.mark.parametrize("name", ["alpha_Z", "alpha_D"])
def test_a_penalty_that_overflows_is_named(name):
    with pytest.raises(InvalidInput, match=f"{name}=1e[+]38 times .* is too large for float32"):
        NMF(K, **{"alpha_Z": 1.0, "alpha_D": 1.0, name: 1e38}).fit(A)


@pytest.mark.parametrize("options", [{}, {"unit_norm": True}, {"alpha_Z": 1e-3}])
@pytest.mark.parametrize("init", ["random", "nndsvda", "rows"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
def test_codes_of_rows_of_zeros_are_zero(solver, init, options):
    X = A.double().clone()
    X[3:6] = 0
    for form in ("normal", "residual"):
        tuning = Tuning(form=form)
        model = NMF(K, solver=solver, init=init, seed=0, max_iter=30, tuning=tuning, **options)
        Z, _ = model.fit(X)
        assert (Z[3:6] == 0).all()
        assert (Z[:3] > 0).any()
