"""Data larger than memory: the same iterates from chunks, every kind of source, codes in files."""

from __future__ import annotations

import itertools
import os
import sys
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from oracle import relative_difference
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.cli import main as cli
from fastnmf.data import sources as source
from fastnmf.data import storage as store
from fastnmf.data.prefetch import Prefetcher
from fastnmf.data.storage import written
from fastnmf.init.streamed import _groups
from fastnmf.planning import memory as budget
from fastnmf.planning.memory import Needs
from fastnmf.solvers.registry import SOLVERS

N, D, K = 3011, 40, 9
# seven uneven shards, one of them empty
BOUNDS = [0, 500, 1201, 1202, 1202, 2000, 2555, N]
CHUNK_ROWS = 611
STARTS = ["random", "nndsvda", "rows", "spread"]


def problem(n=N, d=D, K=K, dtype=torch.float32):
    """Rows that K concepts explain but for some noise, so that rounding changes a fit little."""
    generator = torch.Generator().manual_seed(0)
    Z = torch.rand(n, K, generator=generator, dtype=torch.float64)
    Z *= torch.rand(n, K, generator=generator) < 0.4
    A = Z @ torch.rand(K, d, generator=generator, dtype=torch.float64).pow(3)
    A += 0.1 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    return A.to(dtype)


A = problem()


pytestmark = pytest.mark.usefixtures("small_budgets")


def tight(codes="memory", start="nndsvda", rows=CHUNK_ROWS, data=A, concepts=K, itemsize=4):
    """Bytes with which so many rows are in hand, and not all are."""
    needs = Needs(*data.shape, concepts, itemsize, codes, start)
    assert needs.streamed(rows) < needs.resident(copied=itemsize)
    return needs.streamed(rows)


def save(path, rows):
    if path.suffix == ".npy":
        np.save(path, rows.numpy())
    else:
        safetensors.torch.save_file({"A": rows.contiguous()}, path)
    return path


def sharded(folder, data=A, suffix=".npy", bounds=BOUNDS):
    folder.mkdir()
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        save(folder / f"part-{number}{suffix}", data[first:last])
    return folder


def model(**options):
    # a stream is not accelerated
    options = {"seed": 0, "tol": 0, "max_iter": 20, "accelerate": False, **options}
    return NMF(K, **options)


def streamed(rows, codes="memory", **options):
    nmf = model(
        chunk_rows=CHUNK_ROWS, max_memory=tight(start=options.get("init", "nndsvda")), **options
    )
    Z, D = nmf.fit(rows, codes=codes)
    assert nmf.fit_info_.chunk_rows == CHUNK_ROWS
    return Z, D, nmf.fit_info_


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_streamed_fit_equals_resident_fit(solver, start, tmp_path):
    options = {"solver": solver, "init": start}
    expected = model(**options)
    Z, D = expected.fit(A)
    assert expected.fit_info_.chunk_rows is None
    nmf = model(**options, chunk_rows=CHUNK_ROWS, max_memory=tight(start=start))
    given = nmf.fit(sharded(tmp_path / "A"))
    assert nmf.fit_info_.chunk_rows == CHUNK_ROWS
    assert relative_difference(given[1], D) <= 1e-5
    assert relative_difference(given[0], Z) <= 1e-5
    for name in ("relative_error", "r_squared", "mean_l0", "hoyer"):
        told, known = (getattr(info.fit_info_, name) for info in (nmf, expected))
        assert told == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_streamed_fit_equals_resident_fit_in_float64(solver, start, tmp_path):
    data = A.double()
    _, D = model(solver=solver, init=start).fit(data)
    most = tight(start=start, itemsize=8)
    nmf = model(solver=solver, init=start, chunk_rows=CHUNK_ROWS, max_memory=most)
    _, given = nmf.fit(sharded(tmp_path / "A", data))
    assert nmf.fit_info_.chunk_rows == CHUNK_ROWS
    assert relative_difference(given, D) <= 1e-10


