"""nnls with concepts of any signs: exact, finite, and truly reported."""

from __future__ import annotations

import itertools
import warnings

import fuzz_nnls
import numpy as np
import pytest
import torch
from fuzz_nnls import (
    KINDS,
    OBJECTIVE,
    SIZES,
    draw,
    faults,
    gap,
    gaps,
    lower_bound,
    lower_bound_of_slopes,
)

import fastnmf
from fastnmf.backends.nnls.residual import measure
from fastnmf.backends.nnls.result import CAPPED, FLOORED, SOLVED
from fastnmf.errors import ConvergenceWarning
from fastnmf.exact.rows import ExactRows

# (kind, d, K, dtype): fewer, more and many more concepts than features; each kind in float32, where
# the Gram matrix is coarse, and some that leave float64 rows to the residual
CASES = [
    *((kind, 20, 60, torch.float32) for kind in KINDS),
    ("gaussian", 3, 8, torch.float32),
    ("gaussian", 64, 128, torch.float32),
    ("gaussian", 20, 60, torch.float64),
    ("nearly dependent", 10, 40, torch.float64),
    ("integers", 64, 128, torch.float64),
]


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(("kind", "d", "K", "dtype"), CASES)
def test_codes_are_exact_and_never_worse_than_zero(kind, d, K, dtype, backend):
    rows = 100 if backend == "cpp" else 20
    A, D = (torch.from_numpy(M).to(dtype) for M in draw(kind, d, K, rows, np.random.default_rng(1)))
    assert faults(A, D, backend) == []


def test_directions_without_bound_are_no_solution():
    D = torch.tensor([[-1.0, 3], [-3, -3], [1, -2], [-1, -1]])
    Z, info = fastnmf.nnls(torch.tensor([[1.0, 2]]), D, return_info=True)
    torch.testing.assert_close(Z, torch.tensor([[4.0, 0, 5, 0]]))
    assert info.kkt.item() <= 1e-6
    assert info.status.item() == 0


def test_rows_that_max_iter_ends_are_never_worse_than_zero_and_say_so():
    A, D = (torch.from_numpy(M) for M in draw("gaussian", 20, 60, 50, np.random.default_rng(0)))
    with pytest.warns(ConvergenceWarning, match="50 reached max_iter"):
        Z, info = fastnmf.nnls(A, D, max_iter=1, return_info=True)
    above_zero = measure(A, D, Z).change
    assert not (above_zero > 0).any()
    assert (info.status == CAPPED).any()


@pytest.mark.parametrize("kind", ["gaussian", "nearly dependent"])
def test_codes_are_the_same_with_their_info(kind):
    A, D = draw(kind, 10, 40, 100, np.random.default_rng(2))
    for signs in (D, abs(D)):
        with_info, _ = fastnmf.nnls(A, signs, return_info=True)
        assert torch.equal(fastnmf.nnls(A, signs), with_info)


# (concepts repeated, their signs): a Gram matrix of rank 1, and of rank 2 in 300 concepts
@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["one 100 times", "rank 2", "zeros", "scales"])
def test_degenerate_dictionaries_are_solved(kind, signed, dtype, backend):
    rng = np.random.default_rng(5)
    A, D = rng.normal(size=(10, 8)), rng.normal(size=(40, 8))
    A, D = (A, D) if signed else (abs(A), abs(D))
    if kind == "one 100 times":
        D = np.concatenate([np.repeat(D[:1], 100, axis=0), D])
    elif kind == "rank 2":
        D = abs(rng.normal(size=(300, 2))) @ D[:2]
    elif kind == "zeros":
        A[::3], D[::2] = 0, 0
    elif kind == "scales":
        D *= 10.0 ** rng.uniform(-6, 6, (40, 1))
    A, D = (torch.from_numpy(M).to(dtype) for M in (A, D))
    assert faults(A, D, backend) == []


def test_codes_that_float32_cannot_hold_are_as_good_as_it_allows_and_say_so():
    """Their sum of two codes of 1e8 was off by the rounding of these, and called solved."""
    g = torch.Generator().manual_seed(0)
    B, C = (torch.randn(6, 6, generator=g, dtype=torch.float64) for _ in range(2))
    # a positive combination of few concepts with codes of 1e8: their difference matters
    D = torch.cat((B, -B * (1 + 2e-7 * C)))
    A = 1e-7 * torch.randn(20, 6, generator=g, dtype=torch.float64) @ (B * C)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Z, info = fastnmf.nnls(A.float(), D.float(), return_info=True)
    gap = torch.from_numpy(gaps(A.float(), D.float(), Z))
    assert Z.isfinite().all()
    assert not (measure(A.float(), D.float(), Z).change > 0).any()
    assert (gap[info.status != FLOORED] <= 1e-5).all()
    assert bool(warned) == bool((info.status == FLOORED).any())


