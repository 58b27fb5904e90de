"""The command `fit`: by one process or those of torchrun; a fit that is interrupted is saved, and
the command that goes on with it is printed."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments.choices import YES_OR_NO
from .matrices import (
    OF_CODES,
    PIPE,
    Output,
    check_outputs,
    inputs_of,
    matrix_of,
    said,
    streamed_into,
    weights_of,
    whole_matrix,
    with_size,
    write,
)
from .summary import as_json, ended, option_errors, shows_progress, usable_device
from .usage import FAILED, Refused, Terminated

if TYPE_CHECKING:
    from ..distributed import Processes
    from ..models.factorization import Factorization

# options of the constructor and of fit
MODEL_OPTIONS = (
    *("solver", "tol", "max_iter", "init", "n_init", "seed", "backend", "max_memory", "stop"),
    *("revive", "alpha_Z", "alpha_D", "l1_ratio", "unit_norm", "target_l0", "top_k"),
)
# options of SemiNMF alone
SIGNED_OPTIONS = ("offset",)
FIT_OPTIONS = ("max_seconds", "resume", "validation", "weights")


def run(arguments: Namespace) -> int:
    """Run the command; return its exit status."""
    from ..distributed import ALONE, together

    if not by_torchrun():
        return fit_by(arguments, ALONE)
    if not 0 < arguments.timeout < float("inf"):
        raise Refused(f"--timeout {arguments.timeout:g} must be a number of seconds above 0")
    if arguments.device == "cuda":
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
    with together(usable_device(arguments.device), arguments.timeout) as processes:
        if processes.rank > 0:
            # one bar and one summary are enough
            arguments.quiet, arguments.json = True, False
        return fit_by(arguments, processes)


def by_torchrun() -> bool:
    """Whether torchrun started this process, together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def fit_by(arguments: Namespace, processes: Processes) -> int:
    """Fit as one of these processes, and write what was asked for; return the exit status."""
    from ..data.sparse.codes import are_sparse, compressed, csr_tensor

    codes = processes.own(arguments.codes) if arguments.codes else None
    _check(arguments, processes, codes)
    checkpoint = arguments.checkpoint or _free_name(arguments.out, processes)
    nmf = _model(arguments, processes)
    # rows are drawn from a matrix in memory, and so are their codes
    draws = isinstance(arguments.validation, float)
    matrix = whole_matrix(arguments) if draws else matrix_of(arguments, arguments.A, processes)
    arguments.weights = weights_of(arguments)
    options = {name: getattr(arguments, name) for name in FIT_OPTIONS}
    place = {} if draws else streamed_into("codes", arguments.codes, OF_CODES)
    options |= {"checkpoint": checkpoint} | place
    with _saying_how_to_go_on(arguments, checkpoint, processes):
        Z, _ = nmf.fit(matrix, **options)
    if processes.rank == 0:
        nmf.save(arguments.out)
    if codes is not None and Z is not None:
        with _saying_what_is_there(arguments.out):
            write(codes, csr_tensor(compressed(Z)) if draws and are_sparse(codes) else Z, place)
    _report(arguments, nmf, codes)
    info = nmf.fit_info_
    converged = info is not None and info.converged
    strict = arguments.strict and processes.rank == 0
    return ended(strict, converged, f"{arguments.out} is written all the same")


def _check(arguments: Namespace, processes: Processes, codes: Path | None) -> None:
    """Refuse, before the work, what would lose it."""
    from ..files import WRITERS
    from ..models.saved import SUFFIXES

    if arguments.resume and arguments.checkpoint is None:
        raise Refused("--resume needs --checkpoint FILE, the file to go on from")
    if arguments.checkpoint_seconds is not None and arguments.checkpoint is None:
        raise Refused("--checkpoint-seconds needs --checkpoint FILE, the file to save to")
    if arguments.out == PIPE:
        raise Refused("-o - is not possible; give the name of a file, such as model.safetensors")
    if arguments.checkpoint == PIPE:
        raise Refused("--checkpoint - is not possible; give the name of a file")
    if codes == PIPE:
        raise Refused("--codes - is not possible; give the name of a file, such as Z.npy")
    if isinstance(arguments.validation, float) and (len(arguments.A) > 1 or not processes.alone):
        one = "draws rows of one input, by a single process; give a file of rows"
        raise Refused(f"--validation {arguments.validation:g} {one}")
    own = processes.own(arguments.checkpoint) if arguments.checkpoint else None
    advice = "--resume goes on from it, --force starts anew"
    outputs = [
        Output(arguments.out, SUFFIXES),
        Output(codes, WRITERS),
        Output(own, SUFFIXES, arguments.resume, advice),
    ]
    with processes.agreed():
        check_outputs(outputs, inputs_of(arguments), arguments.force)


def _model(arguments: Namespace, processes: Processes) -> Factorization:
    from .. import checks
    from ..planning.plan import Tuning

    form = None if arguments.form == "auto" else arguments.form
    # a fit without --checkpoint saves only when it is interrupted
    every = 60.0 if arguments.checkpoint else float("inf")
    every = every if arguments.checkpoint_seconds is None else arguments.checkpoint_seconds
    with option_errors():
        checks.time_limit("max_seconds", arguments.max_seconds)
        tuning = Tuning(form=form, chunk_rows=arguments.chunk_rows, checkpoint_seconds=every)
        kind, options = kind_and_options(arguments)
        return kind(
            arguments.concepts,
            verbose=shows_progress(arguments),
            distributed=not processes.alone,
            tuning=tuning,
            **options,
        )


