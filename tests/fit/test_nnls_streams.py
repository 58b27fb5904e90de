"""nnls of data in files and streams: the bits of codes in memory, codes in files, and what cannot
be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import backends_of
from streams import save, sharded
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import InvalidInput, nnls
from fastnmf.backends.nnls.result import CAPPED
from fastnmf.errors import ConvergenceWarning
from fastnmf.exact import least_squares
from fastnmf.planning.memory import Needs

pytestmark = pytest.mark.usefixtures("small_budgets")
N, D_IN, K, TILE = 1903, 12, 7, 600
BOUNDS = [0, 500, 1201, 1202, 1202, N]


def draw(signed=True, K=K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A, D = (torch.randn(n, D_IN, generator=generator) for n in (N, K))
    A[7] = 0
    return (A, D) if signed else (A.abs(), D.abs())


A, D = draw()


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    """Tiles of TILE rows, in chunks of as many."""
    monkeypatch.setattr(least_squares, "CHUNK_BYTES", TILE * 8 * (4 * D_IN + 7 * K))


def tight(codes="memory", itemsize=4):
    """Bytes in which chunks of TILE rows fit, and all rows do not."""
    needs = Needs(N, D_IN, K, itemsize, codes)
    assert needs.streamed(TILE) < needs.resident(itemsize)
    return needs.streamed(TILE)


def batches(folder, A=A):
    return list(A.split(450))


def memmap(folder, A=A):
    np.save(folder / "A.npy", A.numpy())
    return np.load(folder / "A.npy", mmap_mode="r")


def loader(folder, A=A):
    return DataLoader(TensorDataset(A), batch_size=333)


SOURCES = {
    "file": lambda folder, A=A: save(folder / "A.npy", A),
    "folder": lambda folder, A=A: sharded(folder / "A", A, bounds=BOUNDS),
    "shards": lambda folder, A=A: sorted(sharded(folder / "A", A, bounds=BOUNDS).iterdir()),
    "memmap": memmap,
    "batches": batches,
    "loader": loader,
}
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES)
# options, and whether D is signed; each way of solving once
OPTIONS = [
    ({}, True),
    ({}, False),
    ({"l1": 0.3}, True),
    ({"l1": 0.2, "l2": 0.4}, False),
    ({"top_k": 2}, True),
    ({"max_iter": 1}, True),
]


@EVERY_SOURCE
def test_codes_have_the_bits_of_those_in_memory(source, tmp_path):
    rows = SOURCES[source](tmp_path)
    for options, signed in OPTIONS[:3]:
        concepts = D if signed else D.abs()
        expected, info = nnls(A, concepts, return_info=True, **options)
        given = nnls(rows, concepts, max_memory=tight(), return_info=True, **options)
        assert torch.equal(given[0], expected)
        for name in ("status", "kkt", "support", "iterations"):
            assert torch.equal(getattr(given[1], name), getattr(info, name))
        assert torch.equal(nnls(rows, concepts, **options), expected)


# sources of both kinds, and every backend
@pytest.mark.parametrize(
    ("source", "backend"),
    [("loader", "auto"), *(("shards", backend) for backend in backends_of("anls"))],
)
def test_codes_go_to_a_file(source, backend, tmp_path, recwarn):
    rows, place = SOURCES[source](tmp_path), tmp_path / "Z.npy"
    start = torch.rand(N, K)
    for options, signed in OPTIONS:
        if backend == "torch" and ("top_k" in options or not signed):
            continue
        concepts = D if signed else D.abs()
        options = {**options, "backend": backend}
        starts = {} if "top_k" in options else {"Z0": start}
        expected, info = nnls(A, concepts, return_info=True, **options, **starts)
        limits = {"codes": place, "max_memory": tight("file")}
        Z, found = nnls(rows, concepts, return_info=True, **limits, **options, **starts)
        assert torch.equal(Z, expected)
        assert torch.equal(torch.from_numpy(np.load(place)), expected)
        assert torch.equal(found.kkt, info.kkt)
        # data in memory are written in chunks too
        assert torch.equal(nnls(A, concepts, codes=place, **options, **starts), expected)
        assert (info.status == CAPPED).any() == ("max_iter" in options)
    assert {one.category for one in recwarn} <= {ConvergenceWarning}


def test_any_leading_dimensions_are_kept():
    Z = nnls(A, D)
    cut = A[:1900]
    assert torch.equal(nnls(cut.reshape(19, 10, 10, D_IN), D), Z[:1900].reshape(19, 10, 10, K))
    assert torch.equal(nnls(cut.numpy().reshape(190, 10, D_IN), D), Z[:1900].reshape(190, 10, K))
    assert torch.equal(nnls(A[3], D), Z[3])
    assert nnls(torch.rand(2, 0, D_IN), D).shape == (2, 0, K)
    X = cut.reshape(10, 190, D_IN).double().requires_grad_()
    flat = cut.double().requires_grad_()
    nnls(X, D.double(), l1=0.1).square().sum().backward()
    nnls(flat, D.double(), l1=0.1).square().sum().backward()
    assert torch.equal(X.grad, flat.grad.reshape(X.shape))


def test_sparse_rows_are_those_made_dense():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    X = torch.where(A > 0.8, A, 0)
    X[5, 2] = -1.5
    expected = nnls(X, D, l1=0.1)
    assert torch.equal(nnls(sparse.csr_array(X.numpy()), D, l1=0.1), expected)
    assert torch.equal(nnls(X.to_sparse_csr(), D, l1=0.1), expected)


def test_a_dictionary_of_a_file_of_data_has_a_gradient_where_they_fit_in_memory(tmp_path):
    rows = save(tmp_path / "A.npy", A.double())
    E = D.double().requires_grad_()
    nnls(rows, E, l2=0.1).sum().backward()
    own, E.grad = E.grad, None
    nnls(A.double(), E, l2=0.1).sum().backward()
    assert torch.equal(own, E.grad)
    with pytest.raises(InvalidInput, match="D requires a gradient"):
        nnls(rows, E, codes=tmp_path / "Z.npy")
    with pytest.raises(InvalidInput, match="D requires a gradient"):
        nnls(rows, E, max_memory=tight(itemsize=8))
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        nnls(A.clone().requires_grad_(), D, codes=tmp_path / "Z.npy")


@pytest.mark.parametrize("options", [{}, {"l1": 0.1}, {"l2": 0.1, "max_iter": 2}, {"top_k": 1}])
def test_no_rows_and_no_concepts_have_empty_files(options, tmp_path):
    place, rows = tmp_path / "Z.npy", save(tmp_path / "A.npy", A)
    nothing = save(tmp_path / "nothing.npy", A[:0])
    for given, concepts, shape in (
        (nothing, D, (0, K)),
        (A[:0], D, (0, K)),
        (rows, D[:0], (N, 0)),
        (A, D[:0], (N, 0)),
        (batches(tmp_path), D[:0], (N, 0)),
    ):
        Z, info = nnls(given, concepts, codes=place, return_info=True, **options)
        assert Z.shape == np.load(place).shape == shape
        assert len(info.kkt) == shape[0]
        assert nnls(given, concepts, **options).shape == shape


def test_what_cannot_be_read_or_written_is_refused(tmp_path):
    rows = save(tmp_path / "A.npy", A)
    with pytest.raises(InvalidInput, match="is to be written, but"):
        nnls(rows, D, codes=rows)
    with pytest.raises(InvalidInput, match="features"):
        nnls(rows, D[:, :5])
    with pytest.raises(InvalidInput, match="too little"):
        nnls(rows, D, max_memory=1000)
    with pytest.raises(TypeError, match="codes="):
        nnls(rows, D, codes=None)
    with pytest.raises(TypeError, match="D is a PosixPath"):
        nnls(rows, rows)
    assert torch.equal(nnls(A.tolist(), D.tolist()), nnls(A.double(), D.double()))
    with pytest.raises(InvalidInput, match="Z0 has 3 rows"):
        nnls(rows, D, A[:3, :K].abs())
    broken = A.clone()
    broken[1300, 2] = torch.nan
    paths = sorted(sharded(tmp_path / "broken", broken, bounds=BOUNDS).iterdir())
    with pytest.raises(InvalidInput, match=r"part-4.*row 98|row 1300"):
        nnls(paths, D)
    with pytest.raises(InvalidInput, match="once"):
        nnls(iter(batches(tmp_path)), D, max_memory=tight())
    # one that fits is read once
    assert torch.equal(nnls(iter(batches(tmp_path)), D), nnls(A, D))


def test_codes_out_of_range_are_refused_with_the_row_of_all(tmp_path):
    X = A.clone()
    X[1300] *= 1e30
    rows = save(tmp_path / "A.npy", X)
    with pytest.raises(ArithmeticError, match="codes of row 1300 are too large"):
        nnls(rows, D * 1e-12, codes=tmp_path / "Z.npy", max_memory=tight("file"))
    assert not (tmp_path / "Z.npy").exists()
