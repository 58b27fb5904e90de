"""What commands read and write: pipes, tables, outputs that exist or cannot be written."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastnmf import NMF
from fastnmf.cli import main as cli
from fastnmf.files import read_matrix, write_matrix

A = np.random.default_rng(0).random((20, 6)).astype(np.float32)
FIT = ["fit", "A.npy", "-k", "3", "--max-iter", "5", "--tol", "0", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with A.npy and a model of it."""
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A)
    assert cli.main([*FIT, "-o", "model.safetensors"]) == 0
    return tmp_path


def piped(content, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def as_bytes(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def in_text(matrix, delimiter=","):
    return as_bytes(lambda file: np.savetxt(file, matrix, "%.9g", delimiter))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".npz", ".pt"])
def test_every_format_gives_the_same_codes(suffix, folder, capsys):
    write_matrix(f"A{suffix}", A)
    encode = ["encode", "model.safetensors", f"A{suffix}", "-o", f"Z{suffix}"]
    assert cli.main(encode) == 0
    expected = NMF.load("model.safetensors").encode(A)
    np.testing.assert_allclose(np.asarray(read_matrix(f"Z{suffix}")), expected, rtol=1e-4)


def test_sparse_matrix_is_read(folder, capsys):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    sparse.save_npz("S.npz", sparse.csr_matrix(A))
    assert cli.main(["encode", "model.safetensors", "S.npz", "-o", "Z.npy"]) == 0
    expected = NMF.load("model.safetensors").encode(sparse.csr_matrix(A))
    np.testing.assert_array_equal(np.load("Z.npy"), expected)
    assert cli.main(["fit", "S.npz", "-k", "2", "-o", "m.safetensors", "--max-memory", "99B"]) == 3
    assert "--max-memory of 99B is too little for 20 rows, 6 features" in capsys.readouterr().err


def test_header_is_read_as_it_is_asked(folder, capsys):
    (folder / "A.csv").write_bytes(b"0,1,2,3,4,5\n" + in_text(A))
    encode = ["encode", "model.safetensors", "A.csv", "-o", "Z.csv", "-f"]
    assert cli.main(encode) == 0
    out, err = capsys.readouterr()
    assert "codes (20, 3)" in out
    assert err.startswith("fastnmf: warning: the first line of A.csv is 0, 1, 2 …")
    assert err.endswith("--header no reads it as numbers\n")
    for header, rows in (("no", 21), ("yes", 20)):
        assert cli.main([*encode, "--header", header]) == 0
        out, err = capsys.readouterr()
        assert f"codes ({rows}, 3)" in out
        assert err == ""


@pytest.mark.parametrize("content", ["npy", "csv"])
def test_matrix_is_piped_in(content, folder, monkeypatch, capsys):
    piped(as_bytes(lambda f: np.save(f, A)) if content == "npy" else in_text(A), monkeypatch)
    assert cli.main([FIT[0], "-", *FIT[2:], "-o", "piped.safetensors"]) == 0
    D = NMF.load("piped.safetensors").D.float()
    torch.testing.assert_close(D, NMF.load("model.safetensors").D, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the standard input is empty; it must hold a matrix"),
        (b"1,2\n3,x\n", "the standard input, line 2, column 2: 'x' is no number"),
        (b"PK\3\4\0\0\0\0", "the standard input is neither a .npy file nor a text table"),
        (b"\x93NUMPY\1\0", "the standard input cannot be read as .npy"),
        (
            as_bytes(lambda f: np.save(f, np.zeros(3))),
            "the standard input has shape (3,); it must be",
        ),
        (b"1,2\n3,-4\n", "A has 1 negative entry, the first at row 1, column 1: −4"),
    ],
)
def test_what_is_piped_in_and_no_matrix_is_refused(content, message, folder, monkeypatch, capsys):
    piped(content, monkeypatch)
    assert cli.main(["fit", "-", "-k", "1", "-o", "piped.safetensors"]) == 3
    assert f"fastnmf: error: {message}" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="os.mkfifo: not here")
def test_pipe_with_a_name_is_refused_before_it_is_read(folder, capsys):
    os.mkfifo("pipe.csv")
    assert cli.main(["encode", "model.safetensors", "pipe.csv", "-o", "Z.npy"]) == 3
    error = "pipe.csv is no regular file; pipe it in, with - as its name"
    assert capsys.readouterr().err == f"fastnmf: error: {error}\n"


