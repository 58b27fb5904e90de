"""Rows of codes in compressed rows: loaded, saved and begun in any parts; those of a start are made
when they are read."""

from __future__ import annotations

import pytest
import torch

from fastnmf.data.sparse import stored
from fastnmf.data.sparse.codes import compressed
from fastnmf.data.sparse.stored import Compressed, Made
from fastnmf.data.storage import row_blocks

Z = torch.arange(27.0).reshape(9, 3) % 4


def empty():
    return Compressed(9, 3, torch.empty(0, device="cpu"))


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
def test_compressed_rows_are_loaded_and_saved_in_any_parts(rows):
    codes = empty()
    assert codes.shape == (9, 3)
    assert torch.equal(codes.load(slice(2, 7)), torch.zeros(5, 3))
    for part in row_blocks(9, rows):
        codes.save(part, Z[part])
    # across the bounds of what was saved
    codes.save(slice(3, 6), 2 * codes.load(slice(3, 6)))
    expected = Z.clone()
    expected[3:6] *= 2
    assert torch.equal(codes.matrix().to_dense(), expected)
    assert torch.equal(codes.load(slice(1, 8)), expected[1:8])
    for some in codes.blocks_():
        some.mul_(3)
    assert torch.equal(codes.matrix().to_dense(), 3 * expected)
    # no zeros are stored
    assert codes.matrix().nnz == int((expected != 0).sum())
    codes.fill_(codes.matrix())
    assert torch.equal(codes.load(slice(0, 9)), 3 * expected)


def made(size, log=None):
    """Z as rows of a start, which are made `size` at a time."""

    def blocks():
        if log is not None:
            log.append("made")
        return (Z[part].clone() for part in row_blocks(9, size))

    return Made(blocks)


# blocks that are as large as the parts, smaller, larger, and all rows
@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_rows_of_a_start_are_made_in_order_once(size):
    log = []
    rows = made(size, log)
    for part in row_blocks(9, 3):
        some = rows.load(part)
        assert torch.equal(some, Z[part])
        # of its own
        some.fill_(9)
    assert log == ["made"]
    assert torch.equal(rows.load(slice(4, 6)), Z[4:6])
    assert torch.equal(rows.load(slice(7, 9)), Z[7:9])
    assert log == ["made", "made"]
    rows.used, rows.factor = torch.arange(9) != 4, 3.0
    expected = 3 * Z
    expected[4] = 0
    assert torch.equal(rows.load(slice(0, 9)), expected)


def test_codes_begin_with_the_rows_of_a_start():
    codes = empty()
    codes.begin_(made(4))
    # reading stores nothing
    for _ in range(2):
        for part in row_blocks(9, 2):
            assert torch.equal(codes.load(part), Z[part])
    assert codes.start is not None
    for part in row_blocks(9, 2):
        codes.save(part, codes.load(part) * 2)
    assert codes.start is None
    assert torch.equal(codes.matrix().to_dense(), 2 * Z)


def test_rows_of_a_start_are_stored_where_others_need_it(monkeypatch):
    # two rows at a time
    monkeypatch.setattr(stored, "_PART_BYTES", 2 * 3 * 4)
    calls = {
        "matrix": lambda codes: codes.matrix(),
        "take": lambda codes: codes.take(slice(2, 5)),
        "scale": lambda codes: codes.scale_(torch.ones(3)),
        "out of order": lambda codes: codes.put(slice(4, 6), compressed(Z[4:6])),
        "across": lambda codes: (codes.save(slice(0, 3), Z[:3]), codes.take(slice(1, 6))),
    }
    for name, call in calls.items():
        codes = empty()
        codes.begin_(made(4))
        call(codes)
        assert torch.equal(codes.matrix().to_dense(), Z), name


def test_rows_are_multiplied_without_dense_ones(monkeypatch):
    codes = empty()
    codes.save(slice(0, 4), Z[:4])
    codes.save(slice(4, 9), Z[4:])
    monkeypatch.delattr(Compressed, "load")
    factor = torch.tensor([2.0, 0.0, 0.5])
    codes.scale_(factor)
    assert torch.equal(codes.matrix().to_dense(), Z * factor)
    assert codes.matrix().nnz == int((Z * factor != 0).sum())
