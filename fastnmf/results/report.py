"""An HTML page about a fit: summary, plots, strongest concepts and history.

It needs the extra `plot`. The page has no scripts or links; the plots are in it, as SVG."""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path

import numpy as np
import torch

from .._version import __version__
from ..data.paths import check_output, replacing
from . import plot
from .info import FitInfo

SUFFIXES = (".html", ".htm")
# rows of the tables, at most
ITERATIONS, CONCEPTS = 24, 20
STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #707070; }
@media (prefers-color-scheme: dark) { :root { --muted: #9a9a9a; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: auto; padding: 1rem; }
h1, .summary td { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
main { columns: 2 22rem; column-gap: 2rem; }
section { break-inside: avoid; overflow-x: auto; padding-bottom: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 0 .2rem .8rem; text-align: right; }
th { font-weight: normal; color: var(--muted); vertical-align: bottom; }
th:first-child { padding-left: 0; }
.summary th, .summary td { text-align: left; vertical-align: top; }
.summary th { white-space: nowrap; }
.numbers td { white-space: nowrap; }
svg { width: 100%; height: auto; }
svg text { fill: currentColor; font-family: inherit !important; }
p, footer { color: var(--muted); font-size: .9rem; }
"""


def write_report(path: str | Path, info: FitInfo, name: str, version: str) -> None:
    """Write the page about a fit to an .html file, whole or not at all.

    name: the model's; version: of the fastnmf that wrote the model. Raises what `check_output`
    raises, and ModuleNotFoundError without the extra `plot`.
    """
    path = check_output(path, SUFFIXES)
    page = compose(info, name, version)
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def compose(info: FitInfo, name: str, version: str) -> str:
    """The page as HTML; arguments as of `write_report`."""
    versions = {"fastnmf": __version__, "torch": torch.__version__, "numpy": np.__version__}
    versions["Python"] = platform.python_version()
    here = ", ".join(f"{package} {number}" for package, number in versions.items())
    summary = _table((), info.lines().items(), "summary")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}: a fit by fastnmf</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(name)}</h1>
<main>
<section><h2>Summary</h2>{summary}</section>
<section>{_picture(info)}</section>
<section><h2>Strongest concepts</h2>{_concepts(info)}</section>
<section><h2>Iterations</h2>{_history(info)}</section>
</main>
<footer>Model by fastnmf {escape(version)}; page by {escape(here)}.</footer>
</body>
</html>
"""


def _picture(info: FitInfo) -> str:
    """The plots as SVG, one below the other, in the colours and the font of the page."""
    plot.require()
    from matplotlib import style

    written = io.StringIO()
    # the user's own style may not be readable here; text stays text; equal fits give equal bytes
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "fastnmf"}]):
        figure = plot.draw(info, columns=1)
        unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=unsigned)
    svg = written.getvalue()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])
    return svg.replace("#000000", "currentColor")


def _concepts(info: FitInfo) -> str:
    strongest = np.argsort(-np.array(info.energy), kind="stable")[:CONCEPTS].tolist()
    rows, together = [], 0.0
    for k in strongest:
        share = info.energy[k]
        together += share
        if share > 0:
            rows.append((str(k), f"{share:.2%}", f"{together:.2%}"))
    if not rows:
        return "<p>All concepts are dead.</p>"
    table = _table(("concept", "share", "together"), rows)
    return f"{table}<p>Share of ‖Z_k‖² ‖D_k‖² in its sum; concept k is row k of D, from 0.</p>"


def _history(info: FitInfo) -> str:
    history = info.history
    if not history:
        return "<p>There was no iteration.</p>"
    shown = range(len(history))
    if len(history) > ITERATIONS:
        # denser at the beginning, where most changes
        places = np.geomspace(1, len(history), ITERATIONS).round().astype(int) - 1
        shown = np.unique(places).tolist()
    names = [field.name for field in fields(history[0])]
    if not (info.alpha_Z or info.alpha_D):
        # it equals the error
        names.remove("relative_objective")
    heads = [name.replace("_", " ") for name in names]
    rows = ([_text(getattr(history[i], name)) for name in names] for i in shown)
    table = _table(heads, rows)
    left_out = len(history) - len(shown)
    return table + (f"<p>{left_out:,} more are not shown.</p>" if left_out else "")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """An HTML table; the first cell of each row names it. Texts are escaped."""
    lines = []
    if heads:
        lines.append("".join(f'<th scope="col">{escape(head)}</th>' for head in heads))
    for name, *cells in rows:
        tail = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<th scope="row">{escape(name)}</th>{tail}')
    return f'<table class="{kind}">' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
