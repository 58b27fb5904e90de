"""Names of files: refused with a reason, and replaced whole or not at all; see test_files.py."""

from __future__ import annotations

import os

import pytest

from fastnmf.data.paths import check_output, replacing
from fastnmf.errors import InvalidInput


def test_replacing_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "picture.png") as part:
        assert part.suffix == ".png"
        assert part.parent == tmp_path
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
