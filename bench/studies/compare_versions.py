"""Answer whether one version of fastnmf is as fast as another: the benches of both, in turns.

Runs `pytest bench --quick` of two checkouts, each with the Python of its own environment, in turns
A B A B …, and joins the benchmarks by file and name. Printed for each: seconds of A and B (the
best of all turns), the ratio B / A of these, and the median over the turns of the ratio of their
medians; then the geometric means. Benchmarks whose ratio of the best times is above --limit are
run again by themselves, for as many turns, and all turns count. The exit status is 0 if the
geometric mean of these ratios is at most --mean and none is left above --limit, else 1.

Benchmarks of other libraries run the same code in A and B, so their ratios show the noise;
-k "not baseline and not overcomplete and not scikit" leaves them out.

Takes 5 to 10 minutes a turn, less with -k. Needs two checkouts, each installed with extra bench in
an environment of its own (`pip install -e '.[bench]'`), and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.options import count, parser_of, positive, write_json
from support.tables import markdown, seconds_text

# benchmark → (best, median) seconds in each turn
Times = dict[str, list[tuple[float, float]]]
VERSIONS = ("a", "b")


def run(python: str, root: str, options: list[str]) -> dict[str, tuple[float, float]]:
    """One turn of one version: benchmark → (best, median) seconds of an iteration.

    The working directory is an empty folder, so that the installed package is imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", *options]
        command.append(f"--benchmark-json={results}")
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        written = results.read_text() if results.exists() else ""
    if ran.returncode or not written:
        print(f"pytest in {root}:\n{ran.stdout[-3000:]}{ran.stderr[-1000:]}", file=sys.stderr)
    if not written:
        sys.exit(f"no benchmark ran in {root}")
    return {name_of(entry): seconds_of(entry) for entry in json.loads(written)["benchmarks"]}


def name_of(entry: dict) -> str:
    """File and name, wherever the checkout is."""
    file, _, name = entry["fullname"].partition("::")
    return f"{Path(file).name}::{name}"


def seconds_of(entry: dict) -> tuple[float, float]:
    """Of an iteration, as rounds of the two versions may hold different numbers of iterations."""
    scale = entry["extra_info"].get("scale", 1.0)
    return scale * entry["stats"]["min"], scale * entry["stats"]["median"]


def take_turns(options: argparse.Namespace, found: dict[str, Times], names: list[str]) -> None:
    """Run A B A B … and add the seconds; names: the benchmarks, or none for all of the filter."""
    for turn in range(options.turns):
        for version in VERSIONS:
            print(f"turn {turn + 1} of {options.turns}: {version.upper()}", file=sys.stderr)
            python, root = getattr(options, version)
            chosen = [f"{root}/bench/{name}" for name in names] or [f"{root}/bench"]
            chosen += [] if options.full else ["--quick"]
            chosen += ["-k", options.filter] if options.filter and not names else []
            for name, seconds in run(python, root, chosen).items():
                found[version].setdefault(name, []).append(seconds)


def ratios(found: dict[str, Times]) -> dict[str, tuple[float, float]]:
    """Benchmark → B / A of the best times of all turns, and the median over turns of B / A."""
    joined = {}
    for name in found["a"].keys() & found["b"].keys():
        a, b = found["a"][name], found["b"][name]
        best = min(best for best, _ in b) / min(best for best, _ in a)
        turns = [y / x for (_, x), (_, y) in zip(a, b, strict=False)]
        joined[name] = best, statistics.median(turns)
    return dict(sorted(joined.items()))


def table(found: dict[str, Times], joined: dict[str, tuple[float, float]]) -> str:
    rows = []
    for name, pair in joined.items():
        best = [min(best for best, _ in found[version][name]) for version in VERSIONS]
        cells = [*map(seconds_text, best), *(f"{ratio:.3f}" for ratio in pair)]
        rows.append([name, *cells, str(len(found["a"][name]))])
    return markdown(["benchmark", "A", "B", "B / A, best", "B / A, median", "turns"], rows)


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    for version in VERSIONS:
        metavar = f"PYTHON_{version.upper()}", f"ROOT_{version.upper()}"
        version_help = "Python of the environment, and the checkout"
        parser.add_argument(
            f"--{version}", nargs=2, metavar=metavar, required=True, help=version_help
        )
    parser.add_argument("--turns", type=count, default=3, help="turns of each version (3)")
    parser.add_argument("-k", dest="filter", metavar="FILTER", help="as in pytest")
    parser.add_argument("--full", action="store_true", help="the large workloads too, hours")
    parser.add_argument("--limit", type=positive, default=1.05, help="for each benchmark (1.05)")
    parser.add_argument("--mean", type=positive, default=1.01, help="for the mean (1.01)")
    parser.add_argument("--json", metavar="PATH", help="also write the seconds of all turns there")
    options = parser.parse_args()
    for version in VERSIONS:
        # without following links: the Python of a virtual environment is one
        setattr(
            options, version, [str(Path(path).absolute()) for path in getattr(options, version)]
        )
    return options


def main() -> None:
    options = parsed()
    found: dict[str, Times] = {version: {} for version in VERSIONS}
    take_turns(options, found, [])
    slow = [name for name, (best, _) in ratios(found).items() if best > options.limit]
    if slow:
        print(f"run again: {len(slow)} above {options.limit}", file=sys.stderr)
        take_turns(options, found, slow)
    joined = ratios(found)
    if options.json:
        write_json(options.json, found)
    if not joined:
        sys.exit("A and B have no benchmark in common")
    print(table(found, joined))
    alone = sorted(found["a"].keys() ^ found["b"].keys())
    if alone:
        print(f"\nin one version only: {', '.join(alone)}")
    best, median = map(statistics.geometric_mean, zip(*joined.values(), strict=True))
    print(f"\ngeometric mean of B / A: {best:.3f} (best), {median:.3f} (median)")
    left = [f"{name} {ratio:.3f}" for name, (ratio, _) in joined.items() if ratio > options.limit]
    print(f"above {options.limit}: {', '.join(left) or 'none'}")
    sys.exit(bool(left) or best > options.mean)


if __name__ == "__main__":
    main()
