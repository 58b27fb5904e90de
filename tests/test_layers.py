"""Who may import whom, how large packages are, and what `import fastnmf` must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict

import pytest
from structure import COMPILED, MODULES, ROOT, entry, imports

# a module imports only from entries before its own, or from its own package; entries on one line
# import nothing of each other
ORDER = """
    _version errors precision waits rebinding _C _cuda kernels
    numerics checks isolation frames notebook
    distributed
    backends
    solvers
    planning
    data
    init
    engine
    exact results
    fit
    models
    files overcomplete sklearn
    selection
    cli
    __init__ __main__
"""
LEVEL = {name: level for level, line in enumerate(ORDER.split("\n")) for name in line.split()}
# lazy loading: of the public names; of what computes, at first use
STRING_IMPORTS = {"fastnmf", "fastnmf.backends.registry", "fastnmf.backends.triton"}


def test_every_package_is_in_the_order():
    assert {entry(module) for module in MODULES} | set(COMPILED) == LEVEL.keys()


def test_imports_go_to_earlier_entries_only():
    wrong = {
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module)
        if entry(other) != entry(module) and LEVEL[entry(other)] >= LEVEL[entry(module)]
    }
    assert not wrong


def test_modules_of_a_package_import_each_other_without_a_circle():
    left = {module: imports(module) & MODULES.keys() - {module} for module in MODULES}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_nothing_is_imported_by_its_name_in_a_string_but_at_first_use():
    by_string = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                ours = ast.unparse(node.args[0]).lstrip("f").strip("'\"").startswith
                if ours((".", "fastnmf")) or len(node.args) > 1:
                    by_string.add(module)
    assert by_string <= STRING_IMPORTS


def test_kernels_import_nothing_of_fastnmf():
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("fastnmf") for alias in node.names), path
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                assert not (node.module or "").startswith("fastnmf"), path


def test_packages_are_small():
    """At most a dozen modules at the top, ten in a package, inits not counted."""
    sizes = defaultdict(list)
    for module, path in MODULES.items():
        if path.stem not in ("__init__", "__main__", "_version"):
            sizes[module.rpartition(".")[0]].append(path.stem)
    top = sizes.pop("fastnmf")
    assert len(top) <= 12, top
    assert {package: names for package, names in sizes.items() if len(names) > 10} == {}


def test_packages_are_listed_for_setuptools():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    packages = {module for module, path in MODULES.items() if path.stem == "__init__"}
    assert set(tools["setuptools"]["packages"]) == packages | {"fastnmf.kernels"}


@pytest.fixture(scope="module")
def run(fresh):
    """What code prints in a new process, which must end well and write no errors."""

    def run(code):
        ran = fresh(code)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    return run


OPTIONAL = (
    *("triton", "sklearn", "scipy", "overcomplete", "PIL", "matplotlib", "tqdm", "pybind11"),
    *("fastnmf._C", "fastnmf._cuda", "fastnmf.kernels"),
)


def test_import_loads_nothing_before_it_is_used(run):
    names = (*OPTIONAL, "safetensors", "fastnmf.models.nmf")
    code = (
        "import sys, torch; before = set(sys.modules); import fastnmf;"
        f"print([m for m in {names} if m in sys.modules and m not in before],"
        " torch.cuda.is_initialized())"
    )
    assert run(code) == "[] False\n"


def test_model_loads_only_what_every_user_needs(run):
    code = (
        "import sys, torch; before = set(sys.modules); from fastnmf import NMF; NMF(3);"
        f"print([m for m in {OPTIONAL} if m in sys.modules and m not in before],"
        " torch.cuda.is_initialized())"
    )
    assert run(code) == "[] False\n"


def test_import_takes_little_beyond_torch(tmp_path):
    """Of the processor: 60 ms, or on a slow or busy machine a twentieth of what torch takes there.

    An installed package has its bytecode; an editable one may not, so it is given some.
    """
    code = (
        "import gc, sys, time; begun = time.process_time(); import torch;"
        # a collection of what torch left takes longer, and comes when it comes
        "gc.collect(); gc.freeze(); had = time.process_time();"
        f"sys.dont_write_bytecode = False; sys.pycache_prefix = {str(tmp_path)!r};"
        "from fastnmf import NMF; print(had - begun, time.process_time() - had)"
    )

    def took() -> tuple[float, ...]:
        # not by `fresh`, which has torch
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return tuple(map(float, ran.stdout.split()))

    took()
    # up to five times: the machine may be busy
    assert any(ours < max(0.060, torchs / 20) for torchs, ours in (took() for _ in range(5)))


PUBLIC = [
    *("BackendUnavailable", "ConvergenceWarning", "ConvexNMF", "FastnmfWarning"),
    *("FitsFailed", "InvalidInput", "NMF", "NotFitted", "SemiNMF", "Tuning", "__version__"),
    *("available_backends", "choose_concepts", "files", "fit_many", "is_patched", "nnls"),
    *("nnls_gram", "patch_overcomplete", "stability", "unpatch_overcomplete"),
]


def test_public_names_are_these_and_there_at_first_use(run):
    code = (
        "import fastnmf; from fastnmf import *;"
        "names = sorted(fastnmf.__all__); print(names);"
        "print([name for name in names if getattr(fastnmf, name) is None]);"
        "print(all(map(callable, (NMF, Tuning, available_backends, nnls, is_patched))));"
        "print(dir(fastnmf) == names, files.read_matrix.__name__)"
    )
    assert run(code) == f"{PUBLIC}\n[]\nTrue\nTrue read_matrix\n"


def test_name_that_does_not_exist_is_an_attribute_error():
    import fastnmf

    with pytest.raises(AttributeError, match="module 'fastnmf' has no attribute 'OtherNMF'"):
        _ = fastnmf.OtherNMF
