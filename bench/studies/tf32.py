"""Show what products in tf32 do to the loss of hals, emulated on the CPU.

The data are those of quality.py. From one start every fit does as many sweeps in residual form,
with two blocks of concepts. Printed are the loss with tf32, in percent above that with float32; the
drift of the residual, rounded to nearest and cut off; and for comparison the losses with float32
from starts whose entries differ by up to 2.4e-4 of themselves, which is what tf32 rounds off.

Takes about an hour, and a minute with --quick. Needs scikit-learn, and facenet-pytorch
(pip install --no-deps facenet-pytorch) for the activations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastnmf.backends.torch import REFERENCE
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.init.start import start
from fastnmf.planning.plan import Plan
from fastnmf.solvers.registry import SOLVERS

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support.data_sets import DATA_SETS
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row
from tensor_cores import hals_block_, tensor_cores

OPS = {**REFERENCE, "hals_block_": hals_block_}
CUT_OFF = {**REFERENCE, "round_tf32_": lambda out, X: out.copy_(X)}
# half of the last bit of tf32
NOISE = 2.0**-12


def starts(A: Tensor, K: int, near: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A random start (Z, D), and others near it."""
    codes = InMemory(A.new_empty(len(A), K))
    D = start(Data(A), codes, K, "random", torch.Generator().manual_seed(seed))
    yield codes.Z, D
    for number in range(near):
        generator = torch.Generator().manual_seed(number)
        factors = [torch.rand(F.shape, generator=generator) for F in (codes.Z, D)]
        yield tuple(
            F * (1 + NOISE * (2 * by - 1)) for F, by in zip((codes.Z, D), factors, strict=True)
        )


def fit(A: Tensor, begin: tuple[Tensor, Tensor], sweeps: int, ops=OPS) -> tuple[float, float]:
    """The loss after so many sweeps, and the drift of the residual."""
    Z, D = (F.clone() for F in begin)
    state, method = State(InMemory(Z), D), Method(SOLVERS["hals"], "torch", ops)
    plan = Plan("residual", "residual", -(-len(D) // 2), len(A), 0.0)
    factorize_(state, Data(A), method, plan, Stopping(sweeps, 0.0))
    return float((A.double() - Z.double() @ D.double()).square().sum()), state.drift or 0.0


def cells(A: Tensor, K: int, near: int, seed: int, sweeps: int) -> list[str]:
    first, *others = starts(A, K, near, seed)
    expected, _ = fit(A, first, sweeps)
    with tensor_cores():
        (loss, drift), (_, cut) = fit(A, first, sweeps), fit(A, first, sweeps, CUT_OFF)
    above = [100 * (fit(A, begin, sweeps)[0] / expected - 1) for begin in others]
    return [
        f"{100 * (loss / expected - 1):+.4f}",
        f"{min(above):+.4f} to {max(above):+.4f}",
        f"{drift:.1e}",
        f"{cut:.1e}",
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="the digits, and 50 sweeps")
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, help="data sets (all)")
    parser.add_argument("--near", type=count, default=3, help="starts near the first (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first start (0)")
    parser.add_argument("--rows", type=count, default=2000, help="most rows of a data set (2000)")
    parser.add_argument("--sweeps", type=count, default=200, help="sweeps of a fit (200)")
    arguments = parser.parse_args()
    print(f"{machine_text(machine())}\n")
    header = ["data, n × d, concepts", "tf32: loss, % above float32's", "float32 from near starts"]
    print(markdown_head([*header, "drift, rounded", "drift, fixed factor cut off"]))
    sweeps = min(50, arguments.sweeps) if arguments.quick else arguments.sweeps
    for name in ["digits"] if arguments.quick else arguments.data or DATA_SETS:
        data_set = DATA_SETS[name]
        try:
            A = data_set.draw(0)[: arguments.rows].contiguous()
        except pytest.skip.Exception as reason:
            print(f"{name} is left out: {reason}")
            continue
        title = f"{name}, {len(A):,} × {A.shape[1]:,}, K = {data_set.K}"
        found = cells(A, data_set.K, arguments.near, arguments.seed, sweeps)
        print(markdown_row([title, *found]), flush=True)


if __name__ == "__main__":
    main()
