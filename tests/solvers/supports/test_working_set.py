"""Exact least squares on working sets of concepts, on every backend."""

from __future__ import annotations

import pytest
from half_steps import backends_of
from nnls_problems import EVERY_WORKING_SET, assert_working_sets_solve


@pytest.mark.parametrize("backend", backends_of("anls"))
@EVERY_WORKING_SET
def test_working_sets_end_at_the_solution_on_all_concepts(
    name, dtype, warm, shared, backend, monkeypatch
):
    assert_working_sets_solve((name, dtype, warm, shared), backend, monkeypatch)


@EVERY_WORKING_SET
def test_rows_in_flight_end_at_the_solution(name, dtype, warm, shared, monkeypatch):
    assert_working_sets_solve((name, dtype, warm, shared), "cpp", monkeypatch, in_flight=True)
