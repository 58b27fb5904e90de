"""Matrices in files: round trips, refusals, and nothing half-written."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import stat
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from fastnmf import files
from fastnmf.errors import InvalidInput
from fastnmf.files import WRITERS, read_matrix, write_matrix

EXPECTED = np.random.default_rng(0).random((7, 5)).astype(np.float32)


@pytest.fixture
def interrupted(monkeypatch):
    """A fault to raise when a matrix is half-written."""

    def arrange(fault):
        def write_half(path, *_):
            path.write_bytes(b"half")
            raise fault

        monkeypatch.setattr(files, "WRITERS", dict.fromkeys(files.WRITERS, write_half))

    return arrange


KINDS = {
    "array": EXPECTED,
    "float64": EXPECTED.astype(float),
    "float16": EXPECTED.astype(np.float16),
    "uint8": (EXPECTED * 200).astype(np.uint8),
    "fortran": np.asfortranarray(EXPECTED),
    "tensor": torch.tensor(EXPECTED),
    "view": torch.tensor(EXPECTED)[1:4, ::2],
    "parameter": torch.nn.Parameter(torch.tensor(EXPECTED)),
}


# every format, and every kind through each of the two writers
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *(("array", suffix) for suffix in WRITERS if suffix not in (".csv", ".tsv")),
        *((kind, ".npz") for kind in KINDS if kind != "array"),
        *((kind, ".pt") for kind in ("float16", "view", "parameter")),
        # the bytes of a .safetensors file are those of the tensor in memory
        ("fortran", ".safetensors"),
        ("view", ".safetensors"),
    ],
)
def test_matrix_comes_back_as_it_was(kind, suffix, tmp_path):
    matrix = KINDS[kind]
    write_matrix(tmp_path / f"A{suffix}", matrix)
    again = np.asarray(read_matrix(tmp_path / f"A{suffix}"))
    expected = matrix.detach().numpy() if isinstance(matrix, torch.Tensor) else matrix
    assert again.dtype == expected.dtype
    np.testing.assert_array_equal(again, expected)
    assert os.listdir(tmp_path) == [f"A{suffix}"]


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_bfloat16_is_kept_or_widened(suffix, tmp_path):
    matrix = torch.tensor(EXPECTED).bfloat16()
    write_matrix(tmp_path / f"A{suffix}", matrix)
    again = read_matrix(tmp_path / f"A{suffix}")
    again = again if isinstance(again, torch.Tensor) else torch.tensor(np.array(again))
    assert torch.equal(again.float(), matrix.float())


def test_npy_is_mapped_and_not_read(tmp_path):
    write_matrix(tmp_path / "A.npy", EXPECTED)
    assert isinstance(read_matrix(tmp_path / "A.npy"), np.memmap)


def test_view_is_saved_without_what_lies_under_it(tmp_path):
    write_matrix(tmp_path / "A.pt", torch.zeros(100_000, 5)[:2])
    assert (tmp_path / "A.pt").stat().st_size < 5_000


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.savez(path.with_suffix(".npz"), A=EXPECTED, labels=np.zeros(3)),
        lambda path: np.savez(path.with_suffix(".npz"), EXPECTED, labels=np.zeros(3)),
        lambda path: np.savez_compressed(path.with_suffix(".npz"), activations=EXPECTED),
        lambda path: torch.save({"x": torch.tensor(EXPECTED), "k": 3}, path.with_suffix(".pt")),
        lambda path: torch.save(
            torch.tensor(EXPECTED), path.with_suffix(".pt"), _use_new_zipfile_serialization=False
        ),
        lambda path: safetensors.torch.save_file(
            {"A": torch.tensor(EXPECTED), "B": torch.zeros(2)}, path.with_suffix(".safetensors")
        ),
    ],
    ids=["npz A", "npz arr_0", "npz compressed", "pt dict", "pt legacy", "safetensors A"],
)
def test_matrix_is_found_in_files_of_others(write, tmp_path):
    write(tmp_path / "A")
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(np.asarray(read_matrix(path)), EXPECTED)


def _archive(path, name, text):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, text)


REFUSED = {
    "two arrays": (".npz", lambda p: np.savez(p, x=EXPECTED, y=EXPECTED), "holds x, y; it must"),
    "no array": (".npz", lambda p: np.savez(p), "holds no array"),
    "two tensors": (
        ".pt",
        lambda p: torch.save({"x": torch.zeros(2, 2), "y": torch.zeros(2, 2)}, p),
        "holds x, y; it must hold one array, or one named 'A'",
    ),
    "a list": (".pt", lambda p: torch.save([1, 2], p), "holds a list; it must hold a tensor"),
    "an object": (
        ".pt",
        lambda p: torch.save({"A": random.Random(0)}, p),
        r"it is damaged or holds more than tensors; write it by torch.save\(A, path\)",
    ),
    "complex numbers": (".npy", lambda p: np.save(p, EXPECTED.astype(complex)), "complex128 and"),
    "a vector": (".npy", lambda p: np.save(p, EXPECTED[0]), r"shape \(5,\); it must be \(n, d\)"),
    "pickled objects": (
        ".npy",
        lambda p: np.save(p, np.array([[None]]), allow_pickle=True),
        r"cannot be read as .npy: .*Python objects",
    ),
    "pickled objects in an archive": (
        ".npz",
        lambda p: np.savez(p, A=np.array([[None]])),
        r"cannot be read as .npz: Object arrays",
    ),
    "a pickle": (".npy", lambda p: p.write_bytes(pickle.dumps(EXPECTED)), "cannot be read as .npy"),
    "an npy": (".npz", lambda p: np.save(p.open("wb"), EXPECTED), "cannot be read as .npz"),
    "nothing": (".safetensors", lambda p: p.write_bytes(b""), "cannot be read as .safetensors"),
    "text": (".txt", lambda p: p.write_text("1,2"), r"A.txt must end in .npy, .npz, .*not in"),
    "a quantised tensor": (
        ".pt",
        lambda p: torch.save(torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.quint8), p),
        r"holds dtype torch.quint8 and shape \(2, 2\); it must hold a dense",
    ),
    "a sparse tensor": (".pt", lambda p: torch.save(torch.eye(2).to_sparse(), p), "must hold a de"),
    "text in an archive": (".npz", lambda p: _archive(p, "A.txt", "1 2"), "holds bytes; it must"),
    "words in an archive": (".npz", lambda p: np.savez(p, A=np.array([["a"]])), "holds dtype <U1"),
    "a folder": (".npy", lambda p: p.mkdir(), "A.npy is a folder; give the name of a file"),
}


@pytest.mark.parametrize("content", REFUSED)
def test_file_that_holds_no_matrix_is_refused(content, tmp_path):
    suffix, write, message = REFUSED[content]
    path = tmp_path / f"A{suffix}"
    write(path)
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_matrix(path)
    assert str(path) in str(refusal.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A.safetensors does not exist"):
        read_matrix(tmp_path / "A.safetensors")


# .pth is read as .pt; what is left of a text may have a column without a name
@pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix != ".pth"])
def test_damaged_file_is_refused_or_read(suffix, tmp_path):
    """Whatever is wrong with the bytes, no other error than the documented one comes out."""
    path = tmp_path / f"A{suffix}"
    write_matrix(path, EXPECTED)
    whole = path.read_bytes()
    random_ = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole[: random_.randrange(len(whole) + 1)])
        for _ in range(random_.randrange(4)):
            if damaged:
                damaged[random_.randrange(min(len(damaged), 300))] = random_.randrange(256)
        path.unlink()
        path.write_bytes(damaged)
        with contextlib.suppress(InvalidInput):
            read_matrix(path)


@pytest.mark.parametrize(
    ("suffix", "fault", "before"),
    [
        (".npy", KeyboardInterrupt(), None),
        (".npy", OSError("disk full"), b"old"),
        (".pt", KeyboardInterrupt(), b"old"),
    ],
    ids=str,
)
def test_interrupted_write_leaves_things_as_they_were(suffix, fault, before, tmp_path, interrupted):
    path = tmp_path / f"A{suffix}"
    if before:
        path.write_bytes(before)
    interrupted(fault)
    with pytest.raises(type(fault)):
        write_matrix(path, EXPECTED)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_write_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=call: (order.append(n), f(*a))[1])
    write_matrix(tmp_path / "A.npy", EXPECTED)
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_written_file_may_be_read_as_any_new_file(suffix, tmp_path):
    """safetensors itself makes files that only their owner may read."""
    (tmp_path / "plain").touch()
    write_matrix(tmp_path / f"A{suffix}", EXPECTED)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_written_file_keeps_the_mode_of_the_one_before(tmp_path):
    path = tmp_path / "A.npy"
    path.touch(0o640)
    path.chmod(0o640)
    write_matrix(path, EXPECTED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_mapped_matrix_outlives_its_file(tmp_path):
    write_matrix(tmp_path / "A.npy", EXPECTED)
    matrix = read_matrix(tmp_path / "A.npy")
    write_matrix(tmp_path / "A.npy", EXPECTED + 1)
    np.testing.assert_array_equal(matrix, EXPECTED)


def test_link_is_followed_and_kept(tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "A.npy")
    write_matrix(tmp_path / "link.npy", EXPECTED)
    assert (tmp_path / "link.npy").is_symlink()
    np.testing.assert_array_equal(read_matrix(tmp_path / "A.npy"), EXPECTED)


def test_damage_to_a_tensor_file_is_named_in_one_sentence(tmp_path):
    write_matrix(tmp_path / "A.pt", torch.ones(50, 50))
    whole = (tmp_path / "A.pt").read_bytes()
    (tmp_path / "A.pt").write_bytes(whole[:2000])
    with pytest.raises(InvalidInput, match=r"A.pt cannot be read as .pt: ") as raised:
        read_matrix(tmp_path / "A.pt")
    # not that of another library, about checkpoints
    assert "checkpoint" not in str(raised.value)
