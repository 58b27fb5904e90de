"""Models in files: round trips, refusals, and nothing half-written."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from fastnmf import NMF, NotFitted
from fastnmf.errors import InvalidInput

EXPECTED = np.random.default_rng(0).random((7, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    nmf = NMF(3, solver="mu", tol=1e-3, max_iter=4, seed=0)
    nmf.fit(torch.tensor(EXPECTED))
    return nmf


@pytest.mark.parametrize(
    ("fault", "before"), [(KeyboardInterrupt(), None), (OSError("disk full"), b"old")], ids=str
)
def test_interrupted_save_leaves_things_as_they_were(fault, before, tmp_path, monkeypatch, model):
    def write_half(_, path, **__):
        path.write_bytes(b"half")
        raise fault

    path = tmp_path / "model.safetensors"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(safetensors.torch, "save_file", write_half)
    with pytest.raises(type(fault)):
        model.save(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A.safetensors does not exist"):
        NMF.load(tmp_path / "A.safetensors")


def test_model_comes_back_as_it_was(tmp_path, model):
    model.save(tmp_path / "model.safetensors")
    again = NMF.load(tmp_path / "model.safetensors")
    assert torch.equal(again.D, model.D)
    assert (again.nb_concepts, again.solver, again.tol) == (3, "mu", 1e-3)
    assert again.fitted
    assert again.fit_info_ == model.fit_info_
    A = torch.tensor(EXPECTED)
    assert torch.equal(again.encode(A), model.encode(A))


def test_model_with_given_dictionary_comes_back(tmp_path):
    nmf = NMF(2).load_dictionary(torch.eye(2, 4, dtype=torch.float64))
    nmf.save(tmp_path / "model.safetensors")
    again = NMF.load(tmp_path / "model.safetensors")
    assert torch.equal(again.D, nmf.D)
    assert again.fit_info_ is None


def test_model_says_what_it_is(tmp_path, model):
    model.save(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "1"
    info = json.loads(metadata["fit_info"])
    assert info["iterations"] == 4
    assert info["relative_error"] == pytest.approx(model.fit_info_.relative_error)


def test_model_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFitted):
        NMF(2).save(tmp_path / "model.safetensors")
    assert not os.listdir(tmp_path)


def test_model_needs_its_suffix(tmp_path, model):
    with pytest.raises(InvalidInput, match=r"must end in .safetensors, not in '.pt'"):
        model.save(tmp_path / "model.pt")


def test_model_of_another_version_loads_without_its_summary(tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    rewrite(path, fit_info=json.dumps({"relative_error": 0.5}))
    assert NMF.load(path).fit_info_ is None


def test_summary_of_a_version_that_called_tiles_pieces_is_read(tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    with safetensors.safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["fit_info"])
    stored["piece_rows"] = stored.pop("tile_rows")
    rewrite(path, fit_info=json.dumps(stored))
    assert NMF.load(path).fit_info_ == model.fit_info_


def test_model_of_a_version_without_penalties_has_none(tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    rewrite(path, penalties=None)
    again = NMF.load(path)
    assert (again.alpha_Z, again.alpha_D, again.unit_norm) == (0, "same", False)
    assert torch.equal(again.encode(EXPECTED), model.encode(EXPECTED))


@pytest.mark.parametrize(
    "options", [{"alpha_Z": 0.5, "alpha_D": 0.25, "l1_ratio": 0.75}, {"unit_norm": True}], ids=str
)
def test_penalties_come_back(options, tmp_path):
    nmf = NMF(3, max_iter=4, seed=0, **options)
    nmf.fit(EXPECTED)
    nmf.save(tmp_path / "model.safetensors")
    again = NMF.load(tmp_path / "model.safetensors")
    assert {name: getattr(again, name) for name in options} == options
    assert torch.equal(again.encode(EXPECTED), nmf.encode(EXPECTED))


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
            {"format_version": "4", "fastnmf_version": "9.9"},
            "is in format 4 of fastnmf 9.9; fastnmf .* reads up to format 3: upgrade it",
        ),
        ({"format_version": "x"}, "cannot be read as .safetensors"),
        ({"tol": None}, "cannot be read as .safetensors: 'tol'"),
        ({"solver": "magic"}, "solver='magic' is unknown"),
        ({"nb_concepts": "4"}, "D has 3 rows, and the model has 4 concepts"),
        ({"D": torch.full((3, 5), float("nan"))}, "D has 15 nan or inf entries"),
        ({"D": -torch.ones(3, 5)}, "D has 15 negative entries"),
    ],
    ids=str,
)
def test_model_that_cannot_be_trusted_is_refused(changed, message, tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    rewrite(path, **changed)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=message):
        NMF.load(path)
    assert path.read_bytes() == before


def test_foreign_safetensors_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2), "bias": torch.zeros(2)}, path)
    with pytest.raises(InvalidInput, match="holds bias, weight, and is no fastnmf model"):
        NMF.load(path)


def test_file_has_the_concepts_of_the_dictionary_whatever_was_set_since(tmp_path):
    model = NMF(2).load_dictionary(torch.rand(2, 5))
    model.nb_concepts = 3
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(NMF.load(tmp_path / "model.safetensors").D, model.D)
