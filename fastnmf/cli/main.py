"""The command `fastnmf`: fit, encode, decode, report, info, demo. The only module that prints.
What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__

if TYPE_CHECKING:
    from ..distributed import Processes


# options of the constructor, of its Tuning and of fit
MODEL_OPTIONS = (
    *("solver", "tol", "max_iter", "init", "seed", "backend", "max_memory", "stop", "revive"),
    *("alpha_Z", "alpha_D", "l1_ratio", "unit_norm"),
)
TUNING_OPTIONS = ("chunk_rows", "checkpoint_seconds")
FIT_OPTIONS = ("max_seconds", "checkpoint", "resume")
ACCELERATE = {"auto": "auto", "yes": True, "no": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 when nobody reads what it prints, 2 for a
    user's error, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # a pipe that knows no × must not end a fit that went well
        stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    try:
        if arguments.run is not _fit:
            _refuse_torchrun()
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader, as `head` does, has gone; nor may the interpreter flush to it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("fastnmf: interrupted\n")
        return 130
    except _user_errors() as error:
        sys.stderr.write(f"fastnmf: error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _user_errors() -> tuple[type[BaseException], ...]:
    """What is answered with one line; anything else is a bug and keeps its traceback."""
    import torch

    from ..errors import BackendUnavailable, InvalidInput, NotFitted

    others = (ArithmeticError, MemoryError, ModuleNotFoundError, OSError)
    return (InvalidInput, NotFitted, BackendUnavailable, torch.cuda.OutOfMemoryError, *others)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastnmf",
        description="Non-negative matrix factorization A ≈ Z D of non-negative A: codes Z and a "
        "dictionary D of concepts. Matrices are .npy, .npz, .pt, .pth or .safetensors files.",
    )
    parser.add_argument("--version", action="version", version=f"fastnmf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    def command(name: str, run: Callable, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        return added

    _add_fit(command("fit", _fit, "learn the dictionary of A"))
    _add_encode(command("encode", _encode, "compute codes Z of A for the dictionary of a model"))
    _add_files(command("decode", _decode, "compute Z D, what codes Z stand for"), "Z", "Z D")
    _add_report(command("report", _report, "write a page of how the fit of a model went"))
    command("info", _info, "show what is usable here and why not; all that a bug report needs")
    _add_demo(command("demo", _demo, "learn the concepts of a photograph, and draw them"))
    return parser


def _add_fit(fit: argparse.ArgumentParser) -> None:
    _add_matrix(fit, "A", "A (n × d)")
    fit.add_argument("--concepts", type=int, required=True, metavar="K", help="how many to learn")
    fit.add_argument("--out", type=Path, required=True, help="model to write, .safetensors")
    fit.add_argument("--codes", type=Path, help="file to write the codes Z (n × K) to")
    _option(fit, "--solver", "hals", "hals, mu, pgd or anls")
    _option(fit, "--max-iter", 500, "iterations at most")
    _option(fit, "--tol", 1e-4, "relative change of Z to stop at")
    fit.add_argument("--seed", type=int, help="of a random start; default: drawn")
    _option(fit, "--init", "auto", "auto, random, nndsvda, rows or spread")
    _option(fit, "--backend", "auto", "auto, or one that `fastnmf info` lists")
    _option(fit, "--form", "auto", "auto, normal or residual")
    fit.add_argument(
        "--accelerate",
        choices=ACCELERATE,
        default="auto",
        help="extrapolate the factors: auto, yes or no; default: auto",
    )
    _option(fit, "--stop", "codes", "what must settle, codes or error")
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
        "--revive", action="store_true", help="give dead and alike concepts rows to stand for"
    )
    fit.add_argument("--max-seconds", type=float, help="by when to end; default: no limit")
    fit.add_argument("--chunk-rows", type=int, help="rows in hand at once; default: as fits")
    fit.add_argument("--checkpoint", type=Path, help="file to save progress to, .safetensors")
    _option(fit, "--timeout", 600.0, "seconds that processes of torchrun wait for each other")
    _option(fit, "--checkpoint-seconds", 60.0, "between two saves at least")
    fit.add_argument("--resume", action="store_true", help="go on from --checkpoint if it exists")
    _add_common(fit)


def _add_encode(encode: argparse.ArgumentParser) -> None:
    _add_files(encode, "A", "Z")
    _option(encode, "--max-iter", 300, "iterations at most")
    encode.add_argument("--tol", type=float, help="change to stop at; default: the model's")


def _add_files(command: argparse.ArgumentParser, given: str, made: str) -> None:
    command.add_argument("model", type=Path, help="model that fit wrote")
    _add_matrix(command, given, given)
    command.add_argument("--out", type=Path, required=True, help=f"file to write {made} to")
    _add_common(command)


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("model", type=Path, help="model that fit wrote")
    report.add_argument("-o", "--out", type=Path, required=True, help="page to write, .html")
    report.add_argument("--quiet", action="store_true", help="do not say what was written")


def _add_matrix(command: argparse.ArgumentParser, name: str, what: str) -> None:
    several = "several .npy or .safetensors files, or a folder of them, are its rows in this order"
    command.add_argument(name, type=Path, nargs="+", help=f"file of {what}; {several}")
    help = (
        "to grow by, as 2GB or 512MiB; what does not fit is read in passes; default: what is free"
    )
    command.add_argument("--max-memory", metavar="SIZE", help=help)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    _option(demo, "--concepts", 1000, "how many to learn")
    _option(demo, "--out", Path("concepts.png"), "picture to write, .png")
    _option(demo, "--patches", 20_000, "how many to learn from")
    _option(demo, "--seed", 0, "of the choice of patches")
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


def _fit(arguments: argparse.Namespace) -> None:
    from ..distributed import ALONE, together
    from ..errors import InvalidInput

    if not _by_torchrun():
        _fit_by(arguments, ALONE)
        return
    if not 0 < arguments.timeout < float("inf"):
        raise InvalidInput(f"--timeout {arguments.timeout:g} must be a number of seconds above 0")
    if arguments.device == "cuda":
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
    with together(_device(arguments.device), arguments.timeout) as processes:
        # one bar and one summary are enough
        arguments.quiet |= processes.rank > 0
        _fit_by(arguments, processes)


def _by_torchrun() -> bool:
    """Whether torchrun started this process, together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _refuse_torchrun() -> None:
    if _by_torchrun():
        from ..errors import InvalidInput

        raise InvalidInput("of all commands only fit is shared by the processes of torchrun")


