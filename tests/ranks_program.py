"""The processes of tests/test_ranks.py: python ranks_program.py FOLDER PROCESSES."""

from __future__ import annotations

import datetime
import os
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import distributed

from fastnmf import NMF

TIMEOUT = 20


def split(n: int, size: int, how: str) -> list[int]:
    """The bounds of each rank's rows."""
    if how == "even":
        return [n * rank // size for rank in range(size + 1)]
    # the first has most, the last none
    return [0, *[n * 3 // 4 + rank for rank in range(size - 2)], n, n]


def broken(_):
    raise ZeroDivisionError("as any callback may")


def fitted(A, rank: int, size: int, how: str, codes="memory", batches=False, **options):
    bounds = split(len(A), size, how)
    rows = A[bounds[rank] : bounds[rank + 1]]
    if batches:
        # a list of batches, which may be empty
        rows = list(rows.split(10)) if len(rows) else []
    nmf = NMF(distributed=True, **options)
    Z, D = nmf.fit(rows, codes=codes)
    return Z, D, nmf.fit_info_


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
    for A, all_ranks in cases:
        case = dict(all_ranks)
        # what one of them is given otherwise
        case |= case.pop("of", {}).get(rank, {})
        name = case.pop("file", None)
        if begun := case.pop("begun", None):
            case["callback"] = lambda _, begun=begun: (folder / begun).touch()
        if case.pop("raises", False):
            case["callback"] = broken
        codes = str(folder / name) if name else case.pop("codes", "memory")
        begun = time.perf_counter()
        try:
            Z, D, info = fitted(A, rank, size, codes=codes, **case)
            Z = None if Z is None else Z.clone()
            results.append({"Z": Z, "D": D, "info": info.as_dict(), "text": str(info)})
        except Exception as error:
            seconds = time.perf_counter() - begun
            results.append({"error": f"{type(error).__name__}: {error}", "seconds": seconds})
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
