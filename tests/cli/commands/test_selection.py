"""The commands choose and stability: what the functions of Python say, files, going on later."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastnmf
from fastnmf.cli import main as cli
from fastnmf.files import read_matrix
from fastnmf.selection.models import Fits

pytest.importorskip("scipy", reason="SciPy is not installed")

RANDOM = np.random.default_rng(0)
A = (RANDOM.random((40, 3)) ** 2 @ RANDOM.random((3, 8))).astype(np.float32)
CHOOSE = "choose A.npy 1 3 --folds 2 --seed 0 --max-iter 20 --tol 0".split()
STABILITY = "stability A.npy -k 3 --runs 2 --seed 0 --max-iter 20 --tol 0".split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder that holds A.npy."""
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A)
    return tmp_path


def said(words, capsys):
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, json.loads(out) if "--json" in words else out, err


def without_time(choice):
    for each in choice["candidates"]:
        each.pop("seconds")
    return choice


def test_choose_says_what_the_function_says(capsys):
    status, found, _ = said([*CHOOSE, "--holdout", "entries", "--json"], capsys)
    same = {"folds": 2, "seed": 0, "max_iter": 20, "tol": 0, "holdout": "entries"}
    expected = fastnmf.choose_concepts(A, [1, 3], **same).as_dict()
    assert status == 0
    assert (found.pop("out"), found.pop("picture")) == (None, None)
    assert without_time(found) == without_time(json.loads(json.dumps(expected)))


def test_choose_prints_a_table_and_writes_it(capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    status, out, _ = said([*CHOOSE, "-o", "c.csv", "--picture", "c.svg"], capsys)
    assert status == 0
    assert "held-out error" in out
    assert "K = 3" in out
    head, *rows = Path("c.csv").read_text().splitlines()
    assert head.startswith("nb_concepts,mean_held_out,relative_error,")
    assert [row.partition(",")[0] for row in rows] == ["1", "3"]
    assert "<svg" in Path("c.svg").read_text()
    assert said([*CHOOSE, "-o", "c.json", "--quiet"], capsys)[:2] == (0, "")
    assert json.loads(Path("c.json").read_text())["recommended"] == 3


def test_stability_writes_the_consensus(capsys):
    out = ["-o", "m.safetensors", "--codes", "Z.npy"]
    status, found, _ = said([*STABILITY, *out, "--json"], capsys)
    load_npz = pytest.importorskip("scipy.sparse").load_npz
    expected = fastnmf.stability(A, 3, runs=2, seed=0, max_iter=20, tol=0)
    assert status == 0
    assert found["scores"] == expected.scores.tolist()
    assert found["model"] == "m.safetensors"
    assert torch.equal(fastnmf.NMF.load("m.safetensors").D, expected.dictionary)
    np.testing.assert_array_equal(read_matrix("Z.npy"), expected.codes.numpy())
    assert said([*STABILITY, "--codes", "Z.npz", "--quiet"], capsys)[:2] == (0, "")
    np.testing.assert_array_equal(load_npz("Z.npz").toarray(), expected.codes.numpy())


@pytest.mark.parametrize("words", [CHOOSE, STABILITY], ids=["choose", "stability"])
def test_what_was_interrupted_goes_on(words, monkeypatch, capsys):
    whole = said([*words, "--json"], capsys)[1]
    fit, calls = Fits.fit, []

    def interrupted(self, *given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *given, **options)

    monkeypatch.setattr(Fits, "fit", interrupted)
    saved = ["--checkpoint", "c.safetensors"]
    status, _, err = said([*words, *saved], capsys)
    assert status == 130
    command = err.splitlines()[-1].strip()
    assert command.partition("fastnmf")[2] == f" {' '.join([*words, *saved])} --resume"
    status, found, _ = said([*command.partition("fastnmf")[2].split(), "--json"], capsys)
    assert status == 0
    # one was not repeated
    assert len(calls) == 1 + (4 if words is CHOOSE else 2)
    for each in (whole, found):
        if "candidates" in each:
            without_time(each)
    assert found == whole
    assert said([*words, *saved], capsys)[0] == 2


def test_interrupt_without_a_checkpoint_says_that_nothing_is_saved(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Fits, "fit", interrupted)
    assert "--checkpoint FILE saves each finished fit" in said(CHOOSE, capsys)[2]


# what is added, exit status, what is said
REFUSED = {
    "folds": ([*CHOOSE, "--folds", "1"], 2, "--folds 1 must be at least 2"),
    "concepts": ([*CHOOSE[:2], "0", "-q"], 2, "K 0 must be at least 1"),
    "too many": ([*CHOOSE[:2], "99"], 3, "at most 8 concepts can be compared"),
    "no such": (["choose", "B.npy", "3"], 3, "B.npy does not exist"),
    "folder": (["choose", ".", "3"], 2, ". is a folder; these data must be one file"),
    "suffix": ([*CHOOSE, "-o", "c.txt"], 2, "c.txt must end in .csv, .tsv, .json"),
    "resume": ([*CHOOSE, "--resume"], 2, "--resume needs --checkpoint FILE"),
    "output": ([*CHOOSE, "-o", "-"], 2, "- is possible as the input alone"),
    "runs": ([*STABILITY, "--runs", "1"], 2, "--runs 1 must be at least 2"),
    "same start": (
        [*STABILITY, "--resample", "starts", "--init", "nndsvda"],
        3,
        "--init nndsvda is the same start for all runs",
    ),
    "distance": ([*STABILITY, "--density-threshold", "x"], 2, "'x' is no number, nor the word no"),
    "option": ([*STABILITY, "--alpha-Z", "-1"], 2, "--alpha-Z -1.0 must be finite and at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fault_of_the_user_is_one_line(case, folder, capsys):
    words, status, message = REFUSED[case]
    assert cli.main(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[0]
    assert [path.name for path in folder.iterdir()] == ["A.npy"]


def test_model_of_the_consensus_has_the_options_of_the_fits(capsys):
    """Its codes had more than top_k concepts."""
    words = [*STABILITY, "--top-k", "2", "-o", "m.safetensors", "--quiet"]
    assert said(words, capsys)[0] == 0
    model = fastnmf.NMF.load("m.safetensors")
    assert model.top_k == 2
    assert int((model.encode(A) > 0).sum(1).max()) <= 2


@pytest.mark.parametrize("command", [CHOOSE, STABILITY])
def test_stop_by_validation_is_no_choice(command, capsys):
    status, _, err = said([*command, "--stop", "validation"], capsys)
    assert status == 2
    assert "validation" in err
