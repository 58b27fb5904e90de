"""Checkpoints of a fit: what its loop carries, saved now and then and before the process leaves,
and read again."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._version import __version__
from .engine import Iteration, State
from .errors import InvalidInput
from .interrupts import Interrupts
from .paths import check_output, folder_of, refusing_damage, remove_part, replacing
from .plan import Plan
from .ranks import ALONE, Ranks
from .rows import Rows
from .solvers import squared_norm
from .store import InMemory, NotKept, OnDisk, Store, copy_rows, stored, written
from .stream import Stream

log = logging.getLogger(__name__)

FORMAT = "fastnmf checkpoint"
FORMAT_VERSION = 1
SUFFIXES = (".safetensors",)
# before the names of what an accelerated fit carries besides
_AHEAD = "ahead."
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
    saves after every iteration. settings: what must be the same for a run to go on. ranks: the
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
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks, self._asked = ranks, Path(path)
        self._path = check_output(ranks.own(path), SUFFIXES)
        waiting = self._path.with_suffix(f".next{self._path.suffix}")
        self._staged = self._path if ranks.alone else waiting
        self._seconds, self._settings, self._resume = seconds, settings, resume
        self._plan: Plan | None = None
        # rows of a stream in hand, and the name of the file with its codes, beside the checkpoint
        self._chunk_rows: int | None = None
        self._codes: str | None = None
        # what the saves of several processes are told apart by
        self._number, self._run = 1, secrets.token_hex(4)
        self._saved = time.perf_counter()
        self._interrupts = Interrupts()

    def begin(
        self, rows: Rows | Stream, store: InMemory | OnDisk | None
    ) -> tuple[Plan, State] | None:
        """The plan and the state to go on from, on the device of the rows; None where the fit is to
        start. Codes of a stream are brought to the store, and its chunks are as they were.

        The file is read if `resume` asks for it, and left alone. Raises InvalidInput for a file
        that is damaged, too new, no checkpoint, or one of another fit, and for files of several
        processes that are not of one save; where it does in one process, in all.
        """
        self._describe(rows, store)
        with self._ranks.agreed():
            paths = dict.fromkeys((self._path, self._staged))
            held = [_found(path) for path in paths if path.exists()]
        save, resumed = self._agree_on(held), None
        if self._resume and save is not None:
            with self._ranks.agreed():
                resumed = self._resumed(save, rows, store)
            log.info("%s: going on after iteration %d", self._path, len(resumed[1].history))
        elif self._resume:
            log.info("%s does not exist yet: the fit starts", self._path)
        with self._ranks.agreed():
            self._settle(held, save)
        return resumed

    def follow(self, plan: Plan) -> Checkpoint:
        """The same, for a run by this plan."""
        self._plan = plan
        return self

    def keep(self, state: Callable[[], State]) -> None:
        """Called at the end of every iteration: save its state if it is time, or leave."""
        told = self._interrupts.told
        late = self._ranks.rank == 0 and time.perf_counter() - self._saved >= self._seconds
        if any(self._ranks.any(told or late)):
            self.save(state())
            self._saved = time.perf_counter()
        if told:
            log.warning("saved to %s", self._path)
            self._interrupts.leave()

    def save(self, state: State) -> None:
        """Write the state, in place of the file that was there."""
        factors = {name: getattr(state, name) for name in ("Z", "D", "E")}
        tensors = {
            name: F.detach().cpu().contiguous()
            for name, F in factors.items()
            if isinstance(F, Tensor)
        }
        for name, F in (state.ahead or {}).items():
            tensors[_AHEAD + name] = F.detach().cpu().contiguous()
        history = [astuple(iteration) for iteration in state.history]
        tensors["history"] = torch.tensor(history, dtype=torch.float64)
        before = self._codes
        with self._ranks.agreed():
            self._codes = self._save_codes(state.Z)
            metadata = self._metadata(state)
            # safetensors, too, writes to a file of its own first
            with folder_of(self._path) as folder, replacing(self._staged, folder) as part:
                safetensors.torch.save_file(tensors, part, metadata=metadata)
        self._number += 1
        self._put_in_place(self._staged)
        if before is not None:
            self._path.with_name(before).unlink(missing_ok=True)

    def __enter__(self) -> Checkpoint:
        self._saved = time.perf_counter()
        self._interrupts.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._interrupts.__exit__(*raised)

    def _describe(self, rows: Rows | Stream, store: InMemory | OnDisk | None) -> None:
        """What must be the same for a run to go on, of these rows."""
        streams = isinstance(rows, Stream)
        self._settings |= {
            "n": rows.n,
            "d": rows.d,
            "dtype": str(rows.dtype).removeprefix("torch."),
            "device": (rows.device if streams else rows.A.device).type,
            "data": "read in passes" if streams and not rows.resident else "in memory",
            "codes": "kept" if store or not streams else "not kept",
        }
        if not self._ranks.alone:
            self._settings |= {"processes": self._ranks.size, "rows_here": rows.n_here}
        self._squared_data = rows.squared_here if streams else float(squared_norm(rows.A))
        self._chunk_rows = rows.chunk_rows if streams else None

    def _metadata(self, state: State) -> dict[str, str]:
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fastnmf_version": __version__,
            "settings": json.dumps(self._settings),
            "squared_data": repr(self._squared_data),
            "plan": json.dumps(asdict(self._plan)),
            "iterations_since_fresh": str(state.iterations_since_fresh),
            "refresh": str(state.refresh),
            "drifts": json.dumps(state.drifts),
            "revived": str(state.revived),
        }
        if self._codes is not None:
            metadata["codes"] = self._codes
        if self._chunk_rows is not None:
            metadata["chunk_rows"] = str(self._chunk_rows)
        if not self._ranks.alone:
            metadata["save"] = f"{self._number}-{self._run}"
        return metadata

    def _save_codes(self, Z: Tensor | Store) -> str | None:
        """Write codes of a stream to a file beside the checkpoint, and not over those of the last
        one; its name, or None."""
        if isinstance(Z, Tensor | NotKept):
            return None
        name = next(self._other_codes())
        with written(self._path.with_name(name), Z.shape, Z.dtype) as file:
            copy_rows(Z, file)
        return name

    def _other_codes(self) -> Iterator[str]:
        """The names of files with codes, but for those of the last save."""
        names = (f"{self._path.stem}.codes-{turn}.npy" for turn in "ab")
        return (name for name in names if name != self._codes)

    def _put_in_place(self, path: Path) -> None:
        if path != self._path:
            os.replace(path, self._path)

    def _agree_on(self, held: list[_Save]) -> _Save | None:
        """Of the saves here the last one that all processes have."""
        complete = any(save.path == self._path for save in held)
        told = self._ranks.gather(([save.name for save in held], complete, self._run))
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
        for others in self._ranks.gather(self._ranks.of_other_numbers(self._asked)):
            if others:
                raise InvalidInput(
                    f"{self._asked} is of a fit by another number of processes than the "
                    f"{self._ranks.size} here: there is {others[0]}; fit by as many, or without "
                    "resume to start anew"
                )

    def _settle(self, held: list[_Save], save: _Save | None) -> None:
        """Of the files here only that save stays, in its place; where there is none, the one in
        place until the first is saved."""
        if save is not None:
            self._put_in_place(save.path)
        for other in held:
            if other is not save and other.path != self._path:
                other.path.unlink()
        remove_part(self._path)
        for name in self._other_codes() if self._chunk_rows is not None else ():
            self._path.with_name(name).unlink(missing_ok=True)
            remove_part(self._path.with_name(name))

    def _resumed(
        self, save: _Save, rows: Rows | Stream, store: InMemory | OnDisk | None
    ) -> tuple[Plan, State]:
        streams = isinstance(rows, Stream)
        device = rows.device if streams else rows.A.device
        with refusing_damage(save.path), safetensors.safe_open(save.path, "pt") as file:
            self._refuse_others(save)
            if streams:
                self._restore(save, rows, store)
            plan, state = _read(file, save.metadata, device)
        return plan, replace(state, Z=store) if streams else state

    def _restore(self, save: _Save, rows: Stream, store: InMemory | OnDisk | None) -> None:
        """Bring the codes to the store, and the chunks to their size."""
        chunk_rows = int(save.metadata["chunk_rows"])
        # where all is in memory, chunks of any size are
        if chunk_rows > rows.chunk_rows and not rows.resident:
            raise InvalidInput(
                f"{self._path} was computed with {chunk_rows:,} rows in hand, and memory is for "
                f"{rows.chunk_rows:,} now; give as much max_memory as then, or more"
            )
        rows.take_chunks(chunk_rows)
        self._chunk_rows = chunk_rows
        if store is None:
            return
        path = self._path.with_name(save.codes)
        try:
            codes = stored(path)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{self._path} goes with codes in {path.name}, which cannot be read ({error}); "
                "bring that file back, or fit without resume to start anew"
            ) from error
        copy_rows(codes, store)

    def _refuse_others(self, save: _Save) -> None:
        """Refuse a save of another fit."""
        settings = json.loads(save.metadata["settings"])
        differing = [
            f"{name}={settings.get(name)!r} there, {value!r} here"
            for name, value in self._settings.items()
            if settings.get(name) != value
        ]
        before, squared_data = float(save.metadata["squared_data"]), self._squared_data
        if not differing and abs(before - squared_data) > _SAME_DATA * squared_data:
            differing = [f"‖A‖²={before:g} there, {squared_data:g} here"]
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


def _read(file: Any, metadata: dict[str, str], device: torch.device) -> tuple[Plan, State]:
    names = set(file.keys())
    factors = {
        # copied into memory of torch's own, aligned as that of a run that was not left
        name: file.get_tensor(name).to(device, copy=True) if name in names else None
        for name in ("Z", "D", "E")
    }
    history = tuple(
        Iteration(int(number), *rest, relative_objective=objective)
        for number, *rest, objective in file.get_tensor("history").tolist()
    )
    plan = json.loads(metadata["plan"])
    plan["inner"] = tuple(plan["inner"])
    ahead = {
        name.removeprefix(_AHEAD): file.get_tensor(name).to(device, copy=True)
        for name in names
        if name.startswith(_AHEAD)
    }
    return Plan(**plan), State(
        **factors,
        history=history,
        iterations_since_fresh=int(metadata["iterations_since_fresh"]),
        refresh=int(metadata["refresh"]),
        drifts=tuple(json.loads(metadata["drifts"])),
        ahead=ahead or None,
        revived=int(metadata["revived"]),
    )
