"""Runs the Python code of pages: for the pictures of the site, and for tests.

python docs/runs.py: makes all pictures anew, in docs/pictures, for those who read the pages without
the site.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"\]\(pictures/([^)]+)\)")


def blocks(page: Path) -> list[str]:
    """The Python code of a page; each block has as many lines before it as on the page."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text[: found.start(1)].count("\n") + found[1] for found in BLOCK.finditer(text)]


def pictures(page: Path) -> list[str]:
    """The names of the pictures that the code of a page makes, in the folder it runs in."""
    return PICTURE.findall(page.read_text(encoding="utf-8"))


def run(page: Path) -> None:
    """Run the code of a page from top to bottom, in the current folder."""
    names = {"__name__": "__main__"}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


def make_pictures(folder: Path) -> None:
    """Put the pictures of all pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    here = os.getcwd()
    for page in sorted(DOCS.glob("*.md")):
        if not pictures(page):
            continue
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(place)
            try:
                run(page)
            finally:
                os.chdir(here)
            for name in pictures(page):
                shutil.copy(Path(place, name), folder / name)


if __name__ == "__main__":
    make_pictures(DOCS / "pictures")
    sys.stdout.write(f"{DOCS / 'pictures'}\n")