@pytest.mark.parametrize("features", [90, 200, 900], ids=lambda d: f"d{d}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_start_with_fewer_rows_than_features_is_the_resident_one(features, dtype, tmp_path):
    """From the same random basis of the rows; also where that is none (d90: few rows), and where
    the features are thinned out (d900)."""
    n = 50 if features == 90 else 120
    # of a flat spectrum, where every basis leads to other vectors
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(n, features, generator=generator, dtype=torch.float64).to(dtype)
    resident = NMF(K, seed=0, init="nndsvda", max_iter=0)
    Z, D = resident.fit(data)
    most = tight("memory", rows=20, data=data, itemsize=data.itemsize)
    nmf = NMF(K, seed=0, init="nndsvda", max_iter=0, max_memory=most, tuning=Tuning(chunk_rows=20))
    given = nmf.fit(sharded(tmp_path / "A", data, bounds=(0, 7, 30, n)))
    assert nmf.fit_info_.chunk_rows == 20
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    assert relative_difference(given[1], D) <= bound
    assert relative_difference(given[0], Z) <= bound


def test_stream_is_accelerated_only_by_an_error_that_says_so(tmp_path):
    folder = sharded(tmp_path / "A")
    _, _, info = streamed(folder, accelerate="auto", max_iter=2)
    assert not info.accelerated
    with pytest.raises(ValueError, match="more max_memory"):
        streamed(folder, accelerate=True)


def test_streamed_fit_takes_given_start(tmp_path):
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(N, K, generator=generator), torch.rand(K, D, generator=generator)
    _, expected = model(init=start).fit(A)
    _, given, _ = streamed(sharded(tmp_path / "A"), init=start)
    assert relative_difference(given, expected) <= 1e-5


def test_more_concepts_than_features_are_streamed(tmp_path):
    """The start takes rows beside concepts of NNDSVDa, and the half-steps more concepts."""
    wide = 60
    options = {"init": "nndsvda", "seed": 0, "tol": 0, "max_iter": 3, "accelerate": False}
    _, expected = NMF(wide, **options).fit(A)
    most = tight(start="nndsvda", concepts=wide)
    nmf = NMF(wide, max_memory=most, tuning=Tuning(chunk_rows=CHUNK_ROWS), **options)
    _, given = nmf.fit(sharded(tmp_path / "A"))
    assert nmf.fit_info_.chunk_rows is not None
    assert relative_difference(given, expected) <= 1e-5


class Again:
    """Batches that can be had again, in one buffer that is filled again and again."""

    def __iter__(self):
        buffer = np.empty((300, D), np.float32)
        for first in range(0, N, 300):
            rows = A[first : first + 300].numpy()
            buffer[: len(rows)] = rows
            yield buffer[: len(rows)]


def memory_map(folder):
    np.save(folder / "A.npy", A.numpy())
    return np.load(folder / "A.npy", mmap_mode="r")


def fortran(folder):
    np.save(folder / "A.npy", np.asfortranarray(A))
    return folder / "A.npy"


SOURCES = {
    "map": memory_map,
    "reversed map": lambda folder: memory_map(folder)[::-1][::-1],
    "path": lambda folder: str(save(folder / "A.npy", A)),
    "fortran": fortran,
    "safetensors": lambda folder: save(folder / "A.safetensors", A),
    "folder": lambda folder: sharded(folder / "A"),
    "folder of safetensors": lambda folder: sharded(folder / "A", suffix=".safetensors"),
    "list": lambda folder: sorted(sharded(folder / "A").iterdir()),
    "loader": lambda folder: DataLoader(TensorDataset(A), batch_size=250),
    "iterable": lambda folder: Again(),
    "batches": lambda folder: list(A.split(333)),
    "array": lambda folder: A.numpy()[:, ::-1][:, ::-1],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_streamed(kind, tmp_path):
    expected, _, _ = streamed(sharded(tmp_path / "expected"), max_iter=3)
    Z, _, info = streamed(SOURCES[kind](tmp_path), max_iter=3)
    assert torch.equal(Z, expected)
    assert info.passes > 3


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_gathered_if_it_fits(kind, tmp_path):
    nmf = model(max_iter=3, max_memory="1GB")
    Z, _ = nmf.fit(SOURCES[kind](tmp_path))
    assert nmf.fit_info_.chunk_rows is None
    assert torch.equal(Z, model(max_iter=3).fit(A)[0])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.bfloat16])