def kind_and_options(arguments: Namespace) -> tuple[type[Factorization], dict[str, Any]]:
    """The class of the model, and those options of its constructor that every command that fits
    has. Raises InvalidInput for options of another class."""
    from ..errors import InvalidInput
    from ..models.convex_nmf import ConvexNMF
    from ..models.nmf import NMF
    from ..models.semi_nmf import SemiNMF

    options = {name: getattr(arguments, name) for name in MODEL_OPTIONS}
    kind = {"nmf": NMF, "semi": SemiNMF, "convex": ConvexNMF}[arguments.model]
    if arguments.solver is None:
        del options["solver"]
    for name in ("target_l0", "top_k"):
        if options[name] is None:
            del options[name]
        elif kind is ConvexNMF:
            raise InvalidInput(f"{name}={options[name]} is an option of --model nmf or semi")
    if arguments.strict_convex:
        options["strict_convex"] = True
    for name in SIGNED_OPTIONS:
        if kind is SemiNMF:
            options[name] = getattr(arguments, name)
        elif getattr(arguments, name):
            raise InvalidInput(f"{name}=True is an option of --model semi alone")
    options["device"] = usable_device(arguments.device)
    options["accelerate"] = YES_OR_NO[arguments.accelerate]
    return kind, options


def _free_name(out: Path, processes: Processes) -> Path | None:
    """A name beside the model for a save of this fit, that no file has; None where several
    processes would have to agree on one."""
    if not processes.alone:
        return None
    number = 1
    while True:
        turn = "" if number == 1 else f"-{number}"
        path = out.with_name(f"{out.stem}.checkpoint{turn}{out.suffix}")
        # codes of data that are read in passes are saved beside it
        names = [f"{path.stem}.codes-{name}{suffix}" for name in "ab" for suffix in OF_CODES]
        beside = [path.with_name(name) for name in names]
        if not any(os.path.lexists(each) for each in (path, *beside)):
            return path
        number += 1


@contextmanager
def _saying_what_is_there(model: Path) -> Iterator[None]:
    """A context in which the codes are written, after the model."""
    try:
        yield
    except OSError as error:
        there = f"{model} is written, and `fastnmf encode` computes codes for it"
        raise Refused(f"{said(error)}; {there}", FAILED) from error


@contextmanager
def _saying_how_to_go_on(
    arguments: Namespace, checkpoint: Path | None, processes: Processes
) -> Iterator[None]:
    from ..errors import InvalidInput

    try:
        yield
    except InvalidInput as error:
        # a name that the user did not give
        if arguments.checkpoint is None and "is being written by" in str(error):
            out = f"{arguments.out} is being written by another fit: give another --out, or wait"
            raise Refused(f"{out} ({error})") from error
        raise
    except (KeyboardInterrupt, Terminated) as stopped:
        if processes.rank > 0:
            raise
        if checkpoint is None:
            text = "nothing is saved: --checkpoint FILE saves a fit of several processes"
        elif not processes.own(checkpoint).exists() and isinstance(stopped.__context__, OSError):
            text = f"nothing is saved: {said(stopped.__context__)}"
        elif not processes.own(checkpoint).exists():
            text = "nothing is saved: it was before the first iteration, or after the last"
        else:
            how = "by torchrun, as before" if not processes.alone else ""
            how = "with the same standard input" if PIPE in arguments.A else how
            command = command_to_go_on(arguments.argv, checkpoint)
            text = f"the fit so far is saved in {checkpoint}. This goes on with it"
            text += f"{f' ({how})' if how else ''}:\n  {command}"
        raise type(stopped)(text) from stopped


def command_to_go_on(argv: list[str], checkpoint: Path) -> str:
    """The command that goes on with a fit that was started with these words."""
    given = [word for word in argv if word != "--resume"]
    more = ["--resume"]
    if not any(word.partition("=")[0] == "--checkpoint" for word in given):
        more = ["--checkpoint", str(checkpoint), *more]
    # after -- all words are inputs
    place = given.index("--") if "--" in given else len(given)
    started = Path(sys.argv[0]).name == "__main__.py"
    program = ["python", "-m", "fastnmf"] if started else ["fastnmf"]
    return shlex.join([*program, *given[:place], *more, *given[place:]])


def _report(arguments: Namespace, nmf: Factorization, codes: Path | None) -> None:
    info: Any = nmf.fit_info_
    if arguments.json:
        files = {"model": str(arguments.out), "codes_file": None if codes is None else str(codes)}
        print(as_json({**info.as_dict(), "class": info.model, **files}))
    elif not arguments.quiet:
        print(info, f"{'model:':<16}{with_size(arguments.out)}", sep="\n")
        written = "not written; --codes FILE writes them" if codes is None else with_size(codes)
        print(f"{'codes:':<16}{written}")
