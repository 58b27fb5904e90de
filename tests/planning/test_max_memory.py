"""max_memory: how it is written, and what is refused because it does not fit."""

from __future__ import annotations

import pytest
from streams import model, sharded

from fastnmf import NMF, InvalidInput
from fastnmf.planning import memory


@pytest.mark.usefixtures("small_budgets")
def test_impossible_budget_says_what_the_least_is(tmp_path):
    folder = sharded(tmp_path / "A")
    with pytest.raises(
        InvalidInput, match=r"max_memory of 10kB.*at least (\d)MB.*codes="
    ) as refusal:
        model(max_memory=10_000).fit(folder)
    least = str(refusal.value).split("at least ")[1].split(" ")[0]
    model(max_memory=least, max_iter=1).fit(folder)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5 g", 1500000000), (4096, 4096), (None, None)],
)
def test_sizes_are_read(given, bytes_):
    assert memory.bytes_of(given) == bytes_


@pytest.mark.parametrize("given", ["1B", "999B", "1kB", "10kB", "1234B", "1MB", "64MB", "2GB"])
def test_sizes_are_reported_as_they_are_given(given):
    assert memory.size_of(memory.bytes_of(given)) == given


def test_size_that_is_rounded_is_enough():
    assert memory.size_of((1 << 30) + 1) == "1074MB"
    assert memory.size_of(24 * 10**15 + 1) == "24001TB"
    assert memory.size_of(123_456_789_012) == "124GB"


@pytest.mark.parametrize("given", ["2XB", "", "-1GB", "0", 0, -5])
def test_size_that_is_none_is_refused(given):
    with pytest.raises(InvalidInput, match=r"max_memory=.*'2GB'"):
        NMF(3, max_memory=given)


@pytest.mark.parametrize("given", [True, 2.5])
def test_size_of_another_type_is_refused(given):
    with pytest.raises(TypeError, match="max_memory="):
        NMF(3, max_memory=given)
