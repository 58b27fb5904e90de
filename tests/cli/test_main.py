"""The command line (main, parser): what it writes, prints and returns; nothing is lost, nothing
half-written."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pytest
import torch

import fastnmf
from fastnmf import NMF, Tuning
from fastnmf.cli import main as cli
from fastnmf.files import read_matrix

A = np.random.default_rng(0).random((20, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that holds A.npy."""
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A)
    return tmp_path


@pytest.fixture
def model(folder):
    fit("--codes", "Z.npy", "--quiet")
    return folder / "model.safetensors"


def fit(*options):
    given = ["fit", "A.npy", "--concepts", "3", "--out", "model.safetensors", "--force"]
    return cli.main([*given, *options])


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("solver", ["hals", "mu"])
def test_fit_writes_model_and_codes(solver, folder, capsys):
    options = ["--solver", solver, "--seed", "0", "--max-iter", "7", "--tol", "0"]
    assert fit("--codes", "Z.npy", *options) == 0
    expected = NMF(3, solver=solver, seed=0, max_iter=7, tol=0)
    Z, D = expected.fit(A)
    assert torch.equal(NMF.load("model.safetensors").D, D)
    np.testing.assert_array_equal(read_matrix("Z.npy"), Z.numpy())
    assert sorted(contents(folder)) == ["A.npy", "Z.npy", "model.safetensors"]
    summary = capsys.readouterr().out
    for word in (f"{expected.fit_info_.relative_error:.6g}", "7 (", "mean L0", "dead", "backend"):
        assert word in summary
    assert "model.safetensors" in summary
    assert "Z.npy" in summary


def recorded(monkeypatch):
    """What the command will give to NMF, and to its fit."""
    given, run = {}, {}

    class Recording(NMF):
        def __init__(self, nb_concepts, device, **options):
            given.update(options, nb_concepts=nb_concepts, device=device)
            super().__init__(nb_concepts)

        def fit(self, A, **options):
            run.update(options)
            return super().fit(A)

    monkeypatch.setattr("fastnmf.models.nmf.NMF", Recording)
    return given, run


def test_fit_hands_every_option_to_the_model(folder, monkeypatch):
    given, run = recorded(monkeypatch)
    options = "--solver mu --tol 0.5 --max-iter 9 --init random --n-init 5 --seed 4 --backend torch"
    options += " --checkpoint c.safetensors --checkpoint-seconds 5 --form normal --chunk-rows 8"
    options += " --accelerate no --stop error --max-seconds 9 --revive --quiet --resume"
    options += " --alpha-Z 0.5 --alpha-D 0.25 --l1-ratio 0.75 --unit-norm --codes Z.npy"
    options += " --max-memory 1GB"
    assert fit(*options.split()) == 0
    assert given == {
        "nb_concepts": 3,
        "device": "cpu",
        "solver": "mu",
        "tol": 0.5,
        "max_iter": 9,
        "init": "random",
        "n_init": 5,
        "seed": 4,
        "backend": "torch",
        "accelerate": False,
        "stop": "error",
        "max_memory": "1GB",
        "alpha_Z": 0.5,
        "alpha_D": 0.25,
        "l1_ratio": 0.75,
        "unit_norm": True,
        "revive": True,
        "verbose": False,
        "distributed": False,
        "tuning": Tuning(form="normal", chunk_rows=8, checkpoint_seconds=5.0),
    }
    assert run == {
        "max_seconds": 9.0,
        "checkpoint": Path("c.safetensors"),
        "resume": True,
        "validation": None,
        "weights": None,
        "codes": Path("Z.npy"),
    }


def test_fit_leaves_to_the_model_what_is_not_given(folder, monkeypatch):
    given, run = recorded(monkeypatch)
    assert fit("--quiet") == 0
    # saved only if it is interrupted
    checkpoint = Path("model.checkpoint.safetensors")
    unset = dict.fromkeys(("max_seconds", "validation", "weights"))
    assert run == {**unset, "checkpoint": checkpoint, "resume": False}
    assert given["tuning"] == Tuning(checkpoint_seconds=float("inf"))
    defaults = inspect.signature(NMF).parameters
    for name in given.keys() - {"nb_concepts", "tuning", "verbose", "max_iter"}:
        assert given[name] == defaults[name].default, name


