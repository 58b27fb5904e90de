"""Summaries of fits and of online learning: what they hold, and what printing shows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from fastnmf import NMF
from fastnmf.results.info import FitInfo, OnlineInfo

A = np.random.default_rng(0).random((40, 9)).astype(np.float32)


def fitted(**options):
    nmf = NMF(4, seed=0, max_iter=5, tol=0, **options)
    nmf.fit(A)
    return nmf


@pytest.fixture(scope="module")
def info():
    return fitted().fit_info_


@pytest.mark.parametrize(
    ("stopped_by", "converged", "words"),
    [
        ("tol", True, "converged: both factors change by less than tol"),
        ("error", True, "converged: the error falls by less than tol"),
        ("max_iter", False, "not converged: max_iter reached"),
        ("max_seconds", False, "not converged: max_seconds reached"),
        ("callback", False, "stopped by the callback"),
    ],
)
def test_end_of_a_fit_is_named(info, stopped_by, converged, words):
    info = replace(info, stopped_by=stopped_by)
    assert info.converged is converged
    assert info.as_dict()["converged"] is converged
    assert info.lines()["iterations"] == f"5 ({words})"


@pytest.mark.parametrize(
    ("changed", "line", "words"),
    [
        ({"alpha_Z": 0.5}, "penalties", "alpha_Z 0.5, alpha_D 0, l1_ratio 0; objective"),
        ({"alpha_D": 0.5}, "penalties", "alpha_Z 0, alpha_D 0.5"),
        ({"revived": 3}, "concepts", "; 3 revived"),
        ({"unit_norm": True}, "concepts", ", of norm 1"),
        ({"accelerated": True, "inner_half_steps": (3, 7)}, "accelerated", "3 + 7 half-steps"),
        ({"cuda_graph": 7}, "CUDA graph", "7 iterations"),
        ({"chunk_rows": 9, "passes": 4}, "read in passes", "9 rows at a time, 4 passes"),
        ({"processes": 4}, "processes", "4, 0 bytes exchanged per iteration"),
        ({"codes": "/Z.npy"}, "codes", "/Z.npy"),
        ({"precision": "tf32"}, "precision", "tf32, largest drift not measured"),
        ({"precision": "tf32", "drift": 0.01}, "precision", "drift 0.01 of the residual"),
        ({"dictionary_solver": "mu"}, "solver", "hals (dictionary: mu)"),
        ({"codes": "not kept"}, "last change", "of D"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_line_is_printed_where_it_applies(info, changed, line, words):
    """All of these are absent from the summary of a plain fit."""
    assert words not in str(info)
    assert words in replace(info, **changed).lines()[line]


def test_line_of_what_a_fit_does_without_is_absent(info):
    """One process, all in memory, no penalties, no acceleration."""
    special = {"penalties", "accelerated", "CUDA graph", "read in passes"}
    special |= {"processes", "codes", "precision"}
    assert not special & replace(info, accelerated=False).lines().keys()


def test_dictionary_of_the_summary_is_plain_and_whole(info):
    plain = info.as_dict()
    assert plain.keys() == {field.name for field in fields(FitInfo)} | {"converged"}
    assert json.loads(json.dumps(plain))["history"][0]["iteration"] == 1
    assert plain["relative_change"] == info.history[-1].relative_change


def test_summary_without_an_iteration_has_no_change():
    nmf = NMF(4, seed=0)
    nmf.fit(A, max_iter=0)
    assert math.isnan(nmf.fit_info_.relative_change)
    assert nmf.fit_info_.history == ()
    assert "0 (not converged: max_iter reached)" in str(nmf.fit_info_)


def test_objective_is_half_the_squared_error_and_the_penalties():
    info = fitted().fit_info_
    squared = (info.relative_error * np.linalg.norm(A.astype(np.float64))) ** 2
    assert info.objective == pytest.approx(squared / 2, rel=1e-5)
    nmf = NMF(4, seed=0, max_iter=5, tol=0, alpha_Z=0.01, alpha_D=0.02, l1_ratio=0.25)
    Z, D = (F.double().numpy() for F in nmf.fit(A))
    penalty = sum(
        weight * (0.25 * F.sum() + 0.375 * (F**2).sum())
        for weight, F in ((0.01 * 9, Z), (0.02 * 40, D))
    )
    expected = ((A - Z @ D) ** 2).sum() / 2 + penalty
    assert nmf.fit_info_.objective == pytest.approx(expected, rel=1e-5)


def test_summary_of_online_learning_is_printed_whole():
    nmf = NMF(3, seed=0)
    nmf.partial_fit(A[:20], half_life=math.inf).partial_fit(A[20:], half_life=math.inf)
    info = nmf.online_info_
    assert isinstance(info, OnlineInfo)
    assert (info.rows, info.batches, info.half_life) == (40, 2, math.inf)
    printed = " ".join(str(info).split())
    for words in ("40 × 9 float32 on cpu, 2 batches", "nothing is forgotten", "before learning"):
        assert words in printed
    assert "processes" not in printed
    assert "half-life 48 rows" in str(replace(info, half_life=48.0))
    assert "processes: 3" in re.sub(" +", " ", str(replace(info, processes=3)))
    assert info.as_dict() == asdict(info)


@pytest.mark.parametrize("kind", [FitInfo, OnlineInfo])
def test_every_field_is_described_with_its_range(kind):
    described = kind.__doc__.partition("Attributes\n    ----------\n")[2]
    names = re.findall(r"^    (\w[\w, ]*) : ", described, flags=re.MULTILINE)
    documented = [name for line in names for name in line.split(", ")]
    properties = [name for name, value in vars(kind).items() if isinstance(value, property)]
    assert sorted(documented) == sorted([*(field.name for field in fields(kind)), *properties])
