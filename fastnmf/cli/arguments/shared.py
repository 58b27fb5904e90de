"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..usage import Parser, file, one_of, weights
from .choices import SOLVERS, YES_OR_NO


def add_matrix(add: Any, name: str, what: str, *, several: bool = True) -> None:
    """Add the input: a list of files, or of the one that may be given."""
    more = "several .npy or .safetensors files, or a folder of them, are its rows; " * several
    count = "+" if several else 1
    add(name, type=file, nargs=count, metavar=name, help=f"file of {what}; {more}-: stdin")
    header = "whether the first line of a .csv or .tsv file holds names"
    add_option(add, "--header", "auto", one_of(*YES_OR_NO), header)


def add_weights(add: Any) -> None:
    what = "file of weights of the rows (n × 1), the features (1 × d) or the entries of A; stored: "
    add("--weights", type=weights, metavar="W", help=what + "of what a sparse A stores, no more")


def add_out(add: Any, help: str, default: Path | None = None, *, required: bool = True) -> None:
    given = {"default": default} if default else {"required": required}
    add("-o", "--out", type=file, metavar="FILE", help=help, **given)
    add("-f", "--force", action="store_true", help="overwrite files that exist")


def add_computing(add: Any, more: str = "more is read in passes") -> None:
    add_option(add, "--device", "cpu", {"metavar": "NAME"}, "cpu, cuda, cuda:1 …")
    size = f"bytes to use, as 2GB or 512MiB; {more}; default: what is free"
    add("--max-memory", metavar="SIZE", help=size)


def add_messages(parser: Parser) -> None:
    add = parser.group("messages")
    add("-q", "--quiet", action="store_true", help="no progress, no summary")
    add("--json", action="store_true", help="print the summary as one JSON object")
    add_help(add)


def add_help(add: Any) -> None:
    add("-h", "--help", action="help", help="show this text")


def add_option(add: Any, *given: Any) -> None:
    """Add an option: its names, default, type (or the options of its argument) and help, to which
    the default is added; a metavar at the end."""
    names = [word for word in given if isinstance(word, str) and word.startswith("-")]
    default, kind, help, *metavar = given[len(names) :]
    options = dict(kind) if isinstance(kind, dict) else {"type": kind}
    if metavar:
        options["metavar"] = metavar[0]
    add(*names, default=default, help=f"{help}; default: {default}", **options)


def add_solver(group: Any, default: str | None, of_convex: str = "") -> None:
    solvers = one_of(*SOLVERS, also={"cd": SOLVERS[0]})
    what = f"method of the half-steps; default: hals{of_convex}"
    group("--solver", default=default, **solvers, help=what)
