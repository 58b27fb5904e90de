import io

import pytest

from fastnmf.selection.choice import Candidate, Choice


def test_picture_shows_each_candidate_and_the_recommendation():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = [Candidate(K, (0.4, 0.3), 0.2, 0.9, 2.0, 1.0) for K in (2, 5, 40)]
    figure = Choice(5, "since", tuple(rows), "rows", 2, 0).plot()
    errors, stability = figure.axes
    assert errors.get_title("left") == "recommended: K = 5"
    for axes in (errors, stability):
        assert axes.get_xscale() == "log"
        assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "5", "40"]
    figure.savefig(io.BytesIO())
