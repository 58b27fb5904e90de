"""The arguments of the commands that need no file: `info`, `demo` and `completion`."""

from __future__ import annotations

from pathlib import Path

from ..usage import Parser, one_of, whole
from .choices import SHELLS, SOLVERS
from .shared import add_help, add_messages, add_option, add_out, add_solver


def add_info(parser: Parser) -> None:
    messages = parser.group("messages")
    messages("--json", action="store_true", help="print one JSON object")
    add_help(messages)


def add_demo(parser: Parser) -> None:
    files = parser.group("output")
    add_out(files, "picture to write, .png; default: concepts.png", default=Path("concepts.png"))
    model = parser.group("model")
    add_option(model, "-k", "--concepts", 1000, whole, "how many to learn", "K")
    add_option(model, "--patches", 20_000, whole, "how many to learn from", "N")
    add_option(model, "--seed", 0, whole, "seed of the choice of patches", "N")
    add_solver(model, SOLVERS[0])
    add_option(model, "--device", "cpu", {"metavar": "NAME"}, "cpu, cuda, cuda:1 …")
    add_messages(parser)


def add_completion(parser: Parser) -> None:
    parser.group("input")("shell", **one_of(*SHELLS), help="the shell that is to complete")
    add_help(parser.group("messages"))
