"""Half-steps restricted to few concepts of each row: a fixed point is one of the whole sweeps."""

from __future__ import annotations

import torch
from fits import method
from oracle import exactness

from fastnmf.backends.sparse import SparseMatrix
from fastnmf.solvers.penalties import Penalty
from fastnmf.solvers.supports.restricted import Dictionary, sweep_codes_

L1 = 0.3


def test_codes_of_many_half_steps_are_exact():
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(20, 15, generator=generator, dtype=torch.float64)
    D = torch.rand(40, 15, generator=generator, dtype=torch.float64)
    D = torch.nn.functional.normalize(D, dim=1)
    D[7] = 0
    compute = method("hals").compute(8, D)
    none = torch.zeros(21, dtype=torch.int32)
    codes = SparseMatrix(none, none[:0], A.new_empty(0), (20, 40))
    for penalty in (Penalty(L1), Penalty(L1, 0.2)):
        for _ in range(400):
            E, sums = torch.empty_like(A), torch.zeros(2, dtype=torch.float64)
            codes = sweep_codes_(codes, A, E, Dictionary.of(D, penalty), compute, sums)
        Z = codes.to_dense()
        assert codes.nnz == int((Z != 0).sum()) < 300
        worst = exactness(A.numpy(), D.numpy(), Z.numpy(), L1, float(penalty.l2))
        assert worst.max() <= 1e-10
        torch.testing.assert_close(E, A - Z @ D)
        torch.testing.assert_close(sums[1], Z.square().sum())
