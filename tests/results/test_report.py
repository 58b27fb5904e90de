"""The page of a fit: what it says, that it stands alone, and that it is written whole."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, make_dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fastnmf import NMF, __version__
from fastnmf.engine.state import Iteration
from fastnmf.results import report
from fastnmf.results.concepts.gather import of_dictionary
from fastnmf.results.pages import charts

A = np.random.default_rng(0).random((40, 9))
# HTML's elements without an end
VOID = {"meta", "br", "link", "img", "input"}


@dataclass
class Page(HTMLParser):
    """A page taken apart; reading it fails where an element is not closed in its place."""

    source: str

    def __post_init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.tables, self.text = [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [
            attributes[name] for name in ("href", "src", "xlink:href") if name in attributes
        ]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text


def fitted(data=A, **options):
    nmf = NMF(**{"nb_concepts": 4, "seed": 0, **options})
    nmf.fit(data)
    return nmf


def concepts_of(info, width=9):
    D = torch.rand(info.nb_concepts, width, generator=torch.Generator().manual_seed(0))
    return of_dictionary(D, info.energy, "Concepts")


ORIGIN = report.Origin("model.safetensors", "1.2.3", {"tol": 1e-4}, {"date": "2026-01-02"})


def page_of(info, origin=ORIGIN):
    source = report.compose(info, origin, concepts_of(info))
    assert len(source.encode()) < 5_000_000
    return Page(source)


def table_of(page, head):
    """The table whose first cell is this."""
    return next(table for table in page.tables if table[0][0] == head)


@pytest.fixture(scope="module")
def info():
    return fitted(tol=0, max_iter=100).fit_info_


@pytest.fixture
def model():
    """The arguments of write_report, beside the path."""
    info = fitted(max_iter=5).fit_info_
    return info, report.Origin("model.safetensors", "0.9"), concepts_of(info)


def test_summary_is_what_printing_shows(info):
    summary = table_of(page_of(info), "data")
    lines = [f"{name + ':':<16}{value}" for name, value in summary]
    assert lines[: len(info.lines())] == str(info).splitlines()
    assert ["date", "2026-01-02"] in summary
    assert ["machine", "not recorded"] in summary
    assert any(name == "options" and "NMF(4, tol=0.0001" in value for name, value in summary)


def test_questions_are_answered_in_order(info):
    page = page_of(info)
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.source)
    assert [title.split()[0] for title in titles] == ["Did", "Is", "What", "How", "How"]
    assert "No: it ended by max_iter after 100 iterations." in page.source
    assert "Every concept is used" in page.source
    converged = page_of(fitted(tol=1e-2).fit_info_)
    assert "Yes, after" in converged.source
    assert "stops at tol = 0.0001" in converged.source
    wasteful = page_of(replace(info, dead_concepts=1, near_duplicates=1))
    assert "2 of 4 concepts add nothing." in wasteful.source


def test_energy_of_the_strongest_is_counted(info):
    energy = (0.05, 0.6, 0.3, 0.05)
    assert "2 have 90 %, 4 have 99 %" in page_of(replace(info, energy=energy)).source


def test_long_history_is_thinned_from_first_to_last(info):
    page = page_of(info)
    head, *rows = table_of(page, "iteration")
    assert head == ["iteration", "relative change", "relative error", "seconds"]
    shown = [int(row[0]) for row in rows]
    assert shown[0] == 1
    assert shown[-1] == 100
    assert 10 < len(shown) <= report.ITERATIONS
    assert shown == sorted(set(shown))
    for row in rows:
        each = info.history[int(row[0]) - 1]
        numbers = [each.relative_change, each.relative_error, each.seconds]
        np.testing.assert_allclose([float(cell) for cell in row[1:]], numbers, rtol=6e-4)
    assert f"{100 - len(shown)} more are not shown." in page.text


@pytest.mark.parametrize(("alpha_Z", "alpha_D"), [(0.01, "same"), (0.01, 0.0), (0.0, 0.01)])
def test_history_of_a_penalised_fit_has_the_objective(alpha_Z, alpha_D):
    penalised = fitted(tol=0, max_iter=5, alpha_Z=alpha_Z, alpha_D=alpha_D)
    head, *rows = table_of(page_of(penalised.fit_info_), "iteration")
    assert head[-1] == "relative objective"
    assert all(float(row[-1]) > float(row[2]) for row in rows)


def test_short_history_is_shown_whole():
    page = page_of(fitted(tol=0, max_iter=report.ITERATIONS).fit_info_)
    assert len(table_of(page, "iteration")) == report.ITERATIONS + 1
    assert "more are not shown" not in page.source


def test_charts_are_inside_with_a_text_each(info):
    page = page_of(info)
    assert page.tags.count("svg") == 4
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', page.source)
    assert len(labels) == 4
    assert f"the last has {info.relative_error:.4g}" in labels[0]


def test_page_stands_alone(info):
    page = page_of(info)
    assert page.links == []
    assert len(page.ids) == len(set(page.ids))
    assert "://" not in page.source
    assert not {"link", "iframe", "img"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", page.source)


def test_page_takes_the_colours_of_its_reader(info):
    """Black was drawn on black where the reader prefers the dark."""
    source = page_of(info).source
    assert "color-scheme: light dark" in source
    assert 'name="viewport"' in source
    for svg in re.findall("<svg.*?</svg>", source, re.DOTALL):
        assert "var(--" in svg
        assert not re.search("#[0-9a-f]{3}|white|black", svg)


def test_page_says_what_made_it(info):
    text = " ".join(page_of(info).text)
    assert "Model by fastnmf 1.2.3" in text
    assert f"page by fastnmf {__version__}" in text
    made = report.facts()
    for word in (torch.__version__, np.__version__):
        assert word in made["versions"]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", made["date"])


@pytest.mark.parametrize(
    "nmf",
    [
        lambda: fitted(nb_concepts=1),
        lambda: fitted(A[:1]),
        lambda: fitted(max_iter=1),
        lambda: fitted(max_iter=0),
        lambda: fitted(0 * A),
        lambda: fitted(nb_concepts=10_000, max_iter=2),
    ],
    ids=["one concept", "one row", "one iteration", "no iteration", "all zero", "10,000 concepts"],
)
def test_every_fit_has_a_page(nmf):
    info = nmf().fit_info_
    page = page_of(info)
    assert len(table_of(page, "data")) == len(info.lines()) + 4
    assert page.source.count("There was no iteration.") == (info.iterations == 0)
    assert page.source.count("All concepts are dead.") == (max(info.energy) == 0)


def test_page_of_a_long_and_restless_fit_stays_small(info):
    random = np.random.default_rng(0)
    errors, energy = random.random(50_000), random.random(10_000) ** 8
    energy /= energy.sum()
    history = tuple(Iteration(i, 0.1, error, 0.1 * i) for i, error in enumerate(errors, 1))
    page_of(replace(info, history=history, nb_concepts=10_000, energy=tuple(energy)))


def test_text_is_escaped(info):
    info = replace(info, device="<b>&\"'")
    page = page_of(info, report.Origin("<i>.safetensors", "<u>", {"<s>": "<em>"}))
    assert not {"i", "b", "u", "s", "em"} & set(page.tags)
    assert table_of(page, "data")[0][1].endswith("<b>&\"'")
    assert "<i>.safetensors" in page.text


def test_every_field_of_an_iteration_is_shown(info):
    More = make_dataclass(
        "More", [("rows_seen", int), ("rate", float | None)], bases=(Iteration,), frozen=True
    )
    history = tuple(More(**vars(each), rows_seen=40_000, rate=None) for each in info.history)
    head, first, *_ = table_of(page_of(replace(info, history=history)), "iteration")
    assert head[-2:] == ["rows seen", "rate"]
    assert first[-2:] == ["40,000", "None"]


def test_name_and_version_are_those_of_the_model(model, tmp_path):
    report.write_report(tmp_path / "page.html", *model)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Model by fastnmf 0.9" in page
    assert "<h1>model.safetensors</h1>" in page


def test_failure_leaves_the_page_as_it_was(model, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(page, *model)
    assert page.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["page.html"]


CHARTS = {
    "one point": [(1, 0.5)],
    "alike": [(1, 0.5), (2, 0.5)],
    "zero at the end": [(1, 0.5), (2, 0.0)],
    "far apart": [(i + 1, 10.0 ** -(i % 30)) for i in range(2000)],
    "not finite": [(1, float("nan")), (2, 0.5), (3, float("inf"))],
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("case", CHARTS)
def test_charts_stay_inside(case, log):
    axes = charts.Axis("x", log=log), charts.Axis("y", log=log)
    drawn = charts.line(CHARTS[case], *axes, "text", charts.Rule(1e-3, "rule"))
    numbers = re.findall(r'(?:[xy]|c[xy])[12]?="(-?[\d.]+)"', drawn)
    assert numbers
    assert all(-0.1 <= float(number) <= charts.WIDTH for number in numbers)
    points = re.search('points="([^"]*)"', drawn)[1].split()
    assert len(points) <= 400
    for point in points:
        x, y = map(float, point.split(","))
        assert charts.LEFT - 0.1 <= x <= charts.WIDTH
        assert 0 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1


def test_chart_of_nothing_says_so():
    nothing = charts.line([(1, 0.0)], charts.Axis("x"), charts.Axis("y", log=True), "Errors.")
    assert nothing == '<p class="note">Errors. There is nothing to draw.</p>'
