"""How often the host waits for the device in an iteration of each kind of fit, as a table for
kernels/README.md.

    TRITON_INTERPRET=1 python tests/pretend_cuda/host_waits.py [--write]

prints the table; --write replaces it between its marks in kernels/README.md. A wait in an iteration
is the difference between two fits that run different numbers of iterations, so what a fit waits for
at its start and its end does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from fastnmf import NMF, Tuning
from pretend_cuda import Device, on_cuda, pretend

README = Path(__file__).parents[2] / "kernels" / "README.md"
MARKS = "<!-- host waits -->", "<!-- /host waits -->"


@dataclass(frozen=True)
class Kind:
    """A kind of fit: what the table calls it, its solvers, the iterations of the shorter and of the
    longer fit, options of NMF and of its tuning, and whether A is a file that is read in chunks."""

    name: str
    why: str
    solvers: tuple[str, ...] = ("hals", "mu", "pgd")
    between: tuple[int, int] = (8, 24)
    options: dict = field(default_factory=dict)
    tuning: dict = field(default_factory=dict)
    file: bool = False


EIGHTH, EACH = "read for 8 iterations at once", "one transfer of all sums"
_PLAIN = {"accelerate": False}
KINDS = (
    Kind("normal form, `tol=0`", EIGHTH, options=_PLAIN),
    Kind("residual form, `tol=0`", EIGHTH, options=_PLAIN, tuning={"form": "residual"}),
    Kind("normal form, `tol` > 0", EACH, options={**_PLAIN, "tol": 1e-12}),
    Kind(
        "residual form, `tol` > 0",
        EACH,
        options={**_PLAIN, "tol": 1e-12},
        tuning={"form": "residual"},
    ),
    Kind("`stop='error'`", EACH, options={**_PLAIN, "tol": 1e-12, "stop": "error"}),
    Kind(
        "accelerated, `tol=0`",
        "the error decides about β, and again where an iteration is taken back",
        options={"accelerate": True},
    ),
    Kind(
        "CUDA graph, `tol=0`",
        EIGHTH,
        options=_PLAIN,
        tuning={"cuda_graph": True},
    ),
    Kind(
        "penalties and unit norm, `tol=0`",
        EIGHTH,
        options={**_PLAIN, "alpha_Z": 1e-3, "unit_norm": True},
    ),
    Kind(
        "`revive=True`, `tol=0`",
        "and once every 10 iterations, where no concept is dead",
        between=(11, 51),
        options={**_PLAIN, "revive": True},
    ),
    Kind(
        "read in chunks, `tol=0`",
        f"{EIGHTH}; and, in the thread that reads, once for the copy of each of 5 chunks",
        solvers=("hals",),
        options=_PLAIN,
        file=True,
    ),
)
ROWS, FEATURES, CONCEPTS, CHUNK = 300, 10, 4, 64


def fit(kind: Kind, solver: str, iterations: int, file: Path) -> tuple[NMF, Device]:
    """A fit of this kind on a pretended device; its Z and D are left there."""
    from fastnmf.planning.memory import Needs

    n = ROWS if kind.file else 40
    A = torch.rand(n, FEATURES, generator=torch.Generator().manual_seed(0))
    options = {"tol": 0, "init": "random", "backend": "torch", "seed": 0, **kind.options}
    if kind.file:
        np.save(file, A.numpy())
        options["max_memory"] = Needs(n, FEATURES, CONCEPTS, 4).streamed(CHUNK)
    tuning = Tuning(**{"cuda_graph": False, "form": "normal", **kind.tuning})
    with pretend() as device:
        nmf = NMF(CONCEPTS, device="cuda", solver=solver, tuning=tuning, **options)
        nmf.fit(file if kind.file else on_cuda(A), max_iter=iterations)
    assert nmf.fit_info_.iterations == iterations
    return nmf, device


def waits(kind: Kind, solver: str, file: Path) -> float:
    """Waits of the host in an iteration."""
    few, many = (len(fit(kind, solver, between, file)[1].waits) for between in kind.between)
    return (many - few) / (kind.between[1] - kind.between[0])


def table(measured: dict[tuple[str, str], float]) -> str:
    """The table of (kind, solver) → waits in an iteration."""
    lines = ["| fit | " + " | ".join(SOLVERS) + " | why |", "|---|" + "---|" * (len(SOLVERS) + 1)]
    for kind in KINDS:
        cells = (measured.get((kind.name, solver)) for solver in SOLVERS)
        shown = " | ".join("" if cell is None else f"{cell:.3g}" for cell in cells)
        lines.append(f"| {kind.name} | {shown} | {kind.why} |")
    return "\n".join(lines)


SOLVERS = ("hals", "mu", "pgd")


def written() -> dict[tuple[str, str], str]:
    """The cells of the table in kernels/README.md."""
    text = README.read_text()
    rows = [line for line in text[text.index(MARKS[0]) :].splitlines() if line.startswith("|")]
    found = {}
    # below the header
    for line in rows[2 : 2 + len(KINDS)]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {(name, s): cell for s, cell in zip(SOLVERS, cells, strict=False) if cell}
    return found


def small_budgets() -> None:
    """As the fixture of this name: let max_memory be as small as the data."""
    from fastnmf.planning import memory

    for name, value in (("_OVERHEAD", 0), ("WORKSPACE_BYTES", 0), ("LEAST_ROWS", CHUNK)):
        setattr(memory, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the table in the README")
    writes = parser.parse_args().write
    small_budgets()
    # the fits are short
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "A.npy"
        made = table({(k.name, s): waits(k, s, file) for k in KINDS for s in k.solvers})
    print(made)
    if writes:
        text = README.read_text()
        before, _, rest = text.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        README.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
