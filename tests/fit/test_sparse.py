"""Fits, codes and online learning of sparse data are those of the same data as a dense matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import nmf

import fastnmf
from fastnmf import NMF
from fastnmf.cli import main as cli
from fastnmf.data.dataset import Data
from fastnmf.data.sparse.arrays import sparse_matrix
from fastnmf.errors import InvalidInput
from fastnmf.fit.refusals import refuse_residual
from fastnmf.planning import memory
from fastnmf.planning.memory import Needs
from fastnmf.planning.plan import Plan
from fastnmf.solvers.registry import SOLVERS

scipy_sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")


def both(n, d, dtype=np.float32, share=0.2):
    """A matrix with structure as scipy's CSR and as a tensor; one row and one column are zero.

    Its small entries are left out, not drawn ones: then singular values differ, and rounding hardly
    changes a start from them.
    """
    generator = np.random.default_rng(7)
    Z, D = (generator.random(shape) ** 4 for shape in ((n, 6), (6, d)))
    A = Z @ D
    A = np.where(np.quantile(A, 1 - share) < A, A + 0.05 * generator.random((n, d)), 0)
    A[3], A[:, 5] = 0, 0
    A = A.astype(dtype)
    return scipy_sparse.csr_matrix(A), torch.from_numpy(A)


def distance(found, expected):
    """Of the products Z D, relative."""
    (Z, D), (Z1, D1) = found, expected
    return float((Z @ D - Z1 @ D1).norm() / (Z1 @ D1).norm())


# tall and wide: the SVD of the start goes by rows and by columns, whole and iterated
@pytest.mark.parametrize("shape", [(150, 60), (60, 400)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_is_that_of_the_dense_data(solver, dtype, shape):
    sparse, dense = both(*shape, dtype)
    given = {"solver": solver, "seed": 0, "tol": 0.0}
    model, other = NMF(4, accelerate=False, **given), NMF(4, accelerate=False, **given)
    distant = distance(model.fit(sparse, max_iter=20), other.fit(dense, max_iter=20))
    assert distant < 1e-5
    assert model.fit_info_.form == "normal"
    check_errors(model.fit_info_, other.fit_info_)
    # whether an accelerated iteration is taken back may depend on rounding, and then the factors
    model, other = NMF(4, **given), NMF(4, **given)
    model.fit(sparse, max_iter=20)
    other.fit(dense, max_iter=20)
    assert model.fit_info_.accelerated == other.fit_info_.accelerated == (solver != "anls")
    check_errors(model.fit_info_, other.fit_info_)


def check_errors(info, expected):
    assert info.relative_error == pytest.approx(expected.relative_error, rel=1e-5)
    assert info.r_squared == pytest.approx(expected.r_squared, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"init": "rows", "accelerate": False},
        {"init": "spread"},
        {"init": "random"},
        {"alpha_Z": 1e-3, "alpha_D": 1e-3, "l1_ratio": 0.5},
        {"alpha_Z": 1e-3, "unit_norm": True},
        # of more concepts than the rank, some are rounding in the start: whether one is 0 or 1e-17
        # changes where an accelerated fit goes
        {"nb_concepts": 80, "init": "nndsvda", "accelerate": False},
        {"chunk_rows": 37},
        {"backend": "torch"},
    ],
)
def test_fit_with_options_is_that_of_the_dense_data(options):
    sparse, dense = both(150, 60, np.float64)
    options = {"nb_concepts": 4, "seed": 0, "tol": 0.0, **options}
    model, other = nmf(**options), nmf(**options)
    # in the same form: the plan may prefer the other one for dense data
    other.tuning = fastnmf.Tuning(form="normal", chunk_rows=options.get("chunk_rows"))
    other.accelerate = model.accelerate = (
        options.get("accelerate", True) and "alpha_Z" not in options
    )
    assert distance(model.fit(sparse, max_iter=20), other.fit(dense, max_iter=20)) < 1e-9
    info, expected = model.fit_info_, other.fit_info_
    assert info.objective == pytest.approx(expected.objective)


# mu keeps what is zero, so that new concepts are filled
@pytest.mark.parametrize("solver", ["hals", "mu"])
def test_concepts_are_revived_as_with_the_dense_data(solver):
    sparse, dense = both(150, 60, np.float64)
    Z, D = torch.rand(150, 4, dtype=torch.float64), torch.rand(4, 60, dtype=torch.float64)
    Z[:, 1], D[1] = 0, 0
    models = [NMF(4, solver=solver, init=(Z, D), tol=0.0, revive=True) for _ in range(2)]
    pairs = [model.fit(A, max_iter=25) for model, A in zip(models, (sparse, dense), strict=True)]
    assert distance(*pairs) < 1e-9
    assert [model.fit_info_.revived for model in models] == [1, 1]


def test_error_is_accurate_where_it_is_small():
    # float32 and normal form: the error comes from rows that are made dense
    generator = torch.Generator().manual_seed(1)
    Z, D = (torch.rand(*s, generator=generator).pow(4) for s in ((80, 3), (3, 50)))
    Z[Z < 0.1], D[D < 0.1] = 0, 0
    A = (Z @ D).to_sparse_csr()
    model = NMF(3, seed=0, tol=0.0, init=(Z, D * (1 + 1e-5)))
    model.fit(A, max_iter=1)
    Z1, D1 = model.fit(A, max_iter=1)
    exact = float((A.to_dense().double() - Z1.double() @ D1.double()).norm() / A.to_dense().norm())
    assert model.fit_info_.relative_error == pytest.approx(exact, rel=0.02, abs=2e-7)
    assert model.fit_info_.history[-1].relative_error == pytest.approx(exact, rel=0.02, abs=2e-7)


# of most entries a dense copy is faster, also by the rates of AVX2; unless it does not fit, or a
# form is given
@pytest.mark.parametrize(
    ("share", "options", "copied"),
    [
        (0.75, {}, True),
        (0.1, {}, False),
        (0.75, {"max_memory": Needs(400, 200, 10, 4, start="nndsvda", stored=0.75)}, False),
        (0.75, {"form": "normal"}, False),
    ],
)
def test_dense_copy_is_made_where_it_is_faster_and_fits(
    share, options, copied, caplog, no_overhead
):
    if "max_memory" in options:
        options = {"max_memory": options["max_memory"].resident(0)}
    sparse, dense = both(400, 200, share=share)
    model, other = nmf(10, seed=0, tol=0.0, **options), nmf(10, seed=0, tol=0.0, form="normal")
    with caplog.at_level("INFO", logger="fastnmf"):
        model.fit(sparse, max_iter=5)
    info = model.fit_info_
    assert info.dense_copy == copied
    assert info.density == pytest.approx(sparse.nnz / 80_000)
    assert ("used as a dense copy" in str(info)) == copied
    other.accelerate = model.accelerate = False
    assert distance(model.fit(sparse, max_iter=5), other.fit(dense, max_iter=5)) < 1e-5
    assert other.fit_info_.density is None


def test_sparse_fit_is_resumed_with_the_same_bits(tmp_path):
    sparse, _ = both(150, 60)
    options = {"seed": 0, "tol": 0.0, "max_iter": 20, "checkpoint_seconds": 0.0}
    whole = nmf(4, **options).fit(sparse)
    run = {"checkpoint": tmp_path / "fit.safetensors"}

    def ends(iteration):
        if iteration.iteration == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nmf(4, **options).fit(sparse, callback=ends, **run)
    resumed = nmf(4, **options)
    assert all(map(torch.equal, resumed.fit(sparse, resume=True, **run), whole))
    assert resumed.fit_info_.iterations == 20


def test_fit_in_residual_form_is_not_resumed_with_sparse_data():
    data = Data(sparse_matrix(both(30, 20)[0]))
    for codes, dictionary in (("residual", "residual"), ("residual", "normal")):
        with pytest.raises(InvalidInput, match="in residual form, which a sparse A does not have"):
            refuse_residual(Plan(codes, dictionary, 4, 30, 1.0), data, SOLVERS["hals"])
    refuse_residual(Plan("normal", "normal", 4, 30, 1.0), data, SOLVERS["hals"])


def test_sparse_data_are_not_overwritten(tmp_path):
    sparse, _ = both(150, 60)
    values = np.lib.format.open_memmap(tmp_path / "A.npy", "w+", np.float32, sparse.data.shape)
    values[:] = sparse.data
    mapped = scipy_sparse.csr_matrix((values, sparse.indices, sparse.indptr), sparse.shape)
    with pytest.raises(InvalidInput, match=r"A\.npy is to be written, but .* is read"):
        NMF(4, seed=0).fit(mapped, codes=tmp_path / "A.npy")


def test_residual_form_is_refused():
    sparse, _ = both(30, 20)
    with pytest.raises(InvalidInput, match="which a sparse A does not have"):
        nmf(2, form="residual").fit(sparse)


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"method": "sweeps"}, {"top_k": 2}])
def test_codes_are_those_of_the_dense_data(options):
    sparse, dense = both(150, 60, np.float64)
    model = NMF(4, seed=0)
    model.fit(sparse, max_iter=5)
    Z, info = model.encode(sparse, return_info=True, **options)
    expected, its_info = model.encode(dense, return_info=True, **options)
    torch.testing.assert_close(Z, expected, rtol=1e-6, atol=1e-9)
    assert info.relative_error == pytest.approx(its_info.relative_error)
    assert info.method == its_info.method
    torch.testing.assert_close(info.kkt, its_info.kkt, rtol=1e-3, atol=1e-12)


def test_more_concepts_than_features_are_encoded():
    sparse, dense = both(40, 12, np.float64)
    model = NMF(60).load_dictionary(torch.rand(60, 12, dtype=torch.float64))
    torch.testing.assert_close(model.encode(sparse), model.encode(dense), rtol=1e-6, atol=1e-9)


def test_batches_are_learned_as_dense_ones():
    sparse, dense = both(150, 60, np.float64)
    model, other = NMF(4, seed=0), NMF(4, seed=0)
    for i in range(0, 150, 50):
        model.partial_fit(sparse[i : i + 50])
        other.partial_fit(dense[i : i + 50])
    torch.testing.assert_close(model.D, other.D)
    assert model.online_info_.relative_error == pytest.approx(other.online_info_.relative_error)


def in_batches(A, rows=40):
    return [A[i : i + rows] for i in range(0, A.shape[0], rows)]


class Again:
    """Batches that can be iterated over repeatedly; `change(number of the pass, batches)` first."""

    def __init__(self, batches, change=lambda number, batches: batches):
        self.batches, self.change, self.passes = batches, change, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.change(self.passes, self.batches))


def of_one_buffer(batches):
    """A generator that gives the same object again, with the rows of the next batch."""
    given = batches[0].copy()
    for batch in batches:
        given.data, given.indices, given.indptr = batch.data.copy(), batch.indices, batch.indptr
        given._shape = batch.shape
        yield given
        given.data[:] = np.nan


# gathered in memory: a list, a generator that is read once, or one that reuses what it gave
@pytest.mark.parametrize("given", [list, iter, of_one_buffer])
def test_batches_that_fit_are_fitted_as_one_matrix(given):
    sparse, _ = both(150, 60)
    model, other = NMF(4, seed=0, tol=0.0), NMF(4, seed=0, tol=0.0)
    pair, expected = model.fit(given(in_batches(sparse)), 5), other.fit(sparse, 5)
    assert all(map(torch.equal, pair, expected))
    assert model.fit_info_.passes == 1


@pytest.fixture
def no_overhead(monkeypatch):
    for name in ("_OVERHEAD", "WORKSPACE_BYTES"):
        monkeypatch.setattr(memory, name, 0)
    monkeypatch.setattr(memory, "LEAST_ROWS", 16)


# in memory but processed in chunks, from batches, and from batches in chunks that cross them; codes
# in memory, in a file, and computed anew whenever they are read
@pytest.mark.parametrize(
    ("given", "codes"),
    [("batches", "memory"), ("batches", "file"), ("matrix", None)],
)
def test_fit_in_passes_is_that_of_the_dense_data(given, codes, tmp_path, no_overhead):
    sparse, dense = both(150, 60, np.float64)
    # another width of rows than the mean
    sparse = scipy_sparse.vstack([sparse, sparse[:20] * 0, sparse[:30]]).tocsr()
    dense = torch.cat([dense, dense[:20] * 0, dense[:30]])
    share = sparse.nnz / dense.numel()
    place = tmp_path / "Z.npy" if codes == "file" else codes
    kind = codes or "none"
    most = Needs(200, 60, 4, 8, kind, "nndsvda", stored=share).streamed(37)
    options = {"seed": 0, "tol": 0.0, "accelerate": False, "init": "nndsvda"}
    model = NMF(4, max_memory=most, **options)
    Z, D = model.fit(sparse if given == "matrix" else Again(in_batches(sparse)), 12, codes=place)
    info = model.fit_info_
    assert info.passes > 12
    assert 16 <= info.chunk_rows < 60
    other = NMF(4, **options)
    Z1, D1 = other.fit(dense, 12, codes=codes if codes is None else "memory")
    torch.testing.assert_close(D, D1, rtol=1e-7, atol=1e-10)
    if Z1 is not None:
        torch.testing.assert_close(torch.as_tensor(Z), Z1, rtol=1e-7, atol=1e-10)
    for fact in ("relative_error", "r_squared", "objective"):
        assert getattr(info, fact) == pytest.approx(getattr(other.fit_info_, fact))


def test_batches_at_fault_are_named(no_overhead):
    sparse, dense = both(150, 60)
    bad = in_batches(sparse)
    bad[2] = bad[2].copy()
    bad[2].data[5] = -1
    column = bad[2].indices[5]
    with pytest.raises(InvalidInput, match=rf"1 negative entry, .*at row 80, column {column}: −1"):
        NMF(4).fit(bad)
    with pytest.raises(InvalidInput, match=r"batch 1 of A has 59 columns"):
        NMF(4).fit([sparse, sparse[:, 1:]])
    with pytest.raises(InvalidInput, match="some rows of A are sparse and others dense"):
        NMF(4).fit([sparse, dense])
    other = in_batches(sparse)[::-1]
    shuffled = Again(in_batches(sparse), lambda number, batches: other if number > 2 else batches)
    most = Needs(150, 60, 4, 4, start="nndsvda", stored=0.2).streamed(37)
    with pytest.raises(InvalidInput, match="batch 0 of A is not what it was in the pass before"):
        NMF(4, max_memory=most, seed=0).fit(shuffled)
    too_large = in_batches(scipy_sparse.vstack([sparse] * 20).tocsr())
    with pytest.raises(InvalidInput, match="can be read only once"):
        NMF(4, max_memory="150kB").fit(iter(too_large))


def test_command_line_keeps_a_sparse_file_sparse(tmp_path, capsys):
    sparse, dense = both(150, 60)
    A, Z, model, codes = (tmp_path / name for name in ("A.npz", "Z.npy", "m.safetensors", "c.npy"))
    scipy_sparse.save_npz(A, sparse)
    run = ["--concepts", "4", "--seed", "0", "--max-iter", "12", "--tol", "0"]
    assert cli.main(["fit", str(A), *run, "--out", str(model), "--codes", str(Z)]) == 0
    assert "of the entries are stored" in capsys.readouterr().out
    other = NMF(4, seed=0, max_iter=12, tol=0.0)
    pair = other.fit(dense)
    D = NMF.load(model).D
    assert distance((torch.from_numpy(np.load(Z)), D), pair) < 1e-4
    assert cli.main(["encode", str(model), str(A), "--out", str(codes)]) == 0
    expected = other.load_dictionary(D).encode(dense)
    torch.testing.assert_close(torch.from_numpy(np.load(codes)), expected, rtol=1e-3, atol=1e-4)


def test_what_sparse_data_do_not_have_is_refused():
    sparse, _ = both(30, 20)
    model = NMF(2, seed=0).load_dictionary(np.ones((2, 20), np.float32))
    A = torch.eye(20).to_sparse_csr().requires_grad_()
    with pytest.raises(InvalidInput, match=r"sparse and requires a gradient.*to_dense"):
        model.encode(A)
    assert model.encode(sparse[:0]).shape == (0, 2)


def test_more_columns_than_their_sums_fit_are_refused(monkeypatch):
    """Before 8 bytes for each are allocated: of 2³¹ columns the process was killed."""
    limits = lambda needed, _: 1000 if needed > 5000 else None  # noqa: E731
    monkeypatch.setattr(memory, "_exceeded", limits)
    A = torch.sparse_coo_tensor(torch.tensor([[0], [5]]), torch.ones(1), (1, 1000))
    with pytest.raises(InvalidInput, match=r"sums of the columns.*zero in all rows"):
        Data(sparse_matrix(A))


_GROWTH = """
import re, sys
import numpy as np, scipy.sparse, torch
from fastnmf import NMF
torch.set_num_threads(2)
def read(key):
    with open("/proc/self/status") as status:
        return int(re.search(key + r":\\s+(\\d+) kB", status.read())[1]) << 10
def of(n, d, stored):
    generator = np.random.default_rng(0)
    col, values = generator.integers(0, d, n * stored), generator.random(n * stored, np.float32)
    A = scipy.sparse.csr_array((values, col, np.arange(0, n * stored + 1, stored)), (n, d))
    A.sum_duplicates()
    return A
init, K, n, d = "{init}", 100, 20000, 30000
NMF(K, seed=0, init=init).fit(of(200, 300, 30), max_iter=2)
A = of(n, d, 8)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = read("VmRSS")
model = NMF(K, seed=0, tol=0.0, init=init)
model.fit(A, max_iter=2)
assert model.fit_info_.accelerated
print(read("VmHWM") - before - 4 * K * (n + d))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
@pytest.mark.parametrize("init", [pytest.param("random", marks=pytest.mark.thorough), "nndsvda"])
def test_process_grows_by_less_than_64_mib_beside_the_factors(init):
    """The factors take 19 MiB, the copies of an accelerated fit and ZᵀA 38; a dense A 2.2 GiB.
    glibc must return memory at once: what it keeps differs by 30 MiB from run to run."""
    command = [sys.executable, "-W", "ignore", "-c", _GROWTH.format(init=init)]
    asked = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **asked}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64 << 20
