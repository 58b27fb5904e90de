"""The processes of tests/test_distributed.py, tests/fit/test_shared_checkpoints.py and
tests/data/test_shared.py: python shared_program.py FOLDER PROCESSES."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from fits import nmf
from torch import distributed

from fastnmf import InvalidInput
from fastnmf.data import locks
from fastnmf.engine.statistics import Statistics
from fastnmf.fit.checkpoint import Checkpoint
from fastnmf.planning import hardware, memory

TIMEOUT = 20


def split(n: int, size: int, how: str) -> list[int]:
    """The bounds of the rows of each process."""
    if how == "even":
        return [n * rank // size for rank in range(size + 1)]
    # the first has most, the last none
    return [0, *[n * 3 // 4 + rank for rank in range(size - 2)], n, n]


def broken(_):
    raise ZeroDivisionError("as any callback may")


machine_of = hardware.machine_of


def instant(*given):
    """A machine whose processes exchange in no time: everything is worth splitting."""
    return dataclasses.replace(machine_of(*given), link=float("inf"), reduce_seconds=0.0)


measure_error_ = Statistics.measure_error_


def measure_error_rounded_(statistics, D, cross, G):
    """As on a processor that rounds otherwise, and much."""
    D.mul_(1 + 0.03 * torch.rand(D.shape, generator=torch.Generator().manual_seed(0)))
    measure_error_(statistics, D, cross, D @ D.T)


class Killed(BaseException):
    """Ends a fit as a signal would: nothing is sent to the others, and nothing is tidied up."""


@contextmanager
def failing(killed_at: int = 0, fails_at: int = 0) -> Iterator[None]:
    """Of the replacements and removals of files, count from 1 and raise Killed in place of one and
    all that follow; or OSError in place of one."""
    done = 0

    def counted(act):
        def acts(*given, **options):
            nonlocal done
            done += 1
            if 0 < killed_at <= done:
                raise Killed
            if done == fails_at:
                raise OSError("no space left")
            return act(*given, **options)

        return acts

    def let_go(folder, file):
        if not 0 < killed_at <= done:
            release(folder, file)
        else:
            # as the system does
            locks._held.discard(file)
            os.close(file)

    def forget(checkpoint):
        if not 0 < killed_at <= done:
            forget_codes(checkpoint)

    replace, unlink, release = os.replace, Path.unlink, locks._release
    forget_codes = Checkpoint._forget_codes
    os.replace, Path.unlink, locks._release = counted(replace), counted(unlink), let_go
    Checkpoint._forget_codes = forget
    try:
        yield
    finally:
        os.replace, Path.unlink, locks._release = replace, unlink, release
        Checkpoint._forget_codes = forget_codes


def leaving(iteration: int):
    def leave(info):
        if info.iteration == iteration:
            raise Killed

    return leave


def fitted(A, rank, size, how, folder, codes="memory", batches=False, resume=False, **options):
    bounds = split(len(A), size, how)
    rows = A[bounds[rank] : bounds[rank + 1]]
    if isinstance(options.get("init"), tuple):
        Z0, D0 = options["init"]
        options["init"] = Z0[bounds[rank] : bounds[rank + 1]], D0
    sparse = options.pop("sparse", False)
    if batches:
        # a list of batches, which may be empty
        rows = list(rows.split(10)) if len(rows) else []
    if sparse:
        rows = [some.to_sparse_csr() for some in rows] if batches else rows.to_sparse_csr()
    if "max_memory" in options:
        memory._OVERHEAD = memory.WORKSPACE_BYTES = 0
        memory.LEAST_ROWS = 16
        np.save(folder / f"rows-{rank}.npy", rows.numpy())
        rows = folder / f"rows-{rank}.npy"
    hardware.machine_of = instant if options.pop("instant", False) else machine_of
    rounds = options.pop("rounds", False)
    Statistics.measure_error_ = measure_error_rounded_ if rounds else measure_error_
    run = {"codes": codes, "resume": resume, "max_seconds": options.pop("max_seconds", None)}
    if options.pop("raises", False):
        run["callback"] = broken
    if begun := options.pop("begun", None):
        run["callback"] = lambda _: (folder / begun).touch()
    if left := options.pop("left_in", None):
        run["callback"] = leaving(left)
    if name := options.pop("file", None):
        run["codes"] = str(folder / name)
    if name := options.pop("checkpoint", None):
        run["checkpoint"] = folder / name
    options = {"distributed": True, **options}
    faults = {name: options.pop(name) for name in ("killed_at", "fails_at") if name in options}
    with failing(**faults):
        model = nmf(**options)
        Z, D = model.fit(rows, **run)
    return Z, D, model.fit_info_


def learned(batches, rank, size, how, given=None, spoiled=None, half_life=None, **options) -> dict:
    """What partial_fit makes of batches, each split. given: a dictionary to continue from. spoiled:
    by the number of a batch, what makes of the rows here what is given instead."""
    model = nmf(distributed=True, **options)
    if given is not None:
        model.load_dictionary(given)
    errors = []
    for number, batch in enumerate(batches):
        bounds = split(len(batch), size, how)
        if how == "turns":
            bounds = [0 if part <= number % size else len(batch) for part in range(size + 1)]
        rows = batch[bounds[rank] : bounds[rank + 1]]
        rows = (spoiled or {}).get(number, lambda rows: rows)(rows)
        before = [model.D, model._gram, model._cross, model.online_info_, model.fitted]
        errors.append(None)
        try:
            model.partial_fit(rows, half_life=half_life)
        except Exception as error:
            errors[-1] = f"{type(error).__name__}: {error}"
            after = [model.D, model._gram, model._cross, model.online_info_, model.fitted]
            assert all(its is mine for its, mine in zip(after, before, strict=True))
    info = model.online_info_ and model.online_info_.as_dict()
    kept = {"D": model.D, "gram": model._gram, "cross": model._cross}
    return {**kept, "info": info, "text": str(model.online_info_), "errors": errors}


def held(folder: Path) -> dict[str, int]:
    """What lies in a folder, by name, once all processes are here."""
    distributed.barrier()
    files = (file for file in folder.iterdir() if not file.name.startswith("rows-"))
    return {file.name: zlib.crc32(file.read_bytes()) for file in files if file.is_file()}


def result(A, rank: int, size: int, folder: Path, options: dict) -> dict:
    case = dict(options)
    # fits that come before, to their end or not; and what is then done to the file of a process
    before, harm = case.pop("before", ()), case.pop("harm", {}).get(rank)
    # what one of them is given otherwise
    separate = case.pop("of", {}).get(rank, {})
    for attempt in before:
        options = {"A": A, **case, **attempt}
        options |= options.pop("of", {}).get(rank, {})
        with suppress(Killed, ConnectionError, InvalidInput, OSError):
            if not options.pop("absent", False):
                fitted(rank=rank, size=size, folder=folder, **options)
    case |= separate
    if isinstance(A, list):
        begun = time.perf_counter()
        found = learned(A, rank, size, **case)
        return found | {"seconds": time.perf_counter() - begun}
    if harm is not None:
        harm(folder / f"fit-{rank:05d}-of-{size:05d}.safetensors")
    # which waits for all processes, and of one that goes on until it is killed some are gone
    checks = "checkpoint" in case and "begun" not in case
    files = held(folder) if checks else {}
    begun = time.perf_counter()
    if case.pop("absent", False):
        return {"before": files, "after": held(folder)}
    try:
        Z, D, info = fitted(A, rank, size, folder=folder, **case)
        Z = None if Z is None else Z.clone()
        found = {"Z": Z, "D": D, "info": info.as_dict(), "text": str(info)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    found["seconds"] = time.perf_counter() - begun
    return found | {"before": files, "after": held(folder) if checks else {}}


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    cases = torch.load(folder / "cases.pt", weights_only=False)
    results = []
    for number, (A, case) in enumerate(cases):
        place = folder / f"case-{number}" if "checkpoint" in case else folder
        place.mkdir(exist_ok=True)
        results.append(result(A, rank, size, place, case))
    torch.save(results, folder / f"results-{rank}.pt")
    distributed.destroy_process_group()


def begin(folder: Path, rank: int, size: int) -> int:
    """Begin a process, which has loaded torch and computed nothing; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        main(folder, rank, size)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    place, processes = Path(sys.argv[1]), int(sys.argv[2])
    children = [begin(place, rank, processes) for rank in range(processes)]
    (place / "processes").write_text(" ".join(map(str, children)))
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
