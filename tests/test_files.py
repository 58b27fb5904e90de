"""Matrices and models in files: round trips, refusals, and nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import stat

import numpy as np
import pytest
import safetensors.torch
import torch

from fastnmf import NMF, NotFitted, files
from fastnmf.errors import InvalidInput
from fastnmf.files import (
    READERS,
    check_output,
    load_model,
    read_matrix,
    replacing,
    save_model,
    write_matrix,
)

EXPECTED = np.random.default_rng(0).random((7, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    nmf = NMF(3, solver="mu", tol=1e-3, max_iter=4, seed=0)
    nmf.fit(torch.tensor(EXPECTED))
    return nmf


@pytest.fixture
def interrupted(monkeypatch):
    """A fault to raise when a matrix or model is half-written."""

    def arrange(fault):
        def write_half(path, *_):
            path.write_bytes(b"half")
            raise fault

        monkeypatch.setattr(files, "WRITERS", dict.fromkeys(files.WRITERS, write_half))
        monkeypatch.setattr(safetensors.torch, "save_file", lambda _, path, **__: write_half(path))

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


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_matrix_comes_back_as_it_was(kind, suffix, tmp_path):
    matrix = KINDS[kind]
    write_matrix(tmp_path / f"A{suffix}", matrix)
    again = np.asarray(read_matrix(tmp_path / f"A{suffix}"))
    expected = matrix.detach().numpy() if isinstance(matrix, torch.Tensor) else matrix
    assert again.dtype == expected.dtype
    np.testing.assert_array_equal(again, expected)
    assert os.listdir(tmp_path) == [f"A{suffix}"]


@pytest.mark.parametrize("suffix", READERS)
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
    "a vector": (".npy", lambda p: np.save(p, EXPECTED[0]), r"shape \(5,\); it must hold a dense"),
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
    "text": (".csv", lambda p: p.write_text("1,2"), r"A.csv must end in .npy, .npz, .*not in"),
    "a folder": (".npy", lambda p: p.mkdir(), "A.npy is a folder; give the name of a file"),
}


@pytest.mark.parametrize("held", REFUSED)
def test_file_that_holds_no_matrix_is_refused(held, tmp_path):
    suffix, write, message = REFUSED[held]
    path = tmp_path / f"A{suffix}"
    write(path)
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_matrix(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("read", [read_matrix, load_model])
def test_missing_file_is_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A.safetensors does not exist"):
        read(tmp_path / "A.safetensors")


@pytest.mark.parametrize("suffix", READERS)
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


@pytest.mark.parametrize("before", [None, b"old"], ids=["new", "old"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError("disk full")], ids=repr)
@pytest.mark.parametrize("suffix", READERS)
def test_interrupted_write_leaves_things_as_they_were(
    suffix, fault, before, tmp_path, interrupted, model
):
    path = tmp_path / f"A{suffix}"
    if before:
        path.write_bytes(before)
    interrupted(fault)
    with pytest.raises(type(fault)):
        write_matrix(path, EXPECTED)
    if suffix == ".safetensors":
        with pytest.raises(type(fault)):
            save_model(path, model)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_write_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=call: (order.append(n), f(*a))[1])
    write_matrix(tmp_path / "A.npy", EXPECTED)
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("suffix", READERS)
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


def test_model_comes_back_as_it_was(tmp_path, model):
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again.D, model.D)
    assert (again.nb_concepts, again.solver, again.tol) == (3, "mu", 1e-3)
    assert again.fitted
    assert again.fit_info_ == model.fit_info_
    A = torch.tensor(EXPECTED)
    assert torch.equal(again.encode(A), model.encode(A))


def test_model_with_given_dictionary_comes_back(tmp_path):
    nmf = NMF(2).load_dictionary(torch.eye(2, 4, dtype=torch.float64))
    save_model(tmp_path / "model.safetensors", nmf)
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again.D, nmf.D)
    assert again.fit_info_ is None


def test_model_says_what_it_is(tmp_path, model):
    save_model(tmp_path / "model.safetensors", model)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "1"
    info = json.loads(metadata["fit_info"])
    assert info["iterations"] == 4
    assert info["relative_error"] == pytest.approx(model.fit_info_.relative_error)


def test_model_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFitted):
        save_model(tmp_path / "model.safetensors", NMF(2))
    assert not os.listdir(tmp_path)


def test_model_needs_its_suffix(tmp_path, model):
    with pytest.raises(InvalidInput, match=r"must end in .safetensors, not in '.pt'"):
        save_model(tmp_path / "model.pt", model)


def test_model_of_another_version_loads_without_its_account(tmp_path, model):
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    rewrite(path, fit_info=json.dumps({"relative_error": 0.5}))
    assert load_model(path).fit_info_ is None


def rewrite(path, D=None, **changed):
    """Change a model file: None takes an entry of the metadata away."""
    with safetensors.safe_open(path, "pt") as file:
        metadata, kept = {**file.metadata(), **changed}, file.get_tensor("D")
    metadata = {name: value for name, value in metadata.items() if value is not None}
    path.unlink()
    safetensors.torch.save_file({"D": kept if D is None else D}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "other"}, "holds D, and is no fastnmf model; make one with fit"),
        ({"format": None}, "is no fastnmf model"),
        (
            {"format_version": "2", "fastnmf_version": "9.9"},
            "is in format 2 of fastnmf 9.9; fastnmf .* reads up to format 1: upgrade it",
        ),
        ({"format_version": "x"}, "cannot be read as .safetensors"),
        ({"tol": None}, "cannot be read as .safetensors: 'tol'"),
        ({"solver": "magic"}, "solver='magic' is unknown"),
        ({"nb_concepts": "4"}, "D has 3 rows; the model has 4 concepts"),
        ({"D": torch.full((3, 5), float("nan"))}, "D has 15 nan or inf entries"),
        ({"D": -torch.ones(3, 5)}, "D has 15 negative entries"),
    ],
    ids=str,
)
def test_model_that_cannot_be_trusted_is_refused(changed, message, tmp_path, model):
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    rewrite(path, **changed)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=message):
        load_model(path)
    assert path.read_bytes() == before


def test_foreign_safetensors_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2), "bias": torch.zeros(2)}, path)
    with pytest.raises(InvalidInput, match="holds bias, weight, and is no fastnmf model"):
        load_model(path)
