"""The structure of the package in numbers, as Markdown for fastnmf/README.md.

python tests/structure.py prints it; with --write it replaces what is between the marks there.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
README, BEGIN, END = ROOT / "fastnmf/README.md", "<!-- structure -->", "<!-- /structure -->"
# reached at first use only, without an import statement
COMPILED = ("_C", "_cuda", "kernels")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "fastnmf").rglob("*.py"))
}
MOST_PARAMETERS, MOST_MODULE_LINES, MOST_FUNCTION_LINES = 8, 300, 50
# signatures that users see take one argument for each option
PUBLIC_SIGNATURES = {
    "fastnmf.fit.nnls.nnls",
    "fastnmf.models.factorization.Factorization.encode",
    "fastnmf.models.factorization.Factorization.fit",
    "fastnmf.models.convex_nmf.ConvexNMF.__init__",
    "fastnmf.models.shown.ShownModel.show_concepts",
    "fastnmf.models.nmf.NMF.__init__",
    "fastnmf.models.semi_nmf.SemiNMF.__init__",
    "fastnmf.selection.choice.choose_concepts",
    "fastnmf.selection.many.fit_many",
    "fastnmf.selection.stability.stability",
    "fastnmf.sklearn.estimator.NMF.__init__",
    "fastnmf.sklearn.estimator.non_negative_factorization",
    "fastnmf.sklearn.minibatch.MiniBatchNMF.__init__",
}
# functions that may be longer, with the reason
LONG_FUNCTIONS: dict[str, str] = {}
SOLVER_NAMES = {"hals", "mu", "pgd", "anls"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def entry(module: str) -> str:
    """The package, or the module at the top, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """The modules of fastnmf that a module imports, those for type checkers included."""
    found = set()
    is_package = MODULES[module].stem == "__init__"
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {_module_of(name) for name in found if name.split(".")[0] == "fastnmf"}


def _module_of(name: str) -> str:
    """The module of an imported name: itself, or the one it is an attribute of."""
    while name not in MODULES and entry(name) not in COMPILED:
        name = name.rpartition(".")[0]
    return name


def edges() -> dict[str, set[str]]:
    """Entry → other entries that it imports from."""
    found = defaultdict(set)
    for module in MODULES:
        found[entry(module)] |= {entry(other) for other in imports(module)} - {entry(module)}
    return found


@cache
def traced() -> tuple[list[str], list[str]]:
    """Types of ours that one NMF.fit in memory passes on its way to the kernel; and calls from one
    package into a later one."""
    import types_on_the_way

    return sorted(types_on_the_way.types_on_the_way()), sorted(types_on_the_way.calls_up())


def functions() -> Iterator[tuple[str, Function]]:
    """(qualified name, node) of every function, nested ones included."""

    def within(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function | ast.ClassDef):
                inner = f"{name}.{child.name}"
                if isinstance(child, Function):
                    yield inner, child
                yield from within(child, inner)
            else:
                yield from within(child, name)

    for module in MODULES:
        yield from within(tree(module), module)


def parameters(function: Function) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


def _docstring(node: ast.AST) -> ast.Constant | None:
    body = node.body
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return first if is_text else None


def _documentation_lines(node: ast.AST) -> int:
    """Lines of all docstrings in a node."""
    found = (_docstring(each) for each in ast.walk(node) if isinstance(each, DOCUMENTED))
    return sum(text.end_lineno - text.lineno + 1 for text in found if text is not None)


def functions_with_many_parameters() -> list[str]:
    return [
        f"{name} ({len(parameters(function))})"
        for name, function in functions()
        if len(parameters(function)) > MOST_PARAMETERS and name not in PUBLIC_SIGNATURES
    ]


def long_modules() -> list[str]:
    """Modules over 300 lines, docstrings not counted."""
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        - _documentation_lines(tree(module))
        for module, path in MODULES.items()
    }
    return [f"{module} ({n})" for module, n in lengths.items() if n > MOST_MODULE_LINES]


def long_functions() -> list[str]:
    """Functions over 50 lines, docstrings not counted."""
    lengths = {
        name: function.end_lineno - function.lineno + 1 - _documentation_lines(function)
        for name, function in functions()
    }
    return [
        f"{name} ({n})"
        for name, n in lengths.items()
        if n > MOST_FUNCTION_LINES and name not in LONG_FUNCTIONS
    ]


def solver_names_elsewhere() -> list[str]:
    """Places outside solvers/ where code holds a solver's name. Docstrings, defaults of arguments
    and fields, and options of the command line do not count."""
    found = []
    for module in MODULES:
        if entry(module) == "solvers":
            continue
        allowed = set()
        for node in ast.walk(tree(module)):
            if isinstance(node, DOCUMENTED):
                allowed.add(_docstring(node))
            if isinstance(node, Function):
                allowed.update([*node.args.defaults, *node.args.kw_defaults])
            if isinstance(node, ast.AnnAssign):
                allowed.add(node.value)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_option":
                allowed.update(node.args)
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Constant) and node not in allowed:
                if isinstance(node.value, str) and node.value in SOLVER_NAMES:
                    found.append(f"{module}:{node.lineno} {node.value!r}")
    return found


def report() -> str:
    """The tables."""
    (types, up), importing = traced(), edges()
    zeros = {
        "calls from a package into a later one": up,
        f"internal functions with more than {MOST_PARAMETERS} parameters": (
            functions_with_many_parameters()
        ),
        f"modules over {MOST_MODULE_LINES} lines, docstrings not counted": long_modules(),
        f"functions over {MOST_FUNCTION_LINES} lines, docstrings not counted": long_functions(),
        "solver names outside `solvers/`": solver_names_elsewhere(),
    }
    entries = {entry(module) for module in MODULES} - {"__init__", "__main__", "_version"}
    packages = {name for name in entries if MODULES[f"fastnmf.{name}"].stem == "__init__"}
    names = ", ".join(f"`{name.rpartition('.')[2]}`" for name in types)
    lines = [
        "| what | number |",
        "|---|---|",
        f"| packages, and modules beside them | {len(packages)}, {len(entries - packages)} |",
        f"| modules in all | {sum(p.stem != '__init__' for p in MODULES.values())} |",
        f"| import edges between packages | {sum(map(len, importing.values()))} |",
        f"| types between `fit` and the kernel | {len(types)}: {names} |",
        *(f"| {what} | {len(found)} |" for what, found in zeros.items()),
        *(f"| {name}, which may be longer | {why} |" for name, why in LONG_FUNCTIONS.items()),
        "",
        "| module | what is there | package imports from |",
        "|---|---|---|",
    ]
    named = set()
    for module, path in MODULES.items():
        if path.stem in ("__init__", "__main__", "_version"):
            continue
        first = (ast.get_docstring(tree(module)) or "").split("\n\n")[0].replace("\n", " ")
        own = entry(module)
        sources = "" if own in named else ", ".join(sorted(importing[own]))
        named.add(own)
        lines.append(f"| `{module.removeprefix('fastnmf.')}` | {_sentence(first)} | {sources} |")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".").replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {README.relative_to(ROOT)}")
    if not parser.parse_args().write:
        print(report())
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{report()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
