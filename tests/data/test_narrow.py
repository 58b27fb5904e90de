"""Data stored in 16 bits, which GPUs keep as they are: the fit of the same data widened first. Here
the CPU keeps them, too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from fits import nmf
from half_steps import backends_of
from oracle import relative_difference
from torch.utils._python_dispatch import TorchDispatchMode

from fastnmf import Tuning, numerics
from fastnmf.backends.registry import BACKENDS
from fastnmf.data import arrays
from fastnmf.data.arrays import Expected, read_matrix
from fastnmf.data.dataset import Data
from fastnmf.data.opening.first_pass import inspected
from fastnmf.data.prefetch import Prefetcher
from fastnmf.data.sources import open_source
from fastnmf.planning import beside
from fastnmf.planning.beside import needed_bytes, plan_beside
from fastnmf.planning.memory import Budget, Needs
from fastnmf.planning.plan import Problem
from fastnmf.solvers import mu
from fastnmf.solvers.half_step import Compute, ResidualData, Workspace
from fastnmf.solvers.penalties import NO_PENALTY
from fastnmf.solvers.registry import SOLVERS

NARROW = Expected(narrow=True)


@pytest.fixture
def kept_on_cpu(monkeypatch):
    monkeypatch.setattr(arrays, "NARROW_ON", ("cpu",))


def narrow(n, d, dtype=torch.bfloat16, seed=0):
    A = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    # a strided view, zeros, and numbers far apart
    wide = torch.full((n, d + 3), torch.nan, dtype=dtype)
    wide[:, 1:-2] = A.sub_(0.3).relu_() * torch.logspace(-3, 2, d)
    return wide[:, 1:-2]


def fitted(A, K=5, **options):
    model = nmf(K, **{"max_iter": 4, "tol": 0, "seed": 0, **options})
    return (*model.fit(A), model.fit_info_, model)


def assert_same_bits(given, expected):
    for mine, theirs in zip(given[:2], expected[:2], strict=True):
        assert torch.equal(mine, theirs)
    assert given[2].relative_error == expected[2].relative_error
    assert given[2].r_squared == pytest.approx(expected[2].r_squared, rel=1e-12)


def test_only_gpus_keep_what_is_stored():
    A = narrow(9, 5)
    assert read_matrix(A, "cpu", NARROW).dtype == torch.float32
    assert arrays.kept_dtype([A], torch.float32, "cuda") == torch.bfloat16
    assert arrays.kept_dtype([A, A.half()], torch.float32, "cuda") == torch.float32
    assert arrays.kept_dtype([A], torch.float64, "cuda") == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_are_kept_where_they_lie(dtype, kept_on_cpu):
    A = narrow(9, 5, dtype)
    kept = read_matrix(A, "cpu", NARROW)
    assert kept.data_ptr() == A.data_ptr()
    assert read_matrix(A, "cpu").dtype == torch.float32
    data = Data(kept)
    assert data.dtype == torch.float32
    ((_, X, _),) = data.chunks()
    assert torch.equal(X, A.float())


# every solver in either form by every backend, and what else reads the data
FITS = [
    *(
        (solver, backend, options)
        for solver in SOLVERS
        for backend in backends_of(solver)
        for options in (
            {"form": "normal", "chunk_rows": 20},
            # more concepts than features; the exact reference is slow
            {"form": "residual", "K": 45, "chunk_rows": 20, "max_iter": 10}
            if (solver, backend) != ("anls", "torch")
            else {"form": "residual", "K": 9, "chunk_rows": 20, "max_iter": 2},
        )
    ),
    ("hals", "auto", {"form": "normal"}),
    ("hals", "auto", {"form": "residual"}),
    ("hals", "auto", {"accelerate": True}),
    ("pgd", "auto", {"accelerate": True}),
    ("hals", "auto", {"revive": True, "max_iter": 12, "chunk_rows": 20}),
    ("hals", "auto", {"unit_norm": True, "alpha_Z": 0.01, "l1_ratio": 0.5}),
    ("mu", "auto", {"unit_norm": True, "alpha_Z": 0.01, "l1_ratio": 0.5}),
]


@pytest.mark.parametrize(("solver", "backend", "options"), FITS, ids=str)
def test_fit_has_the_bits_of_widened_data(solver, backend, options, kept_on_cpu):
    A = narrow(50, 30)
    options = {"solver": solver, "backend": backend, "init": "random", **options}
    assert_same_bits(fitted(A, **options), fitted(A.float(), **options))


@pytest.mark.parametrize("init", ["random", "nndsvda", "rows", "spread"])
@pytest.mark.parametrize(
    ("n", "d", "dtype", "bytes_"),
    [(60, 20, torch.bfloat16, 1 << 20), (60, 20, torch.float16, 256), (20, 60, torch.float16, 256)],
    ids=str,
)
def test_starts_are_those_of_widened_data(n, d, dtype, bytes_, init, kept_on_cpu, monkeypatch):
    A = narrow(n, d, dtype)
    for K in (7, 25):
        Z, D, *_ = fitted(A.float(), K, init=init, max_iter=0)
        monkeypatch.setattr(numerics, "WIDENED_BYTES", bytes_)
        Z1, D1, *_ = fitted(A, K, init=init, max_iter=0)
        assert Z1.dtype == D1.dtype == torch.float32
        assert relative_difference(Z1 @ D1, Z @ D) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_encode_has_the_bits_of_widened_data(solver, kept_on_cpu):
    A = narrow(50, 30)
    *_, model = fitted(A, solver=solver, chunk_rows=20)
    assert torch.equal(model.encode(A, 5), model.encode(A.float(), 5))


def test_encode_is_differentiable_in_narrow_data(kept_on_cpu):
    A = narrow(9, 5)
    *_, model = fitted(A)
    gradients = []
    for given in (A.clone().requires_grad_(), A.float().requires_grad_()):
        model.encode(given, 3).square().sum().backward()
        gradients.append(given.grad)
    assert torch.equal(gradients[0], gradients[1].bfloat16())


class Largest(TorchDispatchMode):
    """Notes the entries of the largest float32 or float64 tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for M in made if isinstance(made, tuple | list) else [made]:
            if isinstance(M, torch.Tensor) and M.dtype in (torch.float32, torch.float64):
                self.entries = max(self.entries, M.untyped_storage().nbytes() // M.itemsize)
        return made


@pytest.mark.parametrize(
    ("solver", "init"),
    [("hals", "random"), ("mu", "nndsvda"), ("pgd", "rows"), ("anls", "spread")],
)
def test_a_fit_in_normal_form_widens_tiles_only(solver, init, kept_on_cpu, monkeypatch):
    n, d, bytes_ = 4000, 64, 1 << 16
    monkeypatch.setattr("fastnmf.init.svd.WORKSPACE_BYTES", 1 << 16)
    monkeypatch.setattr("fastnmf.data.dataset._SUMMED", 1 << 14)
    monkeypatch.setattr("fastnmf.results.metrics._ENTRIES", 1 << 14)
    monkeypatch.setattr(numerics, "_NORM_ENTRIES", 1 << 14)
    monkeypatch.setattr(arrays, "PART_ENTRIES", 1 << 14)
    for module in (numerics, beside):
        monkeypatch.setattr(module, "WIDENED_BYTES", bytes_)
    A = narrow(n, d)
    for data, least, most in ((A, 0, n * d // 4), (A.float(), n * d, np.inf)):
        with Largest() as seen:
            *_, info, model = fitted(data, solver=solver, form="normal", init=init, chunk_rows=500)
            model.encode(data[:500], 2)
        assert least <= seen.entries <= most
    assert info.tile_rows == 500


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_a_half_step_in_residual_form_widens_tiles_only(solver, monkeypatch):
    """Of the dictionary: all of A, in place of which only its residual is in 32 bits."""
    n, d, K = 600, 30, 9
    A, Z, D = narrow(n, d), torch.rand(n, K), torch.rand(K, d)
    made = []
    for Xt, bytes_ in ((A.float(), 1 << 20), (A, 1 << 20), (A, 1 << 12)):
        monkeypatch.setattr(mu, "WIDENED_BYTES", bytes_)
        scratch = Workspace(torch.float32, torch.device("cpu"))
        compute = Compute(BACKENDS["torch"].load(), 4, scratch)
        F, sums = D.clone(), torch.zeros(4, dtype=torch.float64)
        fixed = SOLVERS[solver].fix("residual", Z.T, None, d, NO_PENALTY, compute)
        data = ResidualData(Xt, torch.empty(n, d))
        SOLVERS[solver].half_steps_(F, data, fixed, compute, sums, 1)
        made.append(F)
        assert max(kept.numel() for kept in scratch._kept.values()) < n * d or bytes_ > 1 << 12
    assert torch.equal(made[0], made[1])
    assert relative_difference(made[2], made[0]) < 1e-6


def test_rows_of_a_tile_are_as_many_as_may_be_widened(monkeypatch):
    monkeypatch.setattr(beside, "WIDENED_BYTES", 100 * 4 * 64)
    A = torch.zeros(4000, 64, dtype=torch.bfloat16)
    problem = Problem(4000, 64, 500, 4, SOLVERS["hals"])
    tuning = Tuning(form="residual", block=128)

    def rows_of(A, free=None, chunk_rows=None):
        tuned = replace(tuning, chunk_rows=chunk_rows)
        return plan_beside(A, problem, "cpp", tuned, free).tile_rows

    assert rows_of(A) == 100 < rows_of(A.float())
    assert rows_of(A, chunk_rows=50) == 50
    assert rows_of(A, chunk_rows=2000) == 100
    fixed, a_row = needed_bytes(problem, plan_beside(A, problem, "cpp", tuning, None))
    fixed += 100 * 4 * 64
    free = int((fixed + 70 * a_row) / 0.92) + 1
    assert rows_of(A, free) == rows_of(A, free, chunk_rows=70) == 70
    with pytest.raises(torch.cuda.OutOfMemoryError, match="chunk_rows=70 would fit"):
        rows_of(A, free, chunk_rows=90)


def test_a_budget_counts_two_bytes_an_entry(kept_on_cpu, small_budgets):
    A = np.random.default_rng(0).random((4000, 50)).astype("float16")
    n, d, K = *A.shape, 3
    needs = Needs(n, d, K, 4, start="random")
    narrowest, wide = needs.resident(copied=2), needs.resident(copied=4)
    assert wide - narrowest == 2 * n * d
    for bytes_, streams in ((narrowest, False), (narrowest - 1000, True)):
        model = nmf(K, max_memory=bytes_, max_iter=1, tol=0, init="random")
        model.fit(A)
        assert (model.fit_info_.chunk_rows is not None) == streams


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_files_are_kept_as_they_are_stored(suffix, tmp_path, kept_on_cpu, monkeypatch):
    A = narrow(40, 6, torch.float16 if suffix == ".npy" else torch.bfloat16).contiguous()
    for number, part in enumerate(A.split(25)):
        file = tmp_path / f"{number}{suffix}"
        if suffix == ".npy":
            np.save(file, part.numpy())
        else:
            safetensors.torch.save_file({"A": part}, file)
    seen = []

    def holds(budget, n, d, dtype, copied, *, given):
        seen.append(copied)
        return True

    with monkeypatch.context() as patch, Prefetcher() as prefetch:
        patch.setattr(Budget, "holds", holds)
        budget = Budget(torch.device("cpu"), 3)
        found = inspected(open_source(str(tmp_path), NARROW, budget), NARROW, budget, prefetch)
    assert seen == [2]
    assert torch.equal(found, A)
    assert_same_bits(fitted(str(tmp_path)), fitted(A.float()))


@pytest.mark.parametrize("codes", [None, "file"])
def test_codes_that_are_not_in_memory(codes, tmp_path, kept_on_cpu):
    A = narrow(40, 6)
    fits = []
    for number, data in enumerate((A, A.float())):
        model = nmf(3, seed=0, max_iter=2, tol=0)
        into = codes and str(tmp_path / f"{number}.npy")
        fits.append(model.fit(data, codes=into))
        if codes:
            fits[-1] = (*fits[-1], model.encode(data, 3, codes=into))
    for mine, theirs in zip(*fits, strict=True):
        assert mine is theirs is None or np.array_equal(mine, theirs)
