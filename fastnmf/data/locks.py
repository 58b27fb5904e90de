"""Working folders: where a file is written until it is complete, locked by its writer. So two
writers of one file never meet, and what a killed one left is removed by the next."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput

try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None

_OWNER = "owner"
# made by an owner where there are no locks
_TAKEN = "taken"
# before the names of notes about files that were made elsewhere
_NOTE = "made-"
# seconds that a brief writer waits for another one, and between two attempts
_PATIENCE, _PAUSE = 60.0, 0.01
# what flock raises where a file system has no locks; EBADF, EINVAL: some network file systems
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF)
_MOST_BYTES_OF_A_NAME = 200
# descriptors that a forked child closes: it would keep the locks of a parent that was killed
_held: set[int] = set()


@dataclass(frozen=True)
class WorkingFolder:
    """The folder in which path is written."""

    path: Path
    folder: Path

    def part(self, suffix: str) -> Path:
        """The name of a file that is being written."""
        return self.folder / f"part{suffix}"

    def note(self, name: str) -> None:
        """Note that a file of this name beside path is made by its writer, which removes it, or
        the next writer does."""
        self._of(name).write_text(name, encoding="utf-8")

    def forget(self, name: str) -> None:
        """Remove a note, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(self._of(name))

    def noted(self) -> list[str]:
        """The names of files beside path that were noted, also by a writer that was killed."""
        notes = (note.read_text(encoding="utf-8") for note in _notes(self.folder))
        return sorted(name for name in notes if name)

    def _of(self, name: str) -> Path:
        return self.folder / f"{_NOTE}{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@contextmanager
def working_folder(path: Path, *, brief: bool = False) -> Iterator[WorkingFolder]:
    """The working folder of path, beside it, which this call alone has; removed at the end.

    It is locked by flock on a file in it. A lock ends with its process, so what is found in a
    folder that is not locked was left by a killed one, and is removed. Where the file system has no
    locks, the process that made the folder is recorded in it, and the folder is taken over only if
    that process ran on this machine and has ended. brief: wait for another brief writer. Raises
    InvalidInput where path is being written by another process or thread, or where a folder of this
    name is not one of fastnmf.
    """
    folder, process = _folder_of(path), os.getpid()
    file = _claim(path, folder, brief)
    try:
        yield WorkingFolder(path, folder)
    finally:
        # a forked child that leaves this context does not own the folder
        if os.getpid() == process:
            _release(folder, file)


def _folder_of(path: Path) -> Path:
    name = path.name
    if len(os.fsencode(name)) > _MOST_BYTES_OF_A_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".fastnmf-{name}")


def _claim(path: Path, folder: Path, brief: bool) -> int:
    """The descriptor of the file whose lock is that of the folder, which is empty besides, except
    for notes."""
    until = time.monotonic() + _PATIENCE
    while (file := _locked(folder)) is None:
        owner = _owner(folder)
        # a record that is being written is empty
        if not (brief and owner.get("brief", True)) or time.monotonic() > until:
            raise InvalidInput(f"{path} is being written by {_named(owner, folder)}")
        time.sleep(_PAUSE)
    try:
        _clear(folder)
        os.ftruncate(file, 0)
        os.write(file, json.dumps({**_this_process(), "brief": brief}).encode())
    except BaseException:
        _release(folder, file)
        raise
    return file


def _locked(folder: Path) -> int | None:
    """The descriptor of the locked file in the folder, both made if need be; None where another
    has the lock."""
    place = folder / _OWNER
    while True:
        with suppress(FileExistsError):
            os.mkdir(folder)
        try:
            # files of removed ones that are open, on NFS
            names = [name for name in os.listdir(folder) if not name.startswith(".nfs")]
        except FileNotFoundError:
            # its last owner has just removed it
            continue
        except NotADirectoryError:
            names = [folder.name]
        # the owner is made first and removed last
        if names and _OWNER not in names:
            raise InvalidInput(
                f"fastnmf needs the name {folder}, which is not of its making; move it away"
            )
        try:
            file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        if not _lock(file, folder):
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(place)):
                _hold(file)
                return file
        os.close(file)


def _lock(file: int, folder: Path) -> bool:
    """Lock the file, or return False where another has the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(file)
            raise
    taken = folder / _TAKEN
    if taken.exists() and not _has_ended(_owner(folder)):
        return False
    with suppress(FileNotFoundError):
        os.unlink(taken)
    try:
        os.close(os.open(taken, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether a recorded process is known to have ended."""
    mine = _this_process()
    if not owner or owner["host"] != mine["host"] or mine["started"] is None:
        return False
    return _started(owner["pid"]) != owner["started"]


def _this_process() -> dict[str, Any]:
    """What distinguishes it from all others. Containers may have equal process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "host": " ".join(parts)}


def _started(pid: int) -> int | None:
    """When the process was started, by the clock of the system; None where there is none of this
    id, or the system does not show it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # a name in parentheses may contain anything
    return int(text.rpartition(")")[2].split()[19])


def _owner(folder: Path) -> dict[str, Any]:
    """The record of the process that has the folder; empty where it is not complete."""
    try:
        return json.loads((folder / _OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _named(owner: dict[str, Any], folder: Path) -> str:
    """Who an owner is, and what to do."""
    if not owner:
        return "another process; give another name, or wait until it has ended"
    if owner["pid"] == os.getpid() and owner["host"] == _this_process()["host"]:
        return "another call in this process; give another name, or wait until it has ended"
    host = owner["host"].split()[0]
    return (
        f"process {owner['pid']} on {host}; give another name, or wait until it has ended (if it "
        f"has, on a file system without locks: remove {folder})"
    )


def _hold(file: int) -> None:
    _register()
    _held.add(file)


@functools.cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_in_child)


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


def _notes(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.startswith(_NOTE)]


def _clear(folder: Path) -> None:
    """Remove the files in a folder that is locked, except for its owner and the notes."""
    for file in folder.iterdir():
        kept = file.name in (_OWNER, _TAKEN) or file.name.startswith(_NOTE)
        if not kept and not file.is_dir():
            os.unlink(file)


def _release(folder: Path, file: int) -> None:
    """Remove the folder, its owner last, and unlock it; notes keep it for the next writer."""
    _held.discard(file)
    try:
        with suppress(FileNotFoundError):
            _clear(folder)
            with suppress(FileNotFoundError):
                os.unlink(folder / _TAKEN)
            if not _notes(folder):
                os.unlink(folder / _OWNER)
    finally:
        os.close(file)
        # another may have claimed it by now
        with suppress(OSError):
            os.rmdir(folder)
