"""How notebooks display models and summaries: a line that opens to a table. Styles are in the
elements, since notebooks remove others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_BOX = "font-family:system-ui,sans-serif;border:1px solid #8886;border-radius:6px;padding:4px 10px"
_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;white-space:normal"


def folded(
    title: str,
    lines: Mapping[str, str],
    marked: Collection[str] = (),
    *,
    inside: str = "",
    note: str = "",
) -> str:
    """A line of HTML that opens to a table of name and value. marked: names that are set apart.
    inside: HTML below the table. Texts are escaped."""
    # not before something is displayed: its table of entities takes time
    from html import escape

    rows = []
    for name, value in lines.items():
        weight = "font-weight:700" if name in marked else "font-weight:400;opacity:.75"
        rows.append(
            f'<tr><th scope="row" style="{_CELL};{weight}">{escape(name)}</th>'
            f'<td style="{_CELL}">{escape(value)}</td></tr>'
        )
    below = f'<div style="opacity:.75">{escape(note)}</div>' if note else ""
    summary = f'<summary style="cursor:pointer">{escape(title)}</summary>'
    table = f'<table style="margin:6px 0;border-collapse:collapse">{"".join(rows)}</table>'
    return f'<details style="{_BOX}">{summary}{table}{below}{inside}</details>'
