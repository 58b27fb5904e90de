"""Show how much longer an iteration takes beside one other busy process.

Of fits with a random start and a fixed number of iterations, by fastnmf and by scikit-learn's `cd`
(where installed), of several sizes; alone, and beside a process of this study's own that computes
without end. Each runs --rounds times, in turns, so that all meet a change of the machine alike; the
median counts.

Takes about four minutes. Nothing else may run meanwhile: a machine that is busy is refused, unless
--quick is given.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastnmf import NMF

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import machine
from support.options import count, parser_of, write_json
from support.tables import machine_text, markdown_head, markdown_row

# n, d, K, and iterations that take about a second alone
SIZES = [(1_797, 64, 16, 2_000), (20_000, 384, 50, 100), (4_000, 384, 1_000, 20)]
QUICK = [(1_797, 64, 16, 300), (20_000, 384, 50, 20)]
STAT = Path("/proc/stat")
# share of the cores that others may use
_OTHERS = 0.1


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end, as long as the context lasts."""
    code = "print(flush=True)\nwhile True: pass"
    started = []
    try:
        for _ in range(processes):
            command = [sys.executable, "-c", code]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
            # it runs once it has written
            started[-1].stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ways(A: torch.Tensor, K: int, iterations: int) -> dict[str, Callable[[], float]]:
    """Name → a function that returns the seconds of an iteration."""

    def ours() -> float:
        model = NMF(K, init="random", seed=0, max_iter=iterations, tol=0, accelerate=False)
        model.fit(A)
        return model.fit_info_.history[-1].seconds / iterations

    found = {"fastnmf": ours}
    try:
        from sklearn.decomposition import NMF as Sklearn
    except ImportError:
        return found
    few, rows = max(2, iterations // 10), A.numpy()

    def cd() -> float:
        model = Sklearn(K, init="random", random_state=0, max_iter=few, tol=0)
        begun = time.perf_counter()
        model.fit(rows)
        return (time.perf_counter() - begun) / few

    return found | {"scikit-learn": cd}


def others() -> float:
    """The share of the cores that other processes use for a second."""
    if not STAT.exists():
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    before = spent()
    # no work of our own
    time.sleep(1)
    busy, total = (now - then for now, then in zip(spent(), before, strict=True))
    return busy / total


def spent() -> tuple[int, int]:
    """The ticks of all cores so far: busy, and in all."""
    ticks = [int(number) for number in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--rounds", type=count, default=5, help="times that each way is timed (5)")
    add("--threads", type=count, default=2, help="threads of torch (2)")
    add("--busy", type=count, default=1, help="busy processes (1)")
    add("--out", help="file to write all seconds to, .json")
    add("--quick", action="store_true", help="small sizes, on any machine, to try the study")
    arguments = parser.parse_args()
    if others() > _OTHERS and not arguments.quick:
        parser.error(f"other processes use {others():.0%} of the cores; end them, or give --quick")
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    drawn = torch.Generator().manual_seed(0)
    print(f"{machine_text(machine())}, {arguments.busy} busy\n")
    head = ["n × d, concepts", "library", "ms alone", "ms beside it", "times as long"]
    print(markdown_head(head))
    results = []
    for n, d, K, iterations in QUICK if arguments.quick else SIZES:
        A = torch.rand(n, 20, generator=drawn) @ torch.rand(20, d, generator=drawn)
        A += 0.1 * torch.rand(n, d, generator=drawn)
        timed: dict[tuple[str, int], list[float]] = {}
        for way in ways(A, K, 2).values():
            # libraries are loaded
            way()
        for _ in range(arguments.rounds):
            for name, way in ways(A, K, iterations).items():
                for processes in (0, arguments.busy):
                    with busy(processes):
                        timed.setdefault((name, processes), []).append(way())
        for name in dict.fromkeys(name for name, _ in timed):
            alone, beside = (timed[name, processes] for processes in (0, arguments.busy))
            middle = [statistics.median(each) for each in (alone, beside)]
            cells = [f"{n:,} × {d}, K = {K:,}", name, *(f"{1e3 * each:.3g}" for each in middle)]
            print(markdown_row([*cells, f"{middle[1] / middle[0]:.2f}"]), flush=True)
            results.append(
                {"n": n, "d": d, "K": K, "library": name, "alone": alone, "beside": beside}
            )
    if arguments.out:
        write_json(arguments.out, {"machine": machine(), "busy": arguments.busy, "runs": results})


if __name__ == "__main__":
    main()
