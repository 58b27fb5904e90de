"""Pages in a real browser, by playwright: no errors in its console, nothing wider than a phone, and
what a reader does works. `pytest -m browser` runs it."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from fastnmf import NMF
from fastnmf.cli.main import main

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    """Chromium: that of the system, or that of playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    with api.sync_playwright() as playwright:
        # the sandbox needs rights that a container does not have
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        try:
            opened = playwright.chromium.launch(executable_path=found, args=arguments)
        except api.Error as error:
            pytest.skip(f"no browser could be started: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of concepts and the report of a fit, by name."""
    folder = tmp_path_factory.mktemp("pages")
    A = np.random.default_rng(0).random((200, 48)).astype(np.float32)
    nmf = NMF(30, seed=0, max_iter=5, tol=0)
    Z, _ = nmf.fit(A)
    names = [f"a feature with a name that is long enough to be cut off {j}" for j in range(48)]
    texts = ["averyverylongwordwithoutanyplacetobreakitinto" + str(i) for i in range(200)]
    nmf.show_concepts(A, Z, image_shape=(4, 4, 3)).save(folder / "images.html")
    nmf.show_concepts(A, Z, features=names, texts=texts).save(folder / "texts.html")
    name = folder / "model.safetensors"
    nmf.save(name)
    assert main(["report", str(name), "-o", str(folder / "report.html"), "--quiet"]) == 0
    return folder


@pytest.fixture
def page(browser, request):
    """A page of this width and colour scheme that collects errors."""
    width, scheme = getattr(request, "param", (1280, "light"))
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.problems = []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    yield opened
    opened.close()


WIDTHS = [(375, "light"), (375, "dark"), (1280, "light")]


@pytest.mark.parametrize("page", WIDTHS, indirect=True, ids=lambda each: f"{each[0]}-{each[1]}")
@pytest.mark.parametrize("name", ["images", "texts", "report"])
def test_page_has_no_errors_and_fits(name, page, pages):
    page.goto((pages / f"{name}.html").as_uri())
    assert page.locator(".card").count() == 24
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate("[...document.images].every((each) => each.naturalWidth && each.alt)")
    assert page.problems == []


def test_reader_searches_sorts_and_turns_pages(page, pages):
    page.goto((pages / "texts.html").as_uri())
    assert page.locator("#place").inner_text() == "1 to 24 of 30"
    page.locator("#next").click()
    assert page.locator(".card").count() == 6
    page.locator("#search").fill("7")
    assert page.locator("h3").all_inner_texts() == ["Concept 7"]
    page.locator("#search").fill("no such word")
    assert page.locator("#count").inner_text() == "0 concepts"
    page.locator("#search").fill("")
    page.locator("#sort").select_option("index")
    assert page.locator("h3").first.inner_text() == "Concept 0"
    like = page.locator(".card button").first
    number = like.inner_text().split()[3]
    like.click()
    assert page.locator(".card.chosen h3").inner_text() == f"Concept {number}"
    assert page.evaluate("document.activeElement.id") == f"concept-{number}"
    assert page.problems == []


def test_map_chooses_what_is_clicked(page, pages):
    page.goto((pages / "images.html").as_uri())
    place = page.evaluate(
        """() => { const data = JSON.parse(document.getElementById("data").textContent);
        const map = document.getElementById("map"), box = map.getBoundingClientRect();
        const k = data.x.indexOf(Math.max(...data.x));
        return [k, 14 + (data.x[k] + 1) / 2 * (box.width - 28),
          14 + (1 - data.y[k]) / 2 * (box.height - 28)]; }"""
    )
    page.locator("#map").click(position={"x": place[1], "y": place[2]})
    assert page.locator(".card.chosen h3").inner_text() == f"Concept {place[0]}"
    assert page.problems == []
