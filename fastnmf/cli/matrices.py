"""What a command reads and writes: inputs that are checked to be there, outputs that are probed
before the work and overwrite nothing unless they are forced to."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments.choices import YES_OR_NO
from .usage import DATA, Refused

if TYPE_CHECKING:
    from argparse import Namespace

    from torch import Tensor

    from ..distributed import Processes

PIPE = Path("-")
# suffixes of files to which codes are written by the model
OF_CODES = (".npy", ".npz")


def matrix_of(arguments: Namespace, paths: list[Path], processes: Processes | None = None) -> Any:
    """What the model reads: paths of files read in passes, or the matrix in another file or in the
    standard input; one of several processes gets a part of the rows."""
    from ..data.shards import SUFFIXES
    from ..files import READERS, read_matrix

    alone = processes is None or processes.alone
    if PIPE in paths:
        if len(paths) > 1 or not alone:
            raise Refused("- must be the only input, of a single process")
        return _piped(arguments)
    refuse_models(paths)
    for path in paths:
        if not path.is_dir() and len(paths) > 1 and path.suffix in READERS.keys() - {*SUFFIXES}:
            only = " or ".join(SUFFIXES)
            raise Refused(f"{path}: several inputs must be {only} files; give one, or convert them")
    with reading(*paths):
        whole = len(paths) == 1 and not paths[0].is_dir() and paths[0].suffix not in SUFFIXES
        options = {"header": YES_OR_NO[arguments.header], "max_memory": arguments.max_memory}
        given = read_matrix(paths[0], **options) if whole else paths
        if alone:
            return given
        from ..data.sources import part_of

        return part_of(given, processes.rank, processes.size)


def inputs_of(arguments: Namespace) -> list[Path]:
    """The files of data and of weights, which no output may replace."""
    weights = getattr(arguments, "weights", None)
    return [*arguments.A, weights] if isinstance(weights, Path) else [*arguments.A]


def weights_of(arguments: Namespace) -> Any:
    """The weights that were asked for: 'stored', the path of a file that is read in passes, or the
    matrix in another file; None without."""
    from ..data.shards import SUFFIXES
    from ..files import read_matrix

    given = arguments.weights
    if not isinstance(given, Path):
        return given
    if given == PIPE:
        raise Refused("--weights - is not possible; give the name of a file")
    with reading(given):
        if given.is_dir() or given.suffix in SUFFIXES:
            return given
        options = {"header": YES_OR_NO[arguments.header], "max_memory": arguments.max_memory}
        return read_matrix(given, **options)


def whole_matrix(arguments: Namespace) -> Any:
    """The matrix of a command that takes one file, in memory."""
    from ..files import read_matrix

    path = arguments.A[0]
    if path.is_dir():
        raise Refused(f"{path} is a folder; these data must be one file")
    A = matrix_of(arguments, arguments.A)
    if A is not arguments.A:
        return A
    with reading(path):
        return read_matrix(path, sparse=True, max_memory=arguments.max_memory)


def _piped(arguments: Namespace) -> Any:
    from ..data.tables import read_stream
    from ..files import real_matrix

    stdin = getattr(sys.stdin, "buffer", None)
    if stdin is None:
        raise Refused("the standard input is closed; give the name of a file", DATA)
    matrix = read_stream(stdin.read(), YES_OR_NO[arguments.header])
    return real_matrix(matrix, "the standard input")


def refuse_no_model(path: Path) -> None:
    """Refuse a name that cannot be a model's, such as that of the data, where a model is read."""
    from ..models.saved import SUFFIXES

    if path.suffix not in SUFFIXES:
        message = f"{path} is no model, which ends in {', '.join(SUFFIXES)}; the model comes first"
        raise Refused(message, DATA)


def refuse_models(paths: Iterable[Path]) -> None:
    """Refuse files as data that fastnmf made as models or checkpoints: they were mistaken."""
    import safetensors

    for path in paths:
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            with safetensors.safe_open(path, framework="np") as file:
                kind = (file.metadata() or {}).get("format", "")
        except (OSError, safetensors.SafetensorError):
            # what reads it says what is wrong
            continue
        if kind.startswith("fastnmf"):
            raise Refused(f"{path} is a model or a checkpoint of fastnmf; give data", DATA)


@contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """A context that reads files: those that are missing or may not be read are faults of the
    data. Each is opened first, so that errors later on are not theirs."""
    try:
        for path in paths:
            if path.is_dir():
                os.listdir(path)
            elif not path.exists():
                raise FileNotFoundError(f"{path} does not exist")
            elif not path.is_file():
                # it can be read only once
                raise Refused(f"{path} is no regular file; pipe it in, with - as its name", DATA)
            else:
                with open(path, "rb") as file:
                    file.read(1)
        yield
    except OSError as error:
        raise Refused(said(error), DATA) from error


@dataclass(frozen=True)
class Output:
    """A file to write; None, and the standard output, need no check.

    suffixes: that are allowed. continues: whether it may exist. advice: what to do if it does.
    """

    path: Path | None
    suffixes: Iterable[str]
    continues: bool = False
    advice: str = "--force overwrites it"


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path], force: bool) -> None:
    """Refuse outputs that cannot be written, that exist unless `force`, or that are inputs or
    another output."""
    read = [os.path.realpath(path) for path in inputs if path != PIPE]
    taken = {*read}
    for output in outputs:
        path = output.path
        if path is None or path == PIPE:
            continue
        target = _probed(path, output.suffixes)
        if target in taken:
            raise Refused(f"{path} is named twice; give every output a file of its own")
        if os.path.dirname(target) in read and path.suffix in (".npy", ".safetensors"):
            raise Refused(
                f"{path} would be one of the files of {path.parent} when it is read again; write "
                "it elsewhere"
            )
        if os.path.exists(target) and not (force or output.continues):
            raise Refused(f"{path} exists already; {output.advice}")
        taken.add(target)


def _probed(path: Path, suffixes: Iterable[str]) -> str:
    """The file that path names, after a file has been made in its folder: access rights are not all
    that may prevent it. Raises Refused."""
    from ..data.paths import check_output
    from ..errors import InvalidInput

    try:
        # too long a name shows here
        with suppress(FileNotFoundError):
            os.lstat(path)
        target = check_output(path, suffixes)
        probe = target.with_name(f".fastnmf-{secrets.token_hex(4)}")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink()
    except (InvalidInput, OSError) as error:
        system = isinstance(error, OSError) and error.strerror
        why = f"{system[0].lower()}{system[1:]}" if system else str(error)
        # by the names that were given
        why = why.replace(os.path.realpath(path), str(path))
        why = why.replace(f"{os.path.realpath(path.parent)} ", f"{path.parent} ")
        refused = why if isinstance(error, InvalidInput) else f"{path} cannot be written: {why}"
        raise Refused(refused) from error
    return str(target)


def streamed_into(
    option: str, path: Path | None, suffixes: tuple[str, ...] = (".npy",)
) -> dict[str, Any]:
    """The option by which a file with one of these suffixes is written as it is computed."""
    return {option: path} if path is not None and path.suffix in suffixes else {}


def write(path: Path, matrix: Tensor, written: dict[str, Any]) -> None:
    """Write a matrix to the standard output or to a file, unless it was written as it was computed,
    by this option of `streamed_into`."""
    from ..files import write_matrix

    if written:
        return
    if path == PIPE:
        import numpy as np

        np.save(sys.stdout.buffer, matrix.cpu().numpy())
    else:
        write_matrix(path, matrix)


def refuse_terminal(path: Path) -> None:
    """Refuse to write a matrix to a terminal."""
    if path == PIPE and (sys.stdout is None or sys.stdout.isatty()):
        raise Refused("-o - writes a .npy file to the standard output, which is a terminal here")


def with_size(path: Path) -> str:
    return f"{path} ({path.stat().st_size:,} bytes)"


def said(error: OSError) -> str:
    """What an error of the system says, without its number."""
    if error.errno is None or error.strerror is None:
        return str(error)
    named = f"{error.filename}: " if error.filename else ""
    return f"{named}{error.strerror[0].lower()}{error.strerror[1:]}"