def test_files_of_other_numbers_are_widened(suffix, dtype, tmp_path):
    data = (A * 20).to(dtype)
    if (suffix, dtype) == (".npy", torch.bfloat16):
        pytest.skip("NumPy knows no bfloat16")
    _, D, info = streamed(save(tmp_path / f"A{suffix}", data))
    assert info.dtype == "float32"
    _, expected = model().fit(data.float())
    assert relative_difference(D, expected) <= 1e-5


def test_one_shot_generator_is_gathered_if_it_fits():
    nmf = model(max_iter=3, max_memory="1GB")
    Z, _ = nmf.fit(rows for rows in A.split(500))
    assert torch.equal(Z, model(max_iter=3).fit(A)[0])


def test_one_shot_generator_beyond_the_budget_is_refused(monkeypatch):
    monkeypatch.setattr(source, "_READ_ENTRIES", 1000)
    read = []
    batches = (read.append(1) or rows for rows in A.split(50))
    with pytest.raises(InvalidInput, match=r"only once.*give what can be read again.*__iter__"):
        model(max_memory=tight()).fit(batches)
    assert len(read) < len(A.split(50))


def test_shuffled_loader_is_refused():
    loader = DataLoader(TensorDataset(A), batch_size=250, shuffle=True)
    with pytest.raises(InvalidInput, match=r"batch \d+ of A is not what it was.*shuffle=False"):
        model(max_memory=tight()).fit(loader)


def test_batches_that_become_fewer_are_refused():
    class Fewer:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(A.split(250)[: 13 - self.passes])

    with pytest.raises(InvalidInput, match="not what it was in the pass before"):
        model(max_memory=tight()).fit(Fewer())


@pytest.mark.parametrize("codes", ["memory", None])
@pytest.mark.parametrize(("value", "kind"), [(-0.25, "negative"), (np.nan, "nan or inf")])
@pytest.mark.parametrize("gathered", [False, True])
def test_bad_entry_in_third_shard_is_named(value, kind, gathered, codes, tmp_path):
    bad = A.clone()
    bad[BOUNDS[4] + 17, 4] = bad[N - 1, 0] = value
    folder = sharded(tmp_path / "A", bad)
    number = str(value).replace("-", "−")
    told = rf"A has 2 {kind} entries, the first in .*part-4.npy at row 17, column 4: {number}"
    with pytest.raises(InvalidInput, match=told):
        model(max_memory="1GB" if gathered else tight()).fit(folder, codes=codes)


def test_bad_entry_of_batches_is_at_its_row():
    bad = A.clone()
    bad[1234, 5] = -2
    with pytest.raises(InvalidInput, match="A has 1 negative entry, the first at row 1234, column"):
        model(max_memory=tight()).fit(DataLoader(TensorDataset(bad), batch_size=100))


def test_shard_of_another_width_is_named(tmp_path):
    folder = sharded(tmp_path / "A")
    np.save(folder / "part-2.npy", np.ones((3, D + 1)))
    with pytest.raises(InvalidInput, match=rf"part-2.npy has {D + 1} columns.*before it {D}"):
        model().fit(folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("A.npy", np.ones(3, np.float32), "must be .n, d."),
        ("A.npy", np.ones((3, 2), complex), "must hold real numbers"),
        ("A.npz", b"", "must end in .npy, .safetensors"),
        ("A.npy", b"\x93NUMPY\x01\x00", "cannot be read as .npy"),
        ("A.npy", np.ones((0, 4)), "A has no rows"),
        ("A.npy", np.ones((4, 0)), "A has no features"),
    ],
)
def test_file_that_cannot_be_used_is_refused(name, content, told, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InvalidInput, match=told):
        model().fit(path)


