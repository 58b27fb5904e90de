"""What the documentation shows runs: examples in docstrings, and Python code in the pages."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
import warnings
from pathlib import Path

import pytest
import tiny_language_model
import torch
from structure import MODULES, ROOT

import fastnmf

sys.path.insert(0, str(ROOT / "docs"))
import runs

# of the whole repository, so that no page is left out
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith((".", "_", "build")) for part in page.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*\{?i?py(?:thon|con)?\b", re.MULTILINE | re.I)
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")
WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Files are written to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if runs.blocks(page)], ids=lambda page: page.stem
)
def test_python_code_of_a_page_runs_and_makes_its_pictures(page, capsys, monkeypatch):
    if page.stem == "language_model":
        # the real one takes minutes
        for name, module in tiny_language_model.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        try:
            runs.run(page)
        except ModuleNotFoundError as missing:
            pytest.skip(f"{missing}: an extra")
    for name in runs.pictures(page):
        assert Path(name).read_bytes().startswith(b"\x89PNG")


def test_every_python_block_is_found():
    """Whatever the fence, its case or its indent."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(FENCE.findall(text)) == len(runs.blocks(page)), page


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


def test_everything_public_has_a_docstring_in_sections():
    """Of functions and methods: Parameters where there are any, and Returns."""
    functions = {
        name: value
        for name, value in ((name, getattr(fastnmf, name)) for name in fastnmf.__all__)
        if inspect.isroutine(value)
    }
    # those that Overcomplete has, and its users call, need one sentence
    short = ("init_", "sanitize_", "extra_repr")
    functions |= {
        f"{model.__name__}.{name}": value
        for model in (fastnmf.NMF, fastnmf.SemiNMF)
        for name, value in inspect.getmembers(model, inspect.isroutine)
        if not name.startswith(("_", *short, "expected", "public_"))
        and value.__module__
        in (model.__module__, "fastnmf.models.factorization", "fastnmf.models.shown")
    }
    of_files = ("read_matrix", "write_matrix")
    functions |= {f"files.{name}": getattr(fastnmf.files, name) for name in of_files}
    for name, function in functions.items():
        text = inspect.getdoc(function) or ""
        summary = text.partition("\n\n")[0]
        assert summary.endswith("."), name
        assert "\n" not in summary, name
        parameters = inspect.signature(function).parameters
        if set(parameters) - {"self", "unknown"}:
            assert "\nParameters\n----------\n" in text, name
        for parameter in set(parameters) - {"self", "unknown", "options"}:
            assert re.search(rf"^{parameter}\b.* : ", text, re.MULTILINE), (name, parameter)
        if inspect.signature(function).return_annotation not in ("None", None):
            assert "\nReturns\n-------\n" in text, name


@pytest.mark.parametrize("kind", ["NMF", "SemiNMF", "Tuning"])
def test_every_option_is_described(kind):
    described = inspect.getdoc(getattr(fastnmf, kind))
    described = described[described.index("Parameters\n") :].partition("\n\nAttributes\n")[0]
    for name in set(inspect.signature(getattr(fastnmf, kind)).parameters) - {"unknown"}:
        assert re.search(rf"^{name}\b[\w, ]* : |, {name}\b[\w, ]* : ", described, re.MULTILINE), (
            name
        )


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for target, anchor in LINK.findall(text):
            there = page.parent / target if target else page
            if not there.exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
            elif anchor and there.suffix == ".md" and anchor[1:] not in anchors(there):
                broken.append(f"{page.relative_to(ROOT)}: {target}{anchor}")
    assert broken == []


def test_every_page_is_in_the_contents_of_the_site():
    """Sphinx warns of one that is not, and a warning ends its build."""
    for index in (ROOT / "docs/index.md", ROOT / "docs/notes/README.md"):
        contents = index.read_text(encoding="utf-8").partition("```{toctree}")[2]
        listed = set(contents.partition("```\n")[0].split())
        pages = {page.stem for page in index.parent.glob("*.md")} - {index.stem}
        assert pages <= listed, index


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as on GitHub."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


def test_public_surface_is_what_the_reference_lists():
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    signature = inspect.signature(fastnmf.NMF).parameters
    listed = reference[reference.index("    NMF(") : reference.index("| option")]
    assert set(re.findall(r"(\w+)(?:=|,)", listed)) >= set(signature) - {"unknown"}
    for name in fastnmf.__all__:
        assert name in reference or name in ("__version__", "files"), name
    for field in (*fields("FitInfo"), *fields("OnlineInfo")):
        assert f"`{field}`" in reference, field


def fields(kind: str) -> list[str]:
    info = importlib.import_module("fastnmf.results.info")
    return list(getattr(info, kind).__dataclass_fields__)
