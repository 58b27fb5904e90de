"""Fits that are killed at random moments, resumed until they end, and compared bit by bit.

python tests/killed_fits.py KILLS [SOLVER FORM]: all solvers and forms, or one; exit status 1 where
bits differ. Each fit is a fork of this process, which has loaded torch and computed nothing.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from oracle import problem

from fastnmf import NMF, budget
from fastnmf.solvers import SOLVERS

ITERATIONS = {"anls": 12}
# in passes over a file, with codes in another
STREAMED = "streamed"
CASES = [(name, form) for name, solver in SOLVERS.items() for form in (*solver.forms, STREAMED)]


def fork_fit(solver: str, form: str, out: Path, checkpoint: Path | None) -> int:
    """Begin the fit in a process of its own, which writes (Z, D) to out; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        A = torch.tensor(problem(300, 40, 20)[0], dtype=torch.float32)
        options, codes = {"form": form}, "memory"
        if form == STREAMED:
            options = {"max_memory": "200kB", "chunk_rows": 70}
            budget._OVERHEAD = budget.WORKSPACE_BYTES = 0
            budget.LEAST_ROWS = 64
            codes = out.with_suffix(".codes.npy")
            np.save(out.with_suffix(".data.npy"), A.numpy())
            A = out.with_suffix(".data.npy")
        model = NMF(
            25,
            solver=solver,
            seed=0,
            max_iter=ITERATIONS.get(solver, 30),
            tol=0,
            checkpoint=checkpoint,
            checkpoint_seconds=0,
            **options,
        )
        Z, D = model.fit(A, resume=checkpoint is not None, codes=codes)
        assert (model.fit_info_.chunk_rows is None) == (form != STREAMED)
        np.savez(out, Z=Z, D=D, errors=[one.relative_error for one in model.fit_info_.history])
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a fit ended with status {status}; it must end well or be killed")


def killed(child: int, seconds: float) -> bool:
    """Whether the process was still running after so many seconds, and so was killed."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise RuntimeError(f"a fit that resumed ended with status {status}")
    return False


def same_after_kills(solver: str, form: str, kills: int, chance: random.Random) -> tuple[int, int]:
    """(fits that reached their end, all to the bits of one that was left alone; how many were
    resumed after an iteration). Raises AssertionError where bits differ."""
    with tempfile.TemporaryDirectory() as folder:
        alone, out = Path(folder, "alone.npz"), Path(folder, "out.npz")
        checkpoint = Path(folder, "fit.safetensors")
        ended(fork_fit(solver, form, alone, None))
        begun = time.perf_counter()
        ended(fork_fit(solver, form, out, checkpoint))
        usual = time.perf_counter() - begun
        checkpoint.unlink()
        done = resumed = 0
        while True:
            resumed += checkpoint.exists()
            child = fork_fit(solver, form, out, checkpoint)
            if kills == 0:
                ended(child)
            elif killed(child, chance.uniform(0, usual)):
                kills -= 1
                continue
            assert_same(np.load(alone), np.load(out))
            checkpoint.unlink()
            for file in Path(folder).glob("fit.codes-*.npy"):
                file.unlink()
            done += 1
            if not kills:
                break
        left = {file.name for file in Path(folder).iterdir()}
        left -= {f"{name}.{what}.npy" for name in ("alone", "out") for what in ("codes", "data")}
        assert left == {"alone.npz", "out.npz"}, left
    return done, resumed


def assert_same(expected, given) -> None:
    for name in expected.files:
        assert np.array_equal(expected[name], given[name]), f"{name} differs"


def main() -> None:
    kills = int(sys.argv[1])
    cases = [tuple(sys.argv[2:4])] if len(sys.argv) > 2 else CASES
    chance = random.Random(0)
    for number, (solver, form) in enumerate(cases):
        share = kills // len(cases) + (number < kills % len(cases))
        done, resumed = same_after_kills(solver, form, share, chance)
        print(f"{solver} {form}: {share} kills, {resumed} times resumed, {done} fits ended alike")


if __name__ == "__main__":
    main()