def test_missing_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        model().fit(tmp_path / "missing")
    with pytest.raises(InvalidInput, match=r"holds no shards; they end in .npy, .safetensors"):
        model().fit(tmp_path)


@pytest.mark.parametrize("fits", [False, True])
def test_codes_on_disk_equal_codes_in_memory(fits, tmp_path):
    folder, target = sharded(tmp_path / "A"), tmp_path / "Z.npy"
    options = {"chunk_rows": CHUNK_ROWS, "max_memory": "1GB" if fits else tight()}
    expected, D = model(**options).fit(folder)
    nmf = model(**options)
    Z, given = nmf.fit(folder, codes=target)
    assert torch.equal(given, D)
    assert torch.equal(Z, expected)
    np.testing.assert_array_equal(np.load(target), expected)
    assert nmf.fit_info_.codes == str(target)
    Z.zero_()
    np.testing.assert_array_equal(np.load(target), expected)


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_codes_that_are_not_kept_are_computed_anew(solver, fits, tmp_path):
    folder = sharded(tmp_path / "A")
    kept = model(solver=solver)
    kept.fit(A)
    nmf = model(solver=solver, max_memory="1GB" if fits else tight("none"))
    Z, D = nmf.fit(folder, codes=None)
    assert Z is None
    assert nmf.fit_info_.codes == "not kept"
    assert "‖D‖" in str(nmf.fit_info_)
    # another path to the dictionary, since codes are near their optimum in each pass
    assert nmf.fit_info_.relative_error <= 1.1 * kept.fit_info_.relative_error
    errors = [iteration.relative_error for iteration in nmf.fit_info_.history]
    assert errors == sorted(errors, reverse=True)
    codes = nmf.encode(A, tol=0)
    assert relative_difference(codes @ D, A) <= 1.01 * nmf.fit_info_.relative_error


def test_fit_without_codes_stops_when_the_dictionary_has_settled(tmp_path):
    nmf = model(tol=1e-3, max_iter=300, max_memory=tight("none"))
    nmf.fit(sharded(tmp_path / "A"), codes=None)
    assert nmf.fit_info_.converged
    assert nmf.fit_info_.iterations > 2


def test_given_start_of_codes_that_are_not_kept():
    D0 = torch.rand(K, D)
    with pytest.raises(InvalidInput, match=r"give init=\(None, D0\)"):
        model(init=(torch.rand(N, K), D0)).fit(A, codes=None)
    model(init=(None, D0), max_iter=2).fit(A, codes=None)


@pytest.mark.parametrize("kind", ["folder", "loader", "map"])
def test_encode_streams(kind, tmp_path):
    nmf = model()
    nmf.fit(A)
    expected = nmf.encode(A)
    nmf.max_memory = tight(rows=300)
    assert relative_difference(nmf.encode(SOURCES[kind](tmp_path)), expected) <= 1e-3
    target = tmp_path / "Z.npy"
    on_disk = nmf.encode(tmp_path / "A" if kind == "folder" else A, codes=target)
    np.testing.assert_array_equal(np.load(target), on_disk)
    assert relative_difference(on_disk, expected) <= 1e-3


def test_encode_streams_from_given_codes(tmp_path):
    nmf = model()
    Z, _ = nmf.fit(A)
    folder = sharded(tmp_path / "A")
    nmf.max_memory = tight(rows=300)
    assert torch.equal(nmf.encode(folder, max_iter=0, Z0=Z), Z)


