"""The pictures of a fit: what is drawn is what fit_info_ says, whatever the fit was."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastnmf import NMF, NotFitted
from fastnmf.engine.state import Iteration
from fastnmf.results import plot

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

A = np.random.default_rng(0).random((60, 12))
DEAD_START = (np.ones((60, 6)) * [1, 2, 3, 4, 0, 0], A[:6] * np.array([[1, 1, 1, 1, 0, 0]]).T)

# data, and the options of the model
FITS = {
    "usual": (A, {"nb_concepts": 5}),
    "exact": (A[:20, :3] @ A[:3, :9], {"nb_concepts": 3, "solver": "anls", "max_iter": 300}),
    "many concepts": (A, {"nb_concepts": 150, "max_iter": 20}),
    "dead concepts": (A, {"nb_concepts": 6, "init": DEAD_START}),
    "one concept": (A, {"nb_concepts": 1}),
    "one row": (A[:1], {"nb_concepts": 2}),
    "one number": (A[:1, :1], {"nb_concepts": 1}),
    "one iteration": (A, {"nb_concepts": 3, "max_iter": 1}),
    "no iteration": (A, {"nb_concepts": 3, "max_iter": 0}),
    "all zero": (0 * A, {"nb_concepts": 3}),
}


def fitted(name):
    data, options = FITS[name]
    nmf = NMF(**options, seed=0)
    nmf.fit(data)
    return nmf


@pytest.fixture(scope="module")
def drawings():
    """[(summary, its Figure)] of each of the fits, drawn to the last pixel."""
    models = [fitted(name) for name in FITS]
    figures = [nmf.plot() for nmf in models]
    for figure in figures:
        figure.canvas.draw()
    return [(nmf.fit_info_, figure) for nmf, figure in zip(models, figures, strict=True)]


def points(axes):
    return np.concatenate([line.get_xydata() for line in axes.get_lines()[:1]])


def test_error_of_every_iteration_is_drawn(drawings):
    for info, figure in drawings:
        axes = figure.axes[0]
        assert f"{info.relative_error:.4g}" in axes.get_title("left")
        if not info.history:
            assert not axes.get_lines()
            assert [text.get_text() for text in axes.texts] == ["no iteration"]
            continue
        expected = [(each.seconds, each.relative_error) for each in info.history]
        np.testing.assert_array_equal(points(axes), expected)
        low, high = axes.get_xlim()
        assert low == 0
        assert high >= info.history[-1].seconds


def test_iterations_are_named_where_they_ended(drawings):
    for info, figure in drawings:
        top = [axes for axes in figure.axes[0].child_axes if axes.get_xlabel() == "iteration"]
        assert len(top) == bool(info.history)
        for axes in top:
            named = [int(label.get_text()) for label in axes.get_xticklabels()]
            assert 1 <= len(named) <= plot.NAMED + 1
            seconds = [info.history[iteration - 1].seconds for iteration in named]
            np.testing.assert_allclose(axes.get_xticks(), seconds)


def test_rows_are_drawn_by_their_active_concepts(drawings):
    for info, figure in drawings:
        axes = figure.axes[1]
        assert tuple(bar.get_height() for bar in axes.patches) == info.l0_histogram
        edges = [bar.get_x() for bar in axes.patches] + [axes.patches[-1].get_x()]
        edges[-1] += axes.patches[-1].get_width()
        assert edges[0] == -0.5
        # the bars hold the numbers 0 … l0_most, as many each
        assert len(set(np.diff(edges))) == 1
        assert edges[-2] < info.l0_most < edges[-1]
        assert axes.get_lines()[0].get_xdata()[0] == info.mean_l0
        assert axes.get_title("left") == f"L0: mean {info.mean_l0:.4g}, most {info.l0_most:,}"


def test_energy_is_drawn_from_the_strongest_down(drawings):
    for info, figure in drawings:
        axes = figure.axes[2]
        alive = sorted((share for share in info.energy if share > 0), reverse=True)
        np.testing.assert_array_equal(points(axes).reshape(-1, 2)[:, 1], alive)
        np.testing.assert_array_equal(points(axes).reshape(-1, 2)[:, 0], np.arange(len(alive)) + 1)
        assert axes.get_xlim() == (0.5, info.nb_concepts + 0.5)


def test_dead_concepts_are_shaded(drawings):
    for info, figure in drawings:
        axes = figure.axes[2]
        assert len(axes.patches) == (info.dead_concepts > 0)
        for shade in axes.patches:
            extent = shade.get_window_extent().transformed(axes.transData.inverted())
            np.testing.assert_allclose(extent.width, info.dead_concepts)
            np.testing.assert_allclose(extent.x1, info.nb_concepts + 0.5)
            labels = [text.get_text() for text in axes.get_legend().get_texts()]
            assert labels == [f"{info.dead_concepts} dead"]


def test_fits_are_what_they_are_called():
    assert fitted("dead concepts").fit_info_.dead_concepts == 2
    assert fitted("all zero").fit_info_.history[0].relative_error == 0
    exact = fitted("exact").fit_info_.history
    assert exact[-1].relative_error < 1e-2 * exact[0].relative_error


def test_ticks_are_whole_where_things_are_counted(drawings):
    for _, figure in drawings:
        counted = [figure.axes[1].xaxis, figure.axes[1].yaxis, figure.axes[2].xaxis]
        for axis in counted:
            ticks = axis.get_majorticklocs()
            assert len(ticks) >= 1
            np.testing.assert_array_equal(ticks, np.round(ticks))


def with_errors(*errors):
    history = [Iteration(i, 0.1, error, 0.1 * i) for i, error in enumerate(errors, 1)]
    return replace(fitted("usual").fit_info_, history=tuple(history))


@pytest.mark.parametrize(
    ("errors", "scale"),
    [
        ((0.5, 0.2, 0.1), "linear"),
        ((0.5, 0.2, 0.01), "log"),
        ((0.5, 0.01, 0.0), "log"),
        ((0.5, 0.4, 0.0), "linear"),
        ((0.0, 0.0), "linear"),
        ((float("nan"), float("nan")), "linear"),
    ],
)
def test_scale_is_logarithmic_where_errors_differ_tenfold(errors, scale):
    figure = plot.draw(with_errors(*errors))
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    positive = [error for error in errors if error > 0]
    assert all(low < error < high for error in positive)
    if scale == "log":
        shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len(shown) >= 2
    elif 0 in errors:
        assert low == 0


def test_iterations_that_crowd_are_not_all_named():
    """The first may take as long as all others together."""
    history = tuple(Iteration(i, 0.1, 0.5, 10 + 0.001 * i) for i in range(1, 101))
    info = replace(fitted("usual").fit_info_, history=history)
    axes = plot.draw(info).axes[0].child_axes[0]
    assert len(axes.get_xticks()) == 1


def test_loaded_model_is_drawn_as_it_was(tmp_path):
    nmf = fitted("usual")
    nmf.save(tmp_path / "model.safetensors")
    again = NMF.load(tmp_path / "model.safetensors").plot()
    for axes, expected in zip(again.axes, nmf.plot().axes, strict=True):
        np.testing.assert_array_equal(points(axes), points(expected))


def test_nothing_to_draw_says_what_to_do():
    with pytest.raises(NotFitted, match=r"must be fitted first: call fit\(A\)"):
        NMF(3).plot()
    loaded = NMF(3).load_dictionary(torch.ones(3, 2))
    with pytest.raises(NotFitted, match=r"no summary of a fit to draw, .*: call fit\(A\)"):
        loaded.plot()


def test_missing_extra_is_named(monkeypatch):
    nmf = fitted("one number")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib: pip install matplotlib"):
        nmf.plot()


def test_pyplot_and_settings_are_left_alone(fresh):
    """In a process of its own: other tests may load pyplot, as does asking for the backend."""
    code = (
        "import sys, matplotlib, numpy; from fastnmf import NMF; rc = matplotlib.rcParams;"
        "settings = lambda: {name: dict.__getitem__(rc, name) for name in rc};"
        "before = settings();"
        "nmf = NMF(2); nmf.fit(numpy.ones((3, 3))); nmf.plot().canvas.draw();"
        "print('matplotlib.pyplot' in sys.modules, before == settings())"
    )
    ran = fresh(code)
    assert (ran.stdout, ran.stderr) == ("False True\n", "")
