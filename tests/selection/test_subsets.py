import numpy as np
import pytest
import torch

import fastnmf
from fastnmf import InvalidInput
from fastnmf.data.arrays import Expected
from fastnmf.selection.subsets import Whole, squared_error


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_and_blocks_are_those_of_the_matrix(sparse):
    import scipy.sparse

    A = scipy.sparse.random(9, 7, 0.5, dtype=np.float32, random_state=0)
    dense = torch.from_numpy(A.toarray())
    whole = Whole.of(A if sparse else dense, Expected())
    rows, columns = torch.tensor([4, 1, 1]), torch.tensor([0, 5])
    found = whole.rows(rows), whole.block(rows, columns)
    expected = dense[rows], dense[rows][:, columns]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.toarray() if sparse else one, other)
    Z, D = torch.rand(3, 2), torch.rand(2, 7)
    error, total = squared_error(found[0], Z, D)
    assert error == pytest.approx(float((expected[0] - Z @ D).square().sum()), rel=1e-5)
    assert total == pytest.approx(float(expected[0].square().sum()), rel=1e-5)


def test_files_are_read_and_values_checked(tmp_path):
    np.save(tmp_path / "A.npy", np.ones((4, 3), np.float32))
    assert Whole.of(tmp_path / "A.npy", Expected()).n == 4
    with pytest.raises(InvalidInput, match="negative"):
        Whole.of(-torch.ones(4, 3), fastnmf.NMF(1).expected())


def test_other_orders_of_the_same_numbers_are_other_data():
    """The sum of squares is the same."""
    import scipy.sparse

    A = torch.arange(12.0).reshape(4, 3)
    for kind in (lambda X: X, scipy.sparse.csr_array):
        one, other = (Whole.of(kind(X), Expected()).identity() for X in (A, A.flip(0)))
        assert one != other
        assert one == Whole.of(kind(A.clone()), Expected()).identity()


class OfCells:
    """What an AnnData has, as fastnmf knows it."""

    obs = var = layers = None

    def __init__(self, X):
        self.X = X


def test_cells_and_lists_of_sparse_batches_are_one_matrix():
    import scipy.sparse

    A = scipy.sparse.random(9, 7, 0.5, format="csr", dtype=np.float32, random_state=0)
    expected = Whole.of(A, Expected())
    for given in (OfCells(A), [A[:4], A[4:]], (A[:1], A[1:].tocoo())):
        found = Whole.of(given, Expected())
        assert found.identity() == expected.identity()
    assert Whole.of(OfCells(A.toarray()), Expected()).A.tolist() == A.toarray().tolist()
    with pytest.raises(InvalidInput, match=r"different numbers of features: \[3, 7\]"):
        Whole.of([A[:4], A[4:, :3]], Expected())


def test_sparse_batches_in_a_list_are_one_batch_of_online_learning():
    import scipy.sparse

    A = scipy.sparse.random(30, 7, 0.5, format="csr", dtype=np.float32, random_state=0)
    models = [fastnmf.NMF(2, seed=0).partial_fit(each) for each in (A, [A[:20], A[20:]])]
    assert torch.equal(models[0].D, models[1].D)
    with pytest.raises(InvalidInput, match="A is sparse, and weights of its entries"):
        fastnmf.NMF(2).fit([A[:20], A[20:]], weights=np.ones((30, 7)))
    with pytest.raises(InvalidInput, match="A is sparse, and weights of its entries"):
        fastnmf.NMF(2).load_dictionary(np.ones((2, 7))).encode([A], weights=np.ones((30, 7)))
