"""Codes in compressed rows: the same entries as dense ones, in the forms of torch and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.data.locks import working_folder
from fastnmf.data.sparse.codes import (
    Collected,
    are_sparse,
    compressed,
    csr_tensor,
    delivered,
    load_npz,
    save_npz,
)


def some(m=9, K=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    Z = torch.rand(m, K, generator=generator, dtype=dtype)
    Z *= torch.rand(m, K, generator=generator) < 0.3
    # a row and a concept without codes
    Z[4], Z[:, 2] = 0, 0
    return Z


def test_destinations_that_are_sparse(tmp_path):
    assert are_sparse("sparse")
    assert are_sparse(tmp_path / "Z.npz")
    assert not are_sparse("memory")
    assert not are_sparse(tmp_path / "Z.npy")
    assert not are_sparse(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compressed_rows_have_the_entries(dtype):
    Z = some(dtype=dtype)
    found = compressed(Z)
    assert found.crow.dtype == found.col.dtype == torch.int32
    assert found.nnz == int((Z != 0).sum())
    assert torch.equal(found.to_dense(), Z)
    tensor = csr_tensor(found)
    assert tensor.layout == torch.sparse_csr
    assert torch.equal(tensor.to_dense(), Z)
    assert tensor.values().data_ptr() == found.values.data_ptr()


# a column-major view, as the codes of a half-step are
def test_codes_of_any_strides():
    Z = some()
    assert torch.equal(compressed(Z.T.contiguous().T).to_dense(), Z)
    assert torch.equal(compressed(Z[:, :0]).to_dense(), Z[:, :0])


def test_chunks_are_collected_in_order():
    Z, rows = some(), Collected(6, torch.empty(0, device="cpu"))
    assert rows.matrix().shape == (0, 6)
    for part in Z.split(4):
        rows.append(part)
    assert torch.equal(rows.matrix().to_dense(), Z)


def test_file_is_that_of_scipy(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    Z, path = some(), tmp_path / "Z.npz"
    with working_folder(path) as folder:
        tensor = delivered(compressed(Z), folder)
    assert torch.equal(tensor.to_dense(), Z)
    found = scipy_sparse.load_npz(path)
    assert isinstance(found, scipy_sparse.csr_array)
    np.testing.assert_array_equal(found.toarray(), Z.numpy())
    scipy_sparse.save_npz(tmp_path / "theirs.npz", scipy_sparse.csr_array(Z.numpy()))
    for file in (path, tmp_path / "theirs.npz"):
        assert torch.equal(load_npz(file).to_dense(), Z)
    with np.load(path) as ours, np.load(tmp_path / "theirs.npz") as theirs:
        assert {*ours} == {*theirs}


def test_damaged_file_is_an_error(tmp_path):
    path = tmp_path / "Z.npz"
    save_npz(path, compressed(some()))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Exception, match=r"zip|header|EOF"):
        load_npz(path)
