"""The plan of an accelerated fit: how many half-steps share the products of an iteration."""

from __future__ import annotations

from dataclasses import replace

from ..solvers.base import Size, Solver
from .hardware import BLOCKS, Machine
from .plan import Candidate, Plan, Problem, gpu_parts, half_step_seconds

# time of inner half-steps relative to what they share: two products with A, for the codes and for
# the statistics. Solvers may choose less from _MANY concepts on
_SHARE, _MANY = 2.0, 600


def accelerated(plan: Plan, problem: Problem, on: Machine | None = None) -> Plan:
    """The plan with extrapolation and inner half-steps: as many as is worth what they share.

    At least two, since extrapolation alone gains little; one in residual form, where they share
    nothing, and for exact solvers. Solvers may choose fewer with many concepts, where more of them
    gain less than they cost (docs/notes/acceleration.md). The numbers depend on the sizes alone, so
    that a fit is the same on every machine and in any tiles. on: where `seconds` are predicted for,
    if it is a GPU. Source: Gillis & Glineur (2012), with other bounds.
    """
    n, d, K, itemsize = problem.n, problem.d, problem.K, problem.itemsize
    halves = ((problem.solver, plan.codes, n, d, 3), (problem.learner, plan.dictionary, d, n, 6))
    of_codes, of_dictionary = (
        _inner(solver, form, Size(m, p, K, BLOCKS[-1]), itemsize, most)
        for solver, form, m, p, most in halves
    )
    inner = of_codes, of_dictionary
    flops, seconds = plan.flops, plan.seconds
    for (solver, form, m, p, _), times in zip(halves, inner, strict=True):
        size = Size(m, p, K, plan.block)
        flops += solver.work(form, size, times).flops - solver.work(form, size, 1).flops
        timed = solver, form, size, m, itemsize, Machine()
        seconds += half_step_seconds(*timed, times) - half_step_seconds(*timed)
    if on is not None and on.gpu is not None:
        candidate = Candidate(plan.codes, plan.dictionary, plan.block, plan.tile_rows)
        seconds = sum(gpu_parts(problem, candidate, on, inner).values())
    numbers = {"inner": inner, "flops": flops, "seconds": seconds}
    # decisions such as whether to scale concepts need a dictionary that is the same in all
    # processes
    return replace(plan, accelerates=True, splits=plan.dictionary == "normal", **numbers)


def _inner(solver: Solver, form: str, size: Size, itemsize: int, most: int) -> int:
    """Half-steps that share the products: more of them as long as they take at most _SHARE of the
    time of what they share.

    The block of size is fixed: that of a plan is chosen for its machine.
    """
    if form != "normal" or solver.exact:
        return 1
    timed = solver, form, size, size.m, itemsize, Machine()
    one = half_step_seconds(*timed)
    more = half_step_seconds(*timed, 2) - one
    share = solver.inner_share_of_many if size.K >= _MANY else _SHARE
    return min(most, 1 + max(1, round(share * (one - more) / more)))