def test_lower_bounds_are_below_every_error_and_near_the_least():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    rng = np.random.default_rng(0)
    for kind in KINDS:
        A, D = draw(kind, 10, 15, 20, rng)
        for a in A:
            z, error = optimize.nnls(D.T, a, maxiter=1000)
            for bound in (lower_bound, lower_bound_of_slopes):
                if bound is lower_bound_of_slopes and (D < 0).any():
                    continue
                # from codes that are not a solution too
                for codes in (z, z + rng.random(15), 0 * z):
                    assert bound(a, D, codes) <= error**2 + 1e-12 * (a @ a)
                assert bound(a, D, z) == pytest.approx(error**2, abs=1e-6 * (a @ a))


def test_a_loose_bound_is_a_fault_only_if_another_solver_finds_better_codes():
    pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    generator = np.random.default_rng(2000)
    # the first problem that the fuzz command found whose bound is loose, by 2.7e-9
    for d, K in SIZES:
        for kind, _ in itertools.product(KINDS, OBJECTIVE):
            A, D = draw(kind, d, K, 50, generator)
            if (d, K, kind) == (64, 128, "nearly dependent"):
                loose = A[18:19], D
    A, D = (torch.from_numpy(M) for M in loose)
    Z = fastnmf.nnls(A, D)
    a, z, square = A[0].numpy(), Z[0].numpy(), float(A[0] @ A[0])
    error = np.square(a - z @ D.numpy()).sum()
    assert (error - lower_bound(a, D.numpy(), z)) / square > OBJECTIVE[torch.float64]
    if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps:
        # that with more digits is not
        assert gap(a, D.numpy(), z, z) <= 1e-12
    assert gaps(A, D, Z) <= 1e-12
    # off by 1e-8 of ‖a‖²
    other = Z * (1 + 1e-4 * A.norm() / (Z @ D).norm())
    assert gaps(A, D, other) > 5e-9


@pytest.mark.parametrize("form", [pytest.param("normal", marks=pytest.mark.thorough), "residual"])
def test_the_fuzz_command_forces_a_form(form, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["fuzz_nnls.py", "--problems", "112", "--rows", "1", "--form", form]
    )
    forms, begin = [], ExactRows.__init__

    def noted(rows, *given, **options):
        begin(rows, *given, **options)
        forms.append("residual" if rows.G is None else "normal")

    monkeypatch.setattr(ExactRows, "__init__", noted)
    with pytest.raises(SystemExit) as ended:
        fuzz_nnls.main()
    assert not ended.value.code
    assert set(forms) == {form}


def test_the_fuzz_command_runs_and_finds_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzz_nnls.py", "--problems", "112", "--rows", "1"])
    with pytest.raises(SystemExit) as ended:
        fuzz_nnls.main()
    assert not ended.value.code
    assert "112 problems on cpp" in capsys.readouterr().out


def test_the_fuzz_command_finds_codes_that_are_wrong(monkeypatch):
    solved = fastnmf.nnls

    def spoiled(A, D, **options):
        found = solved(A, D, **options)
        return (found[0] * 1.01, found[1]) if options.get("return_info") else found

    A, D = (torch.from_numpy(M) for M in draw("gaussian", 10, 15, 5, np.random.default_rng(0)))
    monkeypatch.setattr(fastnmf, "nnls", spoiled)
    found = " ".join(faults(A, D, "cpp"))
    assert "KKT residual" in found
    assert "of ‖a‖² above the least" in found


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_a_certain_optimum_are_not_called_solved(dtype, backend):
    """Concepts of a Hilbert matrix with both signs: solutions have codes of 1e10, and the KKT
    residual, relative to products of these, is at rounding for codes that are far from them."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((6, 10), (40, 1))
    A, signs = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    D = torch.sign(signs) / (torch.arange(40)[:, None] + torch.arange(10) + 1.0)
    A, D = A.to(dtype), D.to(dtype)
    with pytest.warns(ConvergenceWarning, match="nearly depend on each other"):
        Z, info = fastnmf.nnls(A, D, backend=backend, return_info=True)
    exact = {torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    solved = (info.status == SOLVED).numpy()
    assert (gaps(A, D, Z)[solved] <= exact).all()
    assert not (measure(A, D, Z).change > 0).any()
    assert Z.isfinite().all()
