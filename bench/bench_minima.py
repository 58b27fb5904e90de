"""Where fits end, accelerated or not, from starts that hardly differ.

python bench/bench_minima.py [--starts 10] [--rows 2000]; --quick: the digits, three starts. Not
part of `pytest bench`. The data of bench_quality.py, so many rows of each at most. The first start
is nndsvda, the others are that with every entry multiplied by 1 + 0.01 · normal. A fit ends where
ten iterations lower the error by no more than 1e-5 of it. Told is its error, in percent above the
least that any fit of the same data reached: the median and the extremes.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pytest
import torch
from measure import machine
from real_data import DATA_SETS
from report import machine_text
from torch import Tensor

from fastnmf import NMF
from fastnmf.init import start

NOISE = 0.01
ENDS_BY = {"stop": "error", "tol": 1e-5, "max_iter": 20_000}


def starts(A: Tensor, K: int, count: int):
    """nndsvda, and others near it: (Z, D)."""
    found = start(A, K, "nndsvda", torch.Generator().manual_seed(0))
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        noise = NOISE if seed else 0.0
        yield tuple(F * (1 + noise * torch.randn(F.shape, generator=generator)) for F in found)


def end(A: Tensor, K: int, init: tuple[Tensor, Tensor], accelerate: bool) -> float:
    """The relative error of a fit from this start."""
    model = NMF(K, init=init, accelerate=accelerate, **ENDS_BY)
    model.fit(A)
    return model.fit_info_.relative_error


def ends(A: Tensor, K: int, count: int) -> dict[bool, np.ndarray]:
    """accelerated or not → the errors, in percent above the least of all."""
    found = {True: [], False: []}
    for init, accelerate in itertools.product(starts(A, K, count), found):
        found[accelerate].append(end(A, K, init, accelerate))
    least = min(map(min, found.values()))
    return {name: 100 * (np.array(errors) / least - 1) for name, errors in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the digits, three starts")
    parser.add_argument("--starts", type=int, default=10, help="of each data set (10)")
    parser.add_argument("--rows", type=int, default=2000, help="of each at most (2000)")
    arguments = parser.parse_args()
    for name in ("starts", "rows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: it must be 1 or more")
    print(f"{machine_text(machine())}\n")
    print("| data, n × d, concepts | accelerated: % above the least | not accelerated |")
    print("|---|---:|---:|")
    for name in ["digits"] if arguments.quick else DATA_SETS:
        data_set = DATA_SETS[name]
        try:
            A = data_set.draw(0)[: arguments.rows]
        except pytest.skip.Exception as reason:
            print(f"{name} is left out: {reason}")
            continue
        told = ends(
            A, data_set.K, min(3, arguments.starts) if arguments.quick else arguments.starts
        )
        cells = (f"{np.median(x):.2f} ({x.min():.2f} to {x.max():.2f})" for x in told.values())
        title = f"{name}, {len(A):,} × {A.shape[1]:,}, K = {data_set.K}"
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
