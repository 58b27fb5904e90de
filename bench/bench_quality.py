"""Time to a stated error of whole fits on real data, beside Overcomplete, scikit-learn, nmf-torch.

python bench/bench_quality.py [--seeds 5] [--seconds 10] [--figure quality.png]: half an hour;
--quick: the digits, one seed. --patience 8: the others have 8 times as long, to come to what
fastnmf has come to. --against "scikit-learn cd": it alone. Not part of `pytest bench`.

An error is stated as 1 % and 0.1 % above the least that any library reached on that data set with
that seed. Every library gets the same float32 rows, as many threads and seconds (but --patience), a
tolerance of 0, the seed, and else its own defaults, its own start among them. Its time is that of
one call of its fit: the checks of the data, the start and all iterations before. At the end of an
iteration (a hook in the function that the library calls there) the clock is stopped, and the error
computed from the factors in hand, unless the time has grown by less than 1 % since the last one.
So a time is never too short, and too long by 1 % or an iteration at most. What fastnmf does for
its own account of each iteration is in its time. A fit of every library that ends by itself is
checked before, and every fit of fastnmf: the last error must be that of the factors returned.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from courses import CLOCKS, CONTENDERS, OURS, follow, refusals
from measure import machine
from quality_report import explanation, least_error, summaries, table
from real_data import DATA_SETS, ROWS, DataSet
from report import machine_text

QUICK = {"sets": ["digits"], "seeds": 1, "seconds": 1.0}
# noted in the results, which name no files
OPTIONS = ("seeds", "seconds", "patience", "against", "threads", "clock", "start", "concepts")
# of files of one's own
FILE_CONCEPTS = 64


def run(
    data_sets: dict[str, DataSet], contenders: list[str], arguments: argparse.Namespace
) -> list[dict]:
    """An entry for each course; libraries take turns at being the first."""
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the digits, one seed, 1 second a fit")
    parser.add_argument("--sets", nargs="+", choices=DATA_SETS, help="default: all")
    parser.add_argument(
        "--data", action="append", default=[], metavar="PATH.npy", help="more rows (n, d)"
    )
    parser.add_argument("--seeds", type=int, help="how many (5)")
    parser.add_argument("--seconds", type=float, help="for each fit (10)")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times as long for the others (1)"
    )
    others = [name for name in CONTENDERS if name != OURS]
    parser.add_argument(
        "--against", nargs="+", choices=others, default=others, help="default: all others"
    )
    parser.add_argument("--concepts", type=int, help="for all data sets; default: their own")
    parser.add_argument(
        "--start", choices=("default", "random"), default="default", help="of every library"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: for a busy machine, with --threads 1",
    )
    parser.add_argument("--json", default="quality.json", help="where to write (quality.json)")
    parser.add_argument("--figure", metavar="PATH.png", help="error against time, drawn")
    arguments = parser.parse_args()
    if arguments.clock == "processor" and arguments.threads > 1:
        parser.error("--clock processor adds up the time of all threads: give --threads 1 with it")
    usual = QUICK if arguments.quick else {"sets": list(DATA_SETS), "seeds": 5, "seconds": 10.0}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    for name in ("seeds", "seconds", "patience", "concepts", "threads"):
        given = getattr(arguments, name)
        if given is not None and given <= 0:
            parser.error(f"--{name} {given:g}: it must be above 0")
    return arguments


def main() -> None:
    from threadpoolctl import threadpool_limits

    arguments = parsed()
    data_sets = {name: DATA_SETS[name] for name in arguments.sets}
    for path in arguments.data:
        data_sets[Path(path).stem] = DataSet(partial(from_file, path), FILE_CONCEPTS)
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        contenders = []
        for contender, reason in refusals(arguments.start):
            if contender not in (OURS, *arguments.against):
                continue
            if reason is None:
                contenders.append(contender)
            else:
                print(f"{contender} is left out: {reason}")
        entries = run(data_sets, contenders, arguments)
    if not entries:
        sys.exit("there is nothing to compare: see what was left out")
    lines = summaries(entries)
    options = {name: getattr(arguments, name) for name in OPTIONS}
    told = {"machine": machine(), "options": options, "lines": lines, "courses": entries}
    Path(arguments.json).write_text(json.dumps(told, indent=1, allow_nan=False))
    limits = arguments.seconds, arguments.seconds * arguments.patience
    explained = explanation(arguments.seeds, limits, arguments.clock)
    print(f"{machine_text(machine())}\n\n{explained}\n")
    print(table(lines, limits))
    if arguments.figure:
        from chart import draw_courses

        draw_courses(entries, partial(least_error, entries), Path(arguments.figure))


if __name__ == "__main__":
    main()
