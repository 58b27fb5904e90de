"""Fits that are killed at random moments, resumed until they end, and compared bit by bit.

python tests/killed_fits.py KILLS [SOLVER FORM ...]: all solvers and forms, or these; exit status 1
where bits differ. Each fit is a fork of this process, which has loaded torch and computed nothing;
one that is shared is two of them, of which one or both are killed.
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
from pathlib import Path

import numpy as np
import torch
from fits import nmf
from oracle import problem
from torch import distributed

from fastnmf.planning import memory
from fastnmf.solvers.registry import SOLVERS

ITERATIONS = {"anls": 12}
# in passes over a file, with codes in another; by two processes, and both
STREAMED, SHARED, SHARED_STREAMED = "streamed", "shared", "shared-streamed"
CASES = [(name, form) for name, solver in SOLVERS.items() for form in (*solver.forms, STREAMED)]
SHARED_CASES = [(name, form) for name in SOLVERS for form in (SHARED, SHARED_STREAMED)]
# by when the process whose peer was killed is expected to have ended, and its status then
SECONDS_TO_NOTICE, UNREACHED = 2, 3


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
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def fit(solver: str, form: str, out: Path, checkpoint: Path | None, rank: int, size: int) -> None:
    """The fit, by one of `size` processes, which writes (Z, D) of its rows to a file in out."""
    A = torch.tensor(problem(300, 40, 20)[0], dtype=torch.float32)
    A = A[len(A) * rank // size : len(A) * (rank + 1) // size]
    options, codes = {"form": form if form in SOLVERS[solver].forms else None}, "memory"
    if form in (STREAMED, SHARED_STREAMED):
        options = {"max_memory": "200kB" if size == 1 else "150kB", "chunk_rows": 70}
        memory._OVERHEAD = memory.WORKSPACE_BYTES = 0
        memory.LEAST_ROWS = 64 // size
        codes = out / "Z.npy"
        np.save(out / f"A-{rank}.npy", A.numpy())
        A = out / f"A-{rank}.npy"
    options |= {"max_iter": ITERATIONS.get(solver, 30), "tol": 0, "checkpoint_seconds": 0}
    model = nmf(25, solver=solver, seed=0, distributed=size > 1, **options)
    Z, D = model.fit(A, codes=codes, checkpoint=checkpoint, resume=checkpoint is not None)
    assert (model.fit_info_.chunk_rows is None) == (form not in (STREAMED, SHARED_STREAMED))
    errors = [one.relative_error for one in model.fit_info_.history]
    np.savez(out / f"result-{rank}.npz", Z=Z, D=D, errors=errors)


def fit_shared(rank: int, size: int, meeting: Path, *given) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    fit(*given, rank, size)
    distributed.destroy_process_group()


def begin(solver: str, form: str, out: Path, checkpoint: Path | None) -> list[int]:
    """The processes of a fit."""
    given = solver, form, out, checkpoint
    if form not in (SHARED, SHARED_STREAMED):
        return [fork(fit, *given, 0, 1)]
    # that of processes which were killed cannot be used again
    meeting = Path(tempfile.mkdtemp(dir=out.parent, prefix="meeting-"), "file")
    return [fork(fit_shared, rank, 2, meeting, *given) for rank in range(2)]


def ended(children: list[int]) -> None:
    for status in [os.waitpid(child, 0)[1] for child in children]:
        if status:
            raise RuntimeError(f"a fit ended with status {status}; it must end well or be killed")


def killed(children: list[int], seconds: float, chance: random.Random) -> bool:
    """Whether a process was still running after this time, and one or more were killed."""
    time.sleep(seconds)
    for child in chance.sample(children, chance.randint(1, len(children))):
        os.kill(child, signal.SIGKILL)
    statuses = [waited(child) for child in children]
    for status in statuses:
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) not in (0, UNREACHED):
            raise RuntimeError(f"a fit that resumed ended with status {status}")
    return any(statuses)


def waited(child: int) -> int:
    """Its status, once it has ended, or is killed as torchrun does with what stays."""
    deadline = time.monotonic() + SECONDS_TO_NOTICE
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return status[1]


def same_after_kills(solver: str, form: str, kills: int, chance: random.Random) -> tuple[int, int]:
    """(fits that reached their end, all to the bits of one that was left alone; how many were
    resumed after an iteration). Raises AssertionError where bits differ."""
    with tempfile.TemporaryDirectory() as folder:
        alone, out, saved = (Path(folder, name) for name in ("alone", "out", "saved"))
        for place in (alone, out, saved):
            place.mkdir()
        checkpoint = saved / "fit.safetensors"
        ended(begin(solver, form, alone, None))
        begun = time.perf_counter()
        ended(begin(solver, form, out, checkpoint))
        usual = time.perf_counter() - begun
        made = names(out), names(saved)
        done = resumed = 0
        empty(saved)
        while True:
            resumed += any(saved.glob("fit*.safetensors"))
            children = begin(solver, form, out, checkpoint)
            if kills == 0:
                ended(children)
            elif killed(children, chance.uniform(0, usual), chance):
                kills -= 1
                continue
            for result in alone.glob("result-*.npz"):
                assert_same(np.load(result), np.load(out / result.name))
            assert (names(out), names(saved)) == made
            empty(saved)
            done += 1
            if not kills:
                break
    return done, resumed


def names(folder: Path) -> list[str]:
    """What lies there; which of its turns codes have is left out."""
    return sorted(re.sub("codes-[ab]", "codes", file.name) for file in folder.iterdir())


def empty(folder: Path) -> None:
    for file in folder.iterdir():
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
        done, resumed = same_after_kills(solver, form, share, chance)
        print(f"{solver} {form}: {share} kills, {resumed} times resumed, {done} fits ended alike")


if __name__ == "__main__":
    main()