def test_quiet_prints_nothing(folder, capsys):
    assert fit("--quiet", "--tol", "0") == 0
    assert capsys.readouterr() == ("", "")


# .npy is written as it is computed, others at the end; codes in .npz are sparse
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_encode_and_decode_write_what_the_model_gives(suffix, model, capsys):
    out = [f"codes{suffix}", f"A_hat{suffix}"]
    assert cli.main(["encode", str(model), "A.npy", "--out", out[0], "--max-iter", "50"]) == 0
    assert cli.main(["decode", str(model), out[0], "--out", out[1]]) == 0
    nmf = NMF.load(model)
    Z = nmf.encode(A, max_iter=50)
    np.testing.assert_array_equal(np.asarray(read_matrix(out[0])), Z.numpy())
    # which has a product of its own
    read = Z.to_sparse_csr() if suffix == ".npz" else Z
    np.testing.assert_allclose(np.asarray(read_matrix(out[1])), nmf.decode(read).numpy())
    printed = capsys.readouterr().out
    error = float((torch.tensor(A) - Z @ nmf.D).norm() / np.linalg.norm(A))
    assert f"codes{suffix}: codes (20, 3), mean L0 " in printed
    assert f"relative error {error:.6g}" in printed
    assert f"A_hat{suffix}: Z D (20, 6)" in printed


