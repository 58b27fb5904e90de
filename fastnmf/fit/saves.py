"""One save of a fit in a .safetensors file: its header, and the plan and the State in it. When
saves are written, and which of several counts, is in checkpoint.py."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data.locks import WorkingFolder
from ..data.paths import refusing_damage, replacing, writing
from ..data.storage import InMemory, Storage
from ..engine.sparsity.target import TargetL0
from ..engine.state import Best, Iteration, Sampled, Starts, State
from ..errors import InvalidInput
from ..planning.plan import Plan
from ..solvers.supports.rows import Mixture

FORMAT = "fastnmf checkpoint"
FORMAT_VERSION = 1
# prefix of the names of what an accelerated fit carries besides; as in files of earlier versions,
# so that these load
_CARRIED = "ahead."
# prefix of the names of those of a mixture of rows
_MIXED = "mixture."
# prefix of the names of those of the best dictionary on validation rows
_BEST = "best."
# fields of an Iteration that are given by name; saves of earlier versions have the first only
_BY_NAME = ("relative_objective", "validation_error", "validation_l0")
# names in the file of fields of a plan: those of earlier versions, whose files load
_NAMES = {"tile_rows": "piece_rows"}


@dataclass(frozen=True)
class Save:
    """A file and its header."""

    path: Path
    metadata: dict[str, str]

    @classmethod
    def found(cls, path: Path) -> Save:
        """Read the header. Raises InvalidInput for a file that is damaged, too new or no save."""
        import safetensors

        with refusing_damage(path), safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                names = ", ".join(sorted(file.keys())) or "nothing"
                raise InvalidInput(
                    f"{path} holds {names}, and is no checkpoint of a fit; give checkpoint= "
                    "another name"
                )
            if int(metadata["format_version"]) > FORMAT_VERSION:
                version, by = metadata["format_version"], metadata["fastnmf_version"]
                raise InvalidInput(
                    f"{path} is in format {version} of fastnmf {by}; fastnmf {__version__} reads "
                    f"up to format {FORMAT_VERSION}: upgrade it"
                )
            return cls(path, metadata)

    @property
    def name(self) -> str:
        """Where several processes save: the number of the save and an identifier of the run."""
        return self.metadata.get("save", "")

    @property
    def number(self) -> int:
        return number_of(self.name)

    @property
    def codes(self) -> str | None:
        """The name of the file with its codes, beside it; None where they are in the file."""
        return self.metadata.get("codes")

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads(self.metadata["settings"])

    def read(self, device: torch.device, Z: Storage | None) -> tuple[Plan, State]:
        """Return the plan and the State. Z: the codes, where the file has none. Raises what
        `refusing_damage` expects for a file that is damaged."""
        import safetensors

        with safetensors.safe_open(self.path, "pt") as file:
            names = set(file.keys())

            def tensor(name: str) -> Tensor:
                # copied into memory of torch's own, aligned as in a run that was not interrupted
                return file.get_tensor(name).to(device, copy=True)

            history = [_iteration_of(*numbers) for numbers in file.get_tensor("history").tolist()]
            carried = {
                name.removeprefix(_CARRIED): tensor(name)
                for name in names
                if name.startswith(_CARRIED)
            }
            mixed = {
                name.removeprefix(_MIXED): tensor(name) for name in names if name.startswith(_MIXED)
            }
            best = {
                name.removeprefix(_BEST): tensor(name) for name in names if name.startswith(_BEST)
            }
            metadata = self.metadata
            return _plan_of(json.loads(metadata["plan"])), State(
                InMemory(tensor("Z")) if Z is None else Z,
                tensor("D"),
                tensor("E") if "E" in names else None,
                history=history,
                iterations_since_fresh=int(metadata["iterations_since_fresh"]),
                refresh=int(metadata["refresh"]),
                drifts=json.loads(metadata["drifts"]),
                carried=carried or None,
                revived=int(metadata["revived"]),
                # saves of earlier versions have none
                seed=json.loads(metadata.get("seed", "null")),
                mixture=Mixture(**mixed) if mixed else None,
                offset=tensor("offset") if "offset" in names else None,
                target=_target_of(json.loads(metadata.get("target_l0", "null"))),
                mean_l0=float(metadata.get("mean_l0", "nan")),
                starts=_starts_of(json.loads(metadata.get("starts", "null"))),
                best=_best_of(json.loads(metadata.get("best", "null")), best, history),
                sample=_sample_of(json.loads(metadata.get("sample", "null"))),
            )


def write(
    path: Path, folder: WorkingFolder, state: State, plan: Plan, metadata: dict[str, str]
) -> None:
    """Write a save, whole or not at all, with codes if those of the State are in memory. folder: to
    write it in. metadata: what the header says besides the format, the plan and the numbers of the
    State."""
    import safetensors.torch

    factors = {"D": state.D, "E": state.E, "offset": state.offset}
    if isinstance(state.Z, InMemory):
        factors["Z"] = state.Z.Z
    carried = {_CARRIED + name: F for name, F in (state.carried or {}).items()}
    if state.mixture is not None:
        carried |= {_MIXED + name: F for name, F in state.mixture.tensors().items()}
    if state.best is not None:
        carried |= {_BEST + name: F for name, F in _tensors_of(state.best).items()}
    tensors = {
        name: F.detach().cpu().contiguous()
        for name, F in {**factors, **carried}.items()
        if F is not None
    }
    history = [
        [math.nan if number is None else number for number in astuple(iteration)]
        for iteration in state.history
    ]
    tensors["history"] = torch.tensor(history, dtype=torch.float64, device="cpu")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "fastnmf_version": __version__,
        "plan": json.dumps({_NAMES.get(name, name): v for name, v in asdict(plan).items()}),
        "iterations_since_fresh": str(state.iterations_since_fresh),
        "refresh": str(state.refresh),
        "drifts": json.dumps(list(state.drifts)),
        "revived": str(state.revived),
        "seed": json.dumps(state.seed),
        "target_l0": json.dumps(None if state.target is None else asdict(state.target)),
        "mean_l0": repr(state.mean_l0),
        "starts": json.dumps(None if state.starts is None else asdict(state.starts)),
        "sample": json.dumps(None if state.sample is None else asdict(state.sample)),
        "best": json.dumps(_numbers_of(state.best)),
        **metadata,
    }
    # safetensors, too, writes to a file of its own first
    with replacing(path, folder) as part, writing(path):
        safetensors.torch.save_file(tensors, part, metadata=metadata)


def number_of(name: str) -> int:
    """The number in the name of a save."""
    return int(name.partition("-")[0] or 0)


def _iteration_of(number: float, *rest: float) -> Iteration:
    named = dict(zip(_BY_NAME, rest[3:], strict=False))
    measured = {
        name: None if math.isnan(named.get(name, math.nan)) else named[name]
        for name in _BY_NAME[1:]
    }
    return Iteration(int(number), *rest[:3], **{**named, **measured})


def _tensors_of(best: Best) -> dict[str, Tensor]:
    tensors = {"D": best.D} if best.offset is None else {"D": best.D, "offset": best.offset}
    return tensors if best.mixture is None else tensors | best.mixture.tensors()


def _numbers_of(best: Best | None) -> dict[str, Any] | None:
    return None if best is None else {"iteration": best.measured.iteration, "l1": best.l1}


def _best_of(
    numbers: dict[str, Any] | None, tensors: dict[str, Tensor], history: list[Iteration]
) -> Best | None:
    if numbers is None:
        return None
    D, offset = tensors.pop("D"), tensors.pop("offset", None)
    mixture = Mixture(**tensors) if tensors else None
    return Best(history[numbers["iteration"] - 1], D, offset, mixture, numbers["l1"])


def _target_of(stored: dict[str, Any] | None) -> TargetL0 | None:
    return None if stored is None else TargetL0(**stored)


def _starts_of(stored: dict[str, Any] | None) -> Starts | None:
    return None if stored is None else Starts(**{**stored, "errors": tuple(stored["errors"])})


def _sample_of(stored: dict[str, Any] | None) -> Sampled | None:
    return None if stored is None else Sampled(**stored)


def _plan_of(stored: dict[str, Any]) -> Plan:
    names = {held: name for name, held in _NAMES.items()}
    plan = {names.get(name, name): value for name, value in stored.items()}
    return Plan(**{**plan, "inner": tuple(plan["inner"])})
