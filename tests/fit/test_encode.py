"""Codes for a given dictionary: as good as fit's, row by row, from any start, and
differentiable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fits import method, nmf
from oracle import kkt_residual, problem, relative_difference

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.engine.codes import Encoder
from fastnmf.init.start import cold_start
from fastnmf.solvers.registry import SOLVERS


def fitted(solver, n=80, d=20, K=8, dtype=torch.float64, **options):
    A = torch.tensor(problem(n, d, K)[0], dtype=dtype)
    model = nmf(K, solver=solver, seed=0, **options)
    Z, _ = model.fit(A, max_iter=60)
    return model, A, Z


def loss(A, Z, D):
    return float((A - Z @ D).square().sum())


@pytest.mark.parametrize(
    ("solver", "n", "d", "K", "dtype"),
    [
        *((solver, 80, 20, 30, torch.float64) for solver in SOLVERS),
        *((solver, 80, 20, 8, torch.float32) for solver in SOLVERS),
        ("hals", 200, 10, 3, torch.float64),
    ],
)
def test_encode_reaches_the_loss_of_fit(solver, n, d, K, dtype):
    model, A, Z = fitted(solver, n, d, K, dtype)
    encoded = model.encode(A)
    assert (encoded >= 0).all()
    assert encoded.is_contiguous()
    # float32 is compared to its rounding, which is some 1e-7 of the data
    rounding = 1e-6 * float(A.square().sum()) if dtype == torch.float32 else 0
    assert loss(A, encoded, model.D) <= loss(A, Z, model.D) * (1 + 1e-9) + rounding


@pytest.mark.parametrize(
    ("solver", "n", "d", "K"),
    [
        ("hals", 100, 48, 24),
        ("hals", 100, 48, 64),
        ("hals", 80, 60, 250),
        ("mu", 100, 48, 64),
        ("pgd", 80, 60, 250),
    ],
)
def test_more_iterations_do_not_raise_the_loss_for_similar_concepts(solver, n, d, K):
    """Too much momentum made HALS swing: the loss at 300 iterations was above that at 20."""
    rng = np.random.default_rng(0)
    A = torch.tensor(rng.random((n, 5)) @ rng.random((5, d)) + 0.3 * rng.random((n, d)) ** 6)
    model = NMF(K, solver=solver).load_dictionary(rng.random((K, d)) ** 6)
    losses = [
        loss(A, model.encode(A, max_iter=iterations, tol=0, method="sweeps"), model.D)
        for iterations in (20, 50, 100, 300)
    ]
    assert all(after <= before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize(
    ("solver", "form"),
    [
        ("hals", "normal"),
        ("hals", "residual"),
        ("pgd", "normal"),
        ("pgd", "residual"),
        ("anls", "normal"),
        ("anls", "residual"),
    ],
)
def test_sweeps_solve_the_least_squares_problem(solver, form):
    model, A, _ = fitted(solver, form=form)
    Z = model.encode(A, max_iter=2000, tol=1e-14, method="sweeps")
    assert kkt_residual(Z.numpy().T, A.numpy(), model.D.numpy()) <= 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("method", ["auto", "exact", "sweeps"])
def test_encode_in_chunks_gives_the_same_codes(solver, method):
    model, A, _ = fitted(solver)
    whole = model.encode(A, max_iter=25, tol=0, method=method)
    model.tuning = Tuning(chunk_rows=7)
    chunked = model.encode(A, max_iter=25, tol=0, method=method)
    # sweeps as many as the chunks need, or the exact solver, each to 1e-12
    assert relative_difference(chunked, whole) <= (1e-12 if method == "sweeps" else 1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_encode_is_the_same_for_the_same_rows(solver):
    model, A, _ = fitted(solver)
    assert torch.equal(model.encode(A), model.encode(A))
    assert relative_difference(model.encode(A[5:6]), model.encode(A)[5:6]) <= 1e-10
    run = {"max_iter": 2000, "tol": 1e-13, "method": "sweeps"}
    one, all_rows = model.encode(A[5:6], **run), model.encode(A, **run)
    # mu approaches its zeros slowly, so codes of rows that stop at different times differ by more
    assert relative_difference(one, all_rows[5:6]) <= (1e-5 if solver == "mu" else 1e-9)


def test_encode_from_the_solution_stops_at_once_and_keeps_it():
    model, A, _ = fitted("hals")
    Z = model.encode(A, max_iter=5000, tol=1e-15)
    calls = []
    encoder = Encoder(model.D, method("hals"), 300, 1e-9, calls.append)
    encoded, ended = encoder(A, Z)
    iterations = [end.iterations for end in ended]
    assert relative_difference(encoded, Z) <= 1e-9
    assert iterations == [len(calls)] == [1]


@pytest.mark.parametrize("Z0", [np.ones((3, 8)), -np.ones((80, 8)), np.ones((80, 7))])
def test_encode_refuses_a_start_that_does_not_fit(Z0):
    model, A, _ = fitted("hals")
    with pytest.raises(InvalidInput, match="Z0"):
        model.encode(A, Z0=Z0)


def test_encode_gradient_flows_through_dtype_and_chunks():
    model, A, _ = fitted("hals", chunk_rows=5)
    half = (A[:12] + 0.05).to(torch.float16).requires_grad_()
    model.encode(half).sum().backward()
    assert half.grad.dtype == torch.float16
    assert half.grad.abs().sum() > 0


def test_encode_without_gradient_builds_no_graph():
    model, A, _ = fitted("hals")
    assert not model.encode(A).requires_grad
    with torch.no_grad():
        assert not model.encode(A.clone().requires_grad_()).requires_grad


def test_cold_start_leaves_zero_rows_and_zero_concepts_at_zero():
    A, _, D = (torch.tensor(M) for M in problem(10, 6, 4))
    A[2], D[1] = 0, 0
    Z = cold_start(A, D)
    assert not Z[2].any()
    assert not Z[:, 1].any()
    assert (Z[0, [0, 2, 3]] > 0).all()
    assert not cold_start(A, torch.zeros_like(D)).any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_encode_gives_zero_concepts_no_codes(solver):
    A, _, D = problem(10, 6, 4)
    D[1] = 0
    Z = NMF(4, solver=solver).load_dictionary(D).encode(A)
    assert not Z[:, 1].any()
    assert Z[:, 0].any()


FORMS = {
    "tensor": lambda X: X,
    "array": lambda X: X.numpy(),
    "memoryview": lambda X: memoryview(X.numpy()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leading", [(), (7,), (0,), (2, 3), (2, 0), (2, 3, 1)])
@pytest.mark.parametrize("files", [False, True])
def test_encode_and_decode_take_any_leading_dimensions_and_no_rows(form, leading, files, tmp_path):
    """Alike for both, and for all that is in memory."""
    if form == "memoryview" and 0 in leading and len(leading) > 1:
        pytest.skip("Python's memoryview has no such shape")
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(4, 6, generator=generator)
    model = NMF(4).load_dictionary(D)
    A, Z = (torch.rand(*leading, width, generator=generator) for width in (6, 4))
    out = {"codes": tmp_path / "Z.npy"} if files else {}
    codes = model.encode(FORMS[form](A), **out)
    assert codes.shape == (*leading, 4)
    if A.numel():
        expected = model.encode(A.reshape(-1, 6)).reshape(*leading, 4)
        torch.testing.assert_close(codes, expected)
    out = {"out": tmp_path / "A.npy"} if files else {}
    torch.testing.assert_close(model.decode(FORMS[form](Z), **out), Z @ D)


@pytest.mark.parametrize("form", FORMS)
def test_encode_and_decode_refuse_another_width_also_of_no_rows(form):
    model = NMF(4).load_dictionary(torch.ones(4, 6))
    for rows in (0, 3):
        with pytest.raises(InvalidInput, match="A has 5 features, the dictionary has 6"):
            model.encode(FORMS[form](torch.ones(rows, 5)))
        with pytest.raises(InvalidInput, match=r"Z has (5 concepts|shape \(\d, 5\))"):
            model.decode(FORMS[form](torch.ones(rows, 5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encode_of_no_rows_in_a_file_or_with_a_gradient(dtype, tmp_path):
    model = NMF(4).load_dictionary(torch.ones(4, 6))
    np.save(tmp_path / "A.npy", np.empty((0, 6), np.float64))
    assert model.encode(tmp_path / "A.npy").shape == (0, 4)
    assert model.decode(model.encode(tmp_path / "A.npy").numpy()).shape == (0, 6)
    A = torch.empty(0, 6, dtype=dtype, requires_grad=True)
    Z = model.encode(A)
    assert Z.dtype == dtype
    Z.sum().backward()
    assert A.grad.shape == (0, 6)


# the ends of the range of float32, where products or squares of A, D or the codes are out of it
SCALES = [(1e-30, 1), (1e30, 1), (1, 1e-25), (1, 1e-20), (1, 1e25), (1e-18, 1e18), (1e18, 1e-18)]


def at_scale(solver, of_A=1.0, of_D=1.0, dtype=torch.float32, **options):
    """A, and a model with a dictionary, multiplied by these numbers."""
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(40, 12, generator=generator, dtype=torch.float64)
    D = torch.rand(5, 12, generator=generator, dtype=torch.float64)
    model = NMF(5, solver=solver, **options).load_dictionary((D * of_D).to(dtype))
    return (A * of_A).to(dtype), model


def relative_error(A, Z, model):
    A, Z, D = (F.detach().double() for F in (A, Z, model.D))
    return float((A - Z @ D).norm() / A.norm())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("of_A", "of_D"), SCALES)
def test_codes_do_not_depend_on_the_scale_of_data_and_dictionary(solver, of_A, of_D):
    A, model = at_scale(solver)
    expected = relative_error(A, model.encode(A), model)
    A, model = at_scale(solver, of_A, of_D)
    Z, info = model.encode(A, return_info=True)
    assert info.converged
    # both have a relative rounding of some 1e-7 in A
    assert relative_error(A, Z, model) == pytest.approx(expected, abs=1e-6)
    assert info.relative_error == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_codes_of_float64_do_not_depend_on_the_scale(solver):
    A, model = at_scale(solver, 1e-200, 1e90, torch.float64)
    Z = model.encode(A)
    plain, expected = at_scale(solver, dtype=torch.float64)
    torch.testing.assert_close(Z * 1e200 * 1e90, expected.encode(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_penalised_codes_follow_the_scale(solver, l1_ratio):
    """With A and D times s, the same codes have the least objective at s² times the penalty."""
    scale = 2.0**50
    A, model = at_scale(solver, alpha_Z=0.02, l1_ratio=l1_ratio, alpha_D=0.01)
    B, scaled = at_scale(
        solver, scale, scale, alpha_Z=0.02 * scale**2, l1_ratio=l1_ratio, alpha_D=0.01
    )
    torch.testing.assert_close(scaled.encode(B), model.encode(A), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_does_not_depend_on_the_scale(solver):
    gradients = []
    for scale in (1.0, 2.0**-100):
        A, model = at_scale(solver, scale)
        A.requires_grad_()
        model.encode(A).sum().backward()
        gradients.append(A.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_codes_in_chunks_and_from_a_start_do_not_depend_on_the_scale(tmp_path):
    A, model = at_scale("hals", 1e-30, tuning=Tuning(chunk_rows=7))
    Z = model.encode(A, codes=tmp_path / "Z.npy")
    torch.testing.assert_close(Z, model.encode(A), rtol=1e-3, atol=0)
    again, info = model.encode(A, Z0=Z, method="sweeps", return_info=True)
    assert info.iterations < 5
    torch.testing.assert_close(again, Z, rtol=1e-2, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_codes_that_no_number_holds_are_refused_by_their_cause(solver):
    A, model = at_scale(solver, 1e30, 1e-25)
    with pytest.raises(ArithmeticError, match=r"codes are too large for float32.*scale D"):
        model.encode(A)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_dictionary_that_was_spoilt_in_place_is_named(solver, value):
    A, model = at_scale(solver)
    model.D[1, 2] = value
    with pytest.raises(InvalidInput, match="the dictionary D has entries from"):
        model.encode(A)


def test_dictionary_that_overflowed_in_16_bits_is_named():
    A, model = at_scale("hals", of_D=1e6)
    with pytest.raises(InvalidInput, match=r"the dictionary D has entries from .* to inf"):
        model.half().encode(A)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("of_D", [1e-25, 1e-43])
def test_penalty_that_is_far_above_a_dictionary_leaves_no_codes(solver, of_D):
    """min ½‖a − z D‖² + ½ l2 ‖z‖² is z = D aᵀ / l2 there."""
    A, model = at_scale(solver, of_D=of_D, alpha_Z=0.01, alpha_D=0.01)
    A.requires_grad_()
    Z = model.encode(A, max_iter=20)
    assert float(Z.detach().max()) < 1e-20
    assert torch.autograd.grad(Z.sum(), A)[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leading", [(3,), (2, 3), ()])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_decode_refuses_codes_that_are_not_finite_in_every_form(value, leading, form):
    model = NMF(4).load_dictionary(torch.ones(4, 6))
    Z = torch.ones(*leading, 4)
    Z[..., 2] = value
    with pytest.raises(InvalidInput, match=r"Z has \d+ nan or inf entr.* the first at row 0, col"):
        model.decode(FORMS[form](Z))


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda Z: Z + 0j, TypeError, "Z has dtype torch.complex64; it must hold real numbers"),
        (lambda Z: Z.to("meta"), InvalidInput, "Z is on the meta device and holds no values"),
        (
            lambda Z: (Z / 0).requires_grad_(),
            InvalidInput,
            "Z has 12 nan or inf entries, the first at row 0, column 0: inf",
        ),
    ],
)
def test_decode_names_tensors_that_are_no_codes(made, error, message):
    model = NMF(4).load_dictionary(torch.ones(4, 6))
    with pytest.raises(error, match=message):
        model.decode(made(torch.ones(3, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_small_rows_are_encoded_as_well_beside_a_large_one(solver, dtype):
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(20, 12, generator=generator, dtype=torch.float64).to(dtype)
    D = torch.rand(6, 12, generator=generator, dtype=torch.float64).to(dtype)
    model = NMF(6, solver=solver).load_dictionary(D)
    alone = model.encode(A)
    A[4] *= 2.0**30
    start = model.encode(A, 3, tol=0, method="sweeps")
    for run in ({}, {"method": "exact"}, {"method": "sweeps"}, {"method": "sweeps", "Z0": start}):
        Z = model.encode(A, **run)
        small = [i for i in range(20) if i != 4]
        errors = [(A[small] - codes[small] @ D).double().norm(dim=1) for codes in (alone, Z)]
        assert torch.allclose(*errors, rtol=1e-4)
