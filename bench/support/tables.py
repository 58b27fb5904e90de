"""The tables of a results file of `pytest bench`, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

Entry = dict
SOLVERS = {
    "hals": "HALS, the default solver",
    "mu": "Multiplicative updates",
    "pgd": "Projected gradient (five steps a half; Overcomplete: one step of Adam)",
}
OURS = "fastnmf"


def read(path: Path) -> list[Entry]:
    """The stored fields of each benchmark, in the order they were run."""
    return [benchmark["extra_info"] for benchmark in json.loads(path.read_text())["benchmarks"]]


def of_kind(entries: Iterable[Entry], kind: str, **fields: str) -> list[Entry]:
    return [
        entry
        for entry in entries
        if entry.get("kind") == kind and all(entry.get(key) == fields[key] for key in fields)
    ]


def seconds_text(seconds: float) -> str:
    """Three digits, in ms below one second."""
    value, unit = (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def ratio_text(ratio: float) -> str:
    digits = 0 if ratio >= 100 else 1 if ratio >= 1 else 2
    return f"{ratio:,.{digits}f}×"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join([markdown_head(header), *map(markdown_row, rows)])


def markdown_head(header: list[str]) -> str:
    """The first two lines of a table, for programs that print its rows as they are measured."""
    return f"{markdown_row(header)}\n{markdown_row(['---', *['---:'] * (len(header) - 1)])}"


def markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def first_of(entries: Iterable[Entry], field: str) -> list:
    """The different values of a field, in order."""
    return list(dict.fromkeys(entry[field] for entry in entries))


def iterations_table(entries: list[Entry], solver: str) -> str:
    """A row for each workload: the time of our iteration, then of each library and its ratio."""
    found = of_kind(entries, "iteration", solver=solver)
    names = sorted(first_of(found, "contender"), key=lambda name: not name.startswith(OURS))
    rows = []
    for title in first_of(found, "title"):
        timed = {entry["contender"]: entry for entry in found if entry["title"] == title}
        ours = next((entry for name, entry in timed.items() if name.startswith(OURS)), None)
        if ours is None:
            # only the other libraries were run: there is nothing to compare
            continue
        cells = [cell(timed.get(name), ours) for name in names]
        alone = seconds_text(ours["seconds_alone"])
        rows.append(
            [f"{title} ({ours['data']})", cells[0], alone, ours["form"], *cells[1:], parts(timed)]
        )
    header = [
        "data n × d, concepts K",
        names[0],
        "first iteration",
        "form",
        *names[1:],
        "measured on",
    ]
    return markdown(header, rows)


def cell(entry: Entry | None, ours: Entry) -> str:
    if entry is None:
        return "-"
    text = seconds_text(entry["seconds"])
    if entry is ours:
        return f"**{text}**"
    mark = "~" if entry["measured_on"] else ""
    return f"{mark}{text} ({ratio_text(entry['seconds'] / ours['seconds'])})"


def parts(timed: dict[str, Entry]) -> str:
    """Which libraries were timed on which part of an iteration."""
    on = [
        f"{name}: {entry['measured_on']}" for name, entry in timed.items() if entry["measured_on"]
    ]
    return "; ".join(on) or "whole iterations"


def fits_table(entries: list[Entry]) -> str:
    rows = []
    for entry in of_kind(entries, "fit"):
        iterations = "-" if entry["iterations"] is None else str(entry["iterations"])
        error = f"{entry['relative_error']:.4f}"
        rows.append(
            [entry["title"], entry["contender"], seconds_text(entry["seconds"]), error, iterations]
        )
    return markdown(["data", "library", "time of a fit", "‖A − ZD‖ / ‖A‖", "iterations"], rows)


def passes_table(entries: list[Entry]) -> str:
    rows = []
    for entry in of_kind(entries, "pass"):
        title, error = f"{entry['title']} ({entry['data']})", f"{entry['relative_error']:.4f}"
        rows.append([title, entry["contender"], seconds_text(entry["seconds"]), error])
    return markdown(["data", "library", "time of a pass", "‖A − ZD‖ / ‖A‖, held out"], rows)


def exact_table(entries: list[Entry]) -> str:
    """nnls on one thread and on two, and the other libraries on one."""
    timed: dict[str, dict[str, Entry]] = {}
    for entry in of_kind(entries, "nnls"):
        name = f"{entry['contender']} {entry['threads']}"
        timed.setdefault(f"{entry['title']} ({entry['data']})", {})[name] = entry
    names = ("fastnmf 1", "fastnmf 2", "scipy 1", "Overcomplete 1")
    rows = [
        [title, *(cell(by.get(name), by["fastnmf 1"]) for name in names), parts(by)]
        for title, by in timed.items()
        if "fastnmf 1" in by
    ]
    header = ["data", "fastnmf, one thread", "two threads", "scipy, one thread"]
    header += ["Overcomplete, one thread (not exact)", "measured on"]
    return markdown(header, rows)


def rows_table(entries: list[Entry]) -> str:
    rows = [
        [f"d = {entry['d']}, K = {entry['K']}", entry["contender"]]
        + [f"{entry[key] * 1e6:,.0f} µs" for key in ("seconds", "median")]
        for entry in of_kind(entries, "row")
    ]
    return markdown(["one row", "", "best", "median"], rows)


def scipy_table(entries: list[Entry]) -> str:
    """nnls and scipy's, in turns."""
    rows = [
        [f"d = {entry['d']}, K = {entry['K']} ({entry['data']})", entry["contender"]]
        + [f"{entry[key] * 1e6:,.1f} µs" for key in ("seconds", "scipy_seconds")]
        + [f"{entry['times_scipy']:.1f}×", f"{entry['support']:.0f}"]
        for entry in of_kind(entries, "beside scipy")
    ]
    header = ["rows of", "", "a row", "scipy", "ratio, median of pairs", "concepts in use"]
    return markdown(header, rows)


