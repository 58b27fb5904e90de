"""The arguments of the commands that read a model."""

from __future__ import annotations

from typing import Any

from ..usage import Parser, file, number, one_of, sizes, whole
from .choices import MAPS, METHODS
from .shared import add_computing, add_matrix, add_messages, add_option, add_out, add_weights


def add_encode(parser: Parser) -> None:
    add_weights(_files(parser, "A", "Z"))
    stops = parser.group("method and stopping")
    what = "exact codes, by sweeps first where that is faster, or sweeps alone"
    add_option(stops, "--method", METHODS[0], one_of(*METHODS), what)
    what = "active concepts of a row at most, by a pursuit; default: those of the model"
    stops("--top-k", type=whole, metavar="N", help=what)
    what = "refit the coefficients of active concepts without the penalty"
    stops("--refit", action="store_true", help=what)
    add_option(stops, "--max-iter", 300, whole, "sweeps, at most", "N")
    what = "change of Z at which sweeps alone stop; default: a hundredth of the model's"
    stops("--tol", type=number, metavar="TOL", help=what)
    stops("--strict", action="store_true", help="exit with status 4 if it has not converged")
    add_computing(parser.group("memory and computing"))
    add_messages(parser)


def add_decode(parser: Parser) -> None:
    _files(parser, "Z", "Z D")
    add_computing(parser.group("memory and computing"))
    add_messages(parser)


def _files(parser: Parser, given: str, made: str) -> Any:
    files = parser.group("input and output")
    files("model", type=file, metavar="MODEL", help="model that fit wrote")
    add_matrix(files, given, given)
    add_out(files, f"file to write {made} to")
    return files


def add_report(parser: Parser) -> None:
    files = parser.group("input and output")
    files("model", type=file, metavar="MODEL", help="model that fit wrote")
    page = "page to write, .html; without it the summary is printed"
    add_out(files, page, required=False)
    what = "on the page: concepts are images, as 16x16x3"
    files("--image-shape", type=sizes, metavar="HxWxC", help=what)
    add_messages(parser)


def add_show(parser: Parser) -> None:
    files = parser.group("input and output")
    files("model", type=file, metavar="MODEL", help="model that fit wrote")
    add_matrix(files, "A", "A", several=False)
    add_out(files, "page to write, .html; without it the concepts are printed", required=False)
    what = "file of the codes Z that fit or encode wrote; default: they are computed"
    files("--codes", type=file, metavar="FILE", help=what)
    add_weights(files)
    shown = parser.group("what rows and features are")
    for name, of in (("features", "feature"), ("rows", "row")):
        shown(f"--{name}", type=file, metavar="FILE", help=f"text file: the name of a {of} a line")
    what = "text file: a word (token) of each row a line, shown with those around it"
    shown("--texts", type=file, metavar="FILE", help=what)
    add_option(shown, "--context", 8, whole, "words on each side", "N")
    shown("--image-shape", type=sizes, metavar="HxWxC", help="rows are images, as 16x16x3")
    what = "rows are the places of --images, image after image, as 14x14"
    shown("--tokens", type=sizes, metavar="HxW", help=what)
    what = "file of images (N, H, W, c), .npy, over which codes are drawn"
    shown("--images", type=file, metavar="FILE", help=what)
    add_option(shown, "--top", 8, whole, "rows of each concept", "N")
    what = "concepts, from the most energy down, of which more than numbers are shown"
    add_option(shown, "--details", 200, whole, what, "N")
    what = "how the map is made; tsne needs scikit-learn, umap needs umap-learn"
    add_option(shown, "--map", MAPS[0], one_of(*MAPS), what)
    add_computing(parser.group("memory and computing"), "more is refused")
    add_messages(parser)
