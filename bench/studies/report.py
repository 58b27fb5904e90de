"""Print the tables of a results file of `pytest bench` and draw its chart into the same folder.

Takes a second. Needs a file written by `pytest bench --benchmark-json=FILE` and, for the chart,
matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import tables
from support.options import parser_of


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("results", type=Path, help="bench/results/MACHINE.json")
    path = parser.parse_args().results
    entries = tables.read(path)
    print(tables.tables(entries))
    # imported here: the tables need no matplotlib
    from support.chart import draw

    draw(entries, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
