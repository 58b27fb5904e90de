"""Show what a fit that begins with a fit of a sample of the rows gains (init='sample').

Patches of 8 × 16 × 3 from scikit-learn's two photographs. A fit of 100 iterations from the start of
init='auto', and one that begins with a sample: in memory as 'auto' does it (accelerated), and of a
file of float16 that is read in passes. Printed are the error of the 100 iterations, how many
iterations, passes over all data (checks included) and seconds either needs to be within 0.5 % of
it, and how far the sample's fit is after the iterations that it was given. Times are those of the
processor, with one thread, so that other processes matter little.

Takes half an hour with 200,000 rows and K = 200, and two minutes with --quick. Needs scikit-learn.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from starts import photograph_patches

from fastnmf import NMF

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row

# how near to the error of ITERATIONS iterations a fit is to come
NEAR, ITERATIONS = 1.005, 100


class Course(NamedTuple):
    """Errors and seconds of the processor after each iteration; passes before the first."""

    errors: list[float]
    seconds: list[float]
    passes_before: int | None
    info: Any

    def first(self, bound: float) -> int | None:
        """The first iteration whose error is at most `bound`, from 1, or None."""
        return next((i for i, error in enumerate(self.errors, 1) if error <= bound), None)


def course(A: Any, K: int, init: str, iterations: int, **options: Any) -> Course:
    """A fit of A from this start."""
    errors, seconds, begun = [], [], time.process_time()
    codes = options.pop("codes", "memory")

    def note(iteration: Any) -> None:
        errors.append(iteration.relative_error)
        seconds.append(time.process_time() - begun)

    model = NMF(K, init=init, seed=0, tol=0, max_iter=iterations, **options)
    model.fit(A, callback=note, codes=codes)
    info = model.fit_info_
    # those of the iterations, and one for the summary
    before = None if info.chunk_rows is None else info.passes - len(errors) - 1
    return Course(errors, seconds, before, info)


def cells_of(found: Course, bound: float) -> list[str]:
    """Iterations, passes and seconds until the error is at most `bound`."""
    at = found.first(bound)
    if at is None:
        return ["not reached", "", ""]
    # with the summary, as of a fit that ends there
    passes = "" if found.passes_before is None else f"{found.passes_before + at + 1}"
    return [f"{at}", passes, f"{found.seconds[at - 1]:.0f}"]


def rows_of(name: str, A: Any, K: int, iterations: int, **options: Any) -> str:
    """Print the rows of the table for these data; return the line that stands below it."""
    auto = course(A, K, "auto", ITERATIONS, **options)
    sample = course(A, K, "sample", iterations, **options)
    goal = auto.errors[-1]
    for start, found in (("auto", auto), ("sample", sample)):
        end = f"{100 * (found.errors[-1] / goal - 1):+.2f} % after {len(found.errors)}"
        print(markdown_row([f"{name}, {start}", *cells_of(found, NEAR * goal), end]), flush=True)
    info = sample.info
    return (
        f"{name}: error {goal:.5f} after {ITERATIONS} iterations; sample of {info.sample_rows:,} "
        f"rows, {info.sample_iterations} iterations, error {info.held_out_error:.5f} held out"
    )


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="20,000 rows and K = 50")
    add("--rows", type=count, default=200_000, help="rows of the data (200,000)")
    add("--concepts", type=count, nargs="+", default=[200], help="numbers of concepts (200)")
    add("--iterations", type=count, default=20, help="of fits that begin with a sample (20)")
    add("--memory", action="store_true", help="fits in memory only")
    arguments = parser.parse_args()
    rows, numbers = arguments.rows, arguments.concepts
    if arguments.quick:
        rows, numbers = 20_000, [50]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    A = photograph_patches(rows)
    print(f"{machine_text(machine())}\n")
    titles = ["fit", "iterations to 0.5 %", "passes", "seconds", "error against 100 iterations"]
    print(markdown_head(titles))
    below = []
    for K in numbers:
        below.append(rows_of(f"{rows:,} rows in memory, K = {K}", A, K, arguments.iterations))
        if arguments.memory:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path, codes = Path(folder) / "A.npy", Path(folder) / "Z.npy"
            np.save(path, A.half().numpy())
            # less than all rows and their codes need
            bytes_ = max(130 << 20, A.numel() * 4)
            given = {"codes": str(codes), "max_memory": bytes_}
            name = f"{rows:,} rows streamed, K = {K}"
            below.append(rows_of(name, str(path), K, arguments.iterations, **given))
    print("\n" + "\n".join(below))


if __name__ == "__main__":
    main()
