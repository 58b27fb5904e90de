"""The cost model of a GPU: its parts, the cards, and the choices that follow. Everything here is
predicted; no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from fastnmf import Tuning
from fastnmf.planning.beside import needed_bytes
from fastnmf.planning.cards import A100, FORMER_KERNELS, H100, H200, KERNELS, Sweep, card_of
from fastnmf.planning.gpu import WAITING, half_step_parts, settled
from fastnmf.planning.hardware import floor_seconds, gpu_machine
from fastnmf.planning.inner import accelerated
from fastnmf.planning.plan import (
    REFRESH,
    Candidate,
    Problem,
    choose,
    gpu_parts,
    half_step_seconds,
)
from fastnmf.solvers.base import Size
from fastnmf.solvers.registry import SOLVERS

ROOT = Path(__file__).parents[2]
MANY, FEW = (100_000, 768, 10_000), (63_700, 2_048, 10)
TF32, FLOAT32 = gpu_machine(H200, tf32=True), gpu_machine(H200, tf32=False)


def problem(sizes, solver="hals", **options):
    return Problem(*sizes, 4, SOLVERS[solver], **options)


def candidate(plan):
    return Candidate(plan.codes, plan.dictionary, plan.block, plan.tile_rows)


def parts_of(sizes, on, solver="hals", **tuning):
    given = problem(sizes, solver)
    return gpu_parts(given, candidate(choose(given, on, Tuning(**tuning))), on)


# name, GB of memory, multiprocessors; the card, and its share of the rates
@pytest.mark.parametrize(
    ("name", "gigabytes", "processors", "card", "share"),
    [
        ("NVIDIA H100 80GB HBM3", 85, 132, H100, 1),
        ("NVIDIA H200", 150, 132, H200, 1),
        ("NVIDIA GH200 144G HBM3e", 150, 132, H200, 1),
        ("NVIDIA A100-SXM4-80GB", 85, 108, A100, 1),
        # a part of a card
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 42, 60, H100, 60 / 132),
        # not listed
        ("NVIDIA GeForce RTX 4090", 25, 128, H100, 128 / 132),
    ],
)
def test_card_is_found_by_its_name(name, gigabytes, processors, card, share):
    found = card_of(
        types.SimpleNamespace(
            name=name, total_memory=gigabytes * 10**9, multi_processor_count=processors
        )
    )
    assert (found.memory, found.processors) == (gigabytes * 10**9, processors)
    for rate in ("tf32", "float32", "far", "near"):
        assert getattr(found, rate) == pytest.approx(share * getattr(card, rate), rel=1e-12)


def test_cards_of_one_name_differ_by_their_memory():
    rates = {
        (name, gigabytes): card_of(
            types.SimpleNamespace(
                name=name, total_memory=gigabytes * 10**9, multi_processor_count=132
            )
        ).far
        for name, gigabytes in (
            ("NVIDIA H100 NVL", 100),
            ("NVIDIA H100 80GB HBM3", 85),
            ("NVIDIA GH200 480GB", 100),
            ("NVIDIA H200", 150),
        )
    }
    assert list(rates.values()) == [3.5e12, 3.0e12, 3.5e12, 4.3e12]


CASES = [
    ("hals", None, MANY),
    ("hals", "normal", MANY),
    ("hals", None, FEW),
    ("mu", None, MANY),
    ("pgd", None, MANY),
    ("pgd", None, FEW),
    ("anls", None, (4_000, 768, 10_000)),
]


@pytest.mark.parametrize("on", [TF32, FLOAT32, gpu_machine(H100, tf32=True, compiled=False)])
@pytest.mark.parametrize(("solver", "form", "sizes"), CASES)
def test_parts_of_an_iteration_add_up_to_its_seconds(solver, form, sizes, on):
    for learns in (True, False):
        given = problem(sizes, solver, learns=learns)
        chosen = choose(given, on, Tuning(form=form))
        parts = gpu_parts(given, candidate(chosen), on)
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(chosen.seconds, rel=1e-12)


@pytest.mark.parametrize(("solver", "form", "sizes"), CASES)
def test_parts_of_a_half_step_add_up_to_its_seconds(solver, form, sizes):
    n, d, K = sizes
    given = SOLVERS[solver], form or "residual", Size(n, d, K, min(K, 512)), n, 4, FLOAT32
    seconds = half_step_seconds(*given)
    assert sum(settled(half_step_parts(*given)).values()) == pytest.approx(seconds, rel=1e-12)


def test_a_new_residual_is_computed_in_one_iteration_of_eight():
    given = problem(MANY)
    part = gpu_parts(given, Candidate("residual", "residual", 512, 100_000), TF32)
    alone = half_step_parts(SOLVERS["hals"], "residual", Size(*MANY, 512), 100_000, 4, TF32)
    assert part["codes: new residual"] == pytest.approx(alone["new residual"] / REFRESH)
    assert "dictionary: new residual" not in part
    # it is float32, whatever is allowed
    n, d, K = MANY
    assert alone["new residual"] >= 2 * n * d * K / H200.float32


def sweep_seconds(m, on=TF32, block=512):
    size = Size(m, 768, 10_000, block)
    return half_step_parts(SOLVERS["hals"], "residual", size, m, 4, on)["sweep"]


def test_a_sweep_takes_as_many_waves_as_its_programs_need():
    slow = Sweep(128, 6, 10_000, 0, 0, 0, 4, 0)
    on = gpu_machine(H200, tf32=True, kernels=replace(KERNELS, many=slow))
    wave = slow.samples * slow.resident * H200.processors
    for waves in (1, 3):
        seconds = waves * 10_000 * 10_000 / H200.clock
        assert sweep_seconds(waves * wave, on) == pytest.approx(seconds)
        assert sweep_seconds(waves * wave - wave // 2, on) == pytest.approx(seconds)


def test_a_sweep_takes_at_least_the_time_of_its_bytes():
    instant = Sweep(128, 8, 1, 0, 0, 0, 4, 0.01)
    on = gpu_machine(H200, tf32=True, kernels=replace(KERNELS, many=instant))
    moved = 4 * 10**9 * (4 + 0.01 * 512 / 2)
    assert sweep_seconds(100_000, on) == pytest.approx(moved / H200.far)


def test_a_sweep_takes_at_least_what_keeps_a_multiprocessor_busy():
    busy = Sweep(128, 8, 1, 0, 3, 0.1, 4, 0)
    on = gpu_machine(H200, tf32=True, kernels=replace(KERNELS, many=busy))
    cycles = 10**9 * (3 + 0.1 * 512 / 2) / H200.processors
    assert sweep_seconds(100_000, on) == pytest.approx(cycles / H200.clock)


def test_the_sweep_of_few_samples_takes_the_same_time_up_to_a_wave():
    few = Sweep(8, 2, 100, 0.5, 0, 0, 4, 0)
    on = gpu_machine(H200, tf32=True, kernels=replace(KERNELS, few=few))
    seconds = 10_000 * (100 + 0.5 * 512 / 2) / H200.clock
    for m in (8, 8 * 2 * 132):
        assert sweep_seconds(m, on) == pytest.approx(seconds)


def test_precision_of_gram_matrices_is_that_of_the_kernels():
    n, _, K = MANY
    times = {}
    for tf32 in (False, True):
        on = gpu_machine(H200, tf32=True, kernels=replace(KERNELS, gram_tf32=tf32))
        times[tf32] = parts_of(MANY, on, block=512)["dictionary: Gram matrices"]
    assert 2 * n * K * 512 / H200.float32 < times[False] < 2.2 * n * K * 512 / H200.float32
    assert 2 * n * K * 512 / H200.tf32 < times[True] < times[False] / 3


def test_the_host_is_waited_for_where_launches_take_longer():
    # of pgd, whose power iteration takes some hundred launches of few concepts
    assert WAITING in parts_of(FEW, FLOAT32, "pgd")
    assert WAITING not in parts_of(MANY, FLOAT32, "pgd")


def test_accelerated_iterations_are_predicted_for_the_gpu():
    given = problem(FEW)
    plain = choose(given, FLOAT32)
    faster = accelerated(plain, given, FLOAT32)
    assert faster.inner == accelerated(plain, given).inner
    parts = gpu_parts(given, candidate(plain), FLOAT32, faster.inner)
    assert faster.seconds == pytest.approx(sum(parts.values()), rel=1e-12)
    # three and six half-steps share the products, which take most of the time
    assert plain.seconds < faster.seconds < 2 * plain.seconds


def test_graphs_are_for_iterations_whose_floor_is_short():
    assert floor_seconds(FLOAT32, choose(problem(FEW), FLOAT32).flops, 4 * 63_700 * 2_048) < 1e-3
    many = choose(problem(MANY), FLOAT32, Tuning(form="normal"))
    assert floor_seconds(FLOAT32, many.flops, 4 * 100_000 * 768) > 20e-3


def test_exact_solvers_take_working_sets_where_full_searches_would_leave_a_gpu_idle():
    """At K = 10,000 each row on all of G takes 400 MB: 43 rows in the workspace of 132
    multiprocessors."""
    for n in (300, 4_000, 100_000):
        for K, form in ((200, "normal"), (1_000, "normal"), (10_000, "residual")):
            given = problem((n, 768, K), "anls", learns=False)
            assert choose(given, FLOAT32).codes == form
    rows = SOLVERS["anls"].rows_at_once(10_000, int(H200.memory))
    assert 40 < rows < 50


def test_a_million_rows_and_ten_thousand_concepts_fit_on_an_h200():
    given = problem((10**6, 768, 10_000))
    plan = choose(given, TF32)
    fixed, a_row = needed_bytes(given, plan)
    data = 4 * 10**6 * 768
    assert plan.form == "residual"
    # the codes are 40 GB
    assert 40e9 < fixed + a_row * plan.tile_rows + data < 0.92 * H200.memory
    assert fixed + a_row * plan.tile_rows + data < 0.92 * 141e9


# n, d, K, tf32, block: each reason to leave the middle
@pytest.mark.parametrize(
    ("n", "d", "K", "tf32", "block"),
    [
        # the longest block reads a Δ the most often, the shortest the residual
        (100_000, 768, 10_000, True, 256),
        (1_000_000, 768, 10_000, False, 256),
        # the wider the data, the more the residual counts
        (100_000, 4_096, 10_000, True, 512),
    ],
)
def test_block_is_the_one_that_is_predicted_to_be_fastest(n, d, K, tf32, block):
    on = TF32 if tf32 else FLOAT32
    given = problem((n, d, K))
    chosen = choose(given, on)
    assert (chosen.form, chosen.block) == ("residual", block)
    forced = {one: choose(given, on, Tuning(block=one)).seconds for one in on.blocks}
    assert min(forced, key=forced.get) == block
    # none of the candidates is the best for lack of a wider or a narrower one
    assert on.blocks[0] < block < on.blocks[-1]


def test_an_iteration_of_ten_thousand_concepts_takes_half_as_long_as_with_the_former_kernels():
    former = gpu_machine(H200, tf32=True, kernels=FORMER_KERNELS)
    before = sum(parts_of(MANY, former, block=512).values())
    # as counted by hand, part by part: 60 to 75 ms
    assert 60e-3 < before < 75e-3
    assert choose(problem(MANY), TF32).seconds < 35e-3


def test_plan_leaves_memory_for_the_copies_of_the_kernels():
    packing = pytest.importorskip("fastnmf.kernels.packing", reason="triton is not installed")
    for solver in ("mu", "pgd"):
        left = SOLVERS[solver].device_workspace(int(H200.memory))
        assert left == packing.MOST_BYTES + packing.CHUNK_BYTES


def test_sweeps_of_the_model_have_the_tiles_of_the_kernels():
    hals = pytest.importorskip("fastnmf.kernels.hals", reason="triton is not installed")
    tiles = [(least, block) for least, block, *_ in hals.TILES[4]]
    expected = [(KERNELS.many_samples, KERNELS.many.samples), (0, KERNELS.few.samples)]
    assert tiles == expected


@pytest.mark.parametrize(
    ("of", "products", "sweep"),
    [
        ("codes", "tf32", KERNELS.many),
        ("codes", "float32", KERNELS.many_float32),
        ("dictionary", "tf32", KERNELS.few),
        ("dictionary", "float32", KERNELS.few_float32),
    ],
)
def test_sweeps_of_the_model_are_resident_as_they_are_compiled(of, products, sweep):
    """The table is checked against compiled kernels by `pytest -m thorough`."""
    table = (ROOT / "kernels" / "README.md").read_text()
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    header = next(row for row in rows if "resident" in row)
    found = [row for row in rows if row[:3] == ["_hals_block_kernel", of, products]]
    assert [int(row[header.index("resident")]) for row in found] == [sweep.resident]
    programs, _ = found[0][header.index("programs")].split(" × ")
    m = 100_000 if of == "codes" else 768
    assert int(programs.replace(",", "")) == -(-m // sweep.samples)


def test_tables_of_the_page_are_those_that_the_study_prints():
    """`python bench/studies/roofline.py --write` puts them there."""
    command = [sys.executable, str(ROOT / "bench" / "studies" / "roofline.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    warning, tables = printed.split("\n", 1)
    assert "NOT MEASURED" in warning
    page = (ROOT / "docs" / "notes" / "gpu_predictions.md").read_text()
    assert tables.strip() in page
