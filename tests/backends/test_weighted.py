"""Sweeps where each entry has a weight: plain torch, and the kernel on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import TOLERANCES, weighted_hals_half_step

from fastnmf.backends import torch as plain
from fastnmf.backends import weighted as reference
from fastnmf.backends.pointers import view

F4, F8 = torch.float32, torch.float64
# K, m, p, dtype. A tile has up to 48 rows, a vector up to 16 lanes
CASES = [
    # a single entry
    (1, 1, 1, F4),
    # fewer concepts than lanes, and several bands of them with a last one behind
    (3, 9, 14, F8),
    (8, 7, 30, F4),
    (20, 50, 33, F4),
    # more vectors than a group has, and one whole vector less the data
    (47, 18, 25, F8),
    (15, 35, 25, F4),
    # rows that are summed in parts
    (5, 3, 700, F4),
    (33, 4, 300, F8),
]
KINDS = ["mask", "weights", "stored", "weighted"]


class Problem:
    """Rows of which the first has no entry, the third all, and a concept no row observes."""

    def __init__(self, K, m, p, dtype, kind):
        drawn = np.random.default_rng(K + m + p)
        self.dtype, self.kind = dtype, kind
        seen = drawn.random((m, p)) < 0.6
        if m > 2:
            seen[0], seen[2] = False, True
        self.F, self.B = drawn.random((K, m)), drawn.random((K, p))
        if K > 2:
            self.B[1] = 0
        self.X = drawn.random((m, p)) + 0.1
        heavy = kind in ("weights", "weighted")
        self.W = seen * (drawn.random((m, p)) * 3 if heavy else 1.0)

    def tensor(self, M, dtype=None):
        return torch.from_numpy(np.array(M)).to(dtype or self.dtype)

    def rows(self, index=torch.int32):
        """The argument `rows` of the operation."""
        X, W = self.tensor(self.X), self.tensor(self.W)
        if self.kind == "mask":
            return X, W > 0
        if self.kind == "weights":
            return X, W
        i, j = np.nonzero(self.W)
        crow = np.concatenate(([0], np.bincount(i, minlength=len(X)).cumsum()))
        parts = self.tensor(crow, index), self.tensor(j, index), X[i, j].contiguous()
        return parts, W[i, j].contiguous() if self.kind == "weighted" else None

    def expected(self, sweeps, penalty=None, bounded=True):
        """F after the sweeps, and the sums."""
        F, sums, terms = self.F, np.zeros(3), ()
        if penalty is not None:
            terms = penalty[0], penalty[1].double().numpy()
        for _ in range(sweeps):
            before = F
            F = weighted_hals_half_step(F, self.X, self.B, self.W, *(terms or (0, 0)), bounded)
            sums[:2] += ((F - before) ** 2).sum(), (F**2).sum()
        sums[2] = (self.W * (self.X - F.T @ self.B) ** 2).sum()
        return F, sums

    def penalty(self):
        l2 = self.tensor(np.linspace(0, 0.5, len(self.F)))
        return 0.3, l2


def check(problem, sweep, sweeps=2, penalty=None, bounded=True, places=3):
    """sweep(F, sums) is what the loops do."""
    wanted, totals = problem.expected(sweeps, penalty, bounded)
    F, sums = problem.tensor(problem.F), torch.zeros(places).double()
    sweep(F, sums)
    name = "float32" if problem.dtype == F4 else "float64"
    tolerance = TOLERANCES["hals", name] * max(1.0, np.abs(wanted).max())
    assert np.abs(F.double().numpy() - wanted).max() < 10 * tolerance
    # an error that is a difference is as exact as what it is the difference of
    scale = np.maximum(totals, (problem.W * problem.X**2).sum())[:places]
    assert (np.abs(sums.numpy() - totals[:places]) / scale).max() < 10 * tolerance


@pytest.mark.parametrize("way", ["grams", "residuals"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("K", "m", "p", "dtype"), [CASES[0], CASES[1], CASES[3]])
def test_plain_torch_is_what_the_loops_do(K, m, p, dtype, kind, way, monkeypatch):
    if way == "residuals":
        monkeypatch.setattr(reference, "_PAIRED", 0)
    # several tiles, and several parts of the pairs
    monkeypatch.setattr(reference, "_GRAMS", 1)
    monkeypatch.setattr(reference, "_PAIRS", 2000)
    problem = Problem(K, m, p, dtype, kind)
    B = problem.tensor(problem.B)
    for penalty in (None, problem.penalty()):

        def sweep(F, sums, penalty=penalty):
            plain.hals_weighted_(F, problem.rows(), B, penalty, sums, 2)

        check(problem, sweep, penalty=penalty)


@pytest.mark.parametrize("grams", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("K", "m", "p", "dtype"), CASES)
def test_the_kernel_is_what_the_loops_do(extension, K, m, p, dtype, kind, grams):
    problem = Problem(K, m, p, dtype, kind)
    B, penalty = problem.tensor(problem.B).T.contiguous(), problem.penalty()
    X, W = problem.rows(torch.int64 if m % 2 else torch.int32)

    def sweep(F, sums, penalty=None, bounded=True, threads=2):
        l1_l2 = None if penalty is None else (penalty[0], view(penalty[1]))
        how = view(B), l1_l2, 2, (grams, bounded), view(sums), threads
        if isinstance(X, torch.Tensor):
            mask = W.view(torch.uint8) if W.dtype == torch.bool else W
            # in the order of features, as a dictionary has them
            wide = X.T.contiguous().T, mask.T.contiguous().T
            extension.hals_masked(view(F), *map(view, wide), *how)
        else:
            rows = *map(view, X), None if W is None else view(W)
            extension.hals_stored(view(F), rows, *how)

    check(problem, sweep)
    check(problem, lambda F, sums: sweep(F, sums, penalty), penalty=penalty, places=2)
    check(problem, lambda F, sums: sweep(F, sums, penalty), penalty=penalty)
    check(problem, lambda F, sums: sweep(F, sums, None, False, 1), bounded=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_operation_takes_either_way(kind, monkeypatch):
    cpp = pytest.importorskip("fastnmf.backends.cpp")
    problem = Problem(20, 50, 33, F8, kind)
    for few in (0, 100):
        monkeypatch.setattr(cpp, "_PAIRED", few)
        monkeypatch.setattr(cpp, "_PAIRED_DENSE", few)
        for penalty in (None, problem.penalty()):
            B = problem.tensor(problem.B)

            def sweep(F, sums, penalty=penalty, B=B):
                cpp.hals_weighted_(F, problem.rows(), B, penalty, sums, 2)

            check(problem, sweep, penalty=penalty)


def test_sums_do_not_depend_on_the_threads(extension):
    problem = Problem(20, 600, 33, F4, "stored")
    B, (X, _) = problem.tensor(problem.B).T.contiguous(), problem.rows()
    found = []
    for threads in (1, 2, 5):
        F, sums = problem.tensor(problem.F), torch.zeros(3).double()
        rows = *map(view, X), None
        how = view(B), None, 1, (True, True), view(sums), threads
        extension.hals_stored(view(F), rows, *how)
        found.append((F, sums))
    assert all(torch.equal(F, found[0][0]) for F, _ in found)
    assert all(torch.equal(sums, found[0][1]) for _, sums in found)


def test_arguments_that_do_not_fit_are_refused(checking):
    problem = Problem(3, 9, 14, F8, "stored")
    F, B, (X, _) = (
        problem.tensor(problem.F),
        problem.tensor(problem.B).T.contiguous(),
        problem.rows(),
    )
    crow, col, values = X
    sums, l2 = torch.zeros(2).double(), torch.zeros(3).double()

    def call(rows=(crow, col, values, None), B=B, penalty=None, sweeps=1):
        rows = tuple(None if part is None else view(part) for part in rows)
        how = penalty, sweeps, (True, True), view(sums), 1
        checking.hals_stored(view(F), rows, view(B), *how)

    call()
    for bad, message in (
        ({"rows": (crow[:-1], col, values, None)}, "crow has shape"),
        ({"rows": (crow, col[:-1], values[:-1], None)}, "crow goes from"),
        ({"rows": (crow, col, values[1:], None)}, "values has shape"),
        ({"rows": (crow, col, values, values[1:])}, "weights has shape"),
        ({"rows": (crow, col, values.float(), None)}, "dtype"),
        ({"B": B[:, :2]}, "B has shape"),
        ({"penalty": (-1.0, view(l2))}, "l1 = -1"),
        ({"penalty": (1.0, view(l2[:2]))}, "l2 has shape"),
        ({"sweeps": 0}, "sweeps = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**bad)
    M, how = problem.tensor(problem.X), (view(B), None, 1, (True, True), view(sums), 1)
    with pytest.raises(ValueError, match="W has shape"):
        checking.hals_masked(view(F), view(M), view(M[1:]), *how)
