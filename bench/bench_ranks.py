"""What several processes cost and gain: measured on this machine, and reckoned for many GPUs.

python bench/bench_ranks.py: 2 processes of one thread beside one of two, plain HALS from the same
start, seconds of an iteration and how far the dictionaries differ. python bench/bench_ranks.py
--reckon: seconds of an iteration on 8 to 512 GPUs, by the cost model, nothing is run. Not part
of `pytest bench`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from fastnmf import NMF, memory, plan

SHAPES = [(20_000, 384, 50), (20_000, 384, 500), (4_000, 384, 2_000)]
ITERATIONS = 20
# bytes that an H100 has for rows, codes and a residual, and a second from and to its host
HOLDS, HOST = 70e9, 25e9


def data(n: int, d: int) -> torch.Tensor:
    return torch.relu(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))


def fit(folder: Path, rank: int, size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    if size > 1:
        meeting = f"file://{folder / 'meeting'}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    told = []
    for n, d, K in SHAPES:
        A = data(n, d)[n * rank // size : n * (rank + 1) // size].clone()
        options = {"init": "random", "seed": 0, "tol": 0, "accelerate": False}
        nmf = NMF(K, distributed=size > 1, max_iter=ITERATIONS, **options)
        nmf.fit(A)
        seconds = [iteration.seconds for iteration in nmf.fit_info_.history]
        best = min(after - before for before, after in itertools.pairwise(seconds))
        told.append((best, nmf.fit_info_.reduced_bytes, nmf.D, nmf.fit_info_.form))
    torch.save(told, folder / f"told-{rank}.pt")


def measured(size: int, threads: int) -> list:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--in", folder, "--size", str(size)]
        command += ["--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        running = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment)
            for rank in range(size)
        ]
        if any(process.wait() for process in running):
            raise SystemExit("a process failed")
        return torch.load(Path(folder) / "told-0.pt")


def measure() -> None:
    print("| n, d, K | 1 × 2 threads | 2 × 1 thread | ratio | form | summed | D differs by |")
    print("|---|---|---|---|---|---|---|")
    for shape, one, two in zip(SHAPES, measured(1, 2), measured(2, 1), strict=True):
        apart = float((one[2] - two[2]).norm() / one[2].norm())
        sizes = ", ".join(f"{size:,}" for size in shape)
        print(
            f"| {sizes} | {one[0] * 1e3:.1f} ms | {two[0] * 1e3:.1f} ms | {two[0] / one[0]:.2f} | "
            f"{two[3]} | {two[1] / 1e6:.1f} MB | {apart:.0e} |"
        )


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
        asked = chosen.dictionary, d, K, chosen.block, 4, gpus, memory.H100
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
    for name in ("in", "rank", "size", "threads"):
        parser.add_argument(f"--{name}", dest=f"in_{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_in:
        numbers = (int(getattr(arguments, f"in_{name}")) for name in ("rank", "size", "threads"))
        fit(Path(arguments.in_in), *numbers)
    elif arguments.reckon:
        reckon(arguments.rows, arguments.features)
    else:
        measure()


if __name__ == "__main__":
    main()
