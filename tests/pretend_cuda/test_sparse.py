"""Fits and codes of sparse data on a pretended device are those on the CPU. The device has none of
torch's sparse tensors: their products are replaced by gathers and sums."""

from __future__ import annotations

import pytest
import torch

from fastnmf.backends.torch import REFERENCE
from pretend_cuda.cases import assert_same_on_device, drawn, model


def _entries(X):
    crow, col, values = X
    counts = crow.diff().long()
    rows = torch.arange(len(counts), device=crow.device)
    return torch.repeat_interleave(rows, counts, output_size=len(col)), col.long(), values[:, None]


def dot_(out, X, Bt):
    rows, col, values = _entries(X)
    out.zero_().index_add_(0, rows, values * Bt[col])


def tdot_(out, X, Z, *, adds=False):
    rows, col, values = _entries(X)
    (out if adds else out.zero_()).index_add_(0, col, values * Z[rows])


@pytest.fixture(autouse=True)
def products(monkeypatch):
    monkeypatch.setitem(REFERENCE, "sparse_dot_", dot_)
    monkeypatch.setitem(REFERENCE, "sparse_tdot_", tdot_)


slow = pytest.mark.compiles


# the starts; accelerated, with tiles; penalties; rows that are made dense where concepts die
@pytest.mark.parametrize(
    ("iterations", "options"),
    [
        (2, {"init": "nndsvda", "accelerate": True, "tuning": {"chunk_rows": 16}}),
        pytest.param(*(2, {"init": "spread", "solver": "mu"}), marks=slow),
        pytest.param(
            *(4, {"init": "rows", "solver": "pgd", "alpha_Z": 1e-3, "unit_norm": True}), marks=slow
        ),
        pytest.param(*(11, {"init": "random", "revive": True}), marks=slow),
    ],
)
def test_sparse_fit_is_that_on_the_cpu(iterations, options):
    def run(device, _):
        nmf = model(device, **options)
        Z, D = nmf.fit(A, max_iter=iterations)
        return Z, D, nmf.encode(A), nmf.encode(A, method="sweeps")

    A = drawn()
    A = torch.where(A > 0.7, A, 0).to_sparse_csr()
    assert_same_on_device(run, most=1e-5)
