"""Plots of a fit: error over time, active concepts per row, energy of the concepts.

They need matplotlib (the extra `plot`), and are drawn on a Figure without pyplot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..engine.state import Iteration
from .info import FitInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


LINE, BARS, DEAD = "#2f7fd0", "#0f9d8a", "#e0533d"
# inches
WIDTH, HEIGHT, GAP = 4.6, 3.5, 0.1
# points of a line up to which each is marked
MARKED = 40
# iterations that the axis on top names, at most
NAMED = 6


def draw(info: FitInfo, *, columns: int = 3) -> Figure:
    """A Figure of three panels: ‖A − Z D‖ / ‖A‖ after each iteration, rows by their number of
    active concepts, and the energy of the concepts from the largest down, dead ones shaded.

    An axis is logarithmic where its values differ by more than ten times. Raises as `require` does.
    """
    require()
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from .figure import Figure

    rows = -(-len(PANELS) // columns)
    layout = ConstrainedLayoutEngine(w_pad=GAP, h_pad=GAP)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout=layout)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, PANELS, strict=True):
        panel(axes, info)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def require() -> None:
    """Raise ModuleNotFoundError, saying what to install, where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("plots need matplotlib: pip install matplotlib")


def _draw_error(axes: Axes, info: FitInfo) -> None:
    seconds = [each.seconds for each in info.history]
    errors = [each.relative_error for each in info.history]
    axes.set_title(f"relative error: {info.relative_error:.4g}", loc="left")
    axes.set(xlabel="seconds of iterations", ylabel="‖A − Z D‖ / ‖A‖")
    if not info.history:
        axes.text(0.5, 0.5, "no iteration", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    _line(axes, seconds, errors)
    axes.set_xlim(left=0)
    axes.locator_params("x", nbins=5)
    axes.xaxis.set_major_formatter(_plain)
    named = _spread(info.history)
    top = axes.secondary_xaxis("top")
    top.set_xticks([each.seconds for each in named], [f"{each.iteration:,}" for each in named])
    top.set_xlabel("iteration")
    # up to matplotlib 3.7 it stays white where all else is saved as transparent
    top.set_facecolor("none")


def _draw_sparsity(axes: Axes, info: FitInfo) -> None:
    bars = len(info.l0_histogram)
    # numbers of active concepts per bar
    width = -(-(info.l0_most + 1) // bars)
    # a number is in the middle of its interval
    left = [bar * width - 0.5 for bar in range(bars)]
    axes.bar(left, info.l0_histogram, width, align="edge", color=BARS)
    axes.axvline(info.mean_l0, color="0.5", linestyle="--")
    axes.set_title(f"L0: mean {info.mean_l0:.4g}, most {info.l0_most:,}", loc="left")
    axes.set(xlabel="active concepts of a row (dashed: mean)", ylabel="rows")
    axes.set_xlim(-0.5, bars * width - 0.5)
    _count(axes.xaxis)
    _count(axes.yaxis)


def _draw_energy(axes: Axes, info: FitInfo) -> None:
    K = info.nb_concepts
    alive = sorted((share for share in info.energy if share > 0), reverse=True)
    _line(axes, range(1, len(alive) + 1), alive)
    if axes.get_yscale() == "linear":
        axes.set_ylim(0, None if alive else 1)
    if info.dead_concepts:
        first = K - info.dead_concepts + 0.5
        axes.axvspan(first, K + 0.5, color=DEAD, alpha=0.25, label=f"{info.dead_concepts:,} dead")
        axes.legend(frameon=False, loc="upper right")
    axes.set_title(f"energy of {K:,} concept{'s' * (K > 1)}", loc="left")
    axes.set(xlabel="concepts, strongest first", ylabel="share", xlim=(0.5, K + 0.5))
    _count(axes.xaxis)


PANELS = (_draw_error, _draw_sparsity, _draw_energy)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    (line,) = axes.plot(x, y, color=LINE, marker="." if len(y) <= MARKED else None)
    positive = [value for value in y if value > 0]
    if positive and max(positive) > 10 * min(positive):
        # a zero leaves the panel through its bottom
        axes.set_yscale("log")
        steps = (1, 2, 5) if max(positive) < 100 * min(positive) else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif len(positive) < len(y):
        axes.set_ylim(bottom=0)
        line.set_clip_on(False)


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _count(axis: Axis) -> None:
    """Label whole numbers only."""
    axis.set_major_locator(_whole("auto"))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _whole(most: int | Literal["auto"]) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1)


def _spread(history: Sequence[Iteration]) -> list[Iteration]:
    """Iterations of round number, far enough apart in time that their labels do not overlap."""
    numbers = set(_whole(NAMED).tick_values(history[0].iteration, history[-1].iteration))
    chosen: list[Iteration] = []
    for each in history:
        apart = each.seconds - chosen[-1].seconds if chosen else float("inf")
        if each.iteration in numbers and apart >= history[-1].seconds / NAMED / 2:
            chosen.append(each)
    return chosen
