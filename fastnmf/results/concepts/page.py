"""The page of concepts: numbers of all, in pages that are searched and sorted; a map; pictures of
those with the most energy. What is shown is data in the page, which its script reads."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

from ..pages.skeleton import document, table
from .maps import MAPS
from .script import SCRIPT, STYLE

# concepts that a reader sees without scripts
_PLAIN = 20


def compose(concepts: Any) -> str:
    """The whole page of a Concepts, which calls this."""
    heading = f"<h1>{escape(concepts.name)}</h1>"
    main = f"<main>{heading}<section>{section(concepts)}</section></main>"
    return document(concepts.name, main, STYLE)


def section(concepts: Any) -> str:
    """The concepts, as a part of a page whose style has STYLE."""
    K = len(concepts)
    has_codes = not math.isnan(float(concepts.numbers.active[0]))
    seen = "how often it is active, its largest code, " if has_codes else ""
    note = (
        f"{K:,} concept{'s' * (K > 1)}. Energy is ‖Z_k‖² ‖D_k‖², as a share of the sum. Of each "
        f"are shown its energy, {seen}its top features by weight, and the concept most like it."
    )
    sorts = {"energy": "energy"}
    if has_codes:
        sorts |= {"active": "how often active"}
    sorts |= {"cosine": "likeness to another", "index": "number"}
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in sorts.items())
    return f"""<p class="note">{escape(note)}</p>
<noscript>{_plain(concepts)}</noscript>
<div id="concepts" hidden>
<figure><div id="map-box"><canvas id="map" role="img" tabindex="-1"
aria-label="Map of all concepts: similar ones are near each other"></canvas></div>
<figcaption>Map ({MAPS[concepts.map].title}): concepts that are alike are near each other; larger
circles have more energy,
{"stronger colours are active more often" if has_codes else "all in one colour"}. Choose one by a
click, or by its number below.</figcaption></figure>
<form id="controls" role="search" aria-label="Concepts">
<label>Search <input id="search" type="search" placeholder="number, feature, word"></label>
<label>Sort by <select id="sort">{options}</select></label>
<label><input id="twins" type="checkbox"> near duplicates together</label>
</form>
<p id="count" class="note" role="status" aria-live="polite"></p>
<div id="cards"></div>
<nav id="pager" aria-label="Pages of concepts"><button type="button" id="previous">Previous</button>
<span id="place"></span><button type="button" id="next">Next</button></nav>
</div>
<script type="application/json" id="data">{_data(concepts)}</script>
<script>{SCRIPT}</script>"""


def _plain(concepts: Any) -> str:
    order = concepts.numbers.energy.argsort(descending=True)[:_PLAIN].tolist()
    heads = ("concept", "energy", "top features")
    rows = [
        (str(k), f"{float(concepts.numbers.energy[k]):.2%}", ", ".join(concepts.features[k]))
        for k in order
    ]
    return table(heads, rows)


def _data(concepts: Any) -> str:
    """What the script reads, as JSON that no element can end."""
    numbers = concepts.numbers
    columns = ("energy", "active", "largest", "mean", "twin", "cosine")
    content: dict[str, Any] = {name: getattr(numbers, name).tolist() for name in columns}
    content |= {"x": concepts.places[:, 0].tolist(), "y": concepts.places[:, 1].tolist()}
    content |= {"features": concepts.features, "details": concepts.details}
    text = json.dumps(_short(content), ensure_ascii=False, separators=(",", ":"))
    # in a script only this sign begins an element
    return text.replace("<", "\\u003c")


def _short(value: Any) -> Any:
    """The same with four digits, and null for what is no number."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return value
