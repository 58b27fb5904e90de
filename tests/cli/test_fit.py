"""The command fit: interrupted, going on, not converged, failing at its end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnmf import NMF
from fastnmf.cli import fit as command
from fastnmf.cli import main as cli
from fastnmf.distributed import Processes

A = np.random.default_rng(0).random((40, 6)).astype(np.float32)
FIT = ["fit", "A.npy", "-k", "3", "-o", "model.safetensors", "--max-iter", "9", "--tol", "0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A)
    return tmp_path


def interrupting(monkeypatch, number, after=4):
    """Let every fit receive this signal after an iteration, once."""
    fit, waiting = NMF.fit, [True]

    def interrupted(self, A, **options):
        def callback(iteration):
            if iteration.iteration == after and waiting:
                waiting.clear()
                signal.raise_signal(number)

        return fit(self, A, callback=callback, **options)

    monkeypatch.setattr(NMF, "fit", interrupted)


def line_to_go_on(said):
    (line,) = [line for line in said.splitlines() if line.startswith("  ")]
    return shlex.split(line)


SIGNALS = {"INT": (signal.SIGINT, 130, "interrupted"), "TERM": (signal.SIGTERM, 143, "terminated")}


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("given", [(), ("--checkpoint", "c.safetensors"), ("--codes", "Z.npy")])
def test_interrupted_fit_is_saved_and_the_command_goes_on(given, name, folder, monkeypatch, capsys):
    assert cli.main([*FIT, "--quiet", "--force"]) == 0
    expected = NMF.load("model.safetensors").D
    os.remove("model.safetensors")
    number, status, word = SIGNALS[name]
    monkeypatch.setattr(sys, "argv", ["/bin/fastnmf"])
    interrupting(monkeypatch, number)
    assert cli.main([*FIT, *given]) == status
    said = capsys.readouterr()
    assert said.out == ""
    checkpoint = "c.safetensors" if "c.safetensors" in given else "model.checkpoint.safetensors"
    assert sorted(os.listdir()) == sorted(["A.npy", checkpoint])
    assert f"fastnmf: {word}: the fit so far is saved in {checkpoint}. This goes on" in said.err
    program, *words = line_to_go_on(said.err)
    assert program == "fastnmf"
    assert words[-1] == "--resume"
    assert words.count("--checkpoint") == 1
    assert words[: len(FIT)] == FIT
    # the signal has its default handler again
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert cli.main(words) == 0
    assert torch.equal(NMF.load("model.safetensors").D, expected)
    assert NMF.load("model.safetensors").fit_info_.iterations == 9


def test_save_takes_no_name_that_is_there(folder, monkeypatch, capsys):
    taken = ["model.checkpoint.safetensors", "model.checkpoint-2.codes-b.npy"]
    for name in taken:
        Path(name).write_text("of someone")
    interrupting(monkeypatch, signal.SIGINT)
    assert cli.main(FIT) == 130
    assert line_to_go_on(capsys.readouterr().err)[-2] == "model.checkpoint-3.safetensors"
    assert [Path(name).read_text() for name in taken] == ["of someone"] * 2


def test_fit_that_ends_leaves_no_save(folder):
    assert cli.main([*FIT, "--quiet"]) == 0
    assert sorted(os.listdir()) == ["A.npy", "model.safetensors"]


def test_interrupt_before_an_iteration_says_that_nothing_is_saved(folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(NMF, "fit", interrupt)
    assert cli.main(FIT) == 130
    error = "fastnmf: interrupted: nothing is saved: it was before the first iteration"
    assert capsys.readouterr().err.startswith(error)
    assert os.listdir() == ["A.npy"]


def test_save_that_fails_is_named_when_a_fit_is_interrupted(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "model.checkpoint.safetensors")

    monkeypatch.setattr("fastnmf.fit.checkpoint.write", full)
    interrupting(monkeypatch, signal.SIGINT)
    assert cli.main(FIT) == 130
    *_, last = capsys.readouterr().err.splitlines()
    error = "nothing is saved: model.checkpoint.safetensors: no space left on device"
    assert last == f"fastnmf: interrupted: {error}"
    assert os.listdir() == ["A.npy"]


def test_codes_that_cannot_be_written_leave_the_model(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "Z.csv")

    monkeypatch.setattr(command, "write", full)
    assert cli.main([*FIT, "--codes", "Z.csv"]) == 1
    error = "Z.csv: no space left on device; model.safetensors is written, and `fastnmf encode` "
    assert capsys.readouterr().err == f"fastnmf: error: {error}computes codes for it\n"
    assert NMF.load("model.safetensors").fitted


def test_two_fits_of_one_model_do_not_run_at_once(folder, monkeypatch, capsys):
    fit = NMF.fit

    def first(self, A, **options):
        monkeypatch.setattr(NMF, "fit", fit)
        return fit(self, A, callback=lambda _: statuses.append(cli.main(FIT)) or "stop", **options)

    statuses = []
    monkeypatch.setattr(NMF, "fit", first)
    assert cli.main([*FIT, "--quiet"]) == 0
    assert statuses == [2]
    error = "fastnmf: error: model.safetensors is being written by another fit: give another --out"
    assert capsys.readouterr().err.startswith(error)


def test_shared_fit_without_a_checkpoint_says_what_saves_it(tmp_path):
    stopped = pytest.raises(KeyboardInterrupt, match="--checkpoint FILE saves a fit of several")
    arguments = cli.parser_of().parse_args(FIT)
    two = Processes(0, 2)
    assert command._free_name(Path("m.safetensors"), two) is None
    with stopped, command._saying_how_to_go_on(arguments, None, two):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("fit A.npy -k 3", "fit A.npy -k 3 --checkpoint c.safetensors --resume"),
        ("fit A.npy --resume --checkpoint=d", "fit A.npy --checkpoint=d --resume"),
        ("fit -k 3 -- -a.npy", "fit -k 3 --checkpoint c.safetensors --resume -- -a.npy"),
        ("fit 'a b.npy'", "fit 'a b.npy' --checkpoint c.safetensors --resume"),
    ],
)
def test_command_to_go_on_is_one_that_the_shell_reads(argv, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/fastnmf"])
    found = command.command_to_go_on(shlex.split(argv), Path("c.safetensors"))
    assert found == f"fastnmf {expected}"
    monkeypatch.setattr(sys, "argv", ["/there/fastnmf/__main__.py"])
    assert command.command_to_go_on(["fit"], Path("c")).startswith("python -m fastnmf fit ")


def test_piped_data_must_be_given_again(folder, monkeypatch, capsys):
    arguments = cli.parser_of().parse_args(["fit", "-", *FIT[2:]])
    arguments.argv = ["fit", "-", *FIT[2:]]
    Path("c.safetensors").touch()
    stopped = pytest.raises(KeyboardInterrupt, match="with the same standard input")
    with stopped, command._saying_how_to_go_on(arguments, Path("c.safetensors"), Processes()):
        raise KeyboardInterrupt


def test_strict_asks_for_convergence(folder, capsys):
    given = ["fit", "A.npy", "-k", "3", "-o", "model.safetensors", "--strict", "--force"]
    assert cli.main([*given, "--tol", "0.5"]) == 0
    capsys.readouterr()
    assert cli.main([*given, "--max-iter", "2", "--quiet"]) == 4
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (
        "fastnmf: error: not converged, as --strict requires; model.safetensors is written all "
        "the same"
    )
    assert NMF.load("model.safetensors").fit_info_.iterations == 2


def test_fit_that_did_not_converge_warns_in_the_words_of_the_command_line(folder, capsys):
    assert cli.main([*FIT[:-2], "--max-iter", "1"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("fastnmf: ")
    assert "not converged" in err
    assert "raise --max-iter or --tol" in err
    assert err.count("\n") == 1


def test_summary_is_one_json_object(folder, capsys):
    assert cli.main([*FIT, "--json", "--codes", "Z.npy"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    info = NMF.load("model.safetensors").fit_info_
    assert (summary["model"], summary["codes_file"]) == ("model.safetensors", "Z.npy")
    assert summary["relative_error"] == info.relative_error
    assert len(summary["history"]) == 9
    assert err == ""


def test_number_that_json_lacks_is_null(folder, capsys):
    assert cli.main([*FIT[:-4], "--max-iter", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["relative_change"] is None


def test_no_bar_where_nobody_sees_it(folder, capsys):
    assert cli.main(FIT) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full: not here")
@pytest.mark.parametrize(
    "words",
    [
        FIT,
        *(
            pytest.param(words, marks=pytest.mark.thorough)
            for words in (["fit", "--help"], ["report", "m.safetensors"])
        ),
    ],
)
def test_full_output_is_an_error_in_one_line(words, folder):
    if words[0] == "report":
        assert cli.main([*FIT, "-q"]) == 0
        os.rename("model.safetensors", "m.safetensors")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastnmf", *words]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == "fastnmf: error: no space left on device\n"


INTERRUPTED = """
import os, signal, sys
from fastnmf import NMF
from fastnmf.cli.main import main
fit = NMF.fit
stop = lambda iteration: iteration.iteration == 3 and os.kill(os.getpid(), signal.SIG{name})
NMF.fit = lambda self, A, **options: fit(self, A, callback=stop, **options)
sys.exit(main({words}))
"""


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_to_a_process_is_no_traceback(name, folder, fresh):
    ran = fresh(INTERRUPTED.format(name=name, words=FIT))
    _, status, word = SIGNALS[name]
    assert (ran.returncode, ran.stdout) == (status, "")
    first, *_, last, go_on = ran.stderr.splitlines()
    assert first == "fastnmf: saving after this iteration; a second signal leaves without saving"
    assert last.startswith(f"fastnmf: {word}: the fit so far is saved in model.checkpoint.safetens")
    assert go_on.endswith(" --checkpoint model.checkpoint.safetensors --resume")


def test_validation_on_a_share_of_the_rows_is_that_of_python(folder, capsys):
    """From every kind of input, with the codes of all rows in any file; --resume repeats it."""
    np.savetxt("A.csv", A, delimiter=",")
    options = ["--validation", "0.2", "--seed", "1", "--quiet"]
    model = NMF(3, seed=1, max_iter=9, tol=0)
    expected, _ = model.fit(A, validation=0.2)
    assert cli.main([*FIT, *options, "--codes", "Z.npy"]) == 0
    assert np.array_equal(np.load("Z.npy"), expected.numpy())
    saved = NMF.load("model.safetensors").fit_info_
    assert saved.validation_error == model.fit_info_.validation_error
    assert cli.main([*FIT, *options, "--codes", "Z.npz", "--force"]) == 0
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is an extra")
    assert np.array_equal(sparse.load_npz("Z.npz").toarray(), expected.numpy())
    assert cli.main(["fit", "A.csv", *FIT[2:], *options, "--force"]) == 0
    assert NMF.load("model.safetensors").fit_info_.validation_error == pytest.approx(
        model.fit_info_.validation_error, rel=1e-4
    )
    assert cli.main(["fit", "A.npy", "A.npy", *FIT[2:], *options, "--force"]) == 2
    assert "--validation 0.2 draws rows of one input" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--top-k", "--target-l0"])
def test_option_that_a_model_lacks_is_named_with_the_models_that_have_it(
    option, tmp_path, monkeypatch, capsys
):
    """The hint was to write the same option."""
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", np.ones((4, 3), np.float32))
    words = ["fit", "A.npy", "-k", "2", "--model", "convex", option, "1", "-o", "m.safetensors"]
    assert cli.main(words) == 2
    assert "is an option of --model nmf or semi" in capsys.readouterr().err