def rates_table(entries: list[Entry]) -> str:
    rows = []
    for entry in of_kind(entries, "half-step"):
        name = f"{entry['title']}: {entry['half']}"
        rate = f"{entry['gflops']:.0f} GF/s"
        share = f"{entry['fraction_of_gemm']:.0%}"
        rows.append([name, entry["contender"], seconds_text(entry["seconds"]), rate, share])
    table = markdown(["half-step of HALS", "", "time", "rate", "of torch.mm, 2048³"], rows)
    return (
        f"{table}\n\nRates count 4 n d K flops, and 2 n K (or 2 d K) for each concept of a block. "
        "One iteration in 8 computes the residual anew (afresh): 2 n d K flops more, which take "
        "time but are not counted. The others start from the residual of the dictionary half."
    )


def floor_line(entries: list[Entry]) -> str:
    products = {entry["contender"]: entry for entry in of_kind(entries, "gemm")}
    if not {"D Aᵀ", "Zᵀ A"} <= products.keys():
        return ""
    both = products["D Aᵀ"]["seconds"] + products["Zᵀ A"]["seconds"]
    title = products["D Aᵀ"]["title"]
    return f"The two products with A that every method needs take {seconds_text(both)} at {title}."


def plans_table(entries: list[Entry]) -> str:
    found = of_kind(entries, "plan")
    rows = []
    for entry in found:
        chosen = next(plan for plan in entry["plans"] if plan["chosen"])
        pair = [plan_text(chosen), plan_text(entry["plans"][0])]
        rows.append([entry["title"], *pair, f"{entry['loss'] - 1:.0%}"])
    losses = [entry["loss"] - 1 for entry in found]
    table = markdown(["data", "plan chosen", "fastest measured", "time lost"], rows)
    worst, median = max(losses), statistics.median(losses)
    return f"{table}\n\nTime lost by the plan's choice: median {median:.0%}, worst {worst:.0%}."


def plan_text(plan: dict) -> str:
    times = f"{seconds_text(plan['measured'])} (predicted {seconds_text(plan['predicted'])})"
    # results files keep the former name
    return f"{plan['form']}, {plan['block']} concepts, {plan['piece_rows']:,} rows: {times}"


def grids(entries: list[Entry]) -> list[str]:
    """All plans that were measured, fastest first: a table for each size."""
    header = ["form", "concepts in a block", "rows of a tile", "predicted", "measured"]
    blocks = []
    for entry in of_kind(entries, "plan"):
        rows = [
            [plan["form"], str(plan["block"]), str(plan["piece_rows"])]
            + [seconds_text(plan[key]) for key in ("predicted", "measured")]
            for plan in entry["plans"]
        ]
        blocks.append(f"Plans for {entry['title']}\n\n{markdown(header, rows)}")
    return blocks


def machine_of(entries: list[Entry]) -> dict:
    """The machine, with the number of threads of most entries: a few are timed on one as well."""
    threads = statistics.mode(entry["threads"] for entry in entries)
    return {**entries[0]["machine"], "threads": threads}


def machine_text(machine: dict) -> str:
    names = ("python", "torch", "numpy", "fastnmf", "overcomplete", "scikit-learn", "nmf-torch")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if name in machine)
    return f"{processor_text(machine)}; {versions}; float32."


def processor_text(machine: dict) -> str:
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['cpu']}, {threads}, {machine['isa']}"


EXPLANATION = """\
One iteration updates all codes and the whole dictionary once, from the same factors for every
library. Where iterations are short, the time of fastnmf is the mean of eight, which share the
set-up; *first iteration* is one alone, set-up included. Each time is followed by its ratio to ours
(bold): 2× takes twice as long. ~ marks an extrapolated time: the products of whole matrices were
timed once, the loop over concepts (or rows) on the part under *measured on*."""


def tables(entries: list[Entry]) -> str:
    """All tables that have entries, as one Markdown text."""
    blocks = [machine_text(machine_of(entries)), EXPLANATION]
    for solver, title in SOLVERS.items():
        if of_kind(entries, "iteration", solver=solver):
            blocks += [f"### {title}: time of one iteration", iterations_table(entries, solver)]
    if line := floor_line(entries):
        blocks.append(line)
    for kind, title, table in (
        ("half-step", "Half-steps alone", rates_table),
        ("fit", "A whole fit with default options", fits_table),
        ("pass", "Online learning: one pass over the data", passes_table),
        ("nnls", "Exact codes for a given dictionary", exact_table),
        ("beside scipy", "Exact codes, and scipy's row by row, one thread", scipy_table),
        ("row", "Exact codes of one row, from call to return", rows_table),
        ("plan", "The cost model's choice", plans_table),
    ):
        if of_kind(entries, kind):
            blocks += [f"### {title}", table(entries)]
    return "\n\n".join(blocks)
