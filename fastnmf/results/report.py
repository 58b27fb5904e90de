"""An HTML page about a fit, which answers: did it converge, is K right, what are the concepts, how
sparse are the codes, how was it made. It is one file without links, and needs no library."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..data.paths import check_output, replacing
from .concepts import page
from .concepts.concepts import Concepts
from .concepts.script import STYLE
from .info import FitInfo
from .pages.charts import Axis, Rule, bars, line
from .pages.skeleton import details, document, table

SUFFIXES = (".html", ".htm")
# rows of the history, at most
ITERATIONS = 24


@dataclass(frozen=True)
class Origin:
    """What made a model. name: of its file. version: of the fastnmf that wrote it. options: of the
    constructor, as the file has them. made: date, machine and versions, where they are recorded."""

    name: str
    version: str
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)


def facts() -> dict[str, str]:
    """Date, machine and versions, to be kept with a model."""
    import datetime

    now = datetime.datetime.now(datetime.timezone.utc)
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    versions["Python"] = platform.python_version()
    return {
        "date": now.isoformat(timespec="seconds"),
        "machine": f"{platform.platform()}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def write_report(path: str | Path, info: FitInfo, origin: Origin, concepts: Concepts) -> None:
    """Write the page about a fit to an .html file, whole or not at all. Raises what `check_output`
    raises."""
    path = check_output(path, SUFFIXES)
    content = compose(info, origin, concepts)
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8")


def compose(info: FitInfo, origin: Origin, concepts: Concepts) -> str:
    """The page as HTML."""
    made = f"Model by fastnmf {origin.version}; page by fastnmf {__version__}."
    parts = {
        "Did it converge?": _convergence(info, origin.options.get("tol")),
        "Is the number of concepts right?": _size(info),
        "What are the concepts?": page.section(concepts),
        "How sparse are the codes?": _codes(info),
        "How was it made?": _making(info, origin),
    }
    sections = "\n".join(
        f'<section aria-labelledby="part-{number}"><h2 id="part-{number}">{title}</h2>{body}'
        "</section>"
        for number, (title, body) in enumerate(parts.items(), 1)
    )
    error = f"relative error {info.relative_error:.4g}, R² {info.r_squared:.4g}"
    lead = f"{info.n:,} rows × {info.d:,} features, {info.nb_concepts:,} concepts: {error}."
    body = f"""<main>
