"""Codes in a file: whole or not at all, mapped where the system allows it."""

from __future__ import annotations

import contextlib
import os
import sys

import numpy as np
import pytest
import torch

from fastnmf.data import storage
from fastnmf.data.locks import working_folder
from fastnmf.data.storage import mapped, written


@contextlib.contextmanager
def opened(path, shape, dtype):
    with working_folder(path) as folder, written(path, folder, shape, dtype) as store:
        yield store


def test_written_file_is_a_whole_one(tmp_path):
    target = tmp_path / "Z.npy"
    with opened(target, (5, 2), torch.float32) as store:
        assert not target.exists()
        store.save(slice(0, 5), torch.ones(5, 2))
        for Z in store.blocks_():
            Z.mul_(3)
    np.testing.assert_array_equal(np.load(target), np.full((5, 2), 3, np.float32))


@pytest.mark.parametrize(
    ("dtype", "maps"),
    [
        (torch.float32, True),
        (torch.float32, False),
        # other bytes an entry, and bounds elsewhere in a page
        (torch.float16, True),
        (torch.float64, False),
    ],
)
def test_mapped_codes_are_those_of_the_file(tmp_path, dtype, maps, monkeypatch):
    for advice in () if maps else ("_POPULATE_READ", "_POPULATE_WRITE"):
        monkeypatch.setattr(storage, advice, 9999)
    # of more than a page, with bounds inside of pages
    n, K, part, rest = 4001, 3, slice(1502, 3001), slice(3001, 4001)
    with opened(tmp_path / "Z.npy", (n, K), dtype) as codes:
        Z = (torch.arange(n * K) % 500).reshape(n, K).to(dtype)
        codes.save(slice(0, n), Z)
        assert torch.equal(codes.map_rows(rest, writes=False), Z[rest])
        codes.release(rest)
        some = codes.map_rows(part)
        assert torch.equal(some, Z[part])
        assert codes.map_rows(slice(2, 2)).shape == (0, K)
        codes.map_rows(rest).add_(1)
        codes.release(rest)
        some.mul_(2)
        codes.save(part, some)
        # and from elsewhere
        codes.save(slice(0, 2), torch.full((2, K), 7, dtype=dtype))
        expected = Z.clone()
        expected[part] *= 2
        expected[:2] = 7
        if sys.platform == "linux" and maps:
            expected[rest] += 1
        assert torch.equal(codes.load(slice(0, n)), expected)
        assert torch.equal(codes.map_rows(slice(0, n)), expected)
        os.truncate(codes.file, codes.file.stat().st_size - (1 << 14))
        for read in (codes.map_rows, codes.load):
            with pytest.raises(OSError, match="has become shorter"):
                read(slice(0, n))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files are not mapped")
def test_limited_address_space_is_not_taken_by_a_map_of_the_codes(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    for limit, maps in ((limits, True), ((1 << 46, limits[1]), False)):
        with opened(tmp_path / "Z.npy", (100, 3), torch.float32) as codes:
            resource.setrlimit(resource.RLIMIT_AS, limit)
            try:
                Z = codes.map_rows(slice(10, 20))
                maps_here = open("/proc/self/maps").read()
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
            codes.save(slice(10, 20), Z.add_(1))
            assert (str(codes.file) in maps_here) == maps
        assert np.load(tmp_path / "Z.npy").sum() == 30


def test_file_without_rows_is_one_too(tmp_path):
    with opened(tmp_path / "Z.npy", (0, 3), torch.float64):
        pass
    assert mapped(tmp_path / "Z.npy").shape == (0, 3)
    assert os.listdir(tmp_path) == ["Z.npy"]
