"""Checkpoints of fits that several processes share: sets of one save, and the same bits."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from broken_checkpoints import (
    BROKEN,
    foreign,
    gone,
    newer,
    of_another_run,
    of_four,
    truncated,
)
from fits import SHARED, SHARED_ROWS, idle_start, shared_data
from processes import begin, run
from shared_program import TIMEOUT

from fastnmf import NMF

if not hasattr(os, "fork"):
    pytest.skip("os.fork: not here", allow_module_level=True)

SIZE = 2
n, data = SHARED_ROWS, shared_data
NAME = "fit.safetensors"
OWN = [f"fit-{rank:05d}-of-{SIZE:05d}.safetensors" for rank in range(SIZE)]
SHORT = {**SHARED, "max_iter": 12, "how": "even", "accelerate": "auto", "init": "random"}
STREAMED = {**SHORT, "max_memory": "18kB", "chunk_rows": 30, "accelerate": False}
KEPT = {"checkpoint": NAME, "checkpoint_seconds": 0}


# those that differ in what they share: pgd is as mu
SOLVERS = ("hals", "mu", "anls")
FITS = {name: {**SHORT, "solver": name} for name in SOLVERS}
FITS |= {
    f"{name} streamed": {**STREAMED, "solver": name, "file": "Z.npy"} for name in ("hals", "anls")
}
FITS |= {
    "streamed, codes not kept": {**STREAMED, "codes": None, "max_iter": 5},
    "no rows in one": {**SHORT, "how": "uneven", "file": "Z.npy"},
    "residual accelerated": {**SHORT, "form": "residual", "accelerate": True},
    "unit norm streamed": {**STREAMED, "alpha_Z": 0.01, "l1_ratio": 0.5, "unit_norm": True},
    "stops by tol": {**SHORT, "tol": 3e-2, "max_iter": 300, "form": "residual", "block": 4},
}
# idle concepts are looked for after they were left
IDLE = {"nb_concepts": 12, "init": idle_start(data(), 12), "revive": True}
FITS |= {
    "revived streamed": {**STREAMED, **IDLE, "max_memory": "40kB", "file": "Z.npy"},
}
# in all processes at once
LEFT = [{"left_in": 9}]


def killed(steps, **options):
    """A fit of which processes are killed at these steps."""
    return {"of": {rank: {"killed_at": step} for rank, step in steps.items()}, **options}


def named(*kills):
    return ", then ".join(
        " and ".join(f"{rank} at {step}" for rank, step in k.items()) for k in kills
    )


# of the second save: the codes are put in their place, what waits for the others is, and that is
# put in its place; the codes before are removed. The first save is five steps, this one six
KILLS = [({0: step},) for step in (3, 8, 10, 11)] + [({1: 10},), ({0: 8, 1: 8},)]
# one has more than the other then, and is killed once more while it is tidied
KILLS += [({1: 8}, {0: 1}), ({0: 10}, {1: 3})]
BRIEF = {**SHORT, "max_iter": 4, "accelerate": False}
RESUMED = {**BRIEF, **KEPT, "resume": True}
LEFT_ONCE = {**RESUMED, "before": [{"left_in": 3}]}
ALONE = {"of": {0: {"distributed": False}, 1: {"absent": True}}}

CASES = {name: (data(), options) for name, options in FITS.items()}
CASES |= {
    f"{name}, left": (data(), {**options, **KEPT, "resume": True, "before": LEFT})
    for name, options in FITS.items()
}
CASES["brief"] = data(), BRIEF
CASES |= {
    f"killed: {named(*kills)}": (data(), {**RESUMED, "before": [*map(killed, kills)]})
    for kills in KILLS
}
CASES |= {
    "new fit over one of other options, killed": (
        data(),
        {**RESUMED, "seed": 1, "before": [{}, {"seed": 2, "resume": False, **killed({1: 3})}]},
    ),
    "new fit in the place of an old one": (
        data(),
        {**RESUMED, "before": [{"seed": 2}, {"resume": False, "left_in": 3}]},
    ),
    "nothing more to save": (
        data(),
        {**RESUMED, "max_iter": 1, "before": [{"max_iter": 4, **killed({1: 8})}]},
    ),
    "by the clock of the first": (
        data(),
        {**BRIEF, **KEPT, "of": {1: {"checkpoint_seconds": 10**6}}},
    ),
    "not by that of the other": (
        data(),
        {**BRIEF, **KEPT, "of": {0: {"checkpoint_seconds": 10**6}}},
    ),
    "for the command": (data(), {**SHORT, **KEPT, "max_iter": 5}),
    "no space": (data(), {**BRIEF, **KEPT, "of": {1: {"fails_at": 8}}}),
    "after no space": (
        data(),
        {**RESUMED, "before": [{"resume": False, "of": {1: {"fails_at": 8}}}]},
    ),
}
# resumed by all, or begun anew, and refused in all
REFUSED = {
    f"{harm.__name__}{'' if resume else ', anew'}": (
        data(),
        {**LEFT_ONCE, "resume": resume, "harm": {1: harm}},
        f"{OWN[1]} {BROKEN[harm]}",
    )
    for harm, resume in [(truncated, False), (foreign, True), (newer, True)]
}
rolled = torch.cat((data()[n // 2 :], data()[: n // 2]))[:-1]
REFUSED |= {
    "gone": (
        data(),
        {**LEFT_ONCE, "harm": {1: gone}},
        r"has no save that all processes have \(process 0: 2-\w+; process 1: none\)",
    ),
    "another run": (
        data(),
        {**LEFT_ONCE, "harm": {1: of_another_run}},
        r"has no save that all processes have \(process 0: 2-\w+; process 1: 2-another\)",
    ),
    "another number": (
        data(),
        {**LEFT_ONCE, "harm": {0: of_four, 1: of_four}},
        "by another number of processes than the 2 here: there is .*-00000-of-00004",
    ),
    "of one process": (
        data(),
        {**RESUMED, "before": [ALONE]},
        rf"by another number of processes than the 2 here: there is .*{NAME}",
    ),
    "other rows": (
        data(),
        {**RESUMED, "before": [{"how": "uneven", "left_in": 3}]},
        "another fit: rows_here=(203|0) there, 10[12] here",
    ),
    "rows of each other": (
        data()[:-1],
        {**RESUMED, "before": [{"A": rolled, "left_in": 3}]},
        r"another fit: ‖A‖²=.* there, .* here",
    ),
    "one without": (
        data(),
        {**BRIEF, **KEPT, "of": {1: {"checkpoint": None}}},
        "checkpoint is 'a file' in process 0 and None in process 1",
    ),
    "no folder": (
        data(),
        {**BRIEF, **KEPT, "of": {1: {"checkpoint": "no/fit.safetensors"}}},
        "the folder .* does not exist",
    ),
}
CASES |= {name: (A, case) for name, (A, case, _) in REFUSED.items()}
CASES["by one process"] = data(), {**RESUMED, "before": [{"left_in": 3}], **ALONE}


@pytest.fixture(scope="module")
def folder(once):
    """Where the cases were run, each in a folder of its own."""
    return once("shared-checkpoints", functools.partial(run, SIZE, list(CASES.values())))


@pytest.fixture(scope="module")
def results(folder):
    """The results of every case by name, of each process."""
    found = [torch.load(folder / f"results-{rank}.pt") for rank in range(SIZE)]
    return dict(zip(CASES, zip(*found, strict=True), strict=True))


def assert_same(given, expected):
    for one, other in zip(given, expected, strict=True):
        assert "error" not in one, one
        assert torch.equal(one["D"], other["D"])
        assert one["Z"] is None or torch.equal(one["Z"], other["Z"])
        histories = [
            [(i["iteration"], i["relative_change"], i["relative_error"]) for i in info["history"]]
            for info in (one["info"], other["info"])
        ]
        assert histories[0] == histories[1]
        assert one["info"]["stopped_by"] == other["info"]["stopped_by"]


def names_of(one, *others):
    """What may lie there at the end: the files of the last save, and none that waited."""
    codes = set() if one["Z"] is None else {f"{Path(own).stem}.codes" for own in OWN}
    return sorted(re.sub(r"-[ab]\.npy$", "", name) for name in one["after"]), sorted([*OWN, *codes])


@pytest.mark.parametrize("name", FITS)
def test_fit_that_was_left_gives_the_same_bits(name, results):
    given, expected = results[f"{name}, left"], results[name]
    assert_same(given, expected)
    streams = "streamed" in name
    assert all((one["info"]["chunk_rows"] is not None) == streams for one in given)
    assert given[0]["info"]["accelerated"] == expected[0]["info"]["accelerated"]
    revived = given[0]["info"]["revived"]
    assert (revived > 0) == ("revived" in name)
    assert revived == expected[0]["info"]["revived"]
    left, wanted = names_of(given[0])
    assert [name for name in left if not name.startswith("Z-")] == wanted


def test_fits_are_accelerated_as_without_checkpoints(results):
    assert [results[f"{name}, left"][0]["info"]["accelerated"] for name in SOLVERS] == [
        name != "anls" for name in SOLVERS
    ]


@pytest.mark.parametrize("kills", KILLS, ids=lambda kills: named(*kills))
def test_fit_that_was_killed_while_it_saved_gives_the_same_bits(kills, results):
    """Whatever each process has done by then, all resume from the same save."""
    given = results[f"killed: {named(*kills)}"]
    assert_same(given, results["brief"])
    left, wanted = names_of(given[0])
    assert left == wanted


def test_what_only_some_have_saved_is_removed(results):
    left, wanted = names_of(results["nothing more to save"][0])
    assert left == wanted


def test_old_set_stays_until_a_new_one_is_complete(results):
    assert_same(results["new fit over one of other options, killed"], results["brief"])


def test_new_fit_takes_the_place_of_an_old_one(results):
    assert_same(results["new fit in the place of an old one"], results["brief"])


def test_save_that_fails_in_one_fails_in_all_and_leaves_the_set_before(results):
    first, other = results["no space"]
    failure = r"OSError: .*fit-00001-of-00002.* could not be written: no space left"
    assert re.fullmatch(failure, other["error"])
    assert re.search(f"process 1 of 2 failed: {failure}", first["error"])
    assert_same(results["after no space"], results["brief"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_by_all_and_left_alone(name, results):
    for result in results[name]:
        assert re.search(REFUSED[name][2], result["error"]), result["error"]
        assert "InvalidInput" in result["error"] or "FileNotFoundError" in result["error"]
        assert result["before"] == result["after"]


def test_one_process_does_not_go_on_for_several(results):
    result = results["by one process"][0]
    assert re.search(
        f"another number of processes than the 1 here: there is .*{OWN[0]}", result["error"]
    )
    assert result["before"] == result["after"]


def test_clock_of_the_first_process_says_when_all_save(results):
    for result in results["by the clock of the first"]:
        assert set(OWN) <= result["after"].keys()
    for result in results["not by that of the other"]:
        assert not result["after"]


def torchrun(*command, cwd):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_command_divides_the_rows_and_goes_on_from_a_checkpoint(folder, results, tmp_path):
    place = folder / f"case-{list(CASES).index('for the command')}"
    for file in place.glob("fit-*"):
        shutil.copy(file, tmp_path)
    for number, shard in enumerate(data().split(60)):
        np.save(tmp_path / f"X-{number}.npy", shard.numpy())
    shards = [f"X-{number}.npy" for number in range(4)]
    options = "--concepts 6 --seed 1 --init random --tol 0 --max-iter 12 --quiet"
    files = "--out m.safetensors --codes Z.npy --checkpoint fit.safetensors --resume"
    fit = ["-m", "fastnmf", "fit", *shards, *options.split(), *files.split()]
    ran = torchrun(*fit, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    model = NMF.load(tmp_path / "m.safetensors")
    before = results["for the command"][0]["info"]["history"]
    assert [i.seconds for i in model.fit_info_.history[:5]] == [i["seconds"] for i in before]
    for rank, result in enumerate(results["hals"]):
        assert torch.equal(model.D, result["D"])
        written = np.load(tmp_path / f"Z-{rank:05d}-of-00002.npy")
        np.testing.assert_array_equal(written, result["Z"].numpy())


LONG = {**SHORT, **KEPT, "checkpoint_seconds": 10**6, "max_iter": 10**7, "begun": "begun"}


@pytest.fixture
def running(tmp_path):
    """A long fit that has begun: what runs it, and its processes."""
    torch.save([(data(), LONG)], tmp_path / "cases.pt")
    program = begin(tmp_path, SIZE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "case-0" / "begun").exists():
        assert program.poll() is None, program.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [int(child) for child in (tmp_path / "processes").read_text().split()]
    yield program, children
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    program.communicate()


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_save_where_one_gets_a_signal_to_leave(running, tmp_path):
    program, (_, second) = running
    os.kill(second, signal.SIGTERM)
    said = program.communicate(timeout=60)[0].decode()
    saves = []
    for own in OWN:
        with safetensors.safe_open(tmp_path / "case-0" / own, "pt") as file:
            saves.append((file.metadata()["save"], len(file.get_tensor("history"))))
    assert saves[0] == saves[1]
    assert saves[0][1] > 0
    assert said.count("saved to") == 1
    (result,) = torch.load(tmp_path / "results-0.pt")
    assert "ConnectionError" in result["error"]


def test_second_signal_leaves_where_another_process_does_not_answer(running, tmp_path):
    program, (first, second) = running
    os.kill(second, signal.SIGSTOP)
    os.kill(first, signal.SIGTERM)
    assert b"a second signal leaves" in program.stdout.readline()
    os.kill(first, signal.SIGTERM)
    deadline = time.monotonic() + TIMEOUT / 2
    while is_there(first):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not any((tmp_path / "case-0" / own).exists() for own in OWN)
