"""What the kernels are compiled to, as a table of kernels/README.md.

`python tests/static_table.py --write` puts it there, and `pytest -m thorough` checks it. No
GPU is needed: kernels are compiled for sm_90.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import triton
from launched import BLOCK, FEW, MANY, MULTIPROCESSORS, Built, built, calls, in_tf32
from sass import copies_in_flight

README = Path(__file__).parents[1] / "kernels" / "README.md"
MARKS = "<!-- static -->", "<!-- /static -->"
CAPABILITY = 90
# those that are launched beside the kernel of a row, and cost next to nothing
BESIDE = ("_add_partials_kernel", "_pack_kernel")
SHOWN = [name for name in calls() if "16-bit" not in name and ("few" in name or in_tf32(name))]
HEAD = (
    "kernel",
    "of",
    "products",
    "registers",
    "stack",
    "shared",
    "resident",
    "programs",
    "waves",
    "a step",
    "copies in flight",
)


def rows() -> list[tuple[str, ...]]:
    """A row for each call and precision at the sizes that are timed."""
    found = []
    for name in SHOWN:
        for precision in ("high", "highest") if in_tf32(name) else ("highest",):
            for each in built(calls()[name], precision, CAPABILITY):
                if each.launch.variant.kernel not in BESIDE:
                    found.append(row(name, precision, each))
    return found


def row(name: str, precision: str, each: Built) -> tuple[str, ...]:
    code = each.code
    flying = {copies_in_flight(loop) for loop in code.loops} - {None}
    longest = max((len(loop) for loop in code.loops), default=0)
    return (
        f"`{each.launch.variant.kernel}`",
        name.split()[-1] + (", few" if "few" in name else ""),
        "tf32" if precision == "high" else "float32",
        str(code.registers),
        str(code.stack),
        f"{each.shared / 1024:.0f} KB",
        str(each.resident),
        f"{sum(each.launch.programs):,} × {32 * each.warps}",
        f"{each.waves:.2f}",
        str(longest),
        {(): "none", (True,): "yes", (False,): "no"}.get(tuple(flying), "some"),
    )


def table() -> str:
    (n, d, K), few = MANY, FEW
    lines = [
        f"Compiled by Triton {triton.__version__} for sm_{CAPABILITY}, not measured on a GPU. "
        f"Residual form: {n:,} × {d}, K = {K:,}, blocks of {BLOCK:,}; few: "
        f"{few[0]:,} × {few[1]:,}, K = {few[2]}. Resident: programs on a multiprocessor; waves: of "
        f"{MULTIPROCESSORS} multiprocessors; a step: instructions of the longest innermost loop; "
        "copies in flight: whether those of the next step are, while this step waits for its own.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * len(HEAD) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(each) + " |" for each in rows()])


def written() -> str:
    """The table as it is in the README."""
    text = README.read_text(encoding="utf-8")
    return text.split(MARKS[0])[1].split(MARKS[1])[0].strip()


def version_of(text: str) -> str:
    return re.search(r"by Triton (\S+) for", text)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    now = table()
    if parser.parse_args().write:
        text = README.read_text(encoding="utf-8")
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        README.write_text(f"{before}{MARKS[0]}\n\n{now}\n\n{MARKS[1]}{after}", encoding="utf-8")
    print(now)


if __name__ == "__main__":
    main()
