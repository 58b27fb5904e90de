"""Names of files: checked with a clear refusal, and replaced whole or not at all. What the files
hold is known to files.py and shards.py."""

from __future__ import annotations

import os
import secrets
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from ..errors import InvalidInput

# what NumPy, torch and safetensors raise for files that are damaged, by experiment
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError)
TEXT_ERRORS = (ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError)
UNREADABLE = (RuntimeError, AssertionError, safetensors.SafetensorError, *ZIP_ERRORS, *TEXT_ERRORS)


def check_output(path: str | os.PathLike, suffixes: Iterable[str]) -> Path:
    """The file that path names (links followed), after checking that it can be written.

    Raises InvalidInput for an unknown suffix or a folder, FileNotFoundError when its folder does
    not exist, PermissionError when it may not be written.
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
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give the name of a file to write beside path, or in a folder of the same disk, and put it in
    the place of path at the end.

    The file that was there is replaced at once, by a whole file on the disk, or is left as it was
    when anything is raised; no half-written file stays. The name keeps the suffix of path.
    """
    part = (folder or path.parent) / f".fastnmf-{secrets.token_hex(4)}{path.suffix}"
    try:
        part.touch(exist_ok=False)
        mode = (path if path.exists() else part).stat().st_mode
        yield part
        # safetensors lets only the owner read
        part.chmod(mode)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """A new folder beside path for what is being written, removed at the end; what was in it was
    left by a process that was killed, and is removed too. For files that one process writes."""
    remove_part(path)
    folder = _part(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        remove_part(path)


def remove_part(path: Path) -> None:
    """Remove what a process that was killed left of this file, if there is anything."""
    shutil.rmtree(_part(path), ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def existing(path: str | os.PathLike, suffixes: Iterable[str]) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    check_name(path, suffixes)
    return path


def check_name(path: Path, suffixes: Iterable[str]) -> None:
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; give the name of a file")
    if path.suffix not in suffixes:
        raise InvalidInput(f"{path} must end in {', '.join(suffixes)}, not in {path.suffix!r}")


def only_one(path: Path, names: list[str]) -> str:
    """The name of the one matrix among these."""
    chosen = names if len(names) == 1 else [name for name in ("A", "arr_0") if name in names]
    if not chosen:
        held = f"holds {', '.join(sorted(names))}" if names else "holds no array"
        raise InvalidInput(f"{path} {held}; it must hold one array, or one named 'A'")
    return chosen[0]


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except UNREADABLE as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(f"{path} cannot be read as {path.suffix}: {why}") from error
