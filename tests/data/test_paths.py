"""Names of files: refused with a reason, and replaced whole or not at all; see test_files.py."""

from __future__ import annotations

import os

import pytest
import safetensors
import torch

from fastnmf.data.paths import check_output, replacing, writing
from fastnmf.errors import InvalidInput


def test_replacing_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "picture.png") as part:
        assert part.suffix == ".png"
        # on the same disk
        assert part.parent.parent == tmp_path
        part.write_bytes(b"x")
    assert os.listdir(tmp_path) == ["picture.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("A.txt", InvalidInput, r"A.txt must end in .npy, .pt, not in '.txt'"),
        ("A", InvalidInput, "A must end in .npy, .pt, not in ''"),
        ("missing/A.npy", FileNotFoundError, "the folder .*missing does not exist; make it first"),
        ("folder.npy", InvalidInput, "folder.npy is a folder"),
    ],
)
def test_check_output_refuses_what_cannot_be_written(name, error, message, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(error, match=message):
        check_output(tmp_path / name, (".npy", ".pt"))


def test_check_output_refuses_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match="may not be written to"):
        check_output(tmp_path / "A.npy", (".npy",))


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (safetensors.SafetensorError("I/O error: No space left on device (os error 28)"), 28),
        (safetensors.SafetensorError("Error while serializing"), None),
        # NumPy's, without a number, and one that names another file
        (OSError("1000 requested and 30 written"), None),
        (OSError(28, "No space left on device", "part.npy"), 28),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), None),
    ],
)
def test_what_libraries_raise_for_a_full_disk_is_an_os_error_that_names_the_file(raised, number):
    with pytest.raises(OSError, match=r"A\.npy") as found, writing("A.npy"):
        raise raised
    assert found.value.errno == number
    assert "part.npy" not in str(found.value)


def test_other_runtime_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="singular"), writing("A.npy"):
        raise torch.linalg.LinAlgError("singular")
