"""Show what several processes cost: measured on this machine, or predicted for many GPUs.

Measured: two processes of one thread and one process of two threads, in turns, plain HALS from
the same start. Printed are the best iteration of all rounds, the ratios of the best iterations and
of the best medians of a round, and how far the two dictionaries differ.

Predicted (--predict): seconds of an iteration on 8 to 512 GPUs, by the cost model; nothing is run.

Takes a few minutes, and some seconds with --quick or --predict. Needs two cores, and
torch.distributed with gloo.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from fastnmf import NMF
from fastnmf.planning import plan
from fastnmf.planning.cards import H100
from fastnmf.planning.hardware import gpu_machine
from fastnmf.solvers.registry import SOLVERS

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.gaussian import rectified_gaussian
from support.options import count, parser_of, positive
from support.tables import markdown_head, markdown_row

# (n, d, K) and iterations of a fit
SHAPES = {
    (20_000, 384, 50): 60,
    (20_000, 384, 500): 8,
    (20_000, 384, 2_000): 4,
    (4_000, 384, 2_000): 8,
}
ROUNDS, QUICK_SHAPES = 5, {(2_000, 64, 20): 5}
MEASURED = ["n, d, K", "1 × 2 threads", "2 × 1 thread", "ratio", "of medians", "form, block",
            "exchanged", "D differs by"]  # fmt: skip
PREDICTED = ["K", "GPUs", "rows and codes, a GPU", "form, block", "computing", "from the host",
             "network", "iteration", "over the network", "what limits"]  # fmt: skip
# bytes of an H100 for rows, codes and a residual, and bytes a second from and to its host
HOLDS, HOST = 70e9, 25e9


def fit(rows: torch.Tensor, K: int, iterations: int, threads: int, **options) -> tuple:
    """(model, seconds of each iteration but the first)."""
    torch.set_num_threads(threads)
    options |= {"init": "random", "seed": 0, "tol": 0, "accelerate": False}
    nmf = NMF(K, max_iter=iterations, **options)
    nmf.fit(rows)
    ends = [iteration.seconds for iteration in nmf.fit_info_.history]
    return nmf, [after - before for before, after in itertools.pairwise(ends)]


def take_part(folder: Path, rank: int, quick: bool) -> None:
    """One of the two processes: process 0 fits alone while the other waits, then both, in turns."""
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for (n, d, K), iterations in (QUICK_SHAPES if quick else SHAPES).items():
        A = rectified_gaussian(n, d)
        mine = A[n * rank // 2 : n * (rank + 1) // 2].clone()
        rounds = []
        for _ in range(ROUNDS):
            distributed.barrier()
            alone = fit(A, K, iterations, 2) if rank == 0 else None
            distributed.barrier()
            rounds.append((alone, fit(mine, K, iterations, 1, distributed=True)))
        if rank == 0:
            print(line(n, d, K, rounds), flush=True)
    distributed.destroy_process_group()


def line(n: int, d: int, K: int, rounds: list) -> str:
    one, two = (nmf for nmf, _ in rounds[0])
    columns = list(zip(*rounds, strict=True))
    least = [min(min(taken) for _, taken in fits) * 1e3 for fits in columns]
    medians = [min(statistics.median(taken) for _, taken in fits) for fits in columns]
    info = two.fit_info_
    difference = float((one.D - two.D).norm() / one.D.norm())
    cells = [
        f"{n:,}, {d:,}, {K:,}",
        *(f"{time:.1f} ms" for time in least),
        f"{least[1] / least[0]:.2f}",
        f"{medians[1] / medians[0]:.2f}",
        f"{info.form}, {info.block}",
        f"{info.reduced_bytes / 1e6:.1f} MB",
        f"{difference:.0e}",
    ]
    return markdown_row(cells)


def measure(quick: bool) -> None:
    print(markdown_head(MEASURED), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # the most threads that one of the processes uses
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, __file__, "--in", folder, *["--quick"] * quick, "--rank"]
        running = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
        if any([process.wait() for process in running]):
            raise SystemExit("a process failed")


def predict(n: float, d: int) -> None:
    """By the cost model of fastnmf/planning, in the form that it chooses.

    The rates of an H100 and its network are assumed. Rows and codes that do not fit a GPU come from
    its host, and codes go back, while it computes.
    """
    on = gpu_machine(H100, tf32=True)
    print(f"PREDICTED: n = {n:,.0f}, d = {d:,}, float32 held, tf32 products\n")
    print(markdown_head(PREDICTED))
    for K, gpus in itertools.product((10_000, 32_000), (8, 64, 512)):
        rows = int(n / gpus)
        held = 4 * rows * (d + K)
        fits = held + 4 * rows * d < HOLDS
        problem = plan.Problem(rows, d, K, 4, SOLVERS["hals"], streams=not fits, processes=gpus)
        chosen = plan.choose(problem, on)
        shared = chosen.dictionary, chosen.splits, chosen.block
        summed, network = plan.exchange(problem, *shared, on)
        computing = chosen.seconds - network
        host = 0.0 if fits else 4 * rows * (d + 2 * K) / HOST
        limits = {"products": computing, "host memory": host, "network": network}
        whole = max(computing, host) + network
        cells = [
            f"{K:,}",
            str(gpus),
            f"{held / 1e9:,.0f} GB",
            f"{chosen.form}, {chosen.block}",
            *(f"{seconds:.3g} s" for seconds in (computing, host, network, whole)),
            f"{summed / 1e9:.2f} GB",
            max(limits, key=limits.get),
        ]
        print(markdown_row(cells))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--predict", action="store_true", help="for many GPUs; run nothing")
    parser.add_argument("--rows", type=positive, default=100e6, help="for --predict (1e8)")
    parser.add_argument("--features", type=count, default=4096, help="for --predict (4096)")
    # for the two processes that this one starts
    parser.add_argument("--in", dest="folder", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        take_part(Path(arguments.folder), arguments.rank, arguments.quick)
    elif arguments.predict:
        predict(arguments.rows, arguments.features)
    else:
        measure(arguments.quick)


if __name__ == "__main__":
    main()
