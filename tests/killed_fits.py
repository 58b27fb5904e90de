"""Fits that are killed at random moments, resumed until they end, and compared bit by bit.

python tests/killed_fits.py KILLS [SOLVER FORM ...]: all solvers and forms, or these; exit status 1
where bits differ, or files are lost or left over. Each fit is a fork of this process, which has
loaded torch and computed nothing; one that is shared is two of them. At the same time there run, in
the same folders, the same fit with files of other names, and, where it is of one process, once more
with files of the same names: one of these two is refused, or comes after the other. One or more of
all these processes are killed.
"""

from __future__ import annotations

import datetime
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fits import nmf
from oracle import problem
from torch import distributed

from fastnmf import InvalidInput
from fastnmf.planning import memory
from fastnmf.solvers.registry import SOLVERS

ITERATIONS = {"anls": 12}
# in passes over a file, with codes in another; by two processes, and both
STREAMED, SHARED, SHARED_STREAMED = "streamed", "shared", "shared-streamed"
CASES = [(name, form) for name, solver in SOLVERS.items() for form in (*solver.forms, STREAMED)]
SHARED_CASES = [(name, form) for name in SOLVERS for form in (SHARED, SHARED_STREAMED)]
# by when the process whose peer was killed is expected to have ended, and its status then; the
# status of one whose files another is writing
SECONDS_TO_NOTICE, UNREACHED, REFUSED = 2, 3, 4
# names of the fit and of the one beside it
NAMES = "fit", "other"


def fork(act: Callable[..., None], *given) -> int:
    """Begin act(*given) in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        act(*given)
        status = 0
    except ConnectionError:
        status = UNREACHED
    except InvalidInput as error:
        status = REFUSED
        if "is being written by" not in str(error):
            status = 1
            traceback.print_exc()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass(frozen=True)
class Fit:
    """A fit and its files: codes and results in out, checkpoints in saved, by this name."""

    solver: str
    form: str
    out: Path
    saved: Path | None
    name: str = NAMES[0]

    @property
    def size(self) -> int:
        """How many processes it has."""
        return 2 if self.form in (SHARED, SHARED_STREAMED) else 1

    @property
    def streams(self) -> bool:
        return self.form in (STREAMED, SHARED_STREAMED)

    @property
    def checkpoint(self) -> Path | None:
        return None if self.saved is None else self.saved / f"{self.name}.safetensors"

    def rows(self, rank: int) -> torch.Tensor:
        """Those of one of its processes."""
        A = torch.tensor(problem(300, 40, 20)[0], dtype=torch.float32)
        return A[len(A) * rank // self.size : len(A) * (rank + 1) // self.size]

    def data(self, rank: int) -> Path:
        return self.out / f"A-{rank}.npy"

    def result(self, rank: int) -> Path:
        return self.out / f"result-{self.name}-{rank}.npz"

    def begin(self) -> list[int]:
        """The processes of the fit."""
        if self.size == 1:
            return [fork(self.run, 0)]
        # that of processes which were killed cannot be used again
        meeting = Path(tempfile.mkdtemp(dir=self.out.parent, prefix="meeting-"), "file")
        return [fork(self.run_shared, rank, meeting) for rank in range(self.size)]

    def run(self, rank: int) -> None:
        """The fit by one of its processes, which writes (Z, D) of its rows to a file."""
        A, options = self.rows(rank), {"form": None}
        codes: Path | str = "memory"
        if self.form in SOLVERS[self.solver].forms:
            options = {"form": self.form}
        if self.streams:
            options = {"max_memory": "200kB" if self.size == 1 else "150kB", "chunk_rows": 70}
            memory._OVERHEAD = memory.WORKSPACE_BYTES = 0
            memory.LEAST_ROWS = 64 // self.size
            codes, A = self.out / f"Z-{self.name}.npy", self.data(rank)
        options |= {"max_iter": ITERATIONS.get(self.solver, 30), "tol": 0, "checkpoint_seconds": 0}
        model = nmf(25, solver=self.solver, seed=0, distributed=self.size > 1, **options)
        resumes = {"checkpoint": self.checkpoint, "resume": self.saved is not None}
        Z, D = model.fit(A, codes=codes, **resumes)
        assert (model.fit_info_.chunk_rows is not None) == self.streams
        errors = [one.relative_error for one in model.fit_info_.history]
        np.savez(self.result(rank), Z=Z, D=D, errors=errors)

    def run_shared(self, rank: int, meeting: Path) -> None:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=self.size,
            timeout=datetime.timedelta(seconds=60),
        )
        self.run(rank)
        distributed.destroy_process_group()


def ended(children: list[int], refused: int = 0) -> int:
    """Wait for processes that must end well, except for as many that may be refused; returns how
    many were."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if statuses.count(REFUSED) > refused or {*statuses} - {0, REFUSED}:
        raise RuntimeError(f"fits ended with statuses {statuses}; they must end well or be killed")
    return statuses.count(REFUSED)


