"""The arguments of the command `fastnmf`, and their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._version import __version__
from .usage import Parser, file, number, number_or_same, one_of, whole

# in words, so that help needs no torch; a test compares them with what there is
SOLVERS = "hals mu pgd anls".split()
STARTS = "auto random nndsvda nndsvd nndsvdar rows spread".split()
# those of dictionaries of any signs only
SIGNED_STARTS = ["svd"]
MODELS = ["nmf", "semi", "convex"]
RULES = "change error".split()
FORMS = "auto normal residual".split()
METHODS = "auto exact sweeps".split()
YES_OR_NO = {"auto": "auto", "yes": True, "no": False}

ABOUT = """\
Non-negative matrix factorization A ≈ Z D of a non-negative matrix A (n × d): codes Z (n × K) and
a dictionary D (K × d) of K concepts. Semi-NMF of a matrix of any signs."""

MATRICES = """\
matrices:
  read: .npy .npz .pt .pth .safetensors .csv .tsv .parquet .h5ad; several .npy, .safetensors, .npz
  or .h5ad files, or a folder of the first two, are the rows of one matrix, and may be larger than
  memory; sparse .npz and .h5ad files stay sparse
  written: .npy (as they are computed) .npz .pt .pth .safetensors .csv .tsv
  -: the standard input (a .npy file or a text table), or the standard output (.npy)"""

STATUS = """\
exit status:
  0 done; 1 failed, such as a full disk; 2 a command line that cannot be carried out; 3 data that
  cannot be used; 4 not converged, with --strict; 130 interrupted; 143 terminated"""

EXAMPLES = {
    "": """\
examples:
  fastnmf fit A.npy -k 50 -o model.safetensors --codes Z.npy
  fastnmf encode model.safetensors B.npy -o ZB.npy
  fastnmf report model.safetensors -o report.html""",
    "fit": """\
examples:
  fastnmf fit A.npy -k 50 -o model.safetensors
  fastnmf fit counts.csv -k 20 --solver mu --seed 0 -o model.safetensors --codes Z.csv
  fastnmf fit shards/ -k 5000 --max-memory 16GB --checkpoint c.safetensors -o model.safetensors
  zcat A.csv.gz | fastnmf fit - -k 10 -o model.safetensors --json""",
    "encode": """\
examples:
  fastnmf encode model.safetensors B.npy -o ZB.npy
  fastnmf encode model.safetensors - -o - < B.csv > ZB.npy""",
    "decode": """\
examples:
  fastnmf decode model.safetensors Z.npy -o A_hat.npy""",
    "report": """\
examples:
  fastnmf report model.safetensors
  fastnmf report model.safetensors -o report.html
  fastnmf report model.safetensors --json | jq .relative_error""",
    "info": """\
examples:
  fastnmf info
  fastnmf info --json""",
    "demo": """\
