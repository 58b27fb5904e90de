"""The page of a fit: what it says, that it stands alone, and that it is written whole."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, make_dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fastnmf import NMF, __version__
from fastnmf.engine.state import Iteration
from fastnmf.results import report

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

A = np.random.default_rng(0).random((40, 9))
# HTML's elements without an end
VOID = {"meta", "br", "link", "img"}


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


def page_of(info):
    source = report.compose(info, "model.safetensors", "1.2.3")
    assert len(source.encode()) < 500_000
    return Page(source)


@pytest.fixture(scope="module")
def info():
    return fitted(tol=0, max_iter=100).fit_info_


@pytest.fixture
def model():
    """The arguments of write_report, beside the path."""
    return fitted(max_iter=5).fit_info_, "model.safetensors", "0.9"


def test_summary_is_what_printing_shows(info):
    summary = page_of(info).tables[0]
    assert [f"{name + ':':<16}{value}" for name, value in summary] == str(info).splitlines()


def test_strongest_concepts_come_first_with_their_share(info):
    head, *rows = page_of(info).tables[1]
    assert head == ["concept", "share", "together"]
    order = sorted(range(4), key=lambda k: -info.energy[k])
    assert [int(row[0]) for row in rows] == order
    shares = [float(row[1].rstrip("%")) / 100 for row in rows]
    np.testing.assert_allclose(shares, np.array(info.energy)[order], atol=5.1e-5)
    together = [float(row[2].rstrip("%")) / 100 for row in rows]
    np.testing.assert_allclose(together, np.cumsum(np.array(info.energy)[order]), atol=5.1e-5)


def test_long_history_is_thinned_from_first_to_last(info):
    page = page_of(info)
    head, *rows = page.tables[2]
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
    head, *rows = page_of(penalised.fit_info_).tables[2]
    assert head[-1] == "relative objective"
    assert all(float(row[-1]) > float(row[2]) for row in rows)


def test_short_history_is_shown_whole():
    page = page_of(fitted(tol=0, max_iter=report.ITERATIONS).fit_info_)
    assert len(page.tables[2]) == report.ITERATIONS + 1
    assert "not shown" not in page.source


def test_picture_is_inside(info):
    page = page_of(info)
    assert page.tags.count("svg") == 1
    assert f"relative error: {info.relative_error:.4g}" in page.text
    assert "concepts, strongest first" in page.text


def test_page_stands_alone(info):
    page = page_of(info)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "://" not in page.source
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", page.source)


def test_page_takes_the_colours_of_its_reader(info):
    """Black was drawn on black where the reader prefers the dark."""
    source = page_of(info).source
    assert "color-scheme: light dark" in source
    assert 'name="viewport"' in source
    svg = source[source.index("<svg") : source.index("</svg>")]
    assert "currentColor" in svg
    assert not re.search("#0{6}|#f{6}|white|black", svg)


def test_page_says_what_made_it(info):
    text = " ".join(page_of(info).text)
    assert "Model by fastnmf 1.2.3" in text
    assert f"fastnmf {__version__}, torch {torch.__version__}, numpy {np.__version__}" in text


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
    assert len(page.tables[0]) == len(info.lines())
    assert page.source.count("There was no iteration.") == (info.iterations == 0)
    assert page.source.count("All concepts are dead.") == (max(info.energy) == 0)


def test_page_of_a_long_and_restless_fit_stays_small(info):
    random = np.random.default_rng(0)
    errors, energy = random.random(50_000), random.random(10_000) ** 8
    history = tuple(Iteration(i, 0.1, error, 0.1 * i) for i, error in enumerate(errors, 1))
    page_of(replace(info, history=history, nb_concepts=10_000, energy=tuple(energy)))


def test_text_is_escaped(info):
    info = replace(info, device="<b>&\"'")
    page = Page(report.compose(info, "<script>.safetensors", "<i>"))
    assert not {"script", "i", "b"} & set(page.tags)
    assert "<script>" not in page.source
    assert page.tables[0][0][1].endswith("<b>&\"'")
    assert "<script>.safetensors" in page.text


def test_every_field_of_an_iteration_is_shown(info):
    More = make_dataclass(
        "More", [("rows_seen", int), ("rate", float | None)], bases=(Iteration,), frozen=True
    )
    history = tuple(More(**vars(each), rows_seen=40_000, rate=None) for each in info.history)
    head, first, *_ = page_of(replace(info, history=history)).tables[2]
    assert head[-2:] == ["rows seen", "rate"]
    assert first[-2:] == ["40,000", "None"]


def test_page_is_the_same_whatever_the_reader_set(model, tmp_path):
    import matplotlib

    report.write_report(tmp_path / "one.html", *model)
    with matplotlib.rc_context({"text.color": "white", "svg.fonttype": "path", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        report.write_report(tmp_path / "two.html", *model)
        assert before == dict(matplotlib.rcParams)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


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


def test_missing_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib: pip install matplotlib"):
        report.write_report(tmp_path / "page.html", *model)
    assert not (tmp_path / "page.html").exists()
