"""Print what one iteration should take on an H100: flops, bytes, floor and the model's prediction.

python -m bench.roofline [n d K]. Nothing is measured here: the rates are from fastnmf/memory.py.
"""

from __future__ import annotations

import sys

from fastnmf import plan
from fastnmf.memory import H100, H100_FLOAT32

PEAKS = {"tf32": (495e12, H100), "float32": (67e12, H100_FLOAT32)}
BANDWIDTH = 3.35e12


def line(solver: str, half: str, form: str, precision: str, block: int, n: int, d: int, K: int):
    """One row of the table. floor: the flops at the data sheet's rate, or every byte of A and of
    both factors moved once, whichever takes longer."""
    m, p = (n, d) if half == "codes" else (d, n)
    peak, on = PEAKS[precision]
    flops = plan.half_step_flops(solver, form, m, p, K, block)
    seconds = plan.half_step_seconds(solver, form, m, p, K, block, m, 4, on)
    product = 2 * m * p * K
    if solver == "hals" and form == "residual":
        # seven times of eight the residual is there
        flops, seconds = flops - product, seconds - product / on.gemm
    elif form == "residual" and precision == "tf32":
        # in every step F is read and written once more, rounded
        steps = len(plan.pgd_momenta()) if solver == "pgd" else 1
        seconds += steps * 2 * 4 * m * K / on.far
    moved = plan.half_step_bytes(solver, form, m, p, K, block, 4)
    floor = max(flops / peak, 4 * (m * p + 2 * m * K + K * p) / BANDWIDTH)
    cells = (solver, half, form, precision, block, f"{flops / 1e12:.2f}", f"{moved / 1e9:.1f}")
    return [*map(str, cells), f"{floor * 1e3:.1f}", f"{seconds * 1e3:.1f}"]


def table(n: int, d: int, K: int) -> str:
    header = [
        "solver",
        "half",
        "form",
        "products",
        "block",
        "Tflop",
        "GB",
        "floor ms",
        "predicted ms",
    ]
    rows = [
        line(solver, half, form, precision, block, n, d, K)
        for solver, half, form, precision, block in (
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
    ]
    lines = [header, ["---"] * 4 + ["---:"] * 5, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    n, d, K = (int(size) for size in sys.argv[1:4]) if len(sys.argv) > 3 else (100_000, 768, 10_000)
    print(f"One half-step at n = {n:,}, d = {d:,}, K = {K:,} on an H100: PREDICTED, not measured")
    print(table(n, d, K))


if __name__ == "__main__":
    main()
