"""What notebooks display of models and summaries."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fastnmf import NMF, ConvexNMF, SemiNMF, nnls
from fastnmf.notebook import folded

A = np.random.default_rng(0).random((20, 6))


def balanced(source):
    """The HTML, which closes what it opens."""
    left = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            left.append(tag)

        def handle_endtag(self, tag):
            assert left.pop() == tag

    Reader().feed(source)
    assert left == []
    return source


def cells(source):
    return dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", source))


def bold(source):
    return re.findall(r"font-weight:700\">(.*?)</th>", source)


def test_texts_are_escaped():
    source = balanced(folded("<b>", {"<i>": "&"}, note="<u>"))
    assert "&lt;b&gt;" in source
    assert "<i>" not in source
    assert cells(source) == {"&lt;i&gt;": "&amp;"}


@pytest.mark.parametrize("kind", [NMF, SemiNMF, ConvexNMF])
def test_model_marks_options_other_than_the_default(kind):
    source = balanced(kind(3, tol=0.5, seed=4)._repr_html_())
    assert f"{kind.__name__}(3), not fitted" in source
    assert bold(source) == ["nb_concepts", "tol", "seed"]
    assert cells(source)["tol"] == "0.5"


def test_fitted_model_has_its_summary():
    nmf = NMF(3, seed=0, max_iter=3, tol=0, init=(np.ones((20, 3)), np.ones((3, 6))))
    nmf.fit(A)
    source = balanced(nmf._repr_html_())
    assert "NMF(3), fitted" in source
    assert cells(source)["init"] == "(20, 3), (3, 6)"
    info = nmf.fit_info_
    assert balanced(info._repr_html_()) in source
    assert "not converged (max_iter) after 3 iterations" in source
    assert cells(source)["relative error"] == info.lines()["relative error"]


def test_summaries_of_batches_codes_and_least_squares():
    online = NMF(3, seed=0).partial_fit(A)
    assert "Online learning: 20 rows" in balanced(online.online_info_._repr_html_())
    assert balanced(online._repr_html_()).endswith(f"{online.online_info_._repr_html_()}</details>")
    _, info = online.encode(A, return_info=True)
    assert cells(balanced(info._repr_html_()))["rows"] == "20"
    _, none = online.encode(A[:0], return_info=True)
    assert cells(balanced(none._repr_html_()))["largest KKT residual"] == "none"
    _, solved = nnls(torch.eye(3), torch.eye(3), return_info=True)
    assert "3 of 3 rows solved" in balanced(solved._repr_html_())
    assert cells(solved._repr_html_())["mean support"] == "1 concepts"
