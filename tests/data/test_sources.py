"""Data that are read in every pass: every kind of source, what is refused, and where a fault is
(shards.py and summary.py are tested here, too)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import relative_difference
from streams import BOUNDS, SOURCES, A, D, N, model, save, sharded, streamed, tight
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import InvalidInput
from fastnmf.data import sources
from fastnmf.data.opening import first_pass

pytestmark = pytest.mark.usefixtures("small_budgets")


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_read_in_passes_or_gathered_if_it_fits(kind, tmp_path):
    in_memory, _ = model(max_iter=3).fit(A)
    (tmp_path / "expected").mkdir()
    expected, _, _ = streamed(sharded(tmp_path / "expected" / "A"), max_iter=3)
    source = SOURCES[kind](tmp_path)
    Z, _, info = streamed(source, max_iter=3)
    assert torch.equal(Z, expected)
    assert info.passes > 3
    nmf = model(max_iter=3, max_memory="1GB")
    Z, _ = nmf.fit(source)
    assert nmf.fit_info_.chunk_rows is None
    assert torch.equal(Z, in_memory)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".npy", torch.float16), (".npy", torch.uint8), (".safetensors", torch.bfloat16)],
)
def test_files_of_other_numbers_are_widened(suffix, dtype, tmp_path):
    data = (A * 20).to(dtype)
    _, D, info = streamed(save(tmp_path / f"A{suffix}", data))
    assert info.dtype == "float32"
    _, expected = model().fit(data.float())
    assert relative_difference(D, expected) <= 1e-5


def test_one_shot_generator_is_gathered_if_it_fits():
    nmf = model(max_iter=3, max_memory="1GB")
    Z, _ = nmf.fit(rows for rows in A.split(500))
    assert torch.equal(Z, model(max_iter=3).fit(A)[0])


def test_one_shot_generator_beyond_the_budget_is_refused(monkeypatch):
    for module in (sources, first_pass):
        monkeypatch.setattr(module, "READ_ENTRIES", 1000)
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


@pytest.mark.parametrize(
    ("value", "kind", "gathered", "codes"),
    [
        (-0.25, "negative", False, "memory"),
        (np.nan, "nan or inf", True, "memory"),
        # as for codes that are computed anew
        (np.nan, "nan or inf", False, None),
    ],
)
def test_bad_entry_in_third_shard_is_named(value, kind, gathered, codes, tmp_path):
    bad = A.clone()
    bad[BOUNDS[4] + 17, 4] = bad[N - 1, 0] = value
    folder = sharded(tmp_path / "A", bad)
    number = str(value).replace("-", "−")
    message = rf"A has 2 {kind} entries, the first in .*part-4.npy at row 17, column 4: {number}"
    with pytest.raises(InvalidInput, match=message):
        model(max_memory="1GB" if gathered else tight()).fit(folder, codes=codes)


def test_bad_entry_of_batches_is_at_its_row():
    bad = A.clone()
    bad[1234, 5] = -2
    with pytest.raises(InvalidInput, match="A has 1 negative entry, the first at row 1234, column"):
        model(max_memory=tight()).fit(DataLoader(TensorDataset(bad), batch_size=100))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy_is_read_by_its_path(version, tmp_path):
    with open(tmp_path / "A.npy", "wb") as file:
        np.lib.format.write_array(file, A.numpy(), version)
    Z, D = model(max_iter=2).fit(tmp_path / "A.npy")
    expected = model(max_iter=2).fit(A)
    assert torch.equal(Z, expected[0])
    assert torch.equal(D, expected[1])


def test_batches_without_a_row_are_refused():
    with pytest.raises(InvalidInput, match=r"A has no rows, its shape"):
        model(max_memory=tight()).fit([A[:0], A[:0]])


def test_shard_of_another_width_is_named(tmp_path):
    folder = sharded(tmp_path / "A")
    np.save(folder / "part-2.npy", np.ones((3, D + 1)))
    with pytest.raises(InvalidInput, match=rf"part-2.npy has {D + 1} columns.*before it {D}"):
        model().fit(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("A.npy", np.ones(3, np.float32), "must be .n, d."),
        ("A.npy", np.ones((3, 2), complex), "must hold real numbers"),
        ("A.csv", b"", "must end in .npy, .safetensors, .npz, .h5ad, not in '.csv'"),
        ("A.npy", b"\x93NUMPY\x01\x00", "cannot be read as .npy"),
        ("A.npy", np.ones((0, 4)), "A has no rows"),
        ("A.npy", np.ones((4, 0)), "A has no features"),
    ],
)
def test_file_that_cannot_be_used_is_refused(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InvalidInput, match=message):
        model().fit(path)


def test_missing_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        model().fit(tmp_path / "missing")
    with pytest.raises(InvalidInput, match=r"holds no shards; they end in .npy, .safetensors"):
        model().fit(tmp_path)