def test_decode_streams(tmp_path):
    nmf = model()
    Z, D = nmf.fit(A, codes=tmp_path / "Z.npy")
    nmf.max_memory = Needs(N, K, D.shape[1], 4).streamed(100)
    expected = Z @ D
    assert relative_difference(nmf.decode(tmp_path / "Z.npy"), expected) <= 1e-6
    nmf.decode(tmp_path / "Z.npy", out=tmp_path / "A_hat.npy")
    assert relative_difference(np.load(tmp_path / "A_hat.npy"), expected) <= 1e-6


def test_impossible_budget_says_what_the_least_is(tmp_path):
    folder = sharded(tmp_path / "A")
    with pytest.raises(InvalidInput, match=r"max_memory of 1MB.*at least (\d)MB.*codes=") as told:
        model(max_memory=10_000).fit(folder)
    least = told.match(r"at least (\d+MB)") or str(told.value)
    least = str(told.value).split("at least ")[1].split(" ")[0]
    model(max_memory=least, max_iter=1).fit(folder)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5 g", 1500000000), (4096, 4096), (None, None)],
)
def test_sizes_are_read(given, bytes_):
    assert budget.bytes_of(given) == bytes_


@pytest.mark.parametrize("given", ["2XB", "", "-1GB", "0", 0, -5])
def test_size_that_is_none_is_refused(given):
    with pytest.raises(InvalidInput, match=r"max_memory=.*'2GB'"):
        NMF(3, max_memory=given)


@pytest.mark.parametrize("given", [True, 2.5, object()])
def test_size_of_another_type_is_refused(given):
    with pytest.raises(TypeError, match="max_memory="):
        NMF(3, max_memory=given)


@pytest.mark.parametrize("codes", [3, True, b"Z.npy"])
def test_codes_of_another_type_are_refused(codes):
    with pytest.raises(TypeError, match="codes="):
        model().fit(A, codes=codes)


def test_codes_file_is_refused_before_the_fit(tmp_path):
    for name, told in (
        ("Z.txt", "must end in .npy"),
        ("A.npy", "is to be written, but .*A.npy is read"),
    ):
        save(tmp_path / "A.npy", A)
        with pytest.raises(InvalidInput, match=told):
            model(max_memory=tight()).fit(tmp_path / "A.npy", codes=tmp_path / name)


def test_encode_and_decode_need_a_place():
    nmf = model(max_iter=1)
    nmf.fit(A)
    with pytest.raises(TypeError, match="codes=None"):
        nmf.encode(A, codes=None)


def test_gradient_is_refused_where_there_is_none(tmp_path):
    nmf = model(max_iter=1)
    Z, _ = nmf.fit(A)
    with pytest.raises(InvalidInput, match=r"Z requires a gradient.*Z.detach\(\)"):
        nmf.decode(Z.requires_grad_(), out=tmp_path / "A_hat.npy")
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        nmf.encode(A.clone().requires_grad_(), codes=tmp_path / "Z.npy")
    nmf.max_memory = tight(rows=100)
    wide = A.half().requires_grad_()
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        nmf.encode(wide)
    with torch.no_grad():
        assert len(nmf.encode(wide)) == N


def test_residual_form_is_refused_where_data_are_streamed(tmp_path):
    with pytest.raises(InvalidInput, match=r"form='residual' keeps a residual"):
        model(form="residual", max_memory=tight()).fit(sharded(tmp_path / "A"))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastnmf")]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("fits", [False, True])
def test_interrupted_fit_leaves_all_as_it_was(fault, fits, tmp_path):
    folder, target = sharded(tmp_path / "A"), tmp_path / "Z.npy"

    def interrupt(iteration):
        if iteration.iteration == 2:
            raise fault

    nmf = model(max_memory="1GB" if fits else tight(), max_iter=1)
    nmf.fit(folder, codes=target)
    before, D, info = target.read_bytes(), nmf.D.clone(), nmf.fit_info_
    nmf.callback = interrupt
    with pytest.raises(fault):
        nmf.fit(folder, max_iter=5, codes=target)
    assert target.read_bytes() == before
    assert torch.equal(nmf.D, D)
    assert nmf.fit_info_ is info
    assert sorted(file.name for file in tmp_path.iterdir()) == ["A", "Z.npy"]
    assert threads() == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_fault_of_the_reader_reaches_the_caller(fault):
    class Faulty:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for number, rows in enumerate(A.split(250)):
                if self.passes == 3 and number == 5:
                    raise fault("the disk is gone")
                yield rows

    with pytest.raises(fault, match="the disk is gone"):
        model(max_memory=tight()).fit(Faulty())
    assert threads() == []


