"""Names of files: checked, with messages that say what is wrong, and replaced atomically. Their
formats are in files.py and shards.py."""

from __future__ import annotations

import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    from safetensors import SafetensorError
except ModuleNotFoundError:
    # a fit that touches no file needs none; without it nothing raises this

    class SafetensorError(Exception):
        pass


from ..errors import InvalidInput
from ..numerics import Part
from .locks import WorkingFolder, working_folder

# what NumPy, torch and safetensors raise for damaged files, by experiment
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError)
TEXT_ERRORS = (ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError)
UNREADABLE = (RuntimeError, AssertionError, SafetensorError, *ZIP_ERRORS, *TEXT_ERRORS)

LEAVE = "leave the data as they are until the call has ended"


def check_output(path: str | os.PathLike[str], suffixes: Iterable[str]) -> Path:
    """Return the file that path names, links followed, after checking that it can be written.

    Raises InvalidInput for an unknown suffix or a folder, FileNotFoundError if its folder does not
    exist, PermissionError if it may not be written.
    """
    path = Path(os.path.realpath(path))
    check_name(path, suffixes)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} may not be written to")
    return path


@contextmanager
def replacing(path: Path, folder: WorkingFolder | None = None) -> Iterator[Path]:
    """Yield the name of a file to write; at the end it replaces path. folder: that of path, or of
    another file beside it; None: the own one, for as long as this lasts.

    The old file is replaced in one step, by a complete file on the disk, or stays as it was if
    anything is raised; no half-written file stays. The name has the suffix of path. Raises OSError
    that names path where a system call fails; see `writing` for libraries.
    """
    if folder is None:
        with writing(path), working_folder(path, brief=True) as own, replacing(path, own) as part:
            yield part
        return
    part = folder.part(path.suffix)
    try:
        with writing(path):
            part.touch(exist_ok=False)
            mode = (path if path.exists() else part).stat().st_mode
        yield part
        with writing(path):
            # safetensors lets only the owner read
            part.chmod(mode)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what libraries raise where a file cannot be written, such as to a full disk, into
    OSError that names path."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        raise _failure(path, str(error), int(found[1]) if found else None) from error
    except OSError as error:
        if error.filename == str(path):
            raise
        raise _failure(path, str(error), error.errno) from error
    except RuntimeError as error:
        # torch.save
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        why = f"is the disk full? ({str(error).splitlines()[0]})"
        raise _failure(path, why, None) from error


def _failure(path: Path | str, why: str, number: int | None) -> OSError:
    if number is None:
        return OSError(f"{path} could not be written: {why}")
    return OSError(number, os.strerror(number), str(path))


def existing(path: str | os.PathLike[str], suffixes: Iterable[str]) -> Path:
    """Return path. Raises FileNotFoundError if there is no such file, InvalidInput for another
    suffix."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    check_name(path, suffixes)
    return path


def check_name(path: Path, suffixes: Iterable[str]) -> None:
    """Raise InvalidInput for a folder, or another suffix than these."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; give the name of a file")
    if path.suffix not in suffixes:
        raise InvalidInput(f"{path} must end in {', '.join(suffixes)}, not in {path.suffix!r}")


def only_one(path: Path, names: list[str]) -> str:
    """The name of the one matrix in the file; of several, 'A' or 'arr_0'. Raises InvalidInput."""
    chosen = names if len(names) == 1 else [name for name in ("A", "arr_0") if name in names]
    if not chosen:
        found = f"holds {', '.join(sorted(names))}" if names else "holds no array"
        raise InvalidInput(f"{path} {found}; it must hold one array, or one named 'A'")
    return chosen[0]


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn what libraries raise for a damaged file into InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except UNREADABLE as error:
        # torch goes on about checkpoints
        why = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InvalidInput(f"{path} cannot be read as {path.suffix}: {why}") from error


@dataclass(frozen=True)
class Stamp:
    """By which changes of a file are noticed: its number on the device, its size, and when it was
    changed (ns)."""

    number: tuple[int, int]
    size: int
    changed: int

    @classmethod
    def of(cls, file: str | os.PathLike[str]) -> Stamp:
        found = os.stat(file)
        return cls((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)


def guarded_reads(
    read: Callable[[int, int], Part],
    file: str | os.PathLike[str],
    stamp: Stamp,
    name: str,
    mapped: bool = False,
) -> Callable[[int, int], Part]:
    """The same, which raises InvalidInput where the file is not as it was, before it is read and
    after. mapped: whether the rows stay those of the old file where another takes its name."""

    def check() -> None:
        try:
            now = Stamp.of(file)
        except FileNotFoundError:
            if mapped:
                return
            raise InvalidInput(f"{name} was removed while it was read; {LEAVE}") from None
        if now != stamp and not (mapped and now.number != stamp.number):
            raise InvalidInput(f"{name} has changed while it was read; {LEAVE}")

    def guarded(start: int, stop: int) -> Part:
        check()
        values = read(start, stop)
        check()
        return values

    return guarded
