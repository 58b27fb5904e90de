"""Show the time to a stated error of whole fits on real data, of all libraries.

The errors stated are 1 % and 0.1 % above the least that any library reached on the same data with
the same seed. Every library gets the same float32 rows, number of threads, seconds (see
--patience) and seed, a tolerance of 0, and its own defaults otherwise, its start included.

The time is that of one call of `fit`: checks of the data, the start and all iterations. At the end
of an iteration (a hook in a function of the library) the clock is stopped and the error computed
from the current factors, unless the time has grown by less than 1 % since the last error. So a
time is never too short, and too long by 1 % or one iteration at most. What fastnmf computes for
its own report of an iteration counts. Before, a short fit of each library is checked, and so is
every fit of fastnmf: the last error must be that of the returned factors.

Takes half an hour, and some seconds with --quick. Needs scikit-learn; overcomplete, nmf-torch and
facenet-pytorch (pip install --no-deps facenet-pytorch) are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.courses import CLOCKS, CONTENDERS, follow, refusals
from support.data_sets import DATA_SETS, ROWS, DataSet
from support.measure import machine
from support.options import count, parser_of, positive, write_json
from support.quality_tables import explanation, least_error, summaries, table
from support.tables import OURS, machine_text

QUICK = {"sets": ["digits"], "seeds": 1, "seconds": 1.0}
# stored with the results, which name no files
OPTIONS = ("seeds", "seconds", "patience", "against", "threads", "clock", "start", "concepts")
# concepts for the data of --data
FILE_CONCEPTS = 64


def run(
    data_sets: dict[str, DataSet], contenders: list[str], arguments: argparse.Namespace
) -> list[dict]:
    """An entry for each course; the library that is first changes with the seed."""
    entries = []
    for name, data_set in data_sets.items():
        K = arguments.concepts or data_set.K
        for seed in range(arguments.seeds):
            try:
                A = data_set.draw(seed)
            except pytest.skip.Exception as reason:
                print(f"{name} is left out: {reason}")
                break
            print(f"{name}, seed {seed}", file=sys.stderr)
            first = seed % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                course = follow(
                    contender,
                    A,
                    K,
                    seed=seed,
                    seconds=arguments.seconds * (1 if contender == OURS else arguments.patience),
                    clock=arguments.clock,
                    start=arguments.start,
                )
                entries.append(
                    {
                        "data": name,
                        "title": f"{name}, {len(A):,} × {A.shape[1]:,}, K = {K:,}",
                        "seed": seed,
                        "contender": contender,
                        "iterations": course.iterations,
                        "points": course.points,
                    }
                )
    return entries


def from_file(path: str, seed: int) -> torch.Tensor:
    """Rows drawn from a .npy file (n, d), rectified."""
    A = np.load(path, mmap_mode="r")
    chosen = np.random.default_rng(seed).permutation(len(A))[:ROWS]
    return torch.from_numpy(A[np.sort(chosen)].astype(np.float32)).clamp_(min=0)


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="the digits, one seed, 1 second a fit")
    add("--sets", nargs="+", choices=DATA_SETS, help="data sets; default: all")
    add("--data", action="append", default=[], metavar="PATH.npy", help="more rows (n, d)")
    add("--seeds", type=count, help="number of seeds (5)")
    add("--seconds", type=positive, help="time of each fit (10)")
    add("--patience", type=positive, default=1.0, help="the others get this many times as long (1)")
    others = [name for name in CONTENDERS if name != OURS]
    add("--against", nargs="+", choices=others, default=others, help="default: all others")
    add("--concepts", type=count, help="for all data sets; default: their own")
    add("--start", choices=("default", "random"), default="default", help="start of every library")
    add("--threads", type=count, default=torch.get_num_threads())
    clock_help = "processor: for a busy machine, with --threads 1"
    add("--clock", choices=CLOCKS, default="wall", help=clock_help)
    add("--json", metavar="PATH", default="quality.json", help="where to write (quality.json)")
    add("--figure", metavar="PATH.png", help="also draw error against time")
    arguments = parser.parse_args()
    if arguments.clock == "processor" and arguments.threads > 1:
        parser.error("--clock processor adds up the time of all threads: give --threads 1 with it")
    usual = QUICK if arguments.quick else {"sets": list(DATA_SETS), "seeds": 5, "seconds": 10.0}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def usable(arguments: argparse.Namespace) -> list[str]:
    """The libraries that are compared; reports those that cannot be."""
    found = []
    for contender, reason in refusals(arguments.start):
        if contender not in (OURS, *arguments.against):
            continue
        if reason is None:
            found.append(contender)
        else:
            print(f"{contender} is left out: {reason}")
    return found


def main() -> None:
    from threadpoolctl import threadpool_limits

    arguments = parsed()
    data_sets = {name: DATA_SETS[name] for name in arguments.sets}
    for path in arguments.data:
        data_sets[Path(path).stem] = DataSet(partial(from_file, path), FILE_CONCEPTS)
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        entries = run(data_sets, usable(arguments), arguments)
    if not entries:
        sys.exit("there is nothing to compare: see what was left out")
    lines = summaries(entries)
    options = {name: getattr(arguments, name) for name in OPTIONS}
    results = {"machine": machine(), "options": options, "lines": lines, "courses": entries}
    write_json(arguments.json, results)
    limits = arguments.seconds, arguments.seconds * arguments.patience
    explained = explanation(arguments.seeds, limits, arguments.clock)
    print(f"{machine_text(machine())}\n\n{explained}\n")
    print(table(lines, limits))
    if arguments.figure:
        from support.chart import draw_courses

        draw_courses(entries, partial(least_error, entries), Path(arguments.figure))


if __name__ == "__main__":
    main()
