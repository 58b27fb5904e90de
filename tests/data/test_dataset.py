"""Data: chunks and tiles of what is in memory, and the memory that a process takes where it is
not. Fits of data that are read in passes: fit/test_streamed.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory


@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 100])
def test_chunks_in_memory_are_views_of_all_rows_in_order(chunk_rows):
    A, codes = torch.rand(7, 5), InMemory(torch.rand(7, 2))
    data = Data(A)
    data.limit_chunks(chunk_rows)
    chunks = list(data.chunks(codes))
    assert torch.equal(torch.cat([X for _, X, _ in chunks]), A)
    for part, X, Z in chunks:
        assert X.data_ptr() == A[part].data_ptr()
        assert Z.data_ptr() == codes.Z[part].data_ptr()
        assert len(X) == part.stop - part.start <= (chunk_rows or 7)
    assert len(chunks) == -(-7 // (chunk_rows or 7))


def test_tiles_in_memory_are_views_as_they_are_stored():
    A, codes, E = torch.rand(7, 5).bfloat16(), InMemory(torch.rand(7, 2)), torch.rand(7, 5)
    tiles = list(Data(A).tiles(codes, 3, E=E))
    assert [len(X) for X, _, _ in tiles] == [3, 3, 1]
    for i, (X, Z, residual) in enumerate(tiles):
        for view, whole in ((X, A), (Z, codes.Z), (residual, E)):
            assert view.data_ptr() == whole[3 * i :].data_ptr()
            assert view.dtype == whole.dtype


def test_sums_of_data_in_memory_are_in_float64():
    A = torch.rand(3000, 7)
    data = Data(A)
    wide = A.double()
    assert float(data.squared_norm) == pytest.approx(float(wide.square().sum()), rel=1e-6)
    assert float(data.mean) == pytest.approx(float(wide.mean()), rel=1e-6)
    assert data.largest == float(A.amax())
    assert data.mean_row.dtype == torch.float64
    torch.testing.assert_close(data.mean_row, wide.mean(0), rtol=1e-12, atol=0)


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
nmf = NMF(16, max_iter=1, tol=0, seed=0, init=start, max_memory=int(most))
nmf.fit(source, codes=codes or None)
assert nmf.fit_info_.chunk_rows < nmf.fit_info_.n / 4, nmf.fit_info_
print(peak() - before)
"""


MOST = 96 << 20


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of one and a half times the budget, three times once it is widened."""
    n, d = 150_000, 512
    rows = np.random.default_rng(0).random((7500, d)).astype(np.float16)
    path = tmp_path_factory.mktemp("large") / "A.npy"
    file = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
    for first in range(0, n, 7500):
        file[first : first + 7500] = rows
    file.flush()
    assert file.nbytes > 1.5 * MOST
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "case", ["Z.npy nndsvda", pytest.param(" spread", marks=pytest.mark.thorough)]
)
def test_process_grows_by_less_than_max_memory(case, large_file, tmp_path, fresh):
    codes, start = case.split(" ")
    target = str(tmp_path / codes) if codes else ""
    ran = fresh(GROWTH, str(large_file), target, start, str(MOST))
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < MOST
