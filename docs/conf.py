"""The documentation site: sphinx-build -W docs docs/_build"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import fastnmf

sys.path.insert(0, os.path.dirname(__file__))
import runs

project, author = "fastnmf", "fastnmf developers"
release = version = fastnmf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fastnmf {release}"
# anchors of headings as on GitHub, which the pages link to
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# listings of what is typed and of what is printed name no language
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]

# files of the repository that are no pages, and links to them
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)]*)\)")


def _without_outside(app, page, content):
    """Name files outside docs/ instead of linking to them."""
    here = Path(app.srcdir, page).parent
    docs = Path(app.srcdir)

    def named(found):
        target = (here / found[2].partition("#")[0]).resolve()
        if target.is_relative_to(docs):
            return found[0]
        shown = target.relative_to(docs.parent) if target.is_relative_to(docs.parent) else found[2]
        return f"{found[1]} (`{shown}`)"

    content[0] = _OUTSIDE.sub(named, content[0])


def _make_pictures(app):
    """Make the pictures of the pages by their code, instead of those that are stored."""
    runs.make_pictures(Path(app.doctreedir, "pictures"))


def _with_pictures(app, page, content):
    """Show the pictures that were made."""
    made = Path(os.path.relpath(Path(app.doctreedir, "pictures"), app.srcdir)).as_posix()
    content[0] = content[0].replace("](pictures/", f"]({made}/")


# what docstrings write as plain text and reStructuredText would take as markup
_LITERAL = re.compile(r"(``.*?``|`[^`]*`)")
_MARKUP = re.compile(r"\||(?<=\w)_(?=[^\w]|$)")


def _plain_text(app, what, name, object, options, lines):
    """Escape |x| and the underscore at the end of a name, outside literals and examples."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...", ".. ")):
            continue
        parts = _LITERAL.split(line)
        parts[::2] = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app):
    app.connect("builder-inited", _make_pictures)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)
    app.connect("source-read", _without_outside)
    app.connect("source-read", _with_pictures, priority=900)
