"""Print what each half-step should take on an H100: flops, bytes, a lower bound, the prediction.

Takes a second. Needs nothing: no GPU is used and nothing is measured, the rates are those that
fastnmf/memory.py assumes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastnmf import plan
from fastnmf.memory import H100, H100_FLOAT32

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
    flops = plan.half_step_flops(solver, form, m, p, K, block)
    seconds = plan.half_step_seconds(solver, form, m, p, K, block, m, 4, on)
    product = 2 * m * p * K
    if solver == "hals" and form == "residual":
        # the residual is computed anew in one of eight iterations only
        flops, seconds = flops - product, seconds - product / on.gemm
    elif form == "residual" and precision == "tf32":
        # every step reads F and writes it rounded
        steps = len(plan.pgd_momenta()) if solver == "pgd" else 1
        seconds += steps * 2 * 4 * m * K / on.far
    moved = plan.half_step_bytes(solver, form, m, p, K, block, 4)
    floor = max(flops / peak, 4 * (m * p + 2 * m * K + K * p) / BANDWIDTH)
    cells = (solver, half, form, precision, block, f"{flops / 1e12:.2f}", f"{moved / 1e9:.1f}")
    return [*map(str, cells), f"{floor * 1e3:.1f}", f"{seconds * 1e3:.1f}"]


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
