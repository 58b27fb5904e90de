"""Print what each half-step should take on an H100: flops, bytes, a lower bound, the prediction.

Takes a second. Needs nothing: no GPU is used and nothing is measured, the rates are those that
fastnmf/planning/hardware.py assumes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fastnmf.planning import plan
from fastnmf.planning.hardware import H100, H100_FLOAT32
from fastnmf.solvers.base import Size
from fastnmf.solvers.registry import SOLVERS

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.options import count, parser_of
from support.tables import markdown_row

PEAKS = {"tf32": (495e12, H100), "float32": (67e12, H100_FLOAT32)}
BANDWIDTH = 3.35e12
# solver, half, form, products, block
CASES = (
    ("hals", "codes", "residual", "tf32", 512),
    ("hals", "codes", "residual", "tf32", 256),
    ("hals", "codes", "residual", "float32", 256),
    ("hals", "codes", "normal", "float32", 512),
    ("hals", "dictionary", "residual", "tf32", 512),
    ("hals", "dictionary", "residual", "float32", 256),
    ("mu", "codes", "residual", "tf32", 512),
    ("mu", "codes", "residual", "float32", 512),
    ("pgd", "codes", "residual", "tf32", 512),
    ("pgd", "codes", "residual", "float32", 512),
)
HEADER = ["solver", "half", "form", "products", "block", "Tflop", "GB", "floor ms", "predicted ms"]
RULE = ["---"] * 4 + ["---:"] * 5


def line(solver: str, half: str, form: str, precision: str, block: int, n: int, d: int, K: int):
    """One row of the table. Floor: the flops at the rate of the data sheet, or every byte of A and
    of both factors moved once, whichever takes longer."""
    m, p = (n, d) if half == "codes" else (d, n)
    peak, on = PEAKS[precision]
    size, record = Size(m, p, K, block), SOLVERS[solver]
    work = record.work(form, size, 1)
    flops, seconds = work.flops, plan.half_step_seconds(record, form, size, m, 4, on)
    product = 2 * m * p * K
    if solver == "hals" and form == "residual":
        # the residual is computed anew in one of eight iterations only
        flops, seconds = flops - product, seconds - product / on.gemm
    elif form == "residual" and precision == "tf32":
        # every step reads F and writes it rounded
        seconds += work.steps * 2 * 4 * m * K / on.far
    moved = bytes_moved(solver, form, size, work.steps, 4)
    floor = max(flops / peak, 4 * (m * p + 2 * m * K + K * p) / BANDWIDTH)
    cells = (solver, half, form, precision, block, f"{flops / 1e12:.2f}", f"{moved / 1e9:.1f}")
    return [*map(str, cells), f"{floor * 1e3:.1f}", f"{seconds * 1e3:.1f}"]


def bytes_moved(solver: str, form: str, size: Size, steps: int, itemsize: int) -> int:
    """Bytes of memory that one half-step moves, nothing being kept in a cache between two calls."""
    m, p, K, block = size
    # F, R and Δ or what stands for them, written and read
    factor = 6 * m * K
    if form == "residual":
        # the residual is read for R, then read and written
        blocks = math.ceil(K / min(block, K))
        through = {"hals": 3 * blocks * m * p}.get(solver, 4 * m * p) + 2 * K * p
        return itemsize * steps * (factor + through)
    return itemsize * (m * p + K * p + steps * (factor + K * K))


def table(n: int, d: int, K: int) -> str:
    rows = [line(*case, n, d, K) for case in CASES]
    return "\n".join(map(markdown_row, (HEADER, RULE, *rows)))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=count, default=100_000)
    parser.add_argument("--features", type=count, default=768)
    parser.add_argument("--concepts", type=count, default=10_000)
    arguments = parser.parse_args()
    n, d, K = arguments.rows, arguments.features, arguments.concepts
    print(f"One half-step at n = {n:,}, d = {d:,}, K = {K:,} on an H100: PREDICTED, not measured")
    print(table(n, d, K))


if __name__ == "__main__":
    main()
