"""The compiled operations of restricted half-steps: threads, and arguments that do not fit. What
they compute is compared in test_reference.py."""

from __future__ import annotations

import pytest
import torch
from restricted_codes import compressed, drawn

from fastnmf.backends.pointers import view

F4, F8, I4 = torch.float32, torch.float64, torch.int32


def test_threads_change_no_bit(extension):
    Z, (crow, col, values), E, D = drawn(300, 90, 150, F4, I4)
    by_concept = compressed(Z.T.contiguous(), I4)
    results, none, inverse = [], torch.zeros(90), torch.ones(90) / 40
    penalty = 0.1, view(none), view(inverse)
    for threads in (1, 2, 5):
        kept, e, F, sums = values.clone(), E.clone(), D.clone(), torch.zeros(2, dtype=F8)
        codes = view(crow), view(col), view(kept)
        extension.hals_candidates(codes, view(e), view(F), penalty, 2, view(sums), threads)
        parts = tuple(map(view, by_concept))
        extension.hals_concepts(view(F), view(e), parts, None, True, view(sums), threads)
        results.append((kept, e, F, sums))
    for one in results[1:]:
        assert all(a.equal(b) for a, b in zip(one, results[0], strict=True))


def test_arguments_that_do_not_fit_are_refused(checking):
    Z, (crow, col, values), E, D = drawn(7, 5, 3, F4, I4)
    none, ones, total = torch.zeros(5), torch.ones(5), torch.zeros(2, dtype=F8)
    codes, sums = (view(crow), view(col), view(values)), view(total)
    penalty = 0.1, view(none), view(ones)
    with pytest.raises(ValueError, match="crow has shape"):
        checking.hals_candidates(codes, view(E[:6]), view(D), penalty, 1, sums, 1)
    with pytest.raises(ValueError, match="B has shape"):
        checking.hals_candidates(codes, view(E), view(D[:, :2]), penalty, 1, sums, 1)
    wrong = 0.1, view(none[:4]), penalty[2]
    with pytest.raises(ValueError, match="curvature has shape"):
        checking.hals_candidates(codes, view(E), view(D), wrong, 1, sums, 1)
    with pytest.raises(ValueError, match="sweeps = 0"):
        checking.hals_candidates(codes, view(E), view(D), penalty, 0, sums, 1)
    with pytest.raises(ValueError, match="values has dtype"):
        checking.hals_concepts(view(D), view(E), (*codes[:2], view(col)), None, True, sums, 1)
    with pytest.raises(ValueError, match="E has shape"):
        checking.hals_concepts(view(D), view(E[:, :2]), codes, None, True, sums, 1)
    with pytest.raises(ValueError, match="S has shape"):
        checking.count_candidates(view(Z[0]), codes, 0.0, view(crow.clone()), 1)
    short = view(crow), view(col[:-1]), view(values[:-1])
    with pytest.raises(ValueError, match="crow goes from"):
        checking.fill_candidates(view(Z), codes, 0.0, short, 1)