def killed(
    children: list[int], seconds: float, chance: random.Random, refuses: bool
) -> tuple[bool, int]:
    """(Whether a process was still running after this time, and one or more were killed; how many
    were refused). refuses: whether any may be."""
    time.sleep(seconds)
    for child in chance.sample(children, chance.randint(1, len(children))):
        os.kill(child, signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(waited(child)) for child in children]
    usual = (0, UNREACHED, REFUSED) if refuses else (0, UNREACHED)
    for status in statuses:
        # those of signals are negative
        if status >= 0 and status not in usual:
            raise RuntimeError(f"a fit that resumed ended with status {status}")
    return min(statuses) < 0, statuses.count(REFUSED)


def waited(child: int) -> int:
    """Its status, once it has ended, or is killed as torchrun does with what stays."""
    deadline = time.monotonic() + SECONDS_TO_NOTICE
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return status[1]


def same_after_kills(
    solver: str, form: str, kills: int, chance: random.Random
) -> tuple[int, int, int]:
    """(fits that reached their end, all to the bits of one that was left alone; how many were
    resumed after an iteration; how many were refused while another wrote their files). Raises
    AssertionError where bits differ, or files are not those that fits make."""
    with tempfile.TemporaryDirectory() as folder:
        alone, out, saved = (Path(folder, name) for name in ("alone", "out", "saved"))
        for place in (alone, out, saved):
            place.mkdir()
        expected = Fit(solver, form, alone, None)
        fits = [Fit(solver, form, out, saved, name) for name in NAMES]
        for fit in (expected, fits[0]):
            for rank in range(fit.size if fit.streams else 0):
                np.save(fit.data(rank), fit.rows(rank).numpy())
        ended(expected.begin())
        keep_something(out, saved)
        twins = fits[:1] if fits[0].size == 1 else []
        begun = time.perf_counter()
        ended([child for fit in fits for child in fit.begin()])
        usual = time.perf_counter() - begun
        made = names(out), names(saved)
        done = resumed = refused = 0
        empty(saved)
        while True:
            resumed += any(saved.glob(f"{NAMES[0]}*.safetensors"))
            children = [child for fit in (*fits, *twins) for child in fit.begin()]
            if kills == 0:
                refused += ended(children, refused=len(twins))
            else:
                was, number = killed(children, chance.uniform(0, usual), chance, bool(twins))
                refused += number
                if was:
                    kills -= 1
                    continue
            for fit in fits:
                for rank in range(fit.size):
                    assert_same(np.load(expected.result(rank)), np.load(fit.result(rank)))
            assert (names(out), names(saved)) == made, f"{names(out)} {names(saved)} are not {made}"
            assert_kept(out, saved)
            empty(saved)
            done += len(fits)
            if not kills:
                break
    return done, resumed, refused


def keep_something(*folders: Path) -> None:
    """Make what no fit may touch: a folder and a file of names that look like its own."""
    for folder in folders:
        (folder / f".Z-{NAMES[0]}.npy.part").mkdir()
        (folder / f".Z-{NAMES[0]}.npy.part" / "notes").write_text("mine")
        (folder / f"{NAMES[0]}.codes-b.npy").write_text("mine")


def assert_kept(*folders: Path) -> None:
    for folder in folders:
        assert (folder / f".Z-{NAMES[0]}.npy.part" / "notes").read_text() == "mine"
        assert (folder / f"{NAMES[0]}.codes-b.npy").read_text() == "mine"


def names(folder: Path) -> list[str]:
    """What lies there; which of its turns codes have is left out."""
    return sorted(re.sub("codes-[a-z]", "codes", file.name) for file in folder.iterdir())


def empty(folder: Path) -> None:
    """Remove what fits made."""
    for file in folder.iterdir():
        if file.is_file() and not file.read_bytes().startswith(b"mine"):
            file.unlink()


def assert_same(expected, given) -> None:
    for name in expected.files:
        assert np.array_equal(expected[name], given[name]), f"{name} differs"


def main() -> None:
    kills = int(sys.argv[1])
    given = list(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    cases = given or CASES + SHARED_CASES
    chance = random.Random(0)
    for number, (solver, form) in enumerate(cases):
        share = kills // len(cases) + (number < kills % len(cases))
        done, resumed, refused = same_after_kills(solver, form, share, chance)
        print(
            f"{solver} {form}: {share} kills, {resumed} times resumed, {refused} refused, "
            f"{done} fits ended alike"
        )


if __name__ == "__main__":
    main()
