"""Checkpoints of a fit: what its loop carries, saved now and then and before the process leaves,
and read again."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._version import __version__
from .engine import Iteration, State
from .errors import InvalidInput
from .paths import check_output, folder_of, refusing_damage, replacing
from .plan import Plan
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


class Checkpoint:
    """A file that a fit can go on from, to the bits that it would have had.

    path: .safetensors, replaced whole or not at all; codes of a stream are in a .npy file beside
    it, by turns of two names. seconds: between two saves, at least; 0 saves after every iteration.
    settings: what must be the same for a run to go on. Within `with`, and in the main thread,
    SIGINT and SIGTERM wait for the end of the iteration, which is then saved, and do then what they
    would have done; a second one does so at once.
    """

    def __init__(self, path: Any, seconds: float, settings: dict[str, Any], *, resume: bool):
        self._path = check_output(path, SUFFIXES)
        self._seconds, self._settings, self._resume = seconds, settings, resume
        self._plan: Plan | None = None
        # rows of a stream in hand, and the name of the file with its codes, beside the checkpoint
        self._chunk_rows: int | None = None
        self._codes: str | None = None
        self._saved = time.perf_counter()
        self._told: int | None = None
        self._handlers: dict[int, Any] = {}

    def begin(
        self, rows: Rows | Stream, store: InMemory | OnDisk | None
    ) -> tuple[Plan, State] | None:
        """The plan and the state to go on from, on the device of the rows; None where the fit is to
        start. Codes of a stream are brought to the store, and its chunks are as they were.

        The file is read if `resume` asks for it, and left alone. Raises InvalidInput for a file
        that is damaged, too new, no checkpoint, or one of another fit.
        """
        streams = isinstance(rows, Stream)
        device = rows.device if streams else rows.A.device
        self._settings |= {
            "n": rows.n,
            "d": rows.d,
            "dtype": str(rows.dtype).removeprefix("torch."),
            "device": device.type,
            "data": "read in passes" if streams else "in memory",
            "codes": "kept" if store or not streams else "not kept",
        }
        self._squared_data = rows.squared_data if streams else float(squared_norm(rows.A))
        self._chunk_rows = rows.chunk_rows if streams else None
        if not self._path.exists():
            if self._resume:
                log.info("%s does not exist yet: the fit starts", self._path)
            return None
        with refusing_damage(self._path), safetensors.safe_open(self._path, "pt") as file:
            metadata = self._checked(file.metadata() or {}, list(file.keys()))
            self._codes = metadata.get("codes")
            if not self._resume:
                return None
            if streams:
                self._restore(rows, store, int(metadata["chunk_rows"]))
            plan, state = _read(file, metadata, device)
            state = replace(state, Z=store) if streams else state
        log.info("%s: going on after iteration %d", self._path, len(state.history))
        return plan, state

    def follow(self, plan: Plan) -> Checkpoint:
        """The same, for a run by this plan."""
        self._plan = plan
        return self

    def keep(self, state: Callable[[], State]) -> None:
        """Called at the end of every iteration: save its state if it is time, or leave."""
        if self._told is not None or time.perf_counter() - self._saved >= self._seconds:
            self.save(state())
            self._saved = time.perf_counter()
        if self._told is not None:
            log.warning("saved to %s", self._path)
            self._leave()

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
        before, self._codes = self._codes, self._save_codes(state.Z)
        if self._codes is not None:
            metadata["codes"] = self._codes
        if self._chunk_rows is not None:
            metadata["chunk_rows"] = str(self._chunk_rows)
        # safetensors, too, writes to a file of its own first
        with folder_of(self._path) as folder, replacing(self._path, folder) as part:
            safetensors.torch.save_file(tensors, part, metadata=metadata)
        if before is not None:
            self._path.with_name(before).unlink(missing_ok=True)

    def _save_codes(self, Z: Tensor | Store) -> str | None:
        """Write codes of a stream to a file beside the checkpoint, and not over those of the last
        one; its name, or None."""
        if isinstance(Z, Tensor | NotKept):
            return None
        names = (f"{self._path.stem}.codes-{turn}.npy" for turn in "ab")
        name = next(name for name in names if name != self._codes)
        with written(self._path.with_name(name), Z.shape, Z.dtype) as file:
            copy_rows(Z, file)
        return name

    def _restore(self, rows: Stream, store: InMemory | OnDisk | None, chunk_rows: int) -> None:
        """Bring the codes to the store, and the chunks to their size."""
        if chunk_rows > rows.chunk_rows:
            raise InvalidInput(
                f"{self._path} was computed with {chunk_rows:,} rows in hand, and memory is for "
                f"{rows.chunk_rows:,} now; give as much max_memory as then, or more"
            )
        rows.take_chunks(chunk_rows)
        self._chunk_rows = chunk_rows
        if store is None:
            return
        path = self._path.with_name(self._codes)
        try:
            codes = stored(path)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{self._path} goes with codes in {path.name}, which cannot be read ({error}); "
                "bring that file back, or fit without resume to start anew"
            ) from error
        copy_rows(codes, store)

    def __enter__(self) -> Checkpoint:
        self._saved = time.perf_counter()
        if threading.current_thread() is threading.main_thread():
            self._catch()
        return self

    def __exit__(self, *_: object) -> None:
        if self._told is not None:
            self._leave()
        self._release()

    def _catch(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            # None: a handler that is not Python's, and cannot be put back
            if before not in (None, signal.SIG_IGN):
                self._handlers[number] = before
                signal.signal(number, self._wait)

    def _release(self) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)
        self._handlers.clear()

    def _wait(self, number: int, _: object) -> None:
        if self._told is not None:
            self._leave()
            return
        self._told = number
        log.warning("saving after this iteration; once more leaves without")

    def _leave(self) -> None:
        """Let the signal do what it would have done; the fit goes on where that is nothing."""
        number, self._told = self._told, None
        self._release()
        signal.raise_signal(number)
        self._catch()

    def _checked(self, metadata: dict[str, str], names: list[str]) -> dict[str, str]:
        path = self._path
        if metadata.get("format") != FORMAT:
            held = ", ".join(sorted(names)) or "nothing"
            raise InvalidInput(
                f"{path} holds {held}, and is no checkpoint of a fit; give checkpoint= another name"
            )
        if int(metadata["format_version"]) > FORMAT_VERSION:
            newer = f"format {metadata['format_version']} of fastnmf {metadata['fastnmf_version']}"
            own = f"fastnmf {__version__} reads up to format {FORMAT_VERSION}"
            raise InvalidInput(f"{path} is in {newer}; {own}: upgrade it")
        if not self._resume:
            return metadata
        settings = json.loads(metadata["settings"])
        differing = [
            f"{name}={settings.get(name)!r} there, {value!r} here"
            for name, value in self._settings.items()
            if settings.get(name) != value
        ]
        before, squared_data = float(metadata["squared_data"]), self._squared_data
        if not differing and abs(before - squared_data) > _SAME_DATA * squared_data:
            differing = [f"‖A‖²={before:g} there, {squared_data:g} here"]
        if differing:
            raise InvalidInput(
                f"{path} is a checkpoint of another fit: {'; '.join(differing)}. Fit as there, or "
                "without resume to start anew"
            )
        return metadata


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
