"""The house rules: who may import whom, and what `import fastnmf` must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# each room, from the ground up: it imports only rooms on the lines above its own
FLOORS = [
    {"_version", "errors", "nnls_info", "_C", "_cuda", "ahead", "interrupts"},
    {"active_set", "rows", "ranks", "replay", "environment", "precision", "addresses", "paths"},
    {"solvers", "svd", "exemplars", "compiled_cuda", "shards", "store", "codes"},
    {"init", "source", "budget", "penalties", "compiled"},
    {"working_set"},
    {"stream", "momentum", "extrapolation", "plan", "statistics", "sweeps", "backends"},
    {"memory", "streamed_start", "unit_norm", "revive"},
    {"engine"},
    {"info", "options", "progress", "resident", "checkpoint"},
    {"encoding", "nnls", "pictures"},
    {"streamed"},
    {"fitting", "online"},
    {"nmf"},
    {"files", "overcomplete"},
    {"demo", "report"},
    {"cli"},
    {"__init__", "__main__"},
]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or node.module == "fastnmf"):
            names = [node.module] if node.level and node.module else [a.name for a in node.names]
            yield from (name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastnmf."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("fastnmf."))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "fastnmf").glob("*.py")), ids=lambda path: path.stem
)
def test_imports_point_down(path):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert path.stem in floor, "a new room needs a floor in FLOORS"
    public = {"NMF", "__version__", "backends", "nnls"}
    below = {room for room in imported_rooms(path) if room in floor or room not in public}
    assert all(floor[room] < floor[path.stem] for room in below), below


@pytest.mark.parametrize(
    "path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.stem
)
def test_kernels_import_nothing_of_fastnmf(path):
    siblings = {other.stem for other in path.parent.glob("*.py")}
    assert set(imported_rooms(path)) <= siblings


@pytest.fixture(scope="module")
def run(fresh):
    """What code prints in a new process, which must end well and complain of nothing."""

    def run(code):
        ran = fresh(code)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    return run


def test_import_loads_only_what_every_user_needs(run):
    code = (
        "import sys, torch; before = set(sys.modules); import fastnmf;"
        "print([m for m in ('triton', 'sklearn', 'scipy', 'overcomplete', 'PIL', 'matplotlib',"
        " 'fastnmf._C', 'fastnmf._cuda') if m in sys.modules and m not in before],"
        " torch.cuda.is_initialized())"
    )
    assert run(code) == "[] False\n"


def test_import_takes_little_beyond_torch(tmp_path):
    """Of the processor: 60 ms, or on a slow or busy machine a twentieth of what torch takes there.

    An installed package has its bytecode at hand; an editable one may not, so it is given some.
    """
    code = (
        "import sys, time; begun = time.process_time(); import torch; had = time.process_time();"
        f"sys.dont_write_bytecode = False; sys.pycache_prefix = {str(tmp_path)!r};"
        "from fastnmf import NMF; print(had - begun, time.process_time() - had)"
    )

    def took() -> tuple[float, ...]:
        # not of `fresh`, which has torch
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return tuple(map(float, ran.stdout.split()))

    took()
    # as many as it takes
    assert any(ours < max(0.060, torchs / 20) for torchs, ours in (took() for _ in range(5)))


def test_every_public_name_is_there_at_first_use(run):
    code = (
        "import fastnmf; assert set(fastnmf.__all__) <= set(dir(fastnmf));"
        "assert 'fastnmf.nmf' not in __import__('sys').modules;"
        "from fastnmf import *; print(all(map(callable, (NMF, backends, nnls, is_patched))))"
    )
    assert run(code) == "True\n"
