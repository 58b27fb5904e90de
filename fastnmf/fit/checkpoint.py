"""Checkpoints of a fit: what its loop carries, saved now and then and before the process leaves,
and read again."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .._version import __version__
from ..data.dataset import Data
from ..data.paths import check_output, folder_of, refusing_damage, remove_part, replacing
from ..data.storage import InMemory, NotKept, Storage, copy_rows, stored, written
from ..distributed import ALONE, Processes
from ..engine.state import Iteration, State
from ..errors import InvalidInput
from ..planning.plan import Plan
from .signals import Interrupts

log = logging.getLogger(__name__)
FORMAT = "fastnmf checkpoint"
FORMAT_VERSION = 1
SUFFIXES = (".safetensors",)
# before the names of what an accelerated fit carries besides
_CARRIED = "ahead."
# ‖A‖² may differ by rounding where the same data come from another place
_SAME_DATA = 1e-6


@dataclass(frozen=True)
class _Save:
    """A file that was found, and what its header says."""

    path: Path
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """Where several processes save: the number of the save, and what tells it from another of
        that number."""
        return self.metadata.get("save", "")

    @property
    def codes(self) -> str | None:
        """The file of its codes, beside it."""
        return self.metadata.get("codes")


class Checkpoint:
    """A file that a fit can go on from, to the bits that it would have had.

    path: .safetensors, replaced whole or not at all; codes of a stream are in a .npy file beside
    it, by turns of two names. seconds: between two saves, at least, by the clock of process 0; 0
    saves after every iteration. settings: what must be the same for a run to go on. processes: the
    processes that share the fit; each has a file of its own. What they save waits beside it until
    all have saved, and then takes its place: whenever processes are killed, there is a save that
    all of them have. Within `with` SIGINT and SIGTERM wait for the end of the iteration, which is
    then saved.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        seconds: float,
        settings: dict[str, Any],
        *,
        resume: bool,
        processes: Processes = ALONE,
    ) -> None:
        self._processes, self._asked = processes, Path(path)
        self.path = check_output(processes.own(path), SUFFIXES)
        waiting = self.path.with_suffix(f".next{self.path.suffix}")
        self._staged = self.path if processes.alone else waiting
        self._seconds, self._settings, self._resume = seconds, settings, resume
        self._plan: Plan | None = None
        # rows of a chunk, and the name of the file with its codes, beside the checkpoint
        self._chunk_rows: int | None = None
        self._codes: str | None = None
        # what the saves of several processes are told apart by
        self._number, self._run = 1, secrets.token_hex(4)
        self._saved = time.perf_counter()
        self._interrupts = Interrupts()

    def begin(self, data: Data, Z: Storage) -> tuple[Plan, State] | None:
        """The plan and the State to go on from, on the device of the data; None where the fit is to
        start. Codes that are kept elsewhere than in the file are brought to Z, and chunks are as
        they were.

        The file is read if `resume` asks for it, and left alone. Raises InvalidInput for a file
        that is damaged, too new, no checkpoint, or one of another fit, and for files of several
        processes that are not of one save; where it does in one process, in all.
        """
        self._describe(data, Z)
        with self._processes.agreed():
            paths = dict.fromkeys((self.path, self._staged))
            held = [_found(path) for path in paths if path.exists()]
        save, resumed = self._agree_on(held), None
        if self._resume and save is not None:
            with self._processes.agreed():
                resumed = self._resumed(save, data, Z)
            log.info("%s: going on after iteration %d", self.path, len(resumed[1].history))
        elif self._resume:
            log.info("%s does not exist yet: the fit starts", self.path)
        with self._processes.agreed():
            self._settle(held, save)
        return resumed

    def follow(self, plan: Plan) -> Checkpoint:
        """The same, for a run by this plan."""
        self._plan = plan
        return self

    def due(self) -> bool:
        """Whether it is time to save, or the process was asked to leave; asked at the end of every
        iteration."""
        late = self._processes.rank == 0 and time.perf_counter() - self._saved >= self._seconds
        return any(self._processes.any(self._interrupts.waits or late))

    def save(self, state: State) -> None:
        """Write the State, in place of the file that was there; then leave where the process was
        asked to."""
        leaves = self._interrupts.waits
        self._write(state)
        self._saved = time.perf_counter()
        if leaves:
            log.warning("saved to %s", self.path)
            self._interrupts.leave()

    def _write(self, state: State) -> None:
        factors = {"D": state.D, "E": state.E}
        if not self._in_passes and isinstance(state.Z, InMemory):
            factors["Z"] = state.Z.Z
        carried = {_CARRIED + name: F for name, F in (state.carried or {}).items()}
        tensors = {
            name: F.detach().cpu().contiguous()
            for name, F in {**factors, **carried}.items()
            if F is not None
        }
        history = [astuple(iteration) for iteration in state.history]
        tensors["history"] = torch.tensor(history, dtype=torch.float64)
        before = self._codes
        with self._processes.agreed():
            self._codes = self._save_codes(state.Z)
            metadata = self._metadata(state)
            # safetensors, too, writes to a file of its own first
            with folder_of(self.path) as folder, replacing(self._staged, folder) as part:
                safetensors.torch.save_file(tensors, part, metadata=metadata)
        self._number += 1
        self._put_in_place(self._staged)
        if before is not None:
            self.path.with_name(before).unlink(missing_ok=True)

    def __enter__(self) -> Checkpoint:
        self._saved = time.perf_counter()
        self._interrupts.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._interrupts.__exit__(*raised)

    def _describe(self, data: Data, Z: Storage) -> None:
        """What must be the same for a run to go on, of these data."""
        self._in_passes = not data.in_one_piece
        self._settings |= {
            "n": data.n,
            "d": data.d,
            "dtype": str(data.dtype).removeprefix("torch."),
            "device": data.device.type,
            "data": "in memory" if data.resident else "read in passes",
            "codes": "not kept" if isinstance(Z, NotKept) else "kept",
        }
        if not self._processes.alone:
            self._settings |= {"processes": self._processes.size, "rows_here": data.n_here}
        self._squared_norm = data.squared_norm_here
        self._chunk_rows = data.chunk_rows if self._in_passes else None

    def _metadata(self, state: State) -> dict[str, str]:
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fastnmf_version": __version__,
            "settings": json.dumps(self._settings),
            "squared_data": repr(self._squared_norm),
            "plan": json.dumps(_stored(self._plan)),
            "iterations_since_fresh": str(state.iterations_since_fresh),
            "refresh": str(state.refresh),
            "drifts": json.dumps(list(state.drifts)),
            "revived": str(state.revived),
        }
        if self._codes is not None:
            metadata["codes"] = self._codes
        if self._chunk_rows is not None:
            metadata["chunk_rows"] = str(self._chunk_rows)
        if not self._processes.alone:
            metadata["save"] = f"{self._number}-{self._run}"
        return metadata

    def _save_codes(self, Z: Storage) -> str | None:
        """Write codes of data that are read in passes to a file beside the checkpoint, and not over
        those of the last one; its name, or None."""
        if not self._in_passes or isinstance(Z, NotKept):
            return None
        name = next(self._other_codes())
        with written(self.path.with_name(name), Z.shape, Z.dtype) as file:
            copy_rows(Z, file)
        return name

    def _other_codes(self) -> Iterator[str]:
        """The names of files with codes, but for those of the last save."""
        names = (f"{self.path.stem}.codes-{turn}.npy" for turn in "ab")
        return (name for name in names if name != self._codes)

    def _put_in_place(self, path: Path) -> None:
        if path != self.path:
            os.replace(path, self.path)

    def _agree_on(self, held: list[_Save]) -> _Save | None:
        """Of the saves here the last one that all processes have."""
        complete = any(save.path == self.path for save in held)
        told = self._processes.gather(([save.name for save in held], complete, self._run))
        names, complete, runs = zip(*told, strict=True)
        self._number = 1 + max((_number(name) for each in names for name in each), default=0)
        self._run = runs[0]
        name = max(set.intersection(*map(set, names)), key=_number, default=None)
        save = next((save for save in held if save.name == name), None)
        if held:
            # also where they are written over, not before there are others
            self._codes = (save or held[0]).codes
        if self._resume and save is None:
            self._refuse_parts(names, complete)
        return save

    def _refuse_parts(self, names: tuple[list[str], ...], complete: tuple[bool, ...]) -> None:
        """Refuse to start where processes have had a save in common, or others have one."""
        if any(complete):
            has = "; ".join(
                f"process {rank}: {', '.join(saves) or 'none'}" for rank, saves in enumerate(names)
            )
            raise InvalidInput(
                f"{self._asked} has no save that all processes have ({has}); bring the files back "
                "that are missing, or fit without resume to start anew"
            )
        for others in self._processes.gather(self._processes.of_other_numbers(self._asked)):
            if others:
                raise InvalidInput(
                    f"{self._asked} is of a fit by another number of processes than the "
                    f"{self._processes.size} here: there is {others[0]}; fit by as many, or without "
                    "resume to start anew"
                )

    def _settle(self, held: list[_Save], save: _Save | None) -> None:
        """Of the files here only that save stays, in its place; where there is none, the one in
        place until the first is saved."""
        if save is not None:
            self._put_in_place(save.path)
        for other in held:
            if other is not save and other.path != self.path:
                other.path.unlink()
        remove_part(self.path)
        for name in self._other_codes() if self._chunk_rows is not None else ():
            self.path.with_name(name).unlink(missing_ok=True)
            remove_part(self.path.with_name(name))

    def _resumed(self, save: _Save, data: Data, Z: Storage) -> tuple[Plan, State]:
        with refusing_damage(save.path), safetensors.safe_open(save.path, "pt") as file:
            self._refuse_others(save)
            if self._in_passes:
                self._restore(save, data, Z)
                return _read(file, save.metadata, data.device, Z)
            return _read(file, save.metadata, data.device)

    def _restore(self, save: _Save, data: Data, Z: Storage) -> None:
        """Bring the codes to Z, and the chunks to their size."""
        chunk_rows = int(save.metadata["chunk_rows"])
        # where all is in memory, chunks of any size are
        if chunk_rows > data.chunk_rows and not data.resident:
            raise InvalidInput(
                f"{self.path} was computed with chunks of {chunk_rows:,} rows, and memory is for "
                f"{data.chunk_rows:,} now; give as much max_memory as then, or more"
            )
        data.take_chunks(chunk_rows)
        self._chunk_rows = chunk_rows
        if isinstance(Z, NotKept):
            return
        path = self.path.with_name(save.codes)
        try:
            codes = stored(path)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{self.path} goes with codes in {path.name}, which cannot be read ({error}); "
                "bring that file back, or fit without resume to start anew"
            ) from error
        copy_rows(codes, Z)

    def _refuse_others(self, save: _Save) -> None:
        """Refuse a save of another fit."""
        settings = json.loads(save.metadata["settings"])
        differing = [
            f"{name}={settings.get(name)!r} there, {value!r} here"
            for name, value in self._settings.items()
            if settings.get(name) != value
        ]
        before, squared_norm = float(save.metadata["squared_data"]), self._squared_norm
        if not differing and abs(before - squared_norm) > _SAME_DATA * squared_norm:
            differing = [f"‖A‖²={before:g} there, {squared_norm:g} here"]
        if differing:
            raise InvalidInput(
                f"{save.path} is a checkpoint of another fit: {'; '.join(differing)}. Fit as "
                "there, or without resume to start anew"
            )