<h1>{escape(origin.name)}</h1>
<p>{escape(lead)} The relative error is ‖A − Z D‖ / ‖A‖; R² is 1 for a perfect fit.</p>
{sections}
</main>
<footer>{escape(made)}</footer>"""
    return document(f"{origin.name}: a fit by fastnmf", body, STYLE)


def _convergence(info: FitInfo, tol: float | None) -> str:
    if not info.history:
        return "<p>There was no iteration.</p>"
    last, kind = info.history[-1], "good" if info.converged else "bad"
    if info.converged:
        text = f"Yes, after {info.iterations:,} iterations and {info.seconds:.3g} s."
    else:
        text = f"No: it ended by {info.stopped_by} after {info.iterations:,} iterations."
        text += " A larger max_iter, or a larger tol, lets it converge."
    by_change = info.stopped_by != "error" and tol is not None and tol > 0
    rule = Rule(tol, f"stops at tol = {tol:g}") if by_change and tol is not None else None
    steps = Axis("iteration", log=len(info.history) > 50)
    errors = [(each.iteration, each.relative_error) for each in info.history]
    changes = [(each.iteration, each.relative_change) for each in info.history]
    error = line(
        errors,
        steps,
        Axis("error", log=True),
        f"Relative error of the iterations; the last has {info.relative_error:.4g}.",
    )
    change = line(
        changes,
        steps,
        Axis("change", log=True),
        f"Relative change of the factors; the last is {last.relative_change:.3g}.",
        rule,
    )
    history = details("all iterations as numbers", _history(info))
    answer = f'<p class="answer {kind}">{escape(text)}</p>'
    return f'{answer}<div class="columns">{error}{change}</div>{history}'


def _size(info: FitInfo) -> str:
    K = info.nb_concepts
    energy = sorted(info.energy, reverse=True)
    sums = list(itertools.accumulate(energy))
    if not sums[-1:] or sums[-1] <= 0:
        return "<p>All concepts are dead.</p>"
    needed = {share: sum(s < share - 1e-12 for s in sums) + 1 for share in (0.9, 0.99)}
    chart = line(
        list(enumerate(sums, 1)),
        Axis("concepts, strongest first", log=K > 100),
        Axis("energy", low=0.0, high=1.0, share=True),
        f"Energy of the strongest concepts together: {needed[0.9]:,} have 90 %, "
        f"{needed[0.99]:,} have 99 %. Energy is ‖Z_k‖² ‖D_k‖², as a share of the sum.",
    )
    rows = [
        ("dead concepts", f"{info.dead_concepts:,} of {K:,}", "0; revive=True gives them rows"),
        ("near-duplicates", f"{info.near_duplicates:,} (cosine ≥ 0.99)", "0; else fewer concepts"),
        ("held-out error", "not measured by a fit", "fastnmf choose compares K by it"),
    ]
    wasted = info.dead_concepts + info.near_duplicates
    if wasted:
        answer = f'<p class="answer bad">{wasted:,} of {K:,} concepts add nothing.</p>'
    else:
        answer = '<p class="answer good">Every concept is used, and no two are near duplicates.</p>'
    return (
        f'{answer}<div class="columns">{chart}{table(("", "here", "good"), rows, "summary")}</div>'
    )


def _codes(info: FitInfo) -> str:
    width = -(-(info.l0_most + 1) // len(info.l0_histogram))
    chart = bars(
        info.l0_histogram,
        width,
        Axis("active concepts of a row"),
        Axis("rows"),
        f"Rows by their number of active concepts: {info.mean_l0:.4g} on average, "
        f"{info.l0_most:,} at most.",
    )
    share = info.mean_l0 / info.nb_concepts
    rows = [
        ("mean L0", f"{info.mean_l0:.4g}", f"{share:.1%} of the concepts"),
        ("Hoyer sparsity", f"{info.hoyer:.3g}", "0: equal codes, 1: a single one"),
    ]
    answer = f"A row uses {info.mean_l0:.3g} of {info.nb_concepts:,} concepts on average."
    return (
        f'<p class="answer">{escape(answer)}</p><div class="columns">{chart}'
        f"{table(('', 'here', 'meaning'), rows, 'summary')}</div>"
    )


def _making(info: FitInfo, origin: Origin) -> str:
    options = {**origin.options, "init": info.init, "seed": info.seed}
    K = options.pop("nb_concepts", info.nb_concepts)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
    call = f"{info.model}({K}, {given})"
    made = {name: origin.made.get(name, "not recorded") for name in ("date", "machine", "versions")}
    rows = [*info.lines().items(), ("options", call), *made.items()]
    return table((), rows, "summary")


def _history(info: FitInfo) -> str:
    history = info.history
    shown = range(len(history))
    if len(history) > ITERATIONS:
        # denser at the beginning, where most changes
        places = np.geomspace(1, len(history), ITERATIONS).round().astype(int) - 1
        shown = np.unique(places).tolist()
    names = [each.name for each in fields(history[0])]
    if not (info.alpha_Z or info.alpha_D):
        # it equals the error
        names.remove("relative_objective")
    if info.validation_error is None:
        names = [name for name in names if not name.startswith("validation")]
    heads = [name.replace("_", " ") for name in names]
    rows = ([_text(getattr(history[i], name)) for name in names] for i in shown)
    left_out = len(history) - len(shown)
    more = f'<p class="note">{left_out:,} more are not shown.</p>' if left_out else ""
    return table(heads, rows) + more


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
