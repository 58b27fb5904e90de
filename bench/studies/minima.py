"""Show in which minima fits end, accelerated or not, from starts that hardly differ.

The data are those of quality.py. The first start is nndsvda, the others are nndsvda with every
entry multiplied by 1 + 0.01 · normal. A fit ends when ten iterations lower the error by no more
than 1e-5 of it. Printed is its error in percent above the least that any fit of the same data
reached: the median, and the range in parentheses.

Takes an hour or more, and a minute with --quick. Needs scikit-learn, and facenet-pytorch
(pip install --no-deps facenet-pytorch) for the activations.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastnmf import NMF
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.init.start import start

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.data_sets import DATA_SETS
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row

NOISE = 0.01
ENDS_BY = {"stop": "error", "tol": 1e-5, "max_iter": 20_000}


def starts(A: Tensor, K: int, number: int):
    """nndsvda and others near it: (Z, D)."""
    codes = InMemory(torch.empty(len(A), K))
    D = start(Data(A), codes, K, "nndsvda", torch.Generator().manual_seed(0))
    found = codes.Z, D
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        noise = NOISE if seed else 0.0
        yield tuple(F * (1 + noise * torch.randn(F.shape, generator=generator)) for F in found)


def end(A: Tensor, K: int, init: tuple[Tensor, Tensor], accelerate: bool) -> float:
    """The relative error of a fit from this start."""
    model = NMF(K, init=init, accelerate=accelerate, **ENDS_BY)
    model.fit(A)
    return model.fit_info_.relative_error


def ends(A: Tensor, K: int, number: int) -> dict[bool, np.ndarray]:
    """accelerated or not → the errors in percent above the least of all."""
    found = {True: [], False: []}
    for init, accelerate in itertools.product(starts(A, K, number), found):
        found[accelerate].append(end(A, K, init, accelerate))
    least = min(map(min, found.values()))
    return {name: 100 * (np.array(errors) / least - 1) for name, errors in found.items()}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="the digits, three starts")
    parser.add_argument("--starts", type=count, default=10, help="starts of each data set (10)")
    parser.add_argument("--rows", type=count, default=2000, help="most rows of a data set (2000)")
    arguments = parser.parse_args()
    number = min(3, arguments.starts) if arguments.quick else arguments.starts
    print(f"{machine_text(machine())}\n")
    header = ["data, n × d, concepts", "accelerated: % above the least", "not accelerated"]
    print(markdown_head(header))
    for name in ["digits"] if arguments.quick else DATA_SETS:
        data_set = DATA_SETS[name]
        try:
            A = data_set.draw(0)[: arguments.rows]
        except pytest.skip.Exception as reason:
            print(f"{name} is left out: {reason}")
            continue
        errors = ends(A, data_set.K, number).values()
        cells = (f"{np.median(x):.2f} ({x.min():.2f} to {x.max():.2f})" for x in errors)
        title = f"{name}, {len(A):,} × {A.shape[1]:,}, K = {data_set.K}"
        print(markdown_row([title, *cells]), flush=True)


if __name__ == "__main__":
    main()
