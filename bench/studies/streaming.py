"""Show rows a second and peak memory of a streamed fit and of a fit of fewer rows in memory.

A float16 file of 384 features, 500 concepts, codes in a file and max_memory 2GB. Each fit runs in
a process of its own. Starts and reports are not timed; the peak memory is that of the whole fit.

Takes about five minutes. Needs Linux, and 6 GB on disk (3 kB a row).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fastnmf import NMF
from fastnmf.planning.memory import bytes_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import peak_kib
from support.options import count, parser_of

# rows drawn; the file repeats them with other scales
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


def fit(path: str, concepts: str, rows: str, codes: str, max_memory: str) -> None:
    """Print what one fit took as JSON; rows: how many to load first, or 0 to stream the file."""
    options = {"solver": "hals", "init": "random", "seed": 0, "tol": 0, "max_iter": ITERATIONS}
    A = path
    if int(rows):
        A = torch.from_numpy(np.load(path, mmap_mode="r")[: int(rows)].astype(np.float32))
    # memory that every process takes once
    NMF(2, max_iter=1, tol=0).fit(torch.rand(2000, 300))
    before = peak_kib()
    marks = []
    options["callback"] = lambda _: marks.append(time.process_time())
    nmf = NMF(int(concepts), max_memory=max_memory or None, **options)
    nmf.fit(A, codes=codes or "memory")
    info = nmf.fit_info_
    seconds = info.history[-1].seconds
    report = {
        "rows": info.n,
        "rows_a_second": info.n * info.iterations / seconds,
        "processor_seconds_a_pass": marks[-1] - marks[0],
        "peak_growth_bytes": (peak_kib() - before) << 10,
        "chunk_rows": info.chunk_rows,
        "tile_rows": info.tile_rows,
        "passes": info.passes,
        "whole_seconds": info.seconds,
        "relative_error": info.relative_error,
    }
    print(json.dumps(report))


def run(*given: object) -> dict:
    command = [sys.executable, __file__, "--one", *map(str, given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--rows", type=count, default=2_000_000, help="rows of the file (2,000,000)")
    add("--resident-rows", type=count, default=200_000, help="rows of the fit in memory (200,000)")
    add("--features", type=count, default=384)
    add("--concepts", type=count, default=500)
    add("--max-memory", default="2GB")
    add("--folder", help="for the files; default: a temporary one")
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
    # processor time shows the cost of streaming on a busy machine too
    work = [fit["processor_seconds_a_pass"] / fit["rows"] for fit in (resident, streamed)]
    print(json.dumps({"resident": resident, "streamed": streamed}, indent=1))
    print(
        f"{size / 1e9:.3g} GB in files; {share:.0%} of the resident rate, "
        f"{work[1] / work[0]:.3g} times its processor time; grew by "
        f"{streamed['peak_growth_bytes'] / 1e9:.3g} GB of {bytes_of(arguments.max_memory) / 1e9:g}"
    )


if __name__ == "__main__":
    fit(*sys.argv[2:]) if sys.argv[1:2] == ["--one"] else main()
