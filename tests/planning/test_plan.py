"""The cost model: flops as the formulas say, the cheaper form, and choices that are kept."""

from __future__ import annotations

import pytest

from fastnmf import InvalidInput, Tuning
from fastnmf.planning.hardware import Machine, machine
from fastnmf.planning.inner import accelerated
from fastnmf.planning.plan import FORMS, REFRESH, Problem, exchange
from fastnmf.planning.plan import choose as choose_plan
from fastnmf.solvers.base import Size
from fastnmf.solvers.registry import SOLVERS


def problem(n, d, K, solver, **options):
    return Problem(n, d, K, 4, SOLVERS[solver], **options)


def choose(n, d, K, solver, on=None, **tuning):
    return choose_plan(problem(n, d, K, solver), on, Tuning(**tuning))


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_form_is_normal_for_few_concepts_and_residual_for_many(solver):
    assert choose(20000, 384, 50, solver).form == "normal"
    assert choose(20000, 384, 10000, solver).form == "residual"


def test_anls_works_on_all_concepts_unless_they_are_very_many():
    assert choose(200, 38, 1000, "anls").form == "normal"
    assert choose(20000, 384, 2000, "anls").codes == "normal"
    assert choose_plan(problem(100, 384, 10000, "anls", learns=False)).codes == "residual"
    assert choose(20000, 384, 30000, "anls").codes == "residual"


def test_form_that_does_not_exist_is_refused():
    with pytest.raises(InvalidInput, match="normal, residual"):
        choose(200, 38, 1000, "anls", form="diagonal")


@pytest.mark.parametrize("solver", ["mu", "pgd"])
@pytest.mark.parametrize(("n", "d"), [(50000, 384), (384, 50000), (1000, 1000)])
def test_the_square_of_many_concepts_is_never_paid(solver, n, d):
    """2nK² at K > 2d, or 2dK² at K > 2n, is never the cheaper half-step."""
    chosen = choose(n, d, 3 * d, solver)
    assert chosen.codes == "residual"
    chosen = choose(n, d, 3 * max(n, d), solver)
    assert chosen.form == "residual"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_a_requested_form_is_used(solver, form):
    for K in (5, 5000):
        assert choose(1000, 100, K, solver, form=form).form == form


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("n", "d", "K"), [(1, 1, 1), (3, 2, 7), (10**6, 768, 10**4)])
def test_pieces_and_blocks_fit_the_problem(solver, n, d, K):
    for chunk_rows in (None, 1, 10**9):
        chosen = choose(n, d, K, solver, chunk_rows=chunk_rows)
        assert 1 <= chosen.block <= K
        assert 1 <= chosen.tile_rows <= min(n, chunk_rows or n)


def test_flops_of_a_residual_sweep_are_those_of_the_design():
    n, d, K = 2000, 384, 10000
    chosen = choose(n, d, K, "hals")
    s = chosen.block
    halves = 2 * 4 * n * d * K + 2 * K * s * (n + d) + 2 * K * s * (n + d)
    # the residual is computed anew in one of REFRESH iterations
    assert chosen.flops == pytest.approx(halves + 2 * n * d * K / REFRESH, rel=1e-12)
    assert SOLVERS["mu"].work("residual", Size(n, d, K, s), 1).flops == 6 * n * d * K


@pytest.mark.parametrize("block", [1, 7, 300])
def test_a_requested_block_is_used(block):
    assert choose(1000, 100, 5000, "hals", block=block).block == block
    assert choose(1000, 100, 5, "hals", block=block).block == min(5, block)


def test_prediction_grows_with_the_work_and_falls_with_threads():
    small, large = (choose(1000, 100, K, "hals", form="residual") for K in (500, 5000))
    assert 5 * small.seconds < large.seconds < 20 * small.seconds
    two = choose(1000, 100, 5000, "hals", on=Machine(threads=2))
    assert large.seconds / 2 < two.seconds < large.seconds


@pytest.mark.parametrize(
    ("dictionary", "splits", "entries"),
    [
        ("normal", False, 70 * 20 + 70**2),
        # the dictionary is gathered as well
        ("normal", True, 2 * 70 * 20 + 70**2),
        # the Gram matrices of a block of 64 concepts and of one of 6
        ("residual", False, 70 * 20 + 64**2 + 6**2),
    ],
)
def test_processes_exchange_what_the_form_sums(dictionary, splits, entries):
    shared = problem(100, 20, 70, "hals", processes=2)
    assert exchange(shared, dictionary, splits, 64, Machine())[0] == 4 * entries


def test_machine_has_its_cache_and_calls_cost_without_the_extension():
    compiled, plain = machine(2, True), machine(2, False)
    assert 4 << 20 <= compiled.cache_bytes <= 32 << 20
    assert plain.concept_seconds > 0 == compiled.concept_seconds


@pytest.mark.parametrize(
    ("n", "d", "K", "inner"),
    [
        (1797, 64, 32, (3, 6)),
        (10_000, 256, 128, (3, 6)),
        (10_000, 256, 250, (2, 6)),
        (3000, 1728, 599, (3, 6)),
        (3000, 1728, 600, (2, 3)),
        (3000, 1728, 1000, (2, 3)),
        (3193, 3000, 2000, (2, 2)),
        (12_000, 1536, 1000, (2, 6)),
    ],
)
def test_hals_of_many_concepts_makes_fewer_inner_half_steps(n, d, K, inner):
    """Of 1,000 concepts 3 and 6 took a fifth longer to the same error."""
    for on in (machine(2, True, True), machine(1, False)):
        chosen = choose(n, d, K, "hals", form="normal", on=on)
        assert accelerated(chosen, problem(n, d, K, "hals")).inner == inner


@pytest.mark.parametrize("solver", ["mu", "pgd"])
def test_other_solvers_make_as_many_inner_half_steps_of_many_concepts(solver):
    chosen = choose(8000, 9000, 600, solver, form="normal")
    assert accelerated(chosen, problem(8000, 9000, 600, solver)).inner == (3, 6)
