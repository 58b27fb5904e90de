"""The extension for CUDA of the GPU study: the installed one, or one built from the source beside
the first parts, into a folder of the user.

`python bench/support/gpu_extension.py FOLDER` builds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "_cuda"
# 90 s of one processor, most of it nvcc; more than 240 s on two busy ones. It begins with the
# study, and is waited for by what needs it
BUILD_SECONDS, WAIT_SECONDS = 360.0, 60.0


def installed() -> bool:
    return importlib.util.find_spec(f"fastnmf.{NAME}") is not None


def folder() -> Path:
    """Where it is built: for this source and this Python, where the user may write."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted([ROOT / "setup.py", *ROOT.glob("csrc/**/*.*")]):
        digest.update(file.read_bytes())
    name = f"gpu-study-{digest.hexdigest()[:16]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnmf" / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "probe").write_text("")
    except OSError:
        return Path(tempfile.mkdtemp(prefix=name))
    return cache


class Build:
    """A build in a process of its own, begun here unless there is nothing to build."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._process = None
        if not installed() and not built(place):
            (place / "done").unlink(missing_ok=True)
            command = [sys.executable, __file__, str(place)]
            self._process = subprocess.Popen(command, start_new_session=True)

    @property
    def state(self) -> str:
        if installed():
            return "installed"
        return "built before" if self._process is None else "being built from the source"

    def close(self) -> None:
        """End it, with its compilers."""
        if self._process is not None:
            # compilers may outlast what started them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def built(place: Path) -> bool:
    """Whether a build there has ended well."""
    done = place / "done"
    return done.exists() and not done.read_text()


def missing(place: Path) -> str | None:
    """Wait for the build, and make what it built importable; why that is not possible, or None."""
    if not installed():
        done, ends = place / "done", time.monotonic() + WAIT_SECONDS
        while not done.exists():
            if time.monotonic() > ends:
                return f"it is still being built, and was waited for {WAIT_SECONDS:.0f} s"
            time.sleep(0.2)
        if why := done.read_text():
            return why
        use(place)
    from fastnmf.backends.registry import BACKENDS

    return BACKENDS["cuda"].reason


def use(place: Path) -> None:
    """Let fastnmf find what was built there."""
    import fastnmf
    from fastnmf.backends.registry import BACKENDS

    at = str(place / "lib" / "fastnmf")
    if at not in fastnmf.__path__:
        fastnmf.__path__.append(at)
    importlib.invalidate_caches()
    for name in ("cpp", "cuda"):
        BACKENDS[name].probe.cache_clear()


def build(place: Path) -> str:
    """Build it in the folder; why it could not be built, or nothing."""
    library = place / "lib"
    library.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(library), "--build-temp", str(place / "temp")]
    environment = {**os.environ, "FASTNMF_BUILD": "auto", "PYTHONDONTWRITEBYTECODE": "1"}
    if importlib.util.find_spec("pybind11") is None:
        environment["PYTHONPATH"] = str(_headers_of_torch(place))
    try:
        with (place / "log").open("w") as log:
            ran = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False,
                timeout=BUILD_SECONDS,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"building took more than {BUILD_SECONDS:.0f} s"
    if (library / "fastnmf" / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        return ""
    said = library / "fastnmf" / f"{NAME}.missing"
    why = said.read_text().strip() if said.exists() else f"setup.py ended with {ran.returncode}"
    errors = re.findall(r"^.*\b[Ee]rror\b.*$", (place / "log").read_text(), re.MULTILINE)
    return f"{why} ({errors[0].strip()})" if errors else why


def _headers_of_torch(place: Path) -> Path:
    """A folder with a pybind11 that names the headers which come with torch."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    package = place / "headers" / "pybind11"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        f"def get_include():\n    return {str(torch / 'include')!r}\n"
    )
    return package.parent


if __name__ == "__main__":
    to = Path(sys.argv[1])
    left = build(to)
    (to / "done").write_text(left)
