"""Fits of one call, each under a name: those that a checkpoint has are not repeated."""

# safetensors has no types; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from .._version import __version__
from ..data.paths import check_output, refusing_damage, replacing
from ..errors import InvalidInput

FORMAT = "fastnmf runs"
SUFFIXES = (".safetensors",)


class Run(NamedTuple):
    """The dictionary (K, d) that a fit found, on the CPU, and numbers about it."""

    D: Tensor
    numbers: dict[str, float]


class Runs:
    """The fits of a call, by name, and the file that stores them; None stores nothing.

    identity: what must be the same where a call resumes. seed: that of the call; None takes the one
    in the file, or draws one. Without `resume` a file that exists is replaced by the first fit.
    Raises InvalidInput for a file that is damaged, no store of fits, or of another call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: dict[str, Any],
        seed: int | None,
        *,
        resume: bool,
    ) -> None:
        checks.whole("seed", seed, at_least=0, optional=True)
        if resume and path is None:
            raise InvalidInput("resume=True needs checkpoint=, the file to go on from")
        self._path = None if path is None else check_output(path, SUFFIXES)
        if self._path is not None and self._path.exists():
            self._refuse_others(self._path)
        # as JSON gives it back
        self._identity = json.loads(json.dumps(identity))
        self._done: dict[str, Run] = {}
        self._lock = threading.Lock()
        if checks.flag("resume", resume) and self._path is not None and self._path.exists():
            seed = self._read(self._path, seed)
        self.seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed

    def get(self, name: str, make: Callable[[], Run]) -> Run:
        """The fit of this name: the stored one, or the one that `make` makes and this stores."""
        if name not in self._done:
            found = make()
            # several threads may be done at a time
            with self._lock:
                self._done[name] = found
                if self._path is not None:
                    self._write(self._path)
        return self._done[name]

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def _write(self, path: Path) -> None:
        import safetensors.torch

        metadata = {
            "format": FORMAT,
            "fastnmf_version": __version__,
            "identity": json.dumps({**self._identity, "seed": self.seed}),
            "numbers": json.dumps({name: run.numbers for name, run in self._done.items()}),
        }
        dictionaries = {name: run.D.contiguous() for name, run in self._done.items()}
        with replacing(path) as part:
            safetensors.torch.save_file(dictionaries, part, metadata=metadata)

    def _refuse_others(self, path: Path) -> None:
        """Raise InvalidInput for a file that is no store of fits, and not to be replaced."""
        import safetensors

        try:
            with refusing_damage(path), safetensors.safe_open(path, framework="pt") as file:
                ours = (file.metadata() or {}).get("format") == FORMAT
                held = ", ".join(sorted(file.keys())) or "nothing"
        except InvalidInput as error:
            raise InvalidInput(f"{error}; give checkpoint= another name, or remove it") from error
        if not ours:
            raise InvalidInput(
                f"{path} holds {held}, and no fits of such a call; give checkpoint= another name"
            )

    def _read(self, path: Path, seed: int | None) -> int:
        """Take the fits in the file; return its seed."""
        import safetensors

        with refusing_damage(path), safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            stored = json.loads(metadata["identity"])
            own = {**self._identity, "seed": stored["seed"] if seed is None else seed}
            for name, value in own.items():
                if stored.get(name) != value:
                    raise InvalidInput(
                        f"{path} is of a call with {name}={stored.get(name)!r}, this one has "
                        f"{value!r}; give the same, or another checkpoint="
                    )
            numbers = json.loads(metadata["numbers"])
            self._done = {name: Run(file.get_tensor(name), numbers[name]) for name in numbers}
            return stored["seed"]