def test_next_item_is_made_while_one_is_used():
    made, used = threading.Event(), []

    def items():
        yield 1
        made.set()
        yield 2

    with Prefetcher() as ahead:
        for item in ahead(items()):
            # without a thread that goes ahead this would wait for ever
            assert made.wait(10)
            used.append(item)
    assert used == [1, 2]
    assert threads() == []


def test_fault_of_what_is_done_later_is_raised():
    def fail():
        raise OSError("no space")

    with Prefetcher() as ahead:
        ahead.later(fail)
        with pytest.raises(OSError, match="no space"):
            ahead.settle()


THREADS = """
import os, sys, torch
torch.set_num_threads(2)
from fastnmf.data.prefetch import Prefetcher
from fastnmf.data.sources import chunks_of, take
def threads():
    return len(os.listdir("/proc/self/task"))
torch.rand(4000, 300).exp_()
before, seen = threads(), []
with Prefetcher() as ahead:
    source, summary = take(sys.argv[1], ahead, keep=lambda *_: False, device="cpu")
    seen.append(threads())
    room = torch.empty(1000, summary.d)
    for _ in ahead(chunks_of(source, len(room), lambda: room)):
        seen.append(threads())
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("shape", [(6000, 384), (100, 100_000)])
@pytest.mark.parametrize("rows", [50, 10_000])
def test_reading_begins_one_thread(shape, rows, tmp_path, fresh):
    """With more than there are processors all would sleep after every operation."""
    A = np.random.default_rng(0).random(shape).astype(np.float16)
    for first in range(0, len(A), rows):
        np.save(tmp_path / f"{first:06}.npy", A[first : first + rows])
    ran = fresh(THREADS, str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 1


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 47, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_in_groups_are_one_draw(n, dtype):
    groups = list(_groups(n, 16))
    assert [part.start for part in groups[1:]] == [part.stop for part in groups[:-1]]
    assert groups[-1].stop == n
    generator = torch.Generator().manual_seed(5)
    sizes = [part.stop - part.start for part in groups]
    drawn = [torch.randn(rows, 3, generator=generator, dtype=dtype) for rows in sizes]
    whole = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=dtype)
    assert torch.equal(torch.cat(drawn), whole)


def test_written_file_is_a_whole_one(tmp_path):
    target = tmp_path / "Z.npy"
    with written(target, (5, 2), torch.float32) as store:
        assert not target.exists()
        store.save(slice(0, 5), torch.ones(5, 2))
        store.each_(lambda part, Z: Z.mul_(3))
    np.testing.assert_array_equal(np.load(target), np.full((5, 2), 3, np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("maps", [True, False], ids=["map", "no map"])
def test_codes_that_are_held_are_those_of_the_file(tmp_path, dtype, maps, monkeypatch):
    for advice in () if maps else ("_POPULATE_READ", "_POPULATE_WRITE"):
        monkeypatch.setattr(store, advice, 9999)
    # of more than a page, with bounds inside of pages
    n, K, part, rest = 4001, 3, slice(1502, 3001), slice(3001, 4001)
    with written(tmp_path / "Z.npy", (n, K), dtype) as codes:
        Z = (torch.arange(n * K) % 500).reshape(n, K).to(dtype)
        codes.save(slice(0, n), Z)
        assert torch.equal(codes.hold(rest, writes=False), Z[rest])
        codes.let_go(rest)
        held = codes.hold(part)
        assert torch.equal(held, Z[part])
        assert codes.hold(slice(2, 2)).shape == (0, K)
        codes.hold(rest).add_(1)
        codes.let_go(rest)
        held.mul_(2)
        codes.save(part, held)
        # and from elsewhere
        codes.save(slice(0, 2), torch.full((2, K), 7, dtype=dtype))
        expected = Z.clone()
        expected[part] *= 2
        expected[:2] = 7
        if sys.platform == "linux" and maps:
            expected[rest] += 1
        assert torch.equal(codes.load(slice(0, n)), expected)
        assert torch.equal(codes.hold(slice(0, n)), expected)
        os.truncate(codes.file, codes.file.stat().st_size - (1 << 14))
        for read in (codes.hold, codes.load):
            with pytest.raises(OSError, match="has become shorter"):
                read(slice(0, n))


def test_command_line_streams(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sharded(tmp_path / "A")
    limit = str(tight("file", "nndsvda"))
    command = f"fit A --concepts {K} --out m.safetensors --codes Z.npy --max-iter 5 --seed 0"
    assert cli.main([*command.split(), "--max-memory", limit]) == 0
    told = capsys.readouterr()
    for word in (f"{N:,} × {D}", "rows at a time", "passes", "Z.npy"):
        assert word in told.out
    assert "pass" in told.err
    expected, _ = model(max_iter=5).fit(A)
    assert relative_difference(np.load("Z.npy"), expected) <= 1e-5
    shards = [str(path) for path in sorted((tmp_path / "A").iterdir())]
    assert cli.main(["encode", "m.safetensors", *shards, "--out", "Y.npy"]) == 0
    assert cli.main(["decode", "m.safetensors", "Y.npy", "--out", "A_hat.npy"]) == 0
    assert relative_difference(np.load("A_hat.npy"), A) < 0.2
    assert (
        cli.main(["fit", "A", "--concepts", "3", "--out", "m.safetensors", "--codes", "A/p.npy"])
        == 2
    )


GROWTH = """
import re, sys, torch
torch.set_num_threads(1)
from fastnmf import NMF
def peak():
    # ru_maxrss would begin with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
