"""Data stored in 16 bits, which GPUs keep as they are: the fit of the same data widened first. Here
the CPU keeps them, too."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from half_steps import BACKEND_NAMES, supplies
from oracle import relative_difference
from torch.utils._python_dispatch import TorchDispatchMode

from fastnmf import NMF
from fastnmf.backends.registry import BACKENDS
from fastnmf.data import arrays as rows
from fastnmf.data import sources as source
from fastnmf.data.arrays import read_matrix
from fastnmf.data.prefetch import Prefetcher
from fastnmf.planning import memory
from fastnmf.planning import memory as budget
from fastnmf.solvers import half_step as sweeps
from fastnmf.solvers.half_step import Compute, ResidualData, Workspace
from fastnmf.solvers.registry import HALF_STEPS, hold

DTYPES = [torch.bfloat16, torch.float16]
SOLVERS = ["hals", "mu", "pgd", "anls"]


@pytest.fixture
def kept_on_cpu(monkeypatch):
    monkeypatch.setattr(rows, "NARROW_ON", ("cpu",))


def narrow(n, d, dtype=torch.bfloat16, seed=0):
    A = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    # a strided view, zeros, and numbers far apart
    wide = torch.full((n, d + 3), torch.nan, dtype=dtype)
    wide[:, 1:-2] = A.sub_(0.3).relu_() * torch.logspace(-3, 2, d)
    return wide[:, 1:-2]


def fitted(A, K=5, **options):
    model = NMF(K, **{"max_iter": 4, "tol": 0, "seed": 0, **options})
    return (*model.fit(A), model.fit_info_, model)


def assert_same_bits(given, expected):
    for mine, theirs in zip(given[:2], expected[:2], strict=True):
        assert torch.equal(mine, theirs)
    assert given[2].relative_error == expected[2].relative_error
    assert given[2].r_squared == pytest.approx(expected[2].r_squared, rel=1e-12)


def test_only_gpus_keep_what_is_stored():
    A = narrow(9, 5)
    assert read_matrix(A, device="cpu", narrow=True).A.dtype == torch.float32
    assert rows.kept_dtype([A], torch.float32, "cuda") == torch.bfloat16
    assert rows.kept_dtype([A, A.half()], torch.float32, "cuda") == torch.float32
    assert rows.kept_dtype([A], torch.float64, "cuda") == torch.float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_held_where_they_lie(dtype, kept_on_cpu):
    A = narrow(9, 5, dtype)
    held = read_matrix(A, device="cpu", narrow=True)
    assert held.A.data_ptr() == A.data_ptr()
    assert held.dtype == torch.float32
    assert read_matrix(A, device="cpu").A.dtype == torch.float32
    ((_, X),) = held.chunks()
    assert torch.equal(X, A.float())


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "options",
    [
        {"form": "normal"},
        {"form": "residual"},
        {"form": "residual", "K": 45, "chunk_rows": 20, "max_iter": 10},
        {"chunk_rows": 20},
        {"accelerate": True},
        {"revive": True, "max_iter": 12, "chunk_rows": 20},
        {"unit_norm": True, "alpha_Z": 0.01, "l1_ratio": 0.5},
    ],
    ids=str,
)
def test_fit_has_the_bits_of_widened_data(solver, backend, options, kept_on_cpu):
    if not supplies(backend, solver):
        pytest.skip(f"{backend} does not supply {solver}")
    A = narrow(50, 30)
    options = {"solver": solver, "backend": backend, "init": "random", **options}
    assert_same_bits(fitted(A, **options), fitted(A.float(), **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pieces", [1 << 20, 256], ids=["one piece", "pieces"])
@pytest.mark.parametrize("init", ["random", "nndsvda", "rows", "spread"])
@pytest.mark.parametrize(("n", "d"), [(60, 20), (20, 60)], ids=str)
def test_starts_are_those_of_widened_data(n, d, init, pieces, dtype, kept_on_cpu, monkeypatch):
    A = narrow(n, d, dtype)
    for K in (7, 25):
        Z, D, *_ = fitted(A.float(), K, init=init, max_iter=0)
        monkeypatch.setattr(rows, "WIDENED_BYTES", pieces)
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("init", ["random", "nndsvda", "rows", "spread"])
def test_a_fit_in_normal_form_widens_pieces_only(solver, init, kept_on_cpu, monkeypatch):
    n, d, bytes_ = 4000, 64, 1 << 16
    monkeypatch.setattr("fastnmf.svd.WORKSPACE_BYTES", 1 << 16)
    monkeypatch.setattr("fastnmf.codes._IN_HAND", 1 << 14)
    monkeypatch.setattr("fastnmf.solvers._NORM_ENTRIES", 1 << 14)
    monkeypatch.setattr(rows, "PIECE_ENTRIES", 1 << 14)
    for room in (rows, memory):
        monkeypatch.setattr(room, "WIDENED_BYTES", bytes_)
    A = narrow(n, d)
    for held, least, most in ((A, 0, n * d // 4), (A.float(), n * d, np.inf)):
        with Largest() as seen:
            *_, info, model = fitted(held, solver=solver, form="normal", init=init, chunk_rows=500)
            model.encode(held[:500], 2)
        assert least <= seen.entries <= most
    assert info.piece_rows == 500


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_a_half_step_in_residual_form_widens_pieces_only(solver, monkeypatch):
    """Of the dictionary: all of A, in place of which only its residual is in 32 bits."""
    n, d, K = 600, 30, 9
    A, Z, D = narrow(n, d), torch.rand(n, K), torch.rand(K, d)
    made = []
    for Xt, bytes_ in ((A.float(), 1 << 20), (A, 1 << 20), (A, 1 << 12)):
        monkeypatch.setattr(sweeps, "WIDENED_BYTES", bytes_)
        scratch = Workspace(torch.float32, torch.device("cpu"))
        sweep = Compute(BACKENDS["torch"].load(), 4, scratch)
        F, sums = D.clone(), torch.zeros(4, dtype=torch.float64)
        held = hold(solver, "residual", sweep, Z.T)
        HALF_STEPS[solver](F, ResidualData(Xt, torch.empty(n, d)), held, sweep, sums)
        made.append(F)
        assert max(kept.numel() for kept in scratch._kept.values()) < n * d or bytes_ > 1 << 12
    assert torch.equal(made[0], made[1])
    assert relative_difference(made[2], made[0]) < 1e-6


def test_rows_in_hand_are_as_many_as_may_be_widened(monkeypatch):
    monkeypatch.setattr(memory, "WIDENED_BYTES", 100 * 4 * 64)
    A = torch.zeros(4000, 64, dtype=torch.bfloat16)
    wide = {"form": "residual", "block": 128}

    def rows_of(A, free=None, **asked):
        return memory.choose(A, 500, "hals", "cpp", free, **wide, **asked).piece_rows

    assert rows_of(A) == 100 < rows_of(A.float())
    assert rows_of(A, chunk_rows=50) == 50
    assert rows_of(A, chunk_rows=2000) == 100
    chosen = memory.choose(A, 500, "hals", "cpp", None, **wide)
    fixed, a_row = memory.needed_bytes(4000, 64, 500, 4, "hals", chosen)
    fixed += 100 * 4 * 64
    free = int((fixed + 70 * a_row) / 0.92) + 1
    assert rows_of(A, free) == rows_of(A, free, chunk_rows=70) == 70
    with pytest.raises(torch.cuda.OutOfMemoryError, match="chunk_rows=70 would fit"):
        rows_of(A, free, chunk_rows=90)


def test_a_budget_counts_two_bytes_an_entry(kept_on_cpu, small_budgets):
    A = np.random.default_rng(0).random((4000, 50)).astype("float16")
    n, d, K = *A.shape, 3
    needs = budget.Needs(n, d, K, 4, start="random")
    narrowest, wide = needs.resident(copied=2), needs.resident(copied=4)
    assert wide - narrowest == 2 * n * d
    for bytes_, streams in ((narrowest, False), (narrowest - 1000, True)):
        model = NMF(K, max_memory=bytes_, max_iter=1, tol=0, init="random")
        model.fit(A)
        assert (model.fit_info_.chunk_rows is not None) == streams


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_files_are_held_as_they_are_stored(suffix, tmp_path, kept_on_cpu):
    A = narrow(40, 6, torch.float16 if suffix == ".npy" else torch.bfloat16).contiguous()
    for number, part in enumerate(A.split(25)):
        file = tmp_path / f"{number}{suffix}"
        if suffix == ".npy":
            np.save(file, part.numpy())
        else:
            safetensors.torch.save_file({"A": part}, file)
    seen = []
    with Prefetcher() as ahead:
        asked = {"keep": lambda *sizes: seen.append(sizes[3]) is None, "device": "cpu"}
        given = source.take(str(tmp_path), ahead, narrow=True, **asked)
    assert seen == [2]
    assert torch.equal(given.A, A)
    assert_same_bits(fitted(str(tmp_path)), fitted(A.float()))


@pytest.mark.parametrize("codes", [None, "file"])
def test_codes_that_are_not_in_memory(codes, tmp_path, kept_on_cpu):
    A = narrow(40, 6)
    fits = []
    for number, held in enumerate((A, A.float())):
        model = NMF(3, seed=0, max_iter=2, tol=0)
        into = codes and str(tmp_path / f"{number}.npy")
        fits.append(model.fit(held, codes=into))
        if codes:
            fits[-1] = (*fits[-1], model.encode(held, 3, codes=into))
    for mine, theirs in zip(*fits, strict=True):
        assert mine is theirs is None or np.array_equal(mine, theirs)
