"""The operations of HALS restricted to few concepts of each row: the reference by loops in float64,
and the compiled ones by the reference, on every instruction set usable here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled import REASON, instruction_sets
from oracle import TOLERANCES, relative_difference
from restricted_codes import compressed, drawn

from fastnmf.backends.restricted import reference
from fastnmf.backends.sparse import SparseMatrix

F4, F8 = torch.float32, torch.float64
I4, I8 = torch.int32, torch.int64
# m, K, p, dtype, index
CASES = [
    (1, 1, 1, F4, I4),
    # fewer features than lanes, and concepts
    (7, 5, 3, F8, I8),
    # more than one tile of features, of which the last is not whole; rows of several threads
    (70, 90, 67, F4, I4),
    (50, 33, 131, F8, I4),
    (40, 300, 64, F4, I8),
]
EVERY_CASE = pytest.mark.parametrize(("m", "K", "p", "dtype", "index"), CASES)


@pytest.fixture(params=["reference", *instruction_sets()])
def operations(request):
    """The reference, and the compiled operations on each instruction set that is usable here."""
    if request.param == "reference":
        yield reference.OPERATIONS
        return
    if REASON is not None:
        pytest.skip(REASON)
    from fastnmf import _C
    from fastnmf.backends.restricted import compiled

    _C.force_isa(request.param)
    yield compiled.OPERATIONS
    _C.force_isa("auto")


def tolerance(dtype):
    return TOLERANCES["hals", str(dtype).removeprefix("torch.")]


def dense(parts, shape):
    return SparseMatrix(*parts, shape).to_dense()


class TestOperations:
    @EVERY_CASE
    @pytest.mark.parametrize("bound", [-1.0, 0.3, 2.0])
    def test_candidates_are_codes_and_steep_slopes(self, m, K, p, dtype, index, bound, operations):
        Z, codes, *_ = drawn(m, K, p, dtype, index)
        # rows that do not follow each other, and NaN beside them
        S = torch.full((m, K + 3), torch.nan, dtype=dtype)[:, :K]
        S.copy_(torch.rand(m, K, generator=torch.Generator().manual_seed(1)))
        crow, col, values = operations["candidates_"](S, codes, bound)
        expected = [torch.nonzero((S[i] > bound) | (Z[i] != 0))[:, 0] for i in range(m)]
        assert crow.diff().tolist() == [len(columns) for columns in expected]
        assert col.tolist() == torch.cat(expected).tolist()
        assert (col.dtype, values.dtype) == (index, dtype)
        assert values.tolist() == torch.cat([Z[i, expected[i]] for i in range(m)]).tolist()

    @EVERY_CASE
    @pytest.mark.parametrize("sweeps", [1, 3])
    def test_sweeps_of_candidates_are_those_of_the_loop(
        self, m, K, p, dtype, index, sweeps, operations
    ):
        Z, codes, E, D = drawn(m, K, p, dtype, index)
        size = float(E.abs().max())
        l1, curvature = 0.05, torch.rand(K, generator=torch.Generator().manual_seed(2)).to(dtype)
        squares = D.square().sum(1)
        inverse = torch.where(squares > 0, 1 / (squares + curvature), 0).to(dtype)
        expected, e = Z.double().numpy().copy(), E.double().numpy().copy()
        for i in range(m):
            for _ in range(sweeps):
                for k in Z[i].nonzero()[:, 0].tolist():
                    if inverse[k] == 0:
                        continue
                    before, concept = expected[i, k], D[k].double().numpy()
                    slope = concept @ e[i] - l1 - float(curvature[k]) * before
                    square = concept @ concept + float(curvature[k])
                    expected[i, k] = max(0.0, before + slope / square)
                    e[i] -= (expected[i, k] - before) * concept
        sums = torch.ones(2, dtype=F8)
        operations["hals_candidates_"](codes, E, D, (l1, curvature, inverse), sweeps, sums)
        found = dense(codes, (m, K))
        assert relative_difference(found, expected) <= tolerance(dtype)
        # the residual may be rounding
        assert np.abs(E.double().numpy() - e).max() <= size * tolerance(dtype)
        change = np.square(expected - Z.double().numpy()).sum()
        assert (sums - 1).tolist() == pytest.approx([change, np.square(expected).sum()], rel=1e-4)

    @EVERY_CASE
    @pytest.mark.parametrize("bounded", [True, False])
    @pytest.mark.parametrize("curved", [True, False])
    def test_sweep_of_concepts_is_that_of_the_loop(
        self, m, K, p, dtype, index, bounded, curved, operations
    ):
        Z, _, E, D = drawn(m, K, p, dtype, index)
        size = float(E.abs().max())
        curvature = torch.rand(K, dtype=dtype) * Z.any(0) if curved else None
        F, e, z = (M.double().numpy().copy() for M in (D, E, Z))
        for k in np.flatnonzero(z.any(0)):
            c = float(curvature[k]) if curved else 0.0
            best = F[k] + (z[:, k] @ e - c * F[k]) / (z[:, k] @ z[:, k] + c)
            best = np.maximum(0, best) if bounded else best
            e -= np.outer(z[:, k], best - F[k])
            F[k] = best
        before, sums = D.clone(), torch.zeros(2, dtype=F8)
        codes = compressed(Z.T.contiguous(), index)
        operations["hals_concepts_"](D, E, codes, curvature, sums, bounded)
        assert relative_difference(D, F) <= tolerance(dtype)
        # the residual may be rounding
        assert np.abs(E.double().numpy() - e).max() <= size * tolerance(dtype)
        change = np.square(F - before.double().numpy()).sum()
        assert sums.tolist() == pytest.approx([change, np.square(F).sum()], rel=1e-4)

    def test_rows_without_candidates_do_not_change(self, operations):
        Z, _, E, D = drawn(7, 5, 3, F4, I4)
        none, residual, sums = compressed(Z * 0, I4), E.clone(), torch.zeros(2, dtype=F8)
        assert [len(part) for part in operations["candidates_"](Z, none, 9.0)] == [8, 0, 0]
        penalty = 0.1, torch.zeros(5), torch.ones(5)
        operations["hals_candidates_"](none, E, D, penalty, 2, sums)
        by_concept = compressed(Z.T.contiguous() * 0, I4)
        operations["hals_concepts_"](D, E, by_concept, None, sums)
        assert E.equal(residual)
        assert sums[0] == 0
