"""Rows a second and peak memory of a streamed fit, beside the resident fit of fewer rows.

python bench/bench_stream.py [--rows 600000]: a float16 file of 384 features, 500 concepts, codes in
a file, max_memory 2GB; 2,000,000 rows by default. Not part of `pytest bench`. Each fit runs in a
process of its own; starts and accounts are not timed, peaks are of all.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fastnmf import NMF
from fastnmf.budget import bytes_of

# rows drawn; the file repeats them, each time in another scale
DRAWN = 20_000
ITERATIONS = 2


def write(path: Path, n: int, d: int) -> None:
    """Rectified Gaussian rows in float16."""
    rows = np.random.default_rng(0).standard_normal((DRAWN, d)).clip(0)
    file = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
    for number, first in enumerate(range(0, n, DRAWN)):
        last = min(first + DRAWN, n)
        file[first:last] = rows[: last - first] * (1 + number % 7 / 7)
    file.flush()


def peak_bytes() -> int:
    """Of this process; ru_maxrss would begin with the peak of the one that started it."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def fit(path: str, concepts: str, rows: str, codes: str, max_memory: str) -> None:
    """Print what one fit took, as JSON; rows: how many are loaded before, or 0 for the path."""
    options = {"solver": "hals", "init": "random", "seed": 0, "tol": 0, "max_iter": ITERATIONS}
    A = path
    if int(rows):
        A = torch.from_numpy(np.load(path, mmap_mode="r")[: int(rows)].astype(np.float32))
    # what every process takes once
    NMF(2, max_iter=1, tol=0).fit(torch.rand(2000, 300))
    before = peak_bytes()
    marks = []
    options["callback"] = lambda _: marks.append(time.process_time())
    nmf = NMF(int(concepts), max_memory=max_memory or None, **options)
    nmf.fit(A, codes=codes or "memory")
    info = nmf.fit_info_
    seconds = info.history[-1].seconds
    told = {
        "rows": info.n,
        "rows_a_second": info.n * info.iterations / seconds,
        "processor_seconds_a_pass": marks[-1] - marks[0],
        "peak_growth_bytes": peak_bytes() - before,
        "chunk_rows": info.chunk_rows,
        "piece_rows": info.piece_rows,
        "passes": info.passes,
        "whole_seconds": info.seconds,
        "relative_error": info.relative_error,
    }
    print(json.dumps(told))


def run(*given: object) -> dict:
    command = [sys.executable, __file__, "--one", *map(str, given)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--resident-rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--concepts", type=int, default=500)
    parser.add_argument("--max-memory", default="2GB")
    parser.add_argument("--folder", help="for the files; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "A.npy"
        write(path, arguments.rows, arguments.features)
        loaded = min(arguments.resident_rows, arguments.rows)
        resident = run(path, arguments.concepts, loaded, "", "")
        codes = Path(folder) / "Z.npy"
        streamed = run(path, arguments.concepts, 0, codes, arguments.max_memory)
        size = path.stat().st_size + codes.stat().st_size
    if streamed["chunk_rows"] is None:
        parser.error("the data fit in max_memory and were gathered; take more rows or less memory")
    share = streamed["rows_a_second"] / resident["rows_a_second"]
    # tells what streaming costs where others keep the machine busy
    work = [fit["processor_seconds_a_pass"] / fit["rows"] for fit in (resident, streamed)]
    print(json.dumps({"resident": resident, "streamed": streamed}, indent=1))
    print(
        f"{size / 1e9:.3g} GB in files; {share:.0%} of the resident rate, "
        f"{work[1] / work[0]:.3g} times its processor time; grew by "
        f"{streamed['peak_growth_bytes'] / 1e9:.3g} GB of {bytes_of(arguments.max_memory) / 1e9:g}"
    )


if __name__ == "__main__":
    fit(*sys.argv[2:]) if sys.argv[1:2] == ["--one"] else main()
