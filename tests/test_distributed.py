"""A fit shared by several processes is that of one, however the rows are split."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import (
    SHARED,
    SHARED_CONCEPTS,
    SHARED_FEATURES,
    SHARED_ROWS,
    idle_start,
    nmf,
    shared_data,
)
from oracle import relative_difference
from processes import begin, by_name
from torch import distributed

from fastnmf import NMF
from fastnmf.cli import main as cli
from fastnmf.cli.fit import fit_by
from fastnmf.cli.parser import parser_of
from fastnmf.cli.usage import Refused
from fastnmf.distributed import Processes
from fastnmf.errors import InvalidInput

n, d, K = SHARED_ROWS, SHARED_FEATURES, SHARED_CONCEPTS
data = shared_data
PLAIN = SHARED
# not to be accelerated, whatever auto does elsewhere
PENALISED = {**PLAIN, "alpha_Z": 0.01, "l1_ratio": 0.5, "accelerate": "auto"}


def _scattered(rows, features):
    """Rows of which most entries are zero."""
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(rows, features, generator=generator, dtype=torch.float64)
    return A * (torch.rand(rows, features, generator=generator) < 0.2)


# each solver; rows in equal parts, or one process has most and another none; from every start
FITS = {
    f"{solver}-{how}-{init}": (data(), {**PLAIN, "solver": solver, "how": how, "init": init})
    for solver, how, init in [
        ("hals", "even", "random"),
        ("hals", "uneven", "nndsvda"),
        ("mu", "uneven", "nndsvda"),
        ("pgd", "even", "rows"),
        ("anls", "uneven", "random"),
    ]
}
FITS |= {
    "many concepts": (
        data(torch.float64),
        {**PLAIN, "nb_concepts": 40, "how": "uneven", "init": "nndsvda"},
    ),
    "float64": (data(torch.float64), {**PLAIN, "how": "uneven"}),
    "float16": (data(torch.float16), {**PLAIN, "how": "even"}),
    "stops by tol": (data(torch.float64), {**PLAIN, "tol": 1e-2, "max_iter": 500, "how": "uneven"}),
    "stops by error": (
        data(torch.float64),
        {**PLAIN, "tol": 1e-2, "stop": "error", "max_iter": 500, "how": "even"},
    ),
    "fewer rows than processes": (data()[:1], {**PLAIN, "nb_concepts": 1, "how": "even"}),
    "fewer features than processes": (data()[:, :1], {**PLAIN, "nb_concepts": 1, "how": "even"}),
    "residual": (data(torch.float64), {**PLAIN, "how": "uneven", "form": "residual", "block": 4}),
    "residual of many": (
        data(torch.float64),
        {**PLAIN, "nb_concepts": 70, "how": "even", "init": "random", "form": "residual"},
    ),
    "many features": (
        torch.rand(250, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        {**PLAIN, "how": "uneven", "init": "nndsvda"},
    ),
    "fewer rows than features": (
        torch.rand(90, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        {**PLAIN, "how": "uneven", "init": "nndsvdar"},
    ),
    "penalised": (data(torch.float64), {**PENALISED, "alpha_D": 0.003, "how": "uneven"}),
    "penalised residual": (
        data(torch.float64),
        {**PENALISED, "alpha_D": 0.003, "how": "uneven", "form": "residual", "block": 4},
    ),
    "unit norm": (data(torch.float64), {**PENALISED, "unit_norm": True, "how": "uneven"}),
    "unit norm residual": (
        data(torch.float64),
        {**PENALISED, "unit_norm": True, "how": "even", "form": "residual", "block": 4},
    ),
    **{
        f"accelerated {solver}": (
            data(torch.float64),
            {**PLAIN, "solver": solver, "accelerate": "auto", "max_iter": 30, "how": "uneven"},
        )
        for solver in ("hals", "pgd")
    },
    "accelerated, residual": (
        data(torch.float64),
        {**PLAIN, "accelerate": True, "form": "residual", "how": "even"},
    ),
    "at most 2 concepts a row": (
        data(torch.float64),
        {**PLAIN, "top_k": 2, "nb_concepts": 8, "how": "uneven"},
    ),
    "batches": (data(), {**PLAIN, "how": "uneven", "batches": True}),
    "chunks": (data(), {**PLAIN, "chunk_rows": 16, "how": "uneven"}),
    # all rows of all processes are gathered for the Gram matrix of the start
    "sparse": (
        _scattered(90, 200),
        {**PLAIN, "how": "uneven", "init": "nndsvda", "sparse": True, "accelerate": "auto"},
    ),
    "sparse batches": (
        _scattered(200, 30),
        {**PLAIN, "how": "uneven", "init": "nndsvda", "sparse": True, "batches": True},
    ),
}
# a dictionary of any signs: swept, exact, and in residual form
FITS |= {
    f"semi {name}": (data(torch.float64) - 0.5, {**PLAIN, "model": "semi", **options})
    for name, options in {
        "hals": {"how": "uneven", "init": "svd"},
        "mu": {"how": "even", "init": "random", "solver": "mu", "instant": True},
        "anls": {"how": "uneven", "init": "spread", "solver": "anls"},
        "residual": {"how": "even", "init": "rows", "form": "residual", "block": 4},
        "offset": {"how": "uneven", "init": "svd", "offset": True},
        "split offset": {"how": "even", "init": "rows", "offset": True, "instant": True},
        "offset residual": {"how": "uneven", "offset": True, "form": "residual", "block": 4},
    }.items()
}
# the same sample in all, from memory, files and sparse rows
SAMPLED = {**PLAIN, "nb_concepts": 3, "max_iter": 4, "init": "sample", "how": "uneven"}
LONG = torch.cat([data(torch.float64)[:, :8] * (1 + i / 50) for i in range(61)])
FITS |= {
    "sample": (LONG, SAMPLED),
    "sample, several starts": (LONG, {**SAMPLED, "n_init": 2, "how": "even"}),
    "sample, streamed": (
        LONG,
        {**SAMPLED, "how": "even", "chunk_rows": 1000, "max_memory": "900kB", "file": "Z.npy"},
    ),
    "sample, sparse": (_scattered(8100, 9), {**SAMPLED, "sparse": True}),
}
# features are split between processes only where that takes no time: K is small here
FITS |= {
    f"split, {name}": (FITS[name][0], {**FITS[name][1], "instant": True})
    for name in (
        "hals-even-random",
        "anls-uneven-random",
        "stops by error",
        "fewer features than processes",
        "penalised",
        "unit norm",
    )
}


def idle(A, K=12, **options):
    """A case that begins with dead concepts and near-duplicates."""
    options = {**PLAIN, "nb_concepts": K, "init": idle_start(A, K), "revive": True, **options}
    return A, options


REVIVED = {
    f"revived {solver}": idle(data(torch.float64), solver=solver, how=how)
    for solver, how in [("hals", "uneven"), ("mu", "even")]
}
REVIVED |= {
    "revived, residual": idle(data(torch.float64), how="even", form="residual", block=4),
    "revived, accelerated": idle(data(torch.float64), how="uneven", accelerate=True),
    "revived, unit norm": idle(
        data(torch.float64), how="even", alpha_Z=0.001, l1_ratio=1.0, unit_norm=True
    ),
    "revived, converged": idle(data(torch.float64), how="even", tol=0.05, max_iter=60),
    "revived, rows alike": idle(data(torch.float64)[:20].repeat(9, 1), 16, how="uneven"),
    "revived, streamed": idle(
        data(torch.float64), how="even", chunk_rows=30, max_memory="80kB", file="Z.npy"
    ),
}
FITS |= REVIVED
# an option that one of them has another value of, and the error in all of them
DIFFERING = {
    "nb_concepts": (K - 1, "nb_concepts is 6 in process 0 and 5 in process 1"),
    "max_iter": (7, "max_iter is 20 in process 0 and 7 in process 1"),
    "codes": (None, "codes is 'memory' in process 0 and None in process 1"),
}
BAD = data().clone()
BAD[n - 1 - n // 4, 2] = -1
OTHERS = {
    "nothing to revive": (
        torch.zeros(9, 4),
        {
            **PLAIN,
            "init": (torch.zeros(9, 3), torch.zeros(3, 4)),
            "nb_concepts": 3,
            "revive": True,
            "how": "even",
        },
    ),
    "no seed": (data(), {**PLAIN, "seed": None, "how": "even", "init": "random"}),
    "codes on disk": (
        data(),
        {**PLAIN, "accelerate": "auto", "how": "uneven", "file": "Z.npy"},
    ),
    "codes not kept": (data(), {**PLAIN, "how": "even", "codes": None}),
    "negative": (BAD, {**PLAIN, "how": "even"}),
    "max_seconds": (data(), {**PLAIN, "max_iter": 10**6, "max_seconds": 0.2, "how": "even"}),
    "accelerate": (data(), {**PLAIN, "accelerate": True, "codes": None, "how": "even"}),
    "revive": (data(), {**PLAIN, "revive": True, "codes": None, "how": "even"}),
    "broken callback": (data(), {**PLAIN, "how": "even", "of": {1: {"raises": True}}}),
    "no folder": (data(), {**PLAIN, "how": "even", "of": {1: {"file": "no/Z.npy"}}}),
    "mu in residual form": (data(), {**PLAIN, "solver": "mu", "form": "residual", "how": "even"}),
}
ROUNDED = {
    f"rounded, {name}": (A, {**options, "tol": 1e-4, "max_iter": 200, "of": {1: {"rounds": True}}})
    for name, (A, options) in FITS.items()
    if name in ("stops by tol", "accelerated hals", "revived hals", "chunks")
}
ROUNDED["rounded, codes not kept"] = (
    data(),
    {**PLAIN, "how": "even", "codes": None, "tol": 1e-3, "of": {1: {"rounds": True}}},
)
OTHERS |= ROUNDED
OTHERS["sample, batches"] = (
    _scattered(8100, 9),
    {**SAMPLED, "how": "even", "sparse": True, "batches": True},
)
OTHERS |= {
    name: (data(), {**PLAIN, "how": "even", "of": {1: {name: value}}})
    for name, (value, _) in DIFFERING.items()
}
# so that the processes are seen to agree still after all that
ALL = FITS | OTHERS | {"after failures": (data(), {**PLAIN, "how": "even"})}
FAILURES = {name: message for name, (_, message) in DIFFERING.items()}
FAILURES |= {
    "no folder": "the folder",
    "negative": "1 negative entry",
    "accelerate": "accelerate=True keeps two copies of the codes in memory",
    "revive": "codes=None keeps none; give revive=False",
    "mu in residual form": "cannot be shared by processes where mu updates the dictionary",
}
# with four processes: two that have no rows, or no features
FEWER = ["hals-even-random", "mu-uneven-nndsvda", "residual", "codes on disk"]
FEWER += ["fewer rows than processes", "fewer features than processes"]
CASES = {2: list(ALL), 4: FEWER}


@pytest.fixture(scope="module")
def shared(once):
    """shared(size): the results of every case, by name and process."""
    if not hasattr(os, "fork"):
        pytest.skip("os.fork: not here")
    return by_name(once, "shared-fits", ALL, CASES)


def cases(names):
    """(size, name) of these cases where they are run."""
    return [(size, name) for size in CASES for name in names if name in CASES[size]]


def alone(name: str):
    A, case = ALL[name]
    separate = ("sparse", "how", "file", "codes", "batches", "max_memory", "instant")
    options = {key: value for key, value in case.items() if key not in separate}
    model = nmf(**options)
    Z, D = model.fit(A)
    return Z, D, model.fit_info_


@pytest.mark.parametrize(("size", "name"), cases([*FITS, "after failures"]))
def test_fit_of_several_processes_is_that_of_one(size, name, shared):
    results = shared(size)[name]
    assert not any("error" in result for result in results), results
    Z, D, info = alone(name)
    bound = 1e-10 if D.dtype == torch.float64 else 1e-5
    # of an error in normal form
    rounding = 1e-6 if D.dtype == torch.float64 else 5e-4
    # counts and names are the same, and numbers to rounding
    same = ("iterations", "accelerated", "stopped_by", "form")
    same += ("revived", "dead_concepts", "near_duplicates")
    assert (info.revived > 0) == name.startswith("revived")
    for result in results:
        assert torch.equal(result["D"], results[0]["D"])
        assert relative_difference(result["D"], D) <= bound
        found = result["info"]
        assert [found[field] for field in same] == [getattr(info, field) for field in same]
        assert (found["n"], found["processes"]) == (len(Z), size)
        assert (found["passes"] > 1) == ("streamed" in name)
        # in residual form the codes of the row of zeros are rounding
        one_row = Z.shape[1] / len(Z) if info.form == "residual" else 1e-6
        for measured, tolerance in [
            ("relative_error", 1e-6),
            ("objective", 1e-6),
            ("r_squared", 1e-6),
            ("mean_l0", one_row),
        ]:
            assert found[measured] == pytest.approx(
                getattr(info, measured), rel=1e-3, abs=tolerance
            )
        changes = [iteration["relative_change"] for iteration in found["history"]]
        expected = [iteration.relative_change for iteration in info.history]
        assert changes == pytest.approx(expected, rel=1e-2, abs=rounding / 10)
        last = found["history"][-1]["relative_objective"]
        assert last == pytest.approx(info.history[-1].relative_objective, rel=1e-3, abs=rounding)
    codes = torch.cat([result["Z"] for result in results])
    assert relative_difference(codes, Z) <= 10 * bound


@pytest.mark.parametrize("name", ROUNDED)
def test_processors_that_round_otherwise_end_together(name, shared):
    results = shared(2)[name]
    assert not any("error" in result for result in results), results
    first, other = results
    assert torch.equal(first["D"], other["D"])
    for fact in ("iterations", "stopped_by", "revived"):
        assert first["info"][fact] == other["info"][fact]


def test_nothing_is_revived_where_no_row_is_left(shared):
    for result in shared(2)["nothing to revive"]:
        assert result["info"]["revived"] == 0
        assert not result["D"].any()


@pytest.mark.parametrize("size", CASES)
def test_bytes_that_are_exchanged_are_reported(size, shared):
    for result in shared(size)["hals-even-random"]:
        # with the sums of the codes, and the dictionary once, at the end of 20
        assert result["info"]["reduced_bytes"] == 4 * (K * (d + K) + 4) + 4 * K * d // 20
        assert f"{size}, 638 bytes exchanged per iteration" in result["text"]
    for result in shared(2)["split, hals-even-random"]:
        assert result["info"]["reduced_bytes"] == 4 * K * (d + K) + 4 * K * d + 2 * 8 * 4


def test_processes_that_extrapolate_agree_on_all_they_decide_by(shared):
    first, other = (result["info"]["history"] for result in shared(2)["rounded, accelerated hals"])
    for a, b in zip(first, other, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_rows_that_cannot_be_counted_are_drawn_from_all_processes(shared):
    first, other = shared(2)["sample, batches"]
    assert "error" not in first, first
    assert torch.equal(first["D"], other["D"])
    whole = alone("sample, batches")[2]
    assert first["info"]["sample_rows"] == whole.sample_rows
    # of other rows
    assert first["info"]["held_out_error"] == pytest.approx(whole.held_out_error, rel=0.05)
    assert first["info"]["held_out_error"] != whole.held_out_error


def test_without_a_seed_all_draw_the_same(shared):
    first, other = shared(2)["no seed"]
    seeds = {result["info"]["seed"] for result in (first, other)}
    assert len(seeds) == 1
    assert 0 <= seeds.pop() < 2**32
    assert torch.equal(first["D"], other["D"])


@pytest.mark.parametrize("size", CASES)
def test_every_process_writes_its_codes(size, shared):
    results = shared(size)["codes on disk"]
    Z, _, _ = alone("codes on disk")
    files = [Path(result["info"]["codes"]) for result in results]
    assert [file.name for file in files] == [
        f"Z-{rank:05d}-of-{size:05d}.npy" for rank in range(size)
    ]
    written = np.concatenate([np.load(file) for file in files])
    assert relative_difference(written, Z) <= 1e-5


def test_codes_need_not_be_kept(shared):
    for result in shared(2)["codes not kept"]:
        assert result["Z"] is None
        assert result["info"]["relative_error"] < 0.1


@pytest.mark.parametrize(("size", "name"), cases(FAILURES))
def test_what_fails_in_one_fails_in_all(size, name, shared):
    results = shared(size)[name]
    for result in results:
        assert FAILURES[name] in result["error"]
    assert "InvalidInput" in results[0]["error"]


def test_others_need_not_wait_for_one_that_failed(shared):
    waiting, failed = shared(2)["broken callback"]
    assert "ZeroDivisionError" in failed["error"]
    assert "ConnectionError: process 0 of 2 cannot reach the others" in waiting["error"]
    assert waiting["seconds"] < 10


def test_all_end_in_time_together(shared):
    found = [result["info"] for result in shared(2)["max_seconds"]]
    assert {info["stopped_by"] for info in found} == {"max_seconds"}
    assert len({info["iterations"] for info in found}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
def test_process_that_is_killed_ends_the_others(tmp_path):
    A = torch.rand(400, 60)
    case = {"nb_concepts": 30, "max_iter": 10**7, "tol": 0, "how": "even", "begun": "begun"}
    torch.save([(A, case)], tmp_path / "cases.pt")
    processes = begin(tmp_path, 2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and processes.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first, second = map(int, (tmp_path / "processes").read_text().split())
    os.kill(second, signal.SIGKILL)
    try:
        said = processes.communicate(timeout=40)[0].decode()
    except subprocess.TimeoutExpired:
        os.kill(first, signal.SIGKILL)
        raise
    (result,) = torch.load(tmp_path / "results-0.pt")
    assert "ConnectionError" in result["error"], said
    assert "process 0 of 2" in result["error"]


def test_group_of_a_fit_has_the_timeout_of_the_default_one(tmp_path):
    meeting, timeout = f"file://{tmp_path / 'meeting'}", timedelta(seconds=77)
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=0, world_size=1, timeout=timeout
    )
    try:
        with Processes.joined(torch.device("cpu")) as processes:
            assert processes.group._get_backend(torch.device("cpu")).options._timeout == timeout
    finally:
        distributed.destroy_process_group()


def test_command_writes_over_nothing_that_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("X-00000-of-00002.npy", data().numpy())
    fit = "fit X-00000-of-00002.npy --concepts 6 --out m.safetensors --codes X.npy"
    arguments = parser_of().parse_args(fit.split())
    alone = Processes(0, 2)
    monkeypatch.setattr(alone, "agreed", nullcontext)
    with pytest.raises(Refused, match="is named twice"):
        fit_by(arguments, alone)


def test_other_commands_are_not_shared(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["info"]) == 2
    assert "only fit is shared" in capsys.readouterr().err
    fit = "fit A.npy --concepts 2 --out m.safetensors --timeout"
    for seconds in ("0", "-1", "nan", "inf"):
        assert cli.main([*fit.split(), seconds]) == 2
        assert "--timeout" in capsys.readouterr().err


def test_distributed_needs_processes():
    with pytest.raises(InvalidInput, match="init_process_group"):
        NMF(2, distributed=True).fit(torch.rand(4, 3))
    with pytest.raises(TypeError, match="distributed=1 must be True or False"):
        NMF(2, distributed=1)
    with pytest.raises(InvalidInput, match="init_process_group"):
        NMF(2, distributed=True).partial_fit(torch.rand(4, 3))
