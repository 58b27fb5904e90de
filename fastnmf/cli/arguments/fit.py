"""The arguments of the command `fit`; those of the model are also those of other commands that
fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..usage import Parser, file, number, number_or_same, one_of, share_or_file, whole
from .choices import FORMS, MODELS, RULES, SIGNED_STARTS, STARTS, YES_OR_NO
from .shared import (
    add_computing,
    add_matrix,
    add_messages,
    add_option,
    add_out,
    add_solver,
    add_weights,
)


def add_fit(parser: Parser) -> None:
    files = parser.group("input and output")
    add_matrix(files, "A", "A (n × d)")
    add_weights(files)
    add_out(files, "model to write, .safetensors")
    files("--codes", type=file, metavar="FILE", help="file for the codes Z (n × K); .npz: sparse")
    model = parser.group("model")
    add_concepts(model)
    add_model(model, "auto")
    stops = parser.group("stopping")
    add_stopping(stops)
    what = "share of the rows of A, or file of rows, not trained on, measured every 10 iterations"
    stops("--validation", type=share_or_file, metavar="SHARE|FILE", help=what)
    stops("--max-seconds", type=number, metavar="SECONDS", help="time limit; default: none")
    stops("--strict", action="store_true", help="exit with status 4 if it has not converged")
    runs = parser.group("memory and computing")
    add_computing(runs)
    rows = "rows in memory at a time; default: what fits"
    runs("--chunk-rows", type=whole, metavar="N", help=rows)
    add_backend(runs)
    add_option(runs, "--form", "auto", one_of(*FORMS), "how half-steps are computed")
    waits = "seconds that processes of torchrun wait for each other, at most"
    add_option(runs, "--timeout", 600.0, number, waits, "SECONDS")
    saves = parser.group("going on later (Ctrl-C saves a fit and prints the command that goes on)")
    saves("--checkpoint", type=file, metavar="FILE", help="file to save to, .safetensors")
    every = "seconds between two saves, at least; default: 60"
    saves("--checkpoint-seconds", type=number, metavar="SECONDS", help=every)
    saves("--resume", action="store_true", help="go on from --checkpoint if it exists")
    add_messages(parser)


def add_concepts(model: Any) -> None:
    many = "how many concepts to learn"
    model("-k", "--concepts", type=whole, required=True, metavar="K", help=many)


def add_model(model: Any, init: str, seed: str = "seed of a random start") -> None:
    """Options of the model, but for the number of its concepts. init: the default start."""
    what = "nmf; for data of any signs: semi, concepts of any signs; convex, mixtures of rows of A"
    add_option(model, "--model", MODELS[0], one_of(*MODELS), what)
    add_solver(model, None, ", with --model convex anls")
    add_option(model, "--init", init, one_of(*STARTS, *SIGNED_STARTS), "the start")
    what = "starts to choose from, by short runs of all of them"
    add_option(model, "--n-init", 1, whole, what, "N")
    model("--seed", type=whole, metavar="N", help=f"{seed}; default: drawn")
    add_option(model, "--alpha-Z", 0.0, number, "penalty on the codes", "WEIGHT")
    what = "penalty on the dictionary; same: as on the codes"
    add_option(model, "--alpha-D", "same", number_or_same, what, "WEIGHT")
    what = "of the penalties, from 0 (squares) to 1 (sums)"
    add_option(model, "--l1-ratio", 0.0, number, what, "SHARE")
    what = "with --model convex: weights of the rows in a concept sum to 1"
    model("--strict-convex", action="store_true", help=what)
    model("--unit-norm", action="store_true", help="keep concepts at norm 1")
    what = "with --model semi: learn a row that is added to all, A ≈ Z D + b"
    model("--offset", action="store_true", help=what)
    what = "mean active concepts per row; the penalty is found, concepts have norm 1"
    model("--target-l0", type=number, metavar="L0", help=what)
    what = "active concepts of a row at most, in fit and encode; codes by a pursuit"
    model("--top-k", type=whole, metavar="N", help=what)
    what = "re-initialise dead and near-duplicate concepts"
    model("--revive", action="store_true", help=what)


def add_stopping(stops: Any, rules: Sequence[str] = RULES) -> None:
    add_option(stops, "--max-iter", 500, whole, "iterations, at most", "N")
    what = "relative change at which to stop; 0 never stops early"
    add_option(stops, "--tol", 1e-4, number, what, "TOL")
    named = one_of(*rules, also={"codes": rules[0]})
    add_option(stops, "--stop", "change", named, "what must change by less than --tol")


def add_backend(runs: Any) -> None:
    add_option(runs, "--backend", "auto", {"metavar": "NAME"}, "auto, or one of `fastnmf info`")
    add_option(runs, "--accelerate", "auto", one_of(*YES_OR_NO), "extrapolate the factors")
