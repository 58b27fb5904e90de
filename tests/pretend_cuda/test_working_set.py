"""Exact least squares on working sets: the host waits once in a round, for the codes of the CPU.

The rows themselves are solved on the CPU, by an operation that, as that of the extension for CUDA,
does not synchronise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from half_steps import method_of
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from fastnmf.backends.nnls.result import NnlsInfo
from fastnmf.backends.torch import REFERENCE
from fastnmf.fit import nnls as nnls_module
from fastnmf.solvers.supports import working_set
from fastnmf.solvers.supports.working_set import Search, prepare_concepts, working_set_
from pretend_cuda import Card, on_cuda, on_host, pretend

OPERATIONS = method_of("anls", backend="auto").ops


class NnlsOn:
    """The operation nnls_on_ on the pretended device, which counts its calls and their rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, *given, **limits):
        self.rows.append(given[0].shape[1])
        with _disable_current_modes():
            info, gain = OPERATIONS["nnls_on_"](*tree_map(on_host, given), **limits)
            fields = {name: on_cuda(field) for name, field in vars(info).items()}
            return NnlsInfo(**fields), on_cuda(gain)


def drawn(n=18, d=24, K=60):
    generator = torch.Generator().manual_seed(0)
    A, D = (torch.rand(*size, generator=generator) for size in ((n, d), (K, d)))
    # rows that need one round, and some that need more
    A[: n // 3] = D[: n // 3]
    return A, D


def solved(A, concepts, search):
    F, sums = A.new_ones(len(A), len(concepts.B)).T, A.new_zeros(3, dtype=torch.float64)
    info = working_set_(F, A.T, concepts, sums, search, warm=False)
    return F, sums, info


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("shared", [True, False])
def test_the_host_waits_once_in_a_round(shared, limit, monkeypatch, device):
    monkeypatch.setattr(working_set, "GROWTH", 7)
    A, D = drawn()
    rows = 10**6 if shared else 0
    with _disable_current_modes():
        of_cpu = Search(OPERATIONS["nnls_on_"], limit)
        expected = solved(A, prepare_concepts(D, rows), of_cpu)
    operation, given = NnlsOn(), on_cuda(A)
    concepts = prepare_concepts(on_cuda(D), rows)
    assert (concepts.unit is not None) == shared
    found = solved(given, concepts, Search(operation, limit))
    waits = [str(wait) for wait in device.waits]
    # in the last round no row is left; with a limit, rows are solved in groups
    assert 2 < len(waits) <= len(operation.rows) + 1
    if limit is None:
        assert len(waits) == len(operation.rows) + 1
        assert len(set(operation.rows)) > 1
    for one, other in zip(tree_map(on_host, found[:2]), expected[:2], strict=True):
        assert torch.equal(one, other)
    for field in dataclasses.fields(NnlsInfo):
        one, other = (getattr(each[2], field.name) for each in (found, expected))
        assert torch.equal(on_host(one), other)
    read = max(crossed.bytes for crossed in device.crossed)
    assert read <= 8 * (2 + len(A))


def test_rows_are_solved_together_as_far_as_memory_allows():
    D = drawn()[1]
    of_a_row = 4 * (10 * len(D) + 3 * D.shape[1])
    for rows in (7, 30):
        with pretend(Card(total_memory=64 * of_a_row * rows)):
            assert working_set.rows_together(*D.shape, on_cuda(D)) == rows
    assert working_set.rows_together(*D.shape, D) == working_set._ROWS


@pytest.mark.parametrize(("K", "whole"), [(200, True), (10_000, False)])
def test_nnls_of_very_many_concepts_takes_working_sets(K, whole, monkeypatch, device):
    """A search on all of 10,000 concepts takes 400 MB of workspace for each row."""
    A, D = drawn(6, 5, K)
    operation, calls = NnlsOn(), []
    with _disable_current_modes():
        expected = nnls_module.nnls(A, D, backend="torch")

    def nnls_(F, C, G, sums, **limits):
        calls.append(tuple(G.shape))
        with _disable_current_modes():
            info = OPERATIONS["nnls_"](*(on_host(X) for X in (F, C, G, sums)), **limits)
            return NnlsInfo(**{name: on_cuda(field) for name, field in vars(info).items()})

    ops = {**REFERENCE, "nnls_": nnls_, "nnls_on_": operation}
    monkeypatch.setattr(nnls_module, "select", lambda *_: ("cuda", ops))
    Z = nnls_module.nnls(on_cuda(A), on_cuda(D))
    assert bool(calls) == whole
    assert bool(operation.rows) != whole
    products = (codes @ D for codes in (on_host(Z), expected))
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)