def test_encode_says_how_it_ended(model, capsys):
    encode = ["encode", str(model), "A.npy", "-o", "codes.npy", "--force"]
    assert cli.main([*encode, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    Z, info = NMF.load(model).encode(A, return_info=True)
    assert summary.pop("mean_l0") == pytest.approx(float((Z > 0).sum()) / len(A))
    assert summary.pop("largest_kkt") == pytest.approx(float(info.kkt.max()))
    assert summary == {
        "out": "codes.npy",
        "shape": [20, 3],
        "method": info.method,
        "iterations": info.iterations,
        "converged": True,
        "relative_error": info.relative_error,
        "alpha_Z": 0.0,
    }


def test_codes_that_did_not_converge_are_status_4_if_strict(model, capsys):
    encode = ["encode", str(model), "A.npy", "-o", "codes.npy", "--force", "--max-iter", "1"]
    assert cli.main([*encode, "--strict"]) == 0
    assert "20 rows by exact" in capsys.readouterr().out
    encode[1:1] = ["--method", "sweeps"]
    assert cli.main(encode) == 0
    out, err = capsys.readouterr()
    assert "not converged" in out
    assert err.startswith("fastnmf: warning: ")
    assert cli.main([*encode, "--strict"]) == 4
    *_, last = capsys.readouterr().err.splitlines()
    assert last.endswith("as --strict requires; codes.npy is written all the same")
    assert cli.main([*encode[:-2], "--strict"]) == 0


def test_report_writes_a_page(model, capsys):
    assert cli.main(["report", str(model), "-o", "report.html", "--image-shape", "2x3"]) == 0
    page = (model.parent / "report.html").read_text(encoding="utf-8")
    assert NMF.load(model).fit_info_.lines()["relative error"] in page
    assert capsys.readouterr().out == f"report.html: page about the fit of {model}\n"
    assert sorted(contents(model.parent)) == ["A.npy", "Z.npy", model.name, "report.html"]
    assert cli.main(["report", str(model), "--out", "report.html", "--quiet", "--force"]) == 0
    assert capsys.readouterr() == ("", "")


# command, exit status, what is said
REFUSED = {
    "no such file": ("fit B.npy", 3, "B.npy does not exist"),
    "suffix of input": ("fit A.txt", 3, "A.txt must end in .npy, .npz"),
    "negative": ("fit negative.npy", 3, "the first in negative.npy at row 2, column 1: −1; NMF "),
    "concepts": ("fit A.npy -k 0", 2, "--concepts 0 must be at least 1"),
    "too many concepts": (f"fit A.npy -k {10**9}", 3, "; fewer concepts need less"),
    "a number beyond all": (f"fit A.npy -k {10**30}", 2, "must be at most 9,223,372,036,"),
    "backend": ("fit A.npy --backend magic", 2, "--backend magic is unknown"),
    "device": ("fit A.npy --device magic", 2, "--device magic is unknown; give cpu, cuda, cuda:1"),
    "device without numbers": ("fit A.npy --device meta", 2, "--device meta holds no numbers"),
    "device that is not here": ("encode model.safetensors A.npy --device cuda:77", 2, "not usable"),
    "time": ("fit A.npy --max-seconds 0", 2, "--max-seconds 0.0 must be more than 0"),
    "seed": ("fit A.npy --seed -1", 2, "--seed -1 must be at least 0"),
    "tol": ("fit A.npy --tol nan", 2, "--tol is NaN"),
    "penalty": ("fit A.npy --alpha-Z -1", 2, "--alpha-Z -1.0 must be finite and at least 0"),
    "size": ("fit A.npy --max-memory much", 2, "--max-memory much is no size; give a number"),
    "little memory": ("fit A.npy --max-memory 1kB", 3, "--max-memory of 1kB is too little for 20"),
    "go on from nothing": ("fit A.npy --resume", 2, "--resume needs --checkpoint FILE"),
    "save nothing": ("fit A.npy --checkpoint-seconds 5", 2, "needs --checkpoint FILE, the file to"),
    "two options": (
        "fit A.npy --unit-norm --alpha-D 1",
        2,
        "--alpha-D 1.0 does not go with --unit",
    ),
    "model to the output": ("fit A.npy --out -", 2, "-o - is not possible; give the name of a f"),
    "checkpoint to it": ("fit A.npy --checkpoint -", 2, "--checkpoint - is not possible; give th"),
    "suffix of model": ("fit A.npy --out model.pt", 2, "model.pt must end in .safetensors"),
    "folder": ("fit A.npy --out missing/m.safetensors", 2, "missing does not exist; make it first"),
    "onto input": ("fit A.npy --codes A.npy", 2, "A.npy is named twice"),
    "model as data": ("fit loaded.safetensors", 3, "loaded.safetensors is a model or a checkpoint"),
    "into the input": (
        "fit . --codes Z.npy",
        2,
        "model.safetensors would be one of the files of . wh",
    ),
    "vector": ("fit v.npy", 3, "v.npy has shape (6,); it must be (n, d): a single row is A[None]"),
    "images": ("fit i.npy", 3, "images (n, C, H, W), A.transpose(0, 2, 3, 1).reshape(-1, 3)"),
    "onto model": ("fit A.npy --codes model.safetensors", 2, "model.safetensors is named twice"),
    "width": ("encode model.safetensors wide.npy", 3, "A has 7 features, the dictionary has 6"),
    "no model": ("encode A.npy A.npy", 3, "A.npy is no model, which ends in .safetensors; the"),
    "width of codes": ("decode model.safetensors A.npy", 3, "Z has 6 concepts, the dictionary has"),
    "suffix of page": ("report model.safetensors -o page.pdf", 2, "page.pdf must end in .html, .h"),
    "no model to report": ("report A.npy", 3, "A.npy is no model, which ends in .safetensors"),
    "no summary": ("report loaded.safetensors", 3, "holds no summary of a fit: its dictionary was"),
    "picture": ("demo --out picture.jpg", 2, "picture.jpg must end in .png"),
    "patches": ("demo --concepts 9 --patches 5", 2, "--concepts 9 must be from 1 to the number of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_user_error_is_one_line_and_changes_nothing(case, model, capsys):
    if case in ("picture", "patches"):
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        pytest.importorskip("PIL", reason="Pillow is not installed")
    np.save("negative.npy", np.where(np.arange(120).reshape(20, 6) == 13, -1, A))
    np.save("wide.npy", np.ones((4, 7)))
    np.save("v.npy", A[0])
    np.save("i.npy", np.ones((2, 3, 4, 5)))
    Path("A.txt").touch()
    NMF(2).load_dictionary(A[:2]).save("loaded.safetensors")
    command, status, message = REFUSED[case]
    defaults = {
        "fit": "--out model.safetensors --concepts 3 --force",
        "encode": "--out out.npy",
        "decode": "--out out.npy",
        "report": "--out page.html",
        "demo": "",
    }
    name, *given = command.split()
    before = contents(model.parent)
    assert cli.main([name, *defaults[name].split(), *given]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fastnmf: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert contents(model.parent) == before


def test_reason_against_a_device_is_one_sentence(folder, monkeypatch, capsys):
    def empty(*_, **__):
        raise NotImplementedError("Could not run it on 'MPS'. This could be because …\nMPS: [0]")

    monkeypatch.setattr(torch, "empty", empty)
    assert fit("--device", "mps") == 2
    error = "--device mps is not usable: Could not run it on 'MPS'"
    assert capsys.readouterr().err == f"fastnmf: error: {error}\n"


def test_backend_that_is_not_usable_is_named(folder, capsys):
    unusable = [
        b.name for b in fastnmf.available_backends() if b.reason and "hals_block_" in b.operations
    ]
    if not unusable:
        pytest.skip("every backend is usable here")
    assert fit("--backend", unusable[0]) == 2
    assert f"fastnmf: error: --backend {unusable[0]} is not usable" in capsys.readouterr().err


def test_outputs_are_checked_before_the_fit(folder, monkeypatch, capsys):
    monkeypatch.setattr(NMF, "fit", lambda *_, **__: pytest.fail("the fit was started"))
    assert fit("--codes", "missing/Z.npy") == 2


def test_interrupt_leaves_files_as_they_were(model, monkeypatch, capsys):
    before = contents(model.parent)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(NMF, "encode", interrupt)
    assert cli.main(["encode", str(model), "A.npy", "-o", "Z.npy", "-f"]) == 130
    assert capsys.readouterr().err == "fastnmf: interrupted\n"
    assert contents(model.parent) == before


def test_bug_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(NMF, "fit", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        fit()


def test_info_shows_all_that_a_bug_report_needs(monkeypatch, capsys):
    monkeypatch.setenv("FASTNMF_BACKEND", "torch")
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(fastnmf.available_backends()))
    for line in (
        f"fastnmf: {fastnmf.__version__}",
        f"torch: {torch.__version__.split('+')[0]}",
        f"numpy: {np.__version__}",
        "FASTNMF_BACKEND: torch",
        f"threads: {torch.get_num_threads()} of {os.cpu_count()}",
    ):
        assert line in " ".join(printed.split())
    for name in ("python", "platform", "cpu", "cuda", "triton", "extension"):
        assert f"\n{name}:" in printed


def test_info_works_without_what_is_optional(monkeypatch, capsys):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for line in ("triton: not installed", "extension: not built", "cuda: not in this torch"):
        assert line in printed


IN_ASCII = """
import runpy, sys
sys.stdout.reconfigure(encoding="ascii", errors="strict")
sys.stderr.reconfigure(encoding="ascii")
runpy.run_module("fastnmf", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", [["fit", "--help"], ["info"]])
def test_module_runs_where_nothing_but_ascii_can_be_printed(command, fresh):
    run = fresh(IN_ASCII, *command)
    assert run.returncode == 0, run.stderr
    assert fastnmf.__version__ in run.stdout or "usage: fastnmf" in run.stdout
    assert run.stderr == ""


def test_a_reader_that_leaves_early_is_no_error():
    """`fastnmf info | head` ended with the text of a broken pipe."""
    # unbuffered, the output would be flushed before the command ends
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.Popen(
        [sys.executable, "-m", "fastnmf", "info"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 1


def test_encode_takes_the_most_concepts_of_a_row(model, capsys):
    out = ["--out", "codes.npy", "--force"]
    assert cli.main(["encode", str(model), "A.npy", *out, "--top-k", "1"]) == 0
    Z = np.load("codes.npy")
    assert int((Z > 0).sum(1).max()) == 1
    assert np.array_equal(Z, NMF.load(model).encode(np.load("A.npy"), top_k=1))
    assert cli.main(["encode", str(model), "A.npy", *out, "--top-k", "0"]) == 3
    assert "--top-k 0 must be at least 1" in capsys.readouterr().err
