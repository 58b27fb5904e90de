"""Model files: a fitted model as .safetensors, written whole or not at all."""

# safetensors has no types; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data.paths import check_output, existing, refusing_damage, replacing
from ..engine.state import Iteration
from ..errors import InvalidInput
from ..results.info import FitInfo
from ..results.metrics import as_plain

FORMAT = "fastnmf"
FORMAT_VERSION = 3
# of NMF, whose files all versions read; and of other models
_FIRST_VERSION, _FIRST_MODEL, _OTHER_MODELS = 1, "NMF", 2
SUFFIXES = (".safetensors",)
# options that are stored, beside these
PENALTIES = ("alpha_Z", "alpha_D", "l1_ratio", "unit_norm")
_NAMED = ("nb_concepts", "solver", "tol")
# and those that are stored where they are given, in files that earlier versions do not read
SPARSITY = ("target_l0", "top_k")
# what earlier versions called the fields of FitInfo: their files load
_FORMER_NAMES = {"piece_rows": "tile_rows"}


@dataclass(frozen=True)
class Saved:
    """The content of a model file: the constructor's options, D (K, d), the summary of the fit or
    None, the version of fastnmf that wrote it, the name of the model's class; W (K, n), sparse, of
    a model whose concepts are mixtures of rows; the offset (d,) of a model that has one; and date,
    machine and versions of the file, where it has them."""

    options: dict[str, Any]
    D: Tensor
    info: FitInfo | None
    version: str = __version__
    model: str = _FIRST_MODEL
    W: Tensor | None = None
    offset: Tensor | None = None
    made: dict[str, str] = field(default_factory=dict)

    def check_model(self, path: str | os.PathLike[str], model: str) -> None:
        """Raise InvalidInput where the file is of another model."""
        if self.model != model:
            raise InvalidInput(
                f"{os.fspath(path)} holds a model of {self.model}; read it by {self.model}.load"
            )


def write(path: str | os.PathLike[str], content: Saved) -> None:
    """Write a fitted model. Raises what `check_output` raises before it writes."""
    options, model, W = content.options, content.model, content.W
    path = check_output(path, SUFFIXES)
    sparsity = {name: options[name] for name in SPARSITY if options.get(name) is not None}
    version = _FIRST_VERSION if model == _FIRST_MODEL else _OTHER_MODELS
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION if sparsity else version),
        "fastnmf_version": __version__,
        "solver": options["solver"],
        "nb_concepts": str(options["nb_concepts"]),
        "tol": repr(options["tol"]),
        "penalties": json.dumps(
            {n: v for n, v in options.items() if n not in (*_NAMED, *SPARSITY)} | sparsity
        ),
        "fit_info": json.dumps(None if content.info is None else as_plain(content.info)),
    }
    if content.made:
        metadata["made"] = json.dumps(content.made)
    if model != _FIRST_MODEL:
        metadata["model"] = model
    import safetensors.torch

    tensors = {"D": content.D}
    if content.offset is not None:
        tensors["offset"] = content.offset
    if W is not None:
        tensors |= {"W.index": W.indices(), "W.weights": W.values()}
        metadata["rows"] = str(W.shape[1])
    tensors = {name: F.detach().cpu().contiguous() for name, F in tensors.items()}
    with replacing(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=metadata)


def read(path: str | os.PathLike[str]) -> Saved:
    """The content of a file that `write` wrote.

    Raises FileNotFoundError, or InvalidInput for a file that is damaged, holds something else, or
    comes from a newer version.
    """
    import safetensors

    path = existing(path, SUFFIXES)
    with refusing_damage(path):
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                held = ", ".join(file.keys()) or "nothing"
                raise InvalidInput(
                    f"{path} holds {held}, and is no fastnmf model; make one with fit"
                )
            if int(metadata["format_version"]) > FORMAT_VERSION:
                newer = (
                    f"format {metadata['format_version']} of fastnmf {metadata['fastnmf_version']}"
                )
                own = f"fastnmf {__version__} reads up to format {FORMAT_VERSION}"
                raise InvalidInput(f"{path} is in {newer}; {own}: upgrade it")
            D, W = file.get_tensor("D"), None
            if "rows" in metadata:
                parts, shape = ("W.index", "W.weights"), (len(D), int(metadata["rows"]))
                index, weights = map(file.get_tensor, parts)
                W = torch.sparse_coo_tensor(
                    index, weights, shape, device="cpu", check_invariants=True
                ).coalesce()
            offset = file.get_tensor("offset") if "offset" in set(file.keys()) else None
        options = {
            "nb_concepts": int(metadata["nb_concepts"]),
            "solver": metadata["solver"],
            "tol": float(metadata["tol"]),
            # models of versions without penalties have none
            **json.loads(metadata.get("penalties", "{}")),
            **({} if offset is None else {"offset": True}),
        }
        info = _info(json.loads(metadata["fit_info"]))
        model = metadata.get("model", _FIRST_MODEL)
        made = json.loads(metadata.get("made", "{}"))
        return Saved(options, D, info, metadata["fastnmf_version"], model, W, offset, made)


def _info(stored: dict[str, Any] | None) -> FitInfo | None:
    """The stored summary of a fit; None where another version has other fields."""
    if stored is None:
        return None
    # earlier versions recorded no seed, and had NMF only, no exact codes and no sparse data
    earlier = {"seed": None, "exact_codes": False, "density": None, "dense_copy": False}
    earlier |= {"model": _FIRST_MODEL, "offset": False, "target_l0": None, "top_k": None}
    earlier |= {"n_init": 1, "best_start": 0, "start_errors": (), "start_iterations": 0}
    earlier |= {"sample_rows": None, "sample_iterations": 0, "sample_seconds": 0.0}
    earlier |= dict.fromkeys(("held_out_error", "weights"))
    earlier |= dict.fromkeys(("validation_error", "validation_l0", "best_iteration"))
    stored = earlier | {_FORMER_NAMES.get(name, name): v for name, v in stored.items()}
    if stored.keys() != {each.name for each in fields(FitInfo)}:
        return None
    stored["history"] = tuple(Iteration(**iteration) for iteration in stored["history"])
    for name in ("l0_histogram", "energy", "inner_half_steps", "start_errors"):
        stored[name] = tuple(stored[name])
    return FitInfo(**stored)
