"""The arguments of the commands that fit several times: `choose` and `stability`."""

from __future__ import annotations

from typing import Any

from ..usage import Parser, file, number_or_no, one_of, whole
from .choices import HOLDOUTS, PLAIN_RULES, RESAMPLES
from .fit import add_backend, add_concepts, add_model, add_stopping
from .shared import add_computing, add_matrix, add_messages, add_option, add_out


def add_choose(parser: Parser) -> None:
    files = parser.group("input and output")
    add_matrix(files, "A", "A (n × d), in memory", several=False)
    many = "numbers of concepts to compare"
    files("candidates", type=whole, nargs="+", metavar="K", help=many)
    add_out(files, "table to write, .csv, .tsv or .json", required=False)
    picture = "picture to write, .png, .svg or .pdf (needs matplotlib)"
    files("--picture", type=file, metavar="FILE", help=picture)
    hold = parser.group("hold-outs")
    what = "what is held out, and predicted from the rest"
    add_option(hold, "--holdout", HOLDOUTS[0], one_of(*HOLDOUTS), what)
    add_option(hold, "--folds", 5, whole, "parts, each of which is held out once", "N")
    model = parser.group("model")
    add_model(model, "auto", "seed of folds and fits")
    _add_fits(parser)


def add_stability(parser: Parser) -> None:
    files = parser.group("input and output")
    add_matrix(files, "A", "A (n × d), in memory", several=False)
    consensus = "model to write, .safetensors: the consensus of the runs"
    add_out(files, consensus, required=False)
    codes = "file for the codes Z of the consensus; .npz: sparse"
    files("--codes", type=file, metavar="FILE", help=codes)
    runs = parser.group("runs")
    add_option(runs, "--runs", 10, whole, "fits to compare", "N")
    what = "what differs between runs: drawn rows and the start, or the start alone"
    add_option(runs, "--resample", RESAMPLES[0], one_of(*RESAMPLES), what)
    what = "distance beyond which a concept is left out of the consensus; no: leaves out none"
    add_option(runs, "--density-threshold", 0.5, number_or_no, what, "DISTANCE")
    model = parser.group("model")
    add_concepts(model)
    add_model(model, "random", "seed of all runs")
    _add_fits(parser)


def _add_fits(parser: Parser) -> None:
    add_stopping(parser.group("stopping of each fit"), PLAIN_RULES)
    runs: Any = parser.group("memory and computing")
    add_computing(runs, "more is refused")
    add_backend(runs)
    saves = parser.group("going on later (after Ctrl-C, too)")
    what = "file to save each finished fit to, .safetensors"
    saves("--checkpoint", type=file, metavar="FILE", help=what)
    saves("--resume", action="store_true", help="do not repeat the fits that --checkpoint has")
    add_messages(parser)