def test_codes_are_piped_out(folder, monkeypatch, capsys):
    out = io.TextIOWrapper(io.BytesIO())
    out.isatty = lambda: False
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["encode", "model.safetensors", "A.npy", "-o", "-"]) == 0
    codes = np.load(io.BytesIO(out.buffer.getvalue()))
    np.testing.assert_array_equal(codes, NMF.load("model.safetensors").encode(A))
    assert "-: codes (20, 3), mean L0" in capsys.readouterr().err
    out.isatty = lambda: True
    assert cli.main(["encode", "model.safetensors", "A.npy", "-o", "-"]) == 2
    assert "is a terminal here" in capsys.readouterr().err
    assert cli.main(["encode", "model.safetensors", "A.npy", "-o", "-", "--json"]) == 2
    assert "both write to the standard output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit A.npy B.csv -k 2 -o m.safetensors", "B.csv: several inputs must be .npy or .safe"),
        ("fit - A.npy -k 2 -o m.safetensors", "- must be the only input"),
        ("fit A.npy -k 2 -o m.safetensors --codes -", "--codes - is not possible"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(command, message, folder, capsys):
    write_matrix("B.csv", A)
    assert cli.main(command.split()) == 2
    assert message in capsys.readouterr().err


OUTPUTS = {
    "model": [*FIT, "-o", "X.safetensors"],
    "codes of fit": [*FIT, "-o", "new.safetensors", "--codes", "X.npy"],
    "codes": ["encode", "model.safetensors", "A.npy", "-o", "X.npy"],
    "sparse codes": ["encode", "model.safetensors", "A.npy", "-o", "X.npz"],
    "codes in text": ["encode", "model.safetensors", "A.npy", "-o", "X.csv"],
    "reconstruction": ["decode", "model.safetensors", "X0.npy", "-o", "X.npy"],
    "page": ["report", "model.safetensors", "-o", "X.html"],
    "picture": ["demo", "-o", "X.png", "-k", "2", "--patches", "20"],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_that_exists_is_overwritten_by_force_alone(kind, folder, capsys):
    if kind in ("page", "picture"):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    np.save("X0.npy", np.ones((4, 3), np.float32))
    command = OUTPUTS[kind]
    out = folder / next(word for word in command if word.startswith("X."))
    out.write_bytes(b"of someone")
    before = sorted(os.listdir())
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert said == ("", f"fastnmf: error: {out.name} exists already; --force overwrites it\n")
    assert out.read_bytes() == b"of someone"
    assert sorted(os.listdir()) == before
    assert cli.main([*command, "--force"]) == 0
    assert out.read_bytes() != b"of someone"


def test_checkpoint_that_exists_is_overwritten_by_force_alone(folder, capsys):
    (folder / "c.safetensors").write_bytes(b"of someone")
    command = [*FIT, "-o", "new.safetensors", "--checkpoint", "c.safetensors"]
    assert cli.main(command) == 2
    error = "c.safetensors exists already; --resume goes on from it, --force starts anew"
    assert capsys.readouterr().err == f"fastnmf: error: {error}\n"
    assert (folder / "c.safetensors").read_bytes() == b"of someone"


@pytest.mark.parametrize("kind", ["no folder", "a folder", "a file as folder", "no right", "long"])
@pytest.mark.parametrize("option", ["-o", "--codes", "--checkpoint"])
def test_output_that_cannot_be_written_is_refused_before_the_fit(
    option, kind, folder, monkeypatch, capsys
):
    monkeypatch.setattr(NMF, "fit", lambda *_, **__: pytest.fail("the fit was started"))
    suffix = ".npy" if option == "--codes" else ".safetensors"
    target, message = {
        "no folder": (f"missing/x{suffix}", "the folder missing does not exist; make it first"),
        "a folder": (
            f"taken{suffix}",
            f"error: taken{suffix} is a folder; give the name of a file",
        ),
        "a file as folder": (f"A.npy/x{suffix}", f"A.npy/x{suffix} cannot be written: not a dir"),
        "no right": (f"closed/x{suffix}", f"closed/x{suffix} cannot be written: permission de"),
        "long": ("x" * 300 + suffix, "cannot be written: file name too long"),
    }[kind]
    os.makedirs(f"taken{suffix}")
    os.mkdir("closed")
    if kind == "no right":
        # the system's own refusal, which root does not meet
        opened = os.open

        def refuse(path, *given):
            if "closed" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *given)

        monkeypatch.setattr(os, "open", refuse)
    command = [*FIT, "-o", "new.safetensors"]
    command = [*command[:-2], option, target] if option == "-o" else [*command, option, target]
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastnmf: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["fit", "encode"])
def test_input_that_may_not_be_read_is_a_fault_of_the_data(command, folder, monkeypatch, capsys):
    opened = open

    def refuse(path, *given, **options):
        if str(path) == "A.npy":
            raise PermissionError(13, "Permission denied", "A.npy")
        return opened(path, *given, **options)

    monkeypatch.setattr("builtins.open", refuse)
    given = {"fit": ["A.npy", "-k", "2"], "encode": ["model.safetensors", "A.npy"]}[command]
    out = "new.safetensors" if command == "fit" else "Z.npy"
    assert cli.main([command, *given, "-o", out]) == 3
    assert capsys.readouterr().err == "fastnmf: error: A.npy: permission denied\n"