def _fit_by(arguments: argparse.Namespace, processes: Processes) -> None:
    from ..files import WRITERS, write_matrix
    from ..models.nmf import NMF
    from ..models.saved import SUFFIXES
    from ..planning.plan import Tuning

    # before the work, so that none is lost
    own = processes.own(arguments.codes) if arguments.codes else None
    codes = [(own, WRITERS)] if own else []
    saved = [(arguments.checkpoint, SUFFIXES)] if arguments.checkpoint else []
    _check_outputs([(arguments.out, SUFFIXES), *codes, *saved], arguments.A)
    options, tuning, run = (
        {name: getattr(arguments, name) for name in names}
        for names in (MODEL_OPTIONS, TUNING_OPTIONS, FIT_OPTIONS)
    )
    form = None if arguments.form == "auto" else arguments.form
    options["tuning"] = Tuning(form=form, **tuning)
    options["accelerate"] = ACCELERATE[arguments.accelerate]
    options["verbose"] = not arguments.quiet
    options["distributed"] = not processes.alone
    nmf = NMF(arguments.concepts, _device(arguments.device), **options)
    into = _streamed_into("codes", arguments.codes)
    Z, _ = nmf.fit(_matrix(arguments.A, processes), **run, **into)
    if processes.rank == 0:
        nmf.save(arguments.out)
    if own and not _streams(own):
        write_matrix(own, Z)
    if not arguments.quiet:
        print(nmf.fit_info_, f"{'model:':<16}{_with_size(arguments.out)}", sep="\n")
        written = own and _with_size(own)
        print(f"{'codes:':<16}{written or 'not written; --codes writes them'}")


def _encode(arguments: argparse.Namespace) -> None:
    from ..files import WRITERS, write_matrix

    _check_outputs([(arguments.out, WRITERS)], [arguments.model, *arguments.A])
    nmf = _model(arguments)
    nmf.verbose = not arguments.quiet
    Z = nmf.encode(
        _matrix(arguments.A),
        max_iter=arguments.max_iter,
        tol=arguments.tol,
        **_streamed_into("codes", arguments.out),
    )
    if not _streams(arguments.out):
        write_matrix(arguments.out, Z)
    if not arguments.quiet:
        # a file that is mapped is read a piece at a time
        mean_l0 = sum(int(piece.count_nonzero()) for piece in Z.split(1 << 16)) / len(Z)
        print(f"{arguments.out}: codes {tuple(Z.shape)}, mean L0 {mean_l0:.4g}")