torch.rand(300, 300) @ torch.rand(300, 300)
NMF(2, max_iter=1).fit(torch.rand(20, 5))
before = peak()
source, codes, start, most = sys.argv[1:]
nmf = NMF(16, max_iter=2, tol=0, seed=0, init=start, max_memory=int(most))
nmf.fit(source, codes=codes or None)
assert nmf.fit_info_.chunk_rows < nmf.fit_info_.n / 4, nmf.fit_info_
print(peak() - before)
"""


MOST = 128 << 20


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of one and a half times the budget, three times once it is widened."""
    n, d = 200_000, 512
    rows = np.random.default_rng(0).random((8000, d)).astype(np.float16)
    path = tmp_path_factory.mktemp("large") / "A.npy"
    file = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
    for first in range(0, n, 8000):
        file[first : first + 8000] = rows
    file.flush()
    assert file.nbytes > 1.5 * MOST
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files are not mapped")
def test_limited_address_space_is_not_taken_by_a_map_of_the_codes(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    for limit, maps in ((limits, True), ((1 << 46, limits[1]), False)):
        with written(tmp_path / "Z.npy", (100, 3), torch.float32) as codes:
            resource.setrlimit(resource.RLIMIT_AS, limit)
            try:
                Z = codes.hold(slice(10, 20))
                mapped = open("/proc/self/maps").read()
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
            codes.save(slice(10, 20), Z.add_(1))
            assert (str(codes.file) in mapped) == maps
        assert np.load(tmp_path / "Z.npy").sum() == 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", ["Z.npy nndsvda", " spread"])
def test_process_grows_by_less_than_max_memory(case, large_file, tmp_path, fresh):
    codes, start = case.split(" ")
    target = str(tmp_path / codes) if codes else ""
    ran = fresh(GROWTH, str(large_file), target, start, str(MOST))
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < MOST