def _found(path: Path) -> _Save:
    """The save in a file. Raises InvalidInput for one that is damaged, too new or no checkpoint."""
    with refusing_damage(path), safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            held = ", ".join(sorted(file.keys())) or "nothing"
            raise InvalidInput(
                f"{path} holds {held}, and is no checkpoint of a fit; give checkpoint= another name"
            )
        if int(metadata["format_version"]) > FORMAT_VERSION:
            newer = f"format {metadata['format_version']} of fastnmf {metadata['fastnmf_version']}"
            own = f"fastnmf {__version__} reads up to format {FORMAT_VERSION}"
            raise InvalidInput(f"{path} is in {newer}; {own}: upgrade it")
        return _Save(path, metadata)


def _number(name: str) -> int:
    """Of a save."""
    return int(name.partition("-")[0] or 0)


# what files call the numbers of a plan
_NAMES = {"tile_rows": "piece_rows"}


def _stored(plan: Plan) -> dict[str, Any]:
    """A plan as files hold it."""
    return {_NAMES.get(name, name): value for name, value in asdict(plan).items()}


def _plan_of(stored: dict[str, Any]) -> Plan:
    names = {held: name for name, held in _NAMES.items()}
    plan = {names.get(name, name): value for name, value in stored.items()}
    return Plan(**{**plan, "inner": tuple(plan["inner"])})


def _read(
    file: Any, metadata: dict[str, str], device: torch.device, Z: Storage | None = None
) -> tuple[Plan, State]:
    """The plan and the State in a file; Z: its codes, where the file has none."""
    names = set(file.keys())

    def tensor(name: str) -> Tensor:
        # copied into memory of torch's own, aligned as that of a run that was not left
        return file.get_tensor(name).to(device, copy=True)

    history = [
        Iteration(int(number), *rest, relative_objective=objective)
        for number, *rest, objective in file.get_tensor("history").tolist()
    ]
    carried = {
        name.removeprefix(_CARRIED): tensor(name) for name in names if name.startswith(_CARRIED)
    }
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
    )
