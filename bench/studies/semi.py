"""Show how long an iteration of SemiNMF takes, with an offset and without, beside fastnmf's NMF of
data of the same size and Overcomplete's SemiNMF with its solver mu.

The data are drawn: rows of any signs of rank 200 with noise and a mean; for NMF their absolute
values. All fits are of `hals` from a random start without acceleration. Seconds are the difference
of a long and a short fit, the best of several, in turns; with one thread they are processor time.

Takes some ten minutes at 1,000 and 2,000 concepts; --quick a minute. Overcomplete is optional.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastnmf import NMF, SemiNMF

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row

# iterations of the short fit; the long one has so many more that they take LEAST seconds or more
SHORT, LEAST = 1, 1.5
RANK, NOISE = 200, 0.3


def draw(n: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    Z, D, noise, mean = (
        torch.randn(*shape, generator=generator) for shape in ((n, RANK), (RANK, d), (n, d), (1, d))
    )
    return Z.clamp(min=0) @ D / RANK**0.5 + NOISE * noise + mean


def fits(A: Tensor, K: int, *, theirs: bool) -> dict[str, Callable[[int], object]]:
    """name → a function of the number of iterations."""
    options = {"seed": 0, "tol": 0.0, "init": "random", "accelerate": False}
    size = A.abs()
    found = {
        "SemiNMF": lambda times: SemiNMF(K, **options).fit(A, times),
        "with an offset": lambda times: SemiNMF(K, offset=True, **options).fit(A, times),
        "NMF": lambda times: NMF(K, **options).fit(size, times),
    }
    if theirs:
        from overcomplete.optimization import SemiNMF as Theirs

        found["Overcomplete"] = lambda times: Theirs(K, tol=0.0).fit(A, max_iter=times)
    return found


def seconds_of(runs: dict[str, Callable[[int], object]], turns: int, threads: int):
    """name → the seconds of an iteration."""
    clock = time.process_time if threads == 1 else time.perf_counter

    def seconds(name: str, times: int) -> float:
        begun = clock()
        runs[name](times)
        return clock() - begun

    more = {name: iterations_of(lambda times, name=name: seconds(name, times)) for name in runs}
    short, long = ({name: [] for name in runs} for _ in range(2))
    for _ in range(turns):
        for name in runs:
            short[name].append(seconds(name, SHORT))
            long[name].append(seconds(name, SHORT + more[name]))
    return {name: (min(long[name]) - min(short[name])) / more[name] for name in runs}


def iterations_of(seconds: Callable[[int], float]) -> int:
    """How many iterations take LEAST seconds, beside what a fit takes anyway. seconds: those of a
    fit with a number of iterations."""
    few, base = 2, seconds(SHORT)
    while (taken := seconds(SHORT + few) - base) < LEAST / 4:
        few *= 2
    return max(few, round(few * LEAST / taken))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=count, default=4000)
    parser.add_argument("--features", type=count, default=384)
    parser.add_argument("--concepts", type=count, nargs="+", default=[1000, 2000])
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--turns", type=count, default=3)
    parser.add_argument("--quick", action="store_true", help="200 concepts, 1,000 rows, one turn")
    parser.add_argument("--alone", action="store_true", help="without Overcomplete")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.concepts, given.turns = 1000, [200], 1
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    A = draw(given.rows, given.features)
    print(machine_text(machine()))
    names = list(fits(A, 1, theirs=not given.alone))
    print(markdown_head(["K", *names]))
    for K in given.concepts:
        found = seconds_of(fits(A, K, theirs=not given.alone), given.turns, given.threads)
        ratios = (f"{each:.3f} s ({each / found['SemiNMF']:.2f})" for each in found.values())
        print(markdown_row([str(K), *ratios]), flush=True)


if __name__ == "__main__":
    main()
