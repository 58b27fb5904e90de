"""Print what iterations and half-steps should take on a GPU, part by part: PREDICTED, not measured.

The parts are those of fastnmf/planning/gpu.py, from the rates and the instruction counts in
fastnmf/planning/cards.py; beside them what the kernels took before they were counted. --write
puts the tables into docs/notes/gpu_predictions.md. Takes a second. Needs nothing: no GPU is used.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import astuple
from pathlib import Path

from fastnmf.planning import plan
from fastnmf.planning.beside import needed_bytes
from fastnmf.planning.cards import FORMER_KERNELS, H100, H200, KERNELS, Card, Kernels
from fastnmf.planning.gpu import WAITING, half_step_parts
from fastnmf.planning.hardware import gpu_machine
from fastnmf.planning.inner import accelerated
from fastnmf.solvers.base import Size
from fastnmf.solvers.registry import SOLVERS

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.options import count, parser_of
from support.tables import markdown, markdown_row

PAGE = Path(__file__).parents[2] / "docs" / "notes" / "gpu_predictions.md"
CARDS = {"H100": H100, "H200": H200}
# seconds of the host to launch a graph
GRAPH = 10e-6
# flops and bytes a second of the data sheets
PEAKS = {"tf32": 495e12, "float32": 67e12}
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}
SIZES = ((100_000, 768, 10_000), (1_000_000, 768, 10_000), (63_700, 2_048, 10))
# the blocks of the plan with the former kernels
FORMER_BLOCKS = {True: 512, False: 256}
# solver, half, form, precision of products, block
CASES = (
    ("hals", "codes", "residual", "tf32", 512),
    ("hals", "codes", "residual", "tf32", 256),
    ("hals", "codes", "residual", "float32", 256),
    ("hals", "codes", "normal", "float32", 512),
    ("hals", "dictionary", "residual", "tf32", 512),
    ("hals", "dictionary", "residual", "tf32", 256),
    ("hals", "dictionary", "residual", "float32", 256),
    ("mu", "codes", "residual", "tf32", 512),
    ("mu", "codes", "residual", "float32", 512),
    ("pgd", "codes", "residual", "tf32", 512),
    ("pgd", "codes", "residual", "float32", 512),
)
HEADER = ["solver", "half", "form", "products", "block", "Tflop", "GB", "floor ms", "predicted ms"]
RULE = ["---"] * 4 + ["---:"] * 5


def line(case: tuple, sizes: tuple[int, int, int], card: str) -> list[str]:
    """One row of the table of half-steps. Floor: the flops at the rate of the data sheet, or every
    byte of A and of both factors moved once, whichever takes longer."""
    solver, half, form, precision, block = case
    n, d, K = sizes
    m, p = (n, d) if half == "codes" else (d, n)
    size, record = Size(m, p, K, block), SOLVERS[solver]
    work, on = record.work(form, size, 1), gpu_machine(CARDS[card], tf32=precision == "tf32")
    # the residual of hals is computed anew in one of eight iterations only
    flops = work.flops - work.fresh
    parts = half_step_parts(record, form, size, m, 4, on)
    seconds = sum(took for name, took in parts.items() if name not in ("new residual", "host"))
    moved = bytes_moved(solver, form, size, work.steps, 4)
    bytes_ = 4 * (m * p + 2 * m * K + K * p)
    floor = max(flops / PEAKS[precision], bytes_ / BANDWIDTHS[card])
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


def half_steps(sizes: tuple[int, int, int], card: str) -> str:
    rows = [line(case, sizes, card) for case in CASES]
    return "\n".join(map(markdown_row, (HEADER, RULE, *rows)))


def iteration(
    sizes: tuple[int, int, int],
    card: Card,
    tf32: bool,
    kernels: Kernels,
    block: int | None,
    solver: str = "hals",
) -> tuple[dict, plan.Plan, plan.Problem]:
    """Milliseconds of the parts of an iteration, its plan and its problem."""
    on = gpu_machine(card, tf32=tf32, kernels=kernels)
    problem = plan.Problem(*sizes, 4, SOLVERS[solver])
    chosen = plan.choose(problem, on, plan.Tuning(block=block))
    one = plan.Candidate(chosen.codes, chosen.dictionary, chosen.block, chosen.tile_rows)
    parts = plan.gpu_parts(problem, one, on)
    return {name: 1e3 * took for name, took in parts.items()}, chosen, problem


def parts_table(sizes: tuple[int, int, int], card: str) -> str:
    """The parts of an iteration of hals, before and after, in either precision."""
    found, columns = {}, [(tf32, now) for tf32 in (True, False) for now in (False, True)]
    for tf32, now in columns:
        given = (KERNELS, None) if now else (FORMER_KERNELS, FORMER_BLOCKS[tf32])
        found[tf32, now] = iteration(sizes, CARDS[card], tf32, *given)
    names = list(dict.fromkeys(name for parts, *_ in found.values() for name in parts))
    header = ["part, ms"] + [
        f"{'tf32' if tf32 else 'float32'}, {'now' if now else 'before'}" for tf32, now in columns
    ]
    rows = [
        [name, *(_ms(found[column][0].get(name)) for column in columns)]
        for name in sorted(names, key=lambda name: name.startswith("dictionary"))
    ]
    rows.append(["**iteration**", *(f"**{_ms(sum(found[c][0].values()))}**" for c in columns)])
    rows.append(["form, block", *(f"{found[c][1].form}, {found[c][1].block}" for c in columns)])
    return markdown(header, rows)


def solvers_table(sizes: tuple[int, int, int], card: str) -> str:
    """Iterations of each solver, before and after, in either precision."""
    rows = []
    for solver, tf32 in itertools.product(("hals", "mu", "pgd"), (True, False)):
        former = FORMER_BLOCKS[tf32] if SOLVERS[solver].sweeps_blocks else None
        times = [
            sum(iteration(sizes, CARDS[card], tf32, *given, solver)[0].values())
            for given in ((FORMER_KERNELS, former), (KERNELS, None))
        ]
        rows.append([f"{solver}, {'tf32' if tf32 else 'float32'}", *map(_ms, times)])
    return markdown(["iteration, ms", "before", "now"], rows)


def _ms(took: float | None) -> str:
    return "" if took is None else f"{took:.3f}" if took < 1 else f"{took:.1f}"


def fits(sizes: tuple[int, int, int], card: str) -> str:
    """Whether an iteration of hals fits in the memory of the card, in a sentence."""
    n, d, K = sizes
    _, chosen, problem = iteration(sizes, CARDS[card], True, KERNELS, None)
    fixed, a_row = needed_bytes(problem, chosen)
    needs = fixed + a_row * chosen.tile_rows + 4 * n * d
    verdict = "fits" if needs < 0.92 * CARDS[card].memory else "does not fit"
    return (
        f"{n:,} × {d:,}, K = {K:,}: {verdict} on one {card}: at most {needs / 1e9:.1f} GB with A, "
        f"of {CARDS[card].memory / 1e9:.0f}."
    )


def graphs(sizes: tuple[int, int, int], card: str) -> str:
    """Iterations of few concepts, launched one by one, and repeated from a CUDA graph."""
    rows = []
    for solver, accelerates in itertools.product(("hals", "mu", "pgd"), (False, True)):
        on = gpu_machine(CARDS[card], tf32=False)
        problem = plan.Problem(*sizes, 4, SOLVERS[solver])
        chosen = plan.choose(problem, on)
        if accelerates:
            chosen = accelerated(chosen, problem, on)
        one = plan.Candidate(chosen.codes, chosen.dictionary, chosen.block, chosen.tile_rows)
        parts = plan.gpu_parts(problem, one, on, chosen.inner if accelerates else None)
        recorded = sum(took for name, took in parts.items() if name != WAITING) + GRAPH
        label = f"{solver}, {'accelerated' if accelerates else 'plain'}"
        rows.append([label, *(_ms(1e3 * took) for took in (sum(parts.values()), recorded))])
    return markdown(["ms", "launched", "from a graph"], rows)


def counts() -> str:
    """The instruction counts behind the predictions, before and now."""
    rows = []
    for name in ("many", "few", "many_float32", "few_float32"):
        for when, kernels in (("before", FORMER_KERNELS), ("now", KERNELS)):
            sweep = getattr(kernels, name)
            samples = "codes" if name.startswith("many") else "dictionary"
            precision = "float32" if name.endswith("32") else "tf32"
            numbers = (f"{number:.4g}" for number in astuple(sweep))
            rows.append([f"{samples}, {precision}, {when}", *numbers])
    header = ["sweep", "samples of a program", "programs at once", "latency, cycles", "per earlier",
              "busy, cycles", "per earlier", "entries moved", "per earlier"]  # fmt: skip
    return markdown(header, rows)


def report(card: str, sizes: tuple[tuple[int, int, int], ...]) -> str:
    """All tables, as Markdown."""
    parts = []
    for one in sizes:
        n, d, K = one
        parts += [f"Iteration of `hals`, n = {n:,}, d = {d:,}, K = {K:,}, {card}:"]
        parts += [parts_table(one, card), fits(one, card)]
    n, d, K = sizes[-1]
    parts += [f"Iterations in normal form, n = {n:,}, d = {d:,}, K = {K:,}, {card}:"]
    parts += [graphs(sizes[-1], card)]
    n, d, K = sizes[0]
    parts += ["Sweeps of a block of concepts, from the compiled code:", counts()]
    parts += [f"Iterations of each solver, n = {n:,}, d = {d:,}, K = {K:,}, {card}:"]
    parts += [solvers_table(sizes[0], card)]
    parts += [f"Half-steps at n = {n:,}, d = {d:,}, K = {K:,}, {card}:", half_steps(sizes[0], card)]
    return "\n\n".join(parts)


def written(text: str, tables: str) -> str:
    """The page with these tables between its marks."""
    before, mark, rest = text.partition("<!-- roofline -->\n")
    _, end, after = rest.partition("<!-- /roofline -->")
    return f"{before}{mark}\n{tables}\n\n{end}{after}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=count, help="with --features and --concepts: other sizes")
    parser.add_argument("--features", type=count, default=768)
    parser.add_argument("--concepts", type=count, default=10_000)
    parser.add_argument("--card", choices=CARDS, default="H200")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    given = parser.parse_args()
    if given.write:
        PAGE.write_text(written(PAGE.read_text(), report("H200", SIZES)))
        return
    sizes = ((given.rows, given.features, given.concepts),) if given.rows else SIZES
    print("PREDICTED by the cost model, from assumed rates and counted instructions. NOT MEASURED.")
    print(report(given.card, sizes))


if __name__ == "__main__":
    main()
