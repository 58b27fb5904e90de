"""Rows that are drawn: the same in a pass, from memory and by several processes, each alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import low_rank

from fastnmf.backends.sparse import SparseMatrix
from fastnmf.data.dataset import Data
from fastnmf.distributed import ALONE, Processes
from fastnmf.fit.starts.drawing import RowsDrawn, keys_of, least_keys

N, D = 700, 6
A = low_rank(N, D, 3, torch.float32)
SPARSE = torch.where(A > A.median(), A, 0).to_sparse_csr()


def compressed(rows):
    return SparseMatrix(rows.crow_indices(), rows.col_indices(), rows.values(), tuple(rows.shape))


def drawn(seed=3, most=50, parts=None, data=None):
    drawing = RowsDrawn(seed, lambda d: most)
    drawing.begin(N, ALONE)
    for part in parts or ():
        drawing.add(part)
    return drawing.rows(data or Data(A))


def test_rows_of_a_pass_are_those_of_memory_whatever_its_parts():
    expected = drawn()
    assert expected.shape == (50, D)
    for size in (1, 13, 300, N):
        assert torch.equal(drawn(parts=A.split(size)), expected)
    assert torch.equal(drawn(data=Data(A.half())), A.half().float()[least_keys(3, 0, N, 50)[0]])


def test_sparse_rows_of_a_pass_are_those_of_memory():
    data = Data(compressed(SPARSE))
    expected = drawn(data=data)
    assert isinstance(expected, SparseMatrix)
    numbers = least_keys(3, 0, N, 50)[0]
    assert torch.equal(expected.to_dense(), SPARSE.to_dense()[numbers])
    parts = [data.A[i : i + 90] for i in range(0, N, 90)]
    found = drawn(parts=parts, data=data)
    assert torch.equal(found.to_dense(), expected.to_dense())
    dense = drawn(parts=parts, data=data.as_dense())
    assert torch.equal(dense, expected.to_dense())


def test_fewer_rows_are_the_first_of_more_and_all_are_a_permutation():
    assert torch.equal(drawn(most=50), drawn(most=200)[:50])
    numbers, keys = least_keys(3, 0, N, 10 * N)
    assert sorted(numbers) == list(range(N))
    assert (np.diff(keys.astype(float)) > 0).all()
    assert drawn(most=0, parts=A.split(100)).shape == (0, D)


def test_seeds_draw_others_and_every_row_alike():
    assert not torch.equal(drawn(seed=3), drawn(seed=4))
    counts = np.zeros(N)
    for seed in range(400):
        counts[least_keys(seed, 0, N, N // 4)[0]] += 1
    # binomial, with a mean of 100 and a deviation of 8.7
    assert 60 < counts.min()
    assert counts.max() < 140
    assert counts.std() == pytest.approx(8.66, rel=0.2)


def test_keys_of_many_rows_are_those_of_parts(monkeypatch):
    from fastnmf.fit.starts import drawing

    whole = least_keys(1, 5, N, 40)
    monkeypatch.setattr(drawing, "_KEYS", 64)
    for expected, found in zip(whole, least_keys(1, 5, N, 40), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(keys_of(1, 5, 9)[4:], keys_of(1, 9, 5))


class Fake(Processes):
    """Process `rank` of those whose objects, in the order of calls, are known."""

    def __init__(self, rank, size, gathered):
        super().__init__(rank, size)
        self.gathered = iter(gathered)

    def gather(self, thing):
        return next(self.gathered)


def test_processes_count_rows_of_those_before_them_and_apart_where_they_cannot():
    for counts, first in (([200, 500], 200), ([None, 500], 1 << 40)):
        drawing = RowsDrawn(3, lambda d: 50)
        drawing.begin(counts[1], Fake(1, 2, [counts]))
        assert drawing._first == first
