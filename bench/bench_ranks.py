"""What several processes cost and gain: measured on this machine, and reckoned for many GPUs.

python bench/bench_ranks.py: 2 processes of one thread beside one of two, in turns, plain HALS from
the same start: the best iteration of all rounds, the best median of a round, and how far the
dictionaries differ. python bench/bench_ranks.py --reckon: seconds of an iteration on 8 to 512 GPUs,
by the cost model, nothing is run. Not part of `pytest bench`.
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

from fastnmf import NMF, memory, plan

# (n, d, K) and iterations of a fit
SHAPES = {
    (20_000, 384, 50): 60,
    (20_000, 384, 500): 8,
    (20_000, 384, 2_000): 4,
    (4_000, 384, 2_000): 8,
}
ROUNDS = 5
# bytes that an H100 has for rows, codes and a residual, and a second from and to its host
HOLDS, HOST = 70e9, 25e9


def data(n: int, d: int) -> torch.Tensor:
    return torch.relu(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))


def fit(rows: torch.Tensor, K: int, iterations: int, threads: int, **options) -> tuple:
    """The model, and the seconds of each iteration but the first."""
    torch.set_num_threads(threads)
    options |= {"init": "random", "seed": 0, "tol": 0, "accelerate": False}
    nmf = NMF(K, max_iter=iterations, **options)
    nmf.fit(rows)
    ends = [iteration.seconds for iteration in nmf.fit_info_.history]
    return nmf, [after - before for before, after in itertools.pairwise(ends)]


def take_part(folder: Path, rank: int) -> None:
    """Process 0 fits alone while the other waits, and then both, in turns."""
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for (n, d, K), iterations in SHAPES.items():
        A = data(n, d)
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
    least = [min(min(taken) for _, taken in fits) * 1e3 for fits in zip(*rounds, strict=True)]
    medians = [
        min(statistics.median(taken) for _, taken in fits) for fits in zip(*rounds, strict=True)
    ]
    info = two.fit_info_
    apart = float((one.D - two.D).norm() / one.D.norm())
    return (
        f"| {n:,}, {d:,}, {K:,} | {least[0]:.1f} ms | {least[1]:.1f} ms | {least[1] / least[0]:.2f}"
        f" | {medians[1] / medians[0]:.2f} | {info.form}, {info.block} | "
        f"{info.reduced_bytes / 1e6:.1f} MB | {apart:.0e} |"
    )


def measure() -> None:
    print("| n, d, K | 1 × 2 threads | 2 × 1 thread | ratio | of medians | form, block ", end="")
    print("| exchanged | D differs by |\n|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # as many as a process has at most
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--in", folder, "--rank", str(rank)], env=environment
            )
            for rank in range(2)
        ]
        if any([process.wait() for process in running]):
            raise SystemExit("a process failed")


def reckon(n: float, d: int) -> None:
    """By the cost model of fastnmf/plan.py, at the rates it assumes of an H100 and its network, for
    whichever form it takes. Rows and codes that do not fit a GPU come from its host, and codes go
    back, while it computes."""
    print(f"n = {n:,.0f}, d = {d:,}, float32 held, tf32 products\n")
    print("| K | GPUs | rows and codes, a GPU | form, block | computing | from the host ", end="")
    print("| network | iteration | over the network | what limits |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for K, gpus in itertools.product((10_000, 32_000), (8, 64, 512)):
        rows = int(n / gpus)
        held = 4 * rows * (d + K)
        fits = held + 4 * rows * d < HOLDS
        chosen = plan.choose(
            rows, d, K, 4, "hals", on=memory.H100, streams=not fits, processes=gpus
        )
        asked = chosen.dictionary, chosen.splits, d, K, chosen.block, 4, gpus, memory.H100
        summed, network = plan.exchange(*asked)
        computing = chosen.seconds - network
        host = 0.0 if fits else 4 * rows * (d + 2 * K) / HOST
        limits = {"products": computing, "host memory": host, "network": network}
        whole = max(computing, host) + network
        told = " | ".join(f"{seconds:.3g} s" for seconds in (computing, host, network, whole))
        print(
            f"| {K:,} | {gpus} | {held / 1e9:,.0f} GB | {chosen.form}, {chosen.block} | {told} | "
            f"{summed / 1e9:.2f} GB | {max(limits, key=limits.get)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--reckon", action="store_true", help="for many GPUs; run nothing")
    parser.add_argument("--rows", type=float, default=100e6, help="for --reckon")
    parser.add_argument("--features", type=int, default=4096, help="for --reckon")
    for name in ("in", "rank"):
        parser.add_argument(f"--{name}", dest=f"in_{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_in:
        take_part(Path(arguments.in_in), int(arguments.in_rank))
    elif arguments.reckon:
        reckon(arguments.rows, arguments.features)
    else:
        measure()


if __name__ == "__main__":
    main()
