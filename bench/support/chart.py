"""Charts: seconds of one iteration, a panel for each solver; error against time, a panel for each
data set; and what other charts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from support.tables import (
    OURS,
    SOLVERS,
    first_of,
    machine_of,
    of_kind,
    processor_text,
    seconds_text,
)

# in the order of the tables: ours stand out, the other libraries are muted
OUR_COLOURS = ("#0b7a75", "#6fc3b8", "#b5e2da")
COLOURS = {"Overcomplete": "#e07a3f", "scikit-learn": "#5b7db1", "nmf-torch": "#a9a29a"}
GAP = 0.8
# the lower end of the logarithmic scale of errors
LEAST_ABOVE = 1e-4


def draw(entries: list[dict], path: Path) -> None:
    """Write the chart to path (.png)."""
    found = {name: of_kind(entries, "iteration", solver=name) for name in SOLVERS}
    found = {name: timed for name, timed in found.items() if timed}
    figure, axes = plt.subplots(
        len(found), 1, figsize=(11, 3.6 * len(found) + 0.9), squeeze=False, layout="constrained"
    )
    colours: dict[str, str] = {}
    for axis, (solver, timed) in zip(axes[:, 0], found.items(), strict=True):
        _panel(axis, timed, colours)
        axis.set_title(SOLVERS[solver], loc="left", fontsize=11, fontweight="bold")
    machine = machine_of(entries)
    figure.suptitle(
        f"One iteration of NMF (shorter is faster)\n"
        f"{processor_text(machine)}, float32, torch {machine['torch']}",
        fontsize=12,
    )
    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    handles.append(
        Patch(facecolor="white", edgecolor="0.4", hatch="////", label="extrapolated from a part")
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    save(figure, path)


def draw_courses(entries: list[dict], least: Callable[[str, int], float], path: Path) -> None:
    """Draw the error of each course above least(data, seed), and write it to path (.png)."""
    names = first_of(entries, "data")
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 4.4), squeeze=False, layout="constrained"
    )
    colours: dict[str, str] = {}
    lines = {}
    for axis, name in zip(axes[0], names, strict=True):
        found = [entry for entry in entries if entry["data"] == name]
        for entry in (entry for entry in found if entry["points"]):
            contender = entry["contender"]
            library = _colour_name(contender)
            colour = colours.setdefault(library, _colour(library, colours))
            seconds, errors = zip(*entry["points"], strict=True)
            lowest = least(name, entry["seed"])
            above = [max(error / lowest - 1, LEAST_ABOVE) for error in errors]
            style = "--" if contender.endswith(" mu") else "-"
            (lines[contender],) = axis.plot(seconds, above, style, color=colour, linewidth=1.3)
        axis.set(xscale="log", yscale="log", xlabel="seconds")
        axis.set_title(found[0]["title"], loc="left", fontsize=9)
        axis.yaxis.set_major_formatter(lambda above, _: f"{100 * above:g} %")
        plain(axis)
    axes[0, 0].set_ylabel("error above the least that any library reached")
    figure.legend(
        handles=list(lines.values()),
        labels=list(lines),
        loc="outside lower center",
        ncols=min(len(lines), 2 * len(names)),
        frameon=False,
    )
    save(figure, path)


def plain(axis, lines: str = "both") -> None:
    """Grid lines behind the data, and no frame."""
    axis.grid(axis=lines, color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path: Path) -> None:
    """Write a figure (.png) and free its memory."""
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _panel(axis, timed: list[dict], colours: dict[str, str]) -> None:
    names = sorted(first_of(timed, "contender"), key=lambda name: not name.startswith(OURS))
    titles = first_of(timed, "title")
    left, ticks = 0.0, []
    for title in titles:
        entries = [
            e for name in names for e in timed if e["title"] == title and e["contender"] == name
        ]
        for place, entry in enumerate(entries):
            _bar(axis, left + place, entry, colours)
        ticks.append(left + (len(entries) - 1) / 2)
        left += len(entries) + GAP
    axis.set_yscale("log")
    axis.set_xticks(ticks, [title.replace(", ", "\n") for title in titles], fontsize=9)
    axis.set_ylabel("seconds")
    seconds = [entry["seconds"] for entry in timed]
    axis.set_ylim(min(seconds) / 2.5, max(seconds) * 3)
    axis.set_xlim(-1, left - GAP)
    axis.tick_params(axis="x", length=0)
    plain(axis, "y")
    axis.spines["bottom"].set_visible(False)


def _bar(axis, place: float, entry: dict, colours: dict[str, str]) -> None:
    name = _colour_name(entry["contender"])
    colour = colours.setdefault(name, _colour(name, colours))
    hatch = "////" if entry["measured_on"] else None
    axis.bar(
        place,
        entry["seconds"],
        width=0.92,
        color=colour,
        hatch=hatch,
        edgecolor="white",
        linewidth=0,
    )
    text = seconds_text(entry["seconds"])
    bold = "bold" if name.startswith(OURS) else "normal"
    axis.annotate(
        text,
        (place, entry["seconds"]),
        (0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
        fontweight=bold,
    )


def _colour_name(contender: str) -> str:
    """The name of the library, without that of its algorithm."""
    return next((library for library in COLOURS if contender.startswith(library)), contender)


def _colour(name: str, used: dict[str, str]) -> str:
    if name in COLOURS:
        return COLOURS[name]
    return OUR_COLOURS[sum(other.startswith(OURS) for other in used) % len(OUR_COLOURS)]
