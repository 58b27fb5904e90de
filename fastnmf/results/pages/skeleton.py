"""What all pages share: style, head, tables. A page is one file, without links to others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfc; --card: #fff; --ink: #18181b;
  --muted: #5f6368; --line: #d9dce1; --accent: #1f66b3; --second: #0b7a6b; --bad: #b3361f; }
@media (prefers-color-scheme: dark) { :root { --ground: #141518; --card: #1d1f23; --ink: #e8e8ea;
  --muted: #a3a7ae; --line: #3a3d44; --accent: #74b0f4; --second: #4cc3b1; --bad: #ff8f77; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 72rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0 .7rem; max-width: 45rem; }
section { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.scroll { overflow-x: auto; }
.columns { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.columns > * { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; text-align: right; }
th { font-weight: normal; color: var(--muted); vertical-align: bottom; }
.summary th, .summary td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.summary th[scope=row] { min-width: 5.5rem; overflow-wrap: normal; }
.numbers td { white-space: nowrap; }
.numbers th[scope=row] { text-align: left; }
.answer { font-size: 1.05rem; font-weight: 600; }
.good { color: var(--second); } .bad { color: var(--bad); }
figure { margin: 0 0 1rem; } figcaption, .note, footer { color: var(--muted); font-size: .9rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--muted); font: 13px system-ui, sans-serif; }
@media (max-width: 40rem) { svg text { font-size: 19px; } }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page in HTML; the title is escaped, the body is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """An HTML table; the first cell of each row names it. Texts are escaped."""
    lines = []
    if heads:
        lines.append("".join(f'<th scope="col">{escape(head)}</th>' for head in heads))
    for name, *cells in rows:
        tail = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<th scope="row">{escape(name)}</th>{tail}')
    inside = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{kind}">{inside}</table></div>'


def details(summary: str, body: str) -> str:
    """A part that opens at a click; the summary is escaped, the body is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
