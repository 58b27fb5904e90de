"""Show what fits of many small matrices take: fit_many, a loop over fastnmf, and over Overcomplete.

Matrices of 1,300 × 512, K = 10, 100 iterations from the same kind of start (random). Every way
runs once before it is timed, and then --rounds times in turns; the least time counts. Before,
models of fit_many are compared with single fits with one thread. Needs overcomplete, which is left
out where it is not installed.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from fastnmf import NMF, fit_many

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row

ROWS, FEATURES, K, ITERATIONS = 1300, 512, 10, 100


def ways(matrices: list[torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Name → a function that fits all matrices."""
    options = {"init": "random", "seed": 0, "max_iter": ITERATIONS, "tol": 0}
    found = {
        "fit_many": lambda: fit_many(matrices, K, **options),
        "a loop over fastnmf": lambda: [NMF(K, **options).fit(A) for A in matrices],
    }
    try:
        from overcomplete.optimization import NMF as Theirs
    except ImportError:
        return found

    def theirs() -> None:
        for A in matrices:
            Theirs(K, solver="hals", tol=0).fit(A, max_iter=ITERATIONS)

    return found | {"a loop over Overcomplete": theirs}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--fits", type=count, default=60, help="matrices (60)")
    parser.add_argument("--rounds", type=count, default=3, help="times that each way is timed (3)")
    parser.add_argument("--threads", type=count, default=2, help="threads of torch (2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    drawn = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=drawn)  # noqa: E731
    matrices = [draw(ROWS, 20) @ draw(20, FEATURES) + draw(1) for _ in range(arguments.fits)]
    for A, model in zip(matrices[:3], fit_many(matrices[:3], K, seed=0, max_iter=20), strict=True):
        torch.set_num_threads(1)
        single = NMF(K, seed=0, max_iter=20)
        single.fit(A)
        torch.set_num_threads(arguments.threads)
        torch.testing.assert_close(model.D, single.D, rtol=1e-5, atol=1e-6)
    found, least = ways(matrices), {}
    for run in ways(matrices[:2]).values():
        run()
    for _ in range(arguments.rounds):
        for name, run in found.items():
            begun = time.perf_counter()
            run()
            least[name] = min(least.get(name, float("inf")), time.perf_counter() - begun)
    print(f"{machine_text(machine())}, {arguments.fits} fits\n")
    print(markdown_head(["way", "ms a fit", "times fit_many"]))
    for name, seconds in least.items():
        cells = [f"{1e3 * seconds / len(matrices):.1f}", f"{seconds / least['fit_many']:.2f}"]
        print(markdown_row([name, *cells]))


if __name__ == "__main__":
    main()
