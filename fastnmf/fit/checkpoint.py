"""Checkpoints of a fit: saves at intervals and before the process leaves, from which the same fit
goes on; for several processes, one save that all of them have. What a file contains is in saves.py,
signals are in signals.py."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import secrets
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.dataset import Data
from ..data.locks import working_folder
from ..data.paths import ZIP_ERRORS, check_output, refusing_damage, replacing, writing
from ..data.sparse.codes import load_npz, save_npz
from ..data.storage import Compressed, NotKept, Storage, copy_rows, stored, written
from ..distributed import ALONE, Processes
from ..engine.state import State
from ..errors import InvalidInput
from ..planning.plan import Plan
from ..solvers.constraints import NON_NEGATIVE
from .saves import Save, number_of, write
from .signals import Interrupts

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors",)
# ‖A‖² may differ by rounding where the same data come from another place
_SAME_DATA = 1e-6


class Checkpoint:
    """A file from which a fit goes on to the bits that it would have had without an interruption.

    A context: within it SIGINT and SIGTERM wait for the end of the iteration, which is then saved.

    path: a .safetensors file, replaced whole or not at all. Codes of data that are read in passes,
    and those in compressed rows, are in a .npy or .npz file beside it, of two names in turn; files
    of these names that are not of the checkpoint are left alone, and others taken. seconds: between
    two saves, at least, by the clock of process 0; 0 saves after every iteration. settings: options
    that must be the same when a fit goes on. processes: those that share the fit; each has a file
    of its own. What they save stays beside that file until all have saved, and then replaces it:
    whenever processes are killed, there is one save that all of them have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        seconds: float,
        settings: dict[str, Any],
        *,
        resume: bool,
        processes: Processes = ALONE,
    ) -> None:
        self._processes, self._given = processes, Path(path).absolute()
        self.path = check_output(processes.own(path), SUFFIXES)
        beside = self.path.with_suffix(f".next{self.path.suffix}")
        # where a save of several processes is written first
        self._staged = self.path if processes.alone else beside
        self._seconds, self._settings, self._resume = seconds, settings, resume
        self._plan: Plan | None = None
        # rows of a chunk, and the name of the file with its codes, beside the checkpoint
        self._chunk_rows: int | None = None
        self._codes: str | None = None
        # which distinguish the saves of several processes
        self._number, self._run = 1, secrets.token_hex(4)
        self._saved = time.perf_counter()
        self._interrupts = Interrupts()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context around all else, in which no other fit has this file. Raises InvalidInput where
        one has it."""
        with working_folder(self.path) as self._folder:
            try:
                yield
            finally:
                self._forget_codes()

    def also(self, **settings: Any) -> None:
        """Add options that must be the same when a fit resumes."""
        self._settings |= settings

    def has(self, file: Path) -> bool:
        """Whether the name of this file is one of those that codes get here."""
        name = rf"{re.escape(self.path.stem)}\.codes-([a-z]|\d+)\.np[yz]"
        return file.parent == self.path.parent and re.fullmatch(name, file.name) is not None

    def begin(self, data: Data, Z: Storage) -> tuple[Plan, State] | None:
        """Return the plan and the State to resume from, on the device of the data; None where the
        fit is to start. Codes that are not in the file are copied to Z; chunks get their old size.

        The file is read if `resume` is set, else only its header. Raises InvalidInput, in all
        processes where it does in one, for a file that is damaged, too new, no checkpoint, or of
        another fit, and for files of several processes that are not of one save.
        """
        self._describe(data, Z)
        with self._processes.agreed():
            paths = dict.fromkeys((self.path, self._staged))
            saves = [Save.found(path) for path in paths if path.exists()]
        save, resumed = self._agree_on(saves), None
        if self._resume and save is not None:
            with self._processes.agreed():
                resumed = self._resumed(save, data, Z)
            log.info("%s: going on after iteration %d", self.path, len(resumed[1].history))
        elif self._resume:
            log.info("%s does not exist yet: the fit starts", self.path)
        with self._processes.agreed():
            self._tidy(saves, save)
        return resumed

    def follow(self, plan: Plan) -> Checkpoint:
        """Take the plan of the run that is saved; return self."""
        self._plan = plan
        return self

    def due(self) -> bool:
        """Return whether to save after this iteration, in all processes: time has passed, or one of
        them has received a signal to leave. A collective call."""
        late = self._processes.rank == 0 and time.perf_counter() - self._saved >= self._seconds
        return any(self._processes.any(self._interrupts.waits or late))

    def save(self, state: State) -> None:
        """Write the State in place of the last save; then leave if there was a signal to."""
        leaves = self._interrupts.waits
        self._write(state)
        self._saved = time.perf_counter()
        if leaves:
            log.warning("saved to %s", self.path)
            self._interrupts.leave()

    def _write(self, state: State) -> None:
        before = self._codes
        with self._processes.agreed():
            self._codes = self._save_codes(state.Z)
            # codes of data in passes are in that file, or not kept
            saved = replace(state, Z=NotKept()) if self._in_passes else state
            write(self._staged, self._folder, saved, self._plan, self._metadata())
        self._number += 1
        self._put_in_place(self._staged)
        if before is not None:
            self.path.with_name(before).unlink(missing_ok=True)
            self._folder.forget(before)

    def __enter__(self) -> Checkpoint:
        self._saved = time.perf_counter()
        self._interrupts.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._interrupts.__exit__(*raised)

    def _describe(self, data: Data, Z: Storage) -> None:
        """Add to the settings what must be the same of these data."""
        # codes in compressed rows are in a file of their own as well
        self._in_passes = not data.in_memory_here or isinstance(Z, Compressed)
        self._settings |= {
            "n": data.n,
            "d": data.d,
            "dtype": str(data.dtype).removeprefix("torch."),
            "device": data.device.type,
            "data": "in memory" if data.resident else "read in passes",
            "codes": {NotKept: "not kept", Compressed: "sparse"}.get(type(Z), "kept"),
        }
        if not self._processes.alone:
            self._settings |= {"processes": self._processes.size, "rows_here": data.n_here}
        self._squared_norm = data.squared_norm_here
        self._chunk_rows = data.chunk_rows if self._in_passes else None

    def _metadata(self) -> dict[str, str]:
        metadata = {
            "settings": json.dumps(self._settings),
            "squared_data": repr(self._squared_norm),
        }
        if self._codes is not None:
            metadata["codes"] = self._codes
        if self._chunk_rows is not None:
            metadata["chunk_rows"] = str(self._chunk_rows)
        if not self._processes.alone:
            metadata["save"] = f"{self._number}-{self._run}"
        return metadata

    def _save_codes(self, Z: Storage) -> str | None:
        """Write codes of data that are read in passes to a file beside the checkpoint, which is not
        that of the last save; return its name, or None."""
        if not self._in_passes or isinstance(Z, NotKept):
            return None
        sparse = isinstance(Z, Compressed)
        name = self._free_name(".npz" if sparse else ".npy")
        self._folder.note(name)
        path = self.path.with_name(name)
        if sparse:
            with replacing(path, self._folder) as part, writing(path):
                save_npz(part, Z.matrix())
            return name
        with written(path, self._folder, Z.shape, Z.dtype) as file:
            copy_rows(Z, file)
        return name

    def _free_name(self, suffix: str) -> str:
        """The name of a file with codes that does not exist yet: -a, -b, … -z, -26, …"""
        marks = itertools.chain(string.ascii_lowercase, itertools.count(26))
        names = (f"{self.path.stem}.codes-{mark}{suffix}" for mark in marks)
        return next(name for name in names if not self.path.with_name(name).exists())

    def _put_in_place(self, path: Path) -> None:
        if path != self.path:
            os.replace(path, self.path)

    def _agree_on(self, saves: list[Save]) -> Save | None:
        """Return the last of the saves here that all processes have. A collective call."""
        complete = any(save.path == self.path for save in saves)
        given = [save.name for save in saves], complete, self._run
        names, complete, runs = zip(*self._processes.gather(given), strict=True)
        self._number = 1 + max((number_of(name) for each in names for name in each), default=0)
        self._run = runs[0]
        name = max(set.intersection(*map(set, names)), key=number_of, default=None)
        save = next((save for save in saves if save.name == name), None)
        if saves:
            # a fit that starts anew keeps them, too, until it has saved
            self._codes = (save or saves[0]).codes
        if self._resume and save is None:
            self._refuse_parts(names, complete)
        return save

    def _refuse_parts(self, names: tuple[list[str], ...], complete: tuple[bool, ...]) -> None:
        """Refuse to start where there was a save of all these processes, or there is one of another
        number of them."""
        if any(complete):
            has = "; ".join(
                f"process {rank}: {', '.join(saves) or 'none'}" for rank, saves in enumerate(names)
            )
            raise InvalidInput(
                f"{self._given} has no save that all processes have ({has}); bring the files back "
                "that are missing, or fit without resume to start anew"
            )
        for others in self._processes.gather(self._processes.of_other_numbers(self._given)):
            if others:
                raise InvalidInput(
                    f"{self._given} is of a fit by another number of processes than the "
                    f"{self._processes.size} here: there is {others[0]}; fit by as many, or "
                    "without resume to start anew"
                )

    def _tidy(self, saves: list[Save], save: Save | None) -> None:
        """Keep only this save of the files here, in its place; without one, keep what is in place
        until the first save replaces it."""
        if save is not None:
            self._put_in_place(save.path)
        # those of a fit that was killed while it saved
        codes = set(self._folder.noted())
        for other in saves:
            if other is not save:
                codes.add(other.codes)
                if other.path != self.path:
                    other.path.unlink()
        for name in codes - {None, self._codes}:
            self.path.with_name(name).unlink(missing_ok=True)
            self._folder.forget(name)
        if self._codes is not None:
            self._folder.note(self._codes)

    def _forget_codes(self) -> None:
        """Remove the files with codes that were noted and belong to no save, and the notes."""
        saves = {self.path, self._staged}
        try:
            kept = {Save.found(path).codes for path in saves if path.exists()}
        except (InvalidInput, OSError):
            # which codes it goes with is not known
            return
        for name in self._folder.noted():
            if name not in kept:
                self.path.with_name(name).unlink(missing_ok=True)
            self._folder.forget(name)

    def _resumed(self, save: Save, data: Data, Z: Storage) -> tuple[Plan, State]:
        with refusing_damage(save.path):
            self._refuse_others(save)
            if self._in_passes:
                self._restore(save, data, Z)
            return save.read(data.device, Z if self._in_passes else None)

    def _restore(self, save: Save, data: Data, Z: Storage) -> None:
        """Copy the codes to Z, and give chunks their old size."""
        chunk_rows = int(save.metadata["chunk_rows"])
        # data in memory have chunks of any size
        if chunk_rows > data.chunk_rows and not data.resident:
            raise InvalidInput(
                f"{self.path} was computed with chunks of {chunk_rows:,} rows, and only "
                f"{data.chunk_rows:,} fit in memory now; give as much max_memory as then, or more"
            )
        data.take_chunks(chunk_rows)
        self._chunk_rows = chunk_rows
        if isinstance(Z, NotKept):
            return
        path = self.path.with_name(save.codes)
        try:
            codes = load_npz(path) if isinstance(Z, Compressed) else stored(path)
        except (OSError, ValueError, *ZIP_ERRORS) as error:
            raise InvalidInput(
                f"{self.path} goes with codes in {path.name}, which cannot be read ({error}); "
                "bring that file back, or fit without resume to start anew"
            ) from error
        if isinstance(Z, Compressed):
            Z.fill_(codes.to(device=Z.device))
        else:
            copy_rows(codes, Z)

    def _refuse_others(self, save: Save) -> None:
        """Refuse a save of another fit."""
        # earlier versions had NMF only, and no offset
        settings = {"dictionary": NON_NEGATIVE.name, "offset": False, "n_init": 1, **save.settings}
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