def _decode(arguments: argparse.Namespace) -> None:
    import numpy as np

    from ..files import WRITERS, write_matrix

    _check_outputs([(arguments.out, WRITERS)], [arguments.model, *arguments.Z])
    # as an array a tensor is checked too
    Z = _matrix(arguments.Z)
    Z = np.asarray(Z.float()) if hasattr(Z, "float") else Z
    A_hat = _model(arguments).decode(Z, **_streamed_into("out", arguments.out))
    if not _streams(arguments.out):
        write_matrix(arguments.out, A_hat)
    if not arguments.quiet:
        print(f"{arguments.out}: Z D {tuple(A_hat.shape)}")


def _report(arguments: argparse.Namespace) -> None:
    from ..errors import InvalidInput
    from ..models.saved import read
    from ..results.report import write_report

    saved = read(arguments.model)
    if saved.info is None:
        raise InvalidInput(
            f"{arguments.model} holds no summary of a fit: its dictionary was loaded or learned by "
            "partial_fit, or another version of fastnmf wrote it; make one by fit"
        )
    write_report(arguments.out, saved.info, arguments.model.name, saved.version)
    if not arguments.quiet:
        print(f"{arguments.out}: how the fit of {arguments.model} went")


def _info(arguments: argparse.Namespace) -> None:
    from ..backends.registry import available_backends
    from .environment import facts

    print(f"{available_backends()}\n")
    print("\n".join(f"{name + ':':<17}{value}" for name, value in facts().items()))


def _demo(arguments: argparse.Namespace) -> None:
    from ..data.paths import check_output
    from .demo import learn_photograph

    summary = learn_photograph(
        check_output(arguments.out, (".png",)),
        concepts=arguments.concepts,
        patches=arguments.patches,
        seed=arguments.seed,
        solver=arguments.solver,
        device=_device(arguments.device),
        verbose=not arguments.quiet,
    )
    if not arguments.quiet:
        print(f"{summary}\n{'picture:':<16}{arguments.out}")


def _model(arguments: argparse.Namespace) -> Any:
    from ..models.nmf import NMF
    from ..planning.memory import bytes_of

    bytes_of(arguments.max_memory)
    nmf = NMF.load(arguments.model, _device(arguments.device))
    nmf.max_memory = arguments.max_memory
    return nmf


def _matrix(paths: list[Path], processes: Processes | None = None) -> Any:
    """What the model reads: the paths of shards, or the matrix in a file of another kind; each of
    several processes has a part of the rows."""
    from ..data.shards import SUFFIXES
    from ..files import read_matrix

    whole = len(paths) == 1 and not paths[0].is_dir() and paths[0].suffix not in SUFFIXES
    given = read_matrix(paths[0]) if whole else paths
    if processes is None or processes.alone:
        return given
    from ..data.sources import part_of

    return part_of(given, processes.rank, processes.size)


def _streams(path: Path) -> bool:
    return path.suffix == ".npy"


def _streamed_into(option: str, path: Path | None) -> dict[str, Path]:
    """The option by which a .npy file is written as it is computed."""
    return {option: path} if path is not None and _streams(path) else {}


def _with_size(path: Path) -> str:
    return f"{path} ({path.stat().st_size:,} bytes)"


def _check_outputs(outputs: list[tuple[Path, Iterable[str]]], inputs: list[Path]) -> None:
    """Refuse an output that cannot be written, or that is an input or another output."""
    from ..data.paths import check_output
    from ..errors import InvalidInput

    taken = {os.path.realpath(path) for path in inputs}
    for path, suffixes in outputs:
        target = str(check_output(path, suffixes))
        if target in taken:
            raise InvalidInput(f"{path} is named twice; give every output a file of its own")
        taken.add(target)


def _device(name: str) -> str:
    import torch

    from ..errors import InvalidInput

    try:
        torch.empty(0, device=name)
    # torch built without CUDA asserts
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0]
        raise InvalidInput(f"device {name!r} is not usable: {why}") from error
    return name
