"""The arguments of the command `fastnmf`, and their help texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._version import __version__

ACCELERATE = {"auto": "auto", "yes": True, "no": False}


def parser_of(commands: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """The parser of the command line; commands: name → what runs it, given the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="fastnmf",
        description="Non-negative matrix factorization A ≈ Z D of non-negative A: codes Z and a "
        "dictionary D of concepts. Matrices are .npy, .npz, .pt, .pth or .safetensors files.",
    )
    parser.add_argument("--version", action="version", version=f"fastnmf {__version__}")
    listed = parser.add_subparsers(title="commands", required=True, metavar="command")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = listed.add_parser(name, help=help, description=help)
        added.set_defaults(run=commands[name])
        return added

    _add_fit(command("fit", "learn the dictionary of A"))
    _add_encode(command("encode", "compute codes Z of A for the dictionary of a model"))
    _add_files(command("decode", "compute the reconstruction Z D of codes Z"), "Z", "Z D")
    _add_report(command("report", "write an HTML page about the fit of a model"))
    command("info", "list backends, why some are not usable here, and what a bug report needs")
    _add_demo(command("demo", "learn the concepts of a photograph, and draw them"))
    return parser


def _add_fit(fit: argparse.ArgumentParser) -> None:
    _add_matrix(fit, "A", "A (n × d)")
    fit.add_argument("--concepts", type=int, required=True, metavar="K", help="how many to learn")
    fit.add_argument("--out", type=Path, required=True, help="model to write, .safetensors")
    fit.add_argument("--codes", type=Path, help="file to write the codes Z (n × K) to")
    _option(fit, "--solver", "hals", "hals, mu, pgd or anls")
    _option(fit, "--max-iter", 500, "iterations, at most")
    _option(fit, "--tol", 1e-4, "relative change at which to stop; 0 never stops early")
    fit.add_argument("--seed", type=int, help="seed of a random start; default: drawn")
    _option(fit, "--init", "auto", "auto, random, nndsvda, rows or spread")
    _option(fit, "--backend", "auto", "auto, or one that `fastnmf info` lists")
    _option(fit, "--form", "auto", "auto, normal or residual")
    fit.add_argument(
        "--accelerate",
        choices=ACCELERATE,
        default="auto",
        help="extrapolate the factors: auto, yes or no; default: auto",
    )
    _option(fit, "--stop", "codes", "what must change by less than tol: codes or error")
    _option(fit, "--alpha-Z", 0.0, "penalty on the codes")
    fit.add_argument(
        "--alpha-D",
        type=_number_or_word,
        default="same",
        help="penalty on the dictionary, or same: as on the codes; default: same",
    )
    _option(fit, "--l1-ratio", 0.0, "of the penalties, from 0 (squares) to 1 (sums)")
    fit.add_argument("--unit-norm", action="store_true", help="keep concepts at norm 1")
    fit.add_argument(
        "--revive", action="store_true", help="re-initialise dead and near-duplicate concepts"
    )
    fit.add_argument("--max-seconds", type=float, help="time limit; default: none")
    fit.add_argument("--chunk-rows", type=int, help="rows in memory at a time; default: what fits")
    fit.add_argument("--checkpoint", type=Path, help="file to save progress to, .safetensors")
    _option(
        fit, "--timeout", 600.0, "seconds that processes of torchrun wait for each other, at most"
    )
    _option(fit, "--checkpoint-seconds", 60.0, "seconds between two saves, at least")
    fit.add_argument(
        "--resume", action="store_true", help="continue from --checkpoint if it exists"
    )
    _add_common(fit)


def _add_encode(encode: argparse.ArgumentParser) -> None:
    _add_files(encode, "A", "Z")
    _option(encode, "--max-iter", 300, "iterations, at most")
    encode.add_argument(
        "--tol",
        type=float,
        help="relative change of Z at which to stop; default: a hundredth of the model's",
    )


def _add_files(command: argparse.ArgumentParser, given: str, made: str) -> None:
    command.add_argument("model", type=Path, help="model that fit wrote")
    _add_matrix(command, given, given)
    command.add_argument("--out", type=Path, required=True, help=f"file to write {made} to")
    _add_common(command)


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("model", type=Path, help="model that fit wrote")
    report.add_argument("-o", "--out", type=Path, required=True, help="page to write, .html")
    report.add_argument("--quiet", action="store_true", help="print nothing")


def _add_matrix(command: argparse.ArgumentParser, name: str, what: str) -> None:
    several = "several .npy or .safetensors files, or a folder of them, are its rows in order"
    command.add_argument(name, type=Path, nargs="+", help=f"file of {what}; {several}")
    help = "bytes to use, such as 2GB or 512MiB; more is read in passes; default: what is free"
    command.add_argument("--max-memory", metavar="SIZE", help=help)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    _option(demo, "--concepts", 1000, "how many to learn")
    _option(demo, "--out", Path("concepts.png"), "picture to write, .png")
    _option(demo, "--patches", 20_000, "how many to learn from")
    _option(demo, "--seed", 0, "seed of the choice of patches")
    _option(demo, "--solver", "hals", "hals, mu, pgd or anls")
    _add_common(demo)


def _add_common(command: argparse.ArgumentParser) -> None:
    _option(command, "--device", "cpu", "cpu, cuda, cuda:1 …")
    command.add_argument("--quiet", action="store_true", help="no progress, no summary")


def _option(command: argparse.ArgumentParser, name: str, default: Any, help: str) -> None:
    """Add an option of the default's type, whose help says the default."""
    described = f"{help}; default: {default}"
    command.add_argument(name, type=type(default), default=default, help=described)


def _number_or_word(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
