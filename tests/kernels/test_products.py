"""How mu and pgd are launched: tiles, units, and which operands are packed. Nothing is computed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastnmf.kernels import packing, products


def empty(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((32, 160), (16, [2, 10])), ((32, 10), (1, [32, 10])), ((8,), (1, [8]))],
)
def test_lengths_are_in_units_of_16_where_16_divides_all_of_them(numbers, expected):
    assert products.in_units(*numbers) == expected


def test_lengths_are_in_units_of_16_in_tf32_only():
    assert products.lengths_of({"TF32": True}, 32, 160) == (16, [2, 10])
    assert products.lengths_of({"TF32": False}, 32, 160) == (1, [32, 160])


def test_registers_are_bounded_on_hopper_only(monkeypatch):
    on_a_gpu = type("F", (), {"device": torch.device("cuda")})
    for major, expected in ((8, False), (9, True), (10, True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, major=major: (major, 0))
        assert products.on_hopper(on_a_gpu) is expected
    assert products.on_hopper(empty(1))
    assert not products.on_hopper(torch.empty(1))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not products.on_hopper(on_a_gpu)
    assert not products.on_hopper(empty(1))


@pytest.mark.parametrize(
    ("n", "d", "K", "codes", "dictionary"),
    [
        (100_000, 768, 10_000, True, False),
        # few codes: both halves
        (10_000, 768, 2_000, True, True),
        # the codes are few, and the data too many for a copy of all samples
        (4_000_000, 768, 10, True, False),
    ],
)
def test_operands_are_packed_if_copies_are_small(n, d, K, codes, dictionary):
    """And the copies take no more than what is stated, whatever the sizes."""
    Zt, D, A = empty(n, K).T, empty(K, d), empty(n, d)
    for operands, B, expected in (((A, A), D, codes), ((A.T, A.T), Zt, dictionary)):
        assert packing.packs(operands, B) is expected


def test_copies_take_at_most_what_is_stated(monkeypatch):
    made = []
    monkeypatch.setattr(packing, "packed", lambda X, out, rounds: made.append(out) or out)
    options = {**products.options_of(empty(1), True), "TF32": True}
    A, D = empty(100_000, 768), empty(10_000, 768)
    chunks = list(packing.packed_chunks((A, A), D, options))
    assert [chunk.stop - chunk.start for chunk, *_ in chunks] == [21_504] * 4 + [13_984]
    shared, *rest = (out.numel() * 4 for out in made)
    assert shared <= packing.MOST_BYTES * 1.02
    assert 2 * max(rest) <= packing.CHUNK_BYTES
