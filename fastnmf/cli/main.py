"""The command `fastnmf`: fit, encode, decode, report, info, demo. The only module that prints.
What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import ACCELERATE, parser_of

if TYPE_CHECKING:
    from ..distributed import Processes


# options of the constructor, of its Tuning and of fit
MODEL_OPTIONS = (
    *("solver", "tol", "max_iter", "init", "seed", "backend", "max_memory", "stop", "revive"),
    *("alpha_Z", "alpha_D", "l1_ratio", "unit_norm"),
)
TUNING_OPTIONS = ("chunk_rows", "checkpoint_seconds")
FIT_OPTIONS = ("max_seconds", "checkpoint", "resume")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0; 1 when the reader of its output has gone; 2
    for a user's error; 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # an encoding without × must not end a fit that went well
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = parser_of(COMMANDS).parse_args(argv)
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
    """Errors that are printed in one line; anything else is a bug and keeps its traceback."""
    import torch

    from ..errors import BackendUnavailable, InvalidInput, NotFitted

    others = (ArithmeticError, MemoryError, ModuleNotFoundError, OSError)
    return (InvalidInput, NotFitted, BackendUnavailable, torch.cuda.OutOfMemoryError, *others)


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

    # checked before the work, so that none is lost
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
    if own and Z is not None and not _streams(own):
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
        # a file that is mapped is read some rows at a time
        mean_l0 = sum(int(rows.count_nonzero()) for rows in Z.split(1 << 16)) / len(Z)
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
        print(f"{arguments.out}: page about the fit of {arguments.model}")


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


COMMANDS = {
    "fit": _fit,
    "encode": _encode,
    "decode": _decode,
    "report": _report,
    "info": _info,
    "demo": _demo,
}


def _model(arguments: argparse.Namespace) -> Any:
    from ..models.nmf import NMF
    from ..planning.memory import bytes_of

    bytes_of(arguments.max_memory)
    nmf = NMF.load(arguments.model, _device(arguments.device))
    nmf.max_memory = arguments.max_memory
    return nmf


def _matrix(paths: list[Path], processes: Processes | None = None) -> Any:
    """What the model reads: paths of files read in passes, or the matrix in another file; one of
    several processes gets a part of the rows."""
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


def _streamed_into(option: str, path: Path | None) -> dict[str, Any]:
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