examples:
  fastnmf demo
  fastnmf demo -k 200 --patches 5000 -o small.png""",
}

# command → one line about it
COMMANDS = {
    "fit": "learn the dictionary of A",
    "encode": "compute codes Z of A for the dictionary of a model",
    "decode": "compute the reconstruction Z D of codes Z",
    "report": "show the summary of the fit of a model, or write a page about it",
    "info": "list backends, why some are not usable here, and what a bug report needs",
    "demo": "learn the concepts of a photograph, and draw them",
}


def parser_of() -> Parser:
    """The parser of the whole command line; `command` of its result is the name of the command."""
    epilog = f"{EXAMPLES['']}\n\n{MATRICES}\n\n{STATUS}\n\n`fastnmf COMMAND --help` lists options."
    parser = Parser(
        prog="fastnmf", usage="fastnmf COMMAND [options]", description=ABOUT, epilog=epilog
    )
    parser.divided = True
    listed = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", prog="fastnmf"
    )
    other = parser.group("options")
    _help(other)
    other("--version", action="version", version=f"fastnmf {__version__}", help="show the version")
    adds = [_add_fit, _add_encode, _add_decode, _add_report, _add_info, _add_demo]
    for (name, line), add in zip(COMMANDS.items(), adds, strict=True):
        described = f"{line[0].upper()}{line[1:]}."
        epilog = EXAMPLES[name]
        usage = f"fastnmf {name} {_USAGE[name]}"
        add(listed.add_parser(name, help=line, description=described, epilog=epilog, usage=usage))
    return parser


_USAGE = {
    "fit": "A [A ...] -k K -o MODEL [options]",
    "encode": "MODEL A [A ...] -o Z [options]",
    "decode": "MODEL Z [Z ...] -o A_HAT [options]",
    "report": "MODEL [-o PAGE] [options]",
    "info": "[options]",
    "demo": "[options]",
}


def _add_fit(parser: Parser) -> None:
    files = parser.group("input and output")
    _matrix(files, "A", "A (n × d)")
    _out(files, "model to write, .safetensors")
    files("--codes", type=file, metavar="FILE", help="file for the codes Z (n × K); .npz: sparse")
    _add_model(parser)
    stops = parser.group("stopping")
    _option(stops, "--max-iter", 500, whole, "iterations, at most", "N")
    what = "relative change at which to stop; 0 never stops early"
    _option(stops, "--tol", 1e-4, number, what, "TOL")
    _option(
        stops,
        "--stop",
        "change",
        one_of(*RULES, also={"codes": RULES[0]}),
        "what must change by less than --tol",
    )
    stops("--max-seconds", type=number, metavar="SECONDS", help="time limit; default: none")
    stops("--strict", action="store_true", help="exit with status 4 if it has not converged")
    runs = parser.group("memory and computing")
    _computing(runs)
    rows = "rows in memory at a time; default: what fits"
    runs("--chunk-rows", type=whole, metavar="N", help=rows)
    _option(runs, "--backend", "auto", {"metavar": "NAME"}, "auto, or one of `fastnmf info`")
    _option(runs, "--form", "auto", one_of(*FORMS), "how half-steps are computed")
    _option(runs, "--accelerate", "auto", one_of(*YES_OR_NO), "extrapolate the factors")
    waits = "seconds that processes of torchrun wait for each other, at most"
    _option(runs, "--timeout", 600.0, number, waits, "SECONDS")
    saves = parser.group("going on later (Ctrl-C saves a fit and prints the command that goes on)")
    saves("--checkpoint", type=file, metavar="FILE", help="file to save to, .safetensors")
    every = "seconds between two saves, at least; default: 60"
    saves("--checkpoint-seconds", type=number, metavar="SECONDS", help=every)
    saves("--resume", action="store_true", help="go on from --checkpoint if it exists")
    _said(parser)


def _solver(group: Any, default: str | None, of_convex: str = "") -> None:
    solvers = one_of(*SOLVERS, also={"cd": SOLVERS[0]})
    what = f"method of the half-steps; default: hals{of_convex}"
    group("--solver", default=default, **solvers, help=what)


def _add_model(parser: Parser) -> None:
    model = parser.group("model")
    many = "how many concepts to learn"
    model("-k", "--concepts", type=whole, required=True, metavar="K", help=many)
    what = "nmf; for data of any signs: semi, concepts of any signs; convex, mixtures of rows of A"
    _option(model, "--model", MODELS[0], one_of(*MODELS), what)
    _solver(model, None, ", with --model convex anls")
    _option(model, "--init", "auto", one_of(*STARTS, *SIGNED_STARTS), "the start")
    model("--seed", type=whole, metavar="N", help="seed of a random start; default: drawn")
    _option(model, "--alpha-Z", 0.0, number, "penalty on the codes", "WEIGHT")
    what = "penalty on the dictionary; same: as on the codes"
    _option(model, "--alpha-D", "same", number_or_same, what, "WEIGHT")
    what = "of the penalties, from 0 (squares) to 1 (sums)"
    _option(model, "--l1-ratio", 0.0, number, what, "SHARE")
    what = "with --model convex: weights of the rows in a concept sum to 1"
    model("--strict-convex", action="store_true", help=what)
    model("--unit-norm", action="store_true", help="keep concepts at norm 1")
    what = "with --model semi: learn a row that is added to all, A ≈ Z D + b"
    model("--offset", action="store_true", help=what)
    what = "mean active concepts per row; the penalty is found, concepts have norm 1"
    model("--target-l0", type=number, metavar="L0", help=what)
    what = "re-initialise dead and near-duplicate concepts"
    model("--revive", action="store_true", help=what)


def _add_encode(parser: Parser) -> None:
    _files(parser, "A", "Z")
    stops = parser.group("method and stopping")
    what = "exact codes, by sweeps first where that is faster, or sweeps alone"
    _option(stops, "--method", METHODS[0], one_of(*METHODS), what)
    what = "refit the coefficients of active concepts without the penalty"
    stops("--refit", action="store_true", help=what)
    _option(stops, "--max-iter", 300, whole, "sweeps, at most", "N")
    what = "change of Z at which sweeps alone stop; default: a hundredth of the model's"
    stops("--tol", type=number, metavar="TOL", help=what)
    stops("--strict", action="store_true", help="exit with status 4 if it has not converged")
    _computing(parser.group("memory and computing"))
    _said(parser)


def _add_decode(parser: Parser) -> None:
    _files(parser, "Z", "Z D")
    _computing(parser.group("memory and computing"))
    _said(parser)


def _files(parser: Parser, given: str, made: str) -> None:
    files = parser.group("input and output")
    files("model", type=file, metavar="MODEL", help="model that fit wrote")
    _matrix(files, given, given)
    _out(files, f"file to write {made} to")


def _add_report(parser: Parser) -> None:
    files = parser.group("input and output")
    files("model", type=file, metavar="MODEL", help="model that fit wrote")
    page = "page to write, .html (needs matplotlib); without it the summary is printed"
    _out(files, page, required=False)
    _said(parser)


def _add_info(parser: Parser) -> None:
    said = parser.group("messages")
    said("--json", action="store_true", help="print one JSON object")
    _help(said)


def _add_demo(parser: Parser) -> None:
    files = parser.group("output")
    _out(files, "picture to write, .png; default: concepts.png", default=Path("concepts.png"))
    model = parser.group("model")
    _option(model, "-k", "--concepts", 1000, whole, "how many to learn", "K")
    _option(model, "--patches", 20_000, whole, "how many to learn from", "N")
    _option(model, "--seed", 0, whole, "seed of the choice of patches", "N")
    _solver(model, SOLVERS[0])
    _option(model, "--device", "cpu", {"metavar": "NAME"}, "cpu, cuda, cuda:1 …")
    _said(parser)


def _matrix(add: Any, name: str, what: str) -> None:
    several = "several .npy or .safetensors files, or a folder of them, are its rows; -: stdin"
    add(name, type=file, nargs="+", metavar=name, help=f"file of {what}; {several}")
    header = "whether the first line of a .csv or .tsv file holds names"
    _option(add, "--header", "auto", one_of(*YES_OR_NO), header)


def _out(add: Any, help: str, default: Path | None = None, *, required: bool = True) -> None:
    given = {"default": default} if default else {"required": required}
    add("-o", "--out", type=file, metavar="FILE", help=help, **given)
    add("-f", "--force", action="store_true", help="overwrite files that exist")


def _computing(add: Any) -> None:
    _option(add, "--device", "cpu", {"metavar": "NAME"}, "cpu, cuda, cuda:1 …")
    size = "bytes to use, as 2GB or 512MiB; more is read in passes; default: what is free"
    add("--max-memory", metavar="SIZE", help=size)


def _said(parser: Parser) -> None:
    add = parser.group("messages")
    add("-q", "--quiet", action="store_true", help="no progress, no summary")
    add("--json", action="store_true", help="print the summary as one JSON object")
    _help(add)


def _help(add: Any) -> None:
    add("-h", "--help", action="help", help="show this text")


def _option(add: Any, *given: Any) -> None:
    """Add an option: its names, default, type (or the options of its argument) and help, to which
    the default is added; a metavar at the end."""
    names = [word for word in given if isinstance(word, str) and word.startswith("-")]
    default, kind, help, *metavar = given[len(names) :]
    options = dict(kind) if isinstance(kind, dict) else {"type": kind}
    if metavar:
        options["metavar"] = metavar[0]
    add(*names, default=default, help=f"{help}; default: {default}", **options)
