"""The picture of a choice of the number of concepts. It needs matplotlib (the extra `plot`), and is
drawn on a Figure without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..results.plot import BARS, DEAD, HEIGHT, LINE, WIDTH, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """What is drawn of one number of concepts: the errors of the folds, and of the fitted data."""

    size: int
    held_out: Sequence[float]
    fitted: float
    stability: float

    @property
    def mean(self) -> float:
        return sum(self.held_out) / len(self.held_out)


def draw(points: Sequence[Point], recommended: int, what: str) -> Figure:
    """A Figure of two panels over the number of concepts: held-out and fitted error with the
    recommendation, and the stability. what: was held out. Raises as `require` does."""
    require()
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from ..results.figure import Figure

    figure = Figure(figsize=(2 * WIDTH, HEIGHT), layout=ConstrainedLayoutEngine())
    errors, stability = figure.subplots(1, 2)
    sizes, held = [each.size for each in points], [each.mean for each in points]
    errors.plot(sizes, held, marker="o", color=LINE, label=f"held-out {what}")
    # each fold, so that the spread is seen
    for one in zip(*(each.held_out for each in points), strict=True):
        errors.plot(sizes, one, color=LINE, alpha=0.25, linewidth=0.8)
    fitted = [each.fitted for each in points]
    errors.plot(sizes, fitted, marker=".", color="0.5", linestyle="--", label="fitted data")
    # a prediction that failed in one fold would flatten all else
    middle = sorted(held)[len(held) // 2]
    errors.set_ylim(0, min(1.1 * max(*held, *fitted), 3 * middle))
    errors.set(xlabel="concepts K", ylabel="‖A − Z D‖ / ‖A‖")
    errors.set_title(f"recommended: K = {recommended:,}", loc="left")
    stability.plot(sizes, [each.stability for each in points], marker="o", color=BARS)
    stability.set(xlabel="concepts K", ylabel="cosine of matched concepts", ylim=(0, 1.05))
    stability.set_title("stability between folds", loc="left")
    for axes in (errors, stability):
        axes.axvline(recommended, color=DEAD, linestyle=":", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        if max(sizes) > 10 * min(sizes):
            axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
    errors.legend(frameon=False)
    return figure
