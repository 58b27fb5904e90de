"""What is timed of fastnmf: iterations of the engine's loop, half-steps, and their checks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from oracle import iterate as oracle_iterate
from oracle import pgd_half_step

from fastnmf.backends.registry import BACKENDS, select
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.iteration import Step
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import Method, State, Stopping
from fastnmf.planning import hardware, plan
from fastnmf.planning.plan import REFRESH, Plan, Tuning
from fastnmf.solvers.base import Size
from fastnmf.solvers.pgd import largest_eigenvalue, momenta
from fastnmf.solvers.registry import SOLVERS
from support.measure import Bench, Timing, called
from support.workloads import Problem, relative_error

CPU = torch.device("cpu")
# iterations of a round, which share one residual; if they take more seconds, one alone is timed
ITERATIONS, LONGEST_ROUND = REFRESH, 8.0
# relative difference of ‖A − Z D‖ from the reference's after one float32 iteration
AGREEMENT = 1e-5


def refuse_unusable(solver: str, backend: str) -> None:
    """Skip the benchmark, with the reason, where the backend cannot compute this solver here."""
    reason = BACKENDS[backend].refuses(SOLVERS[solver].operations, CPU.type)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def planned(problem: Problem, solver: str, backend: str, form: str | None = None) -> Plan:
    """The plan that a fit would follow."""
    return plan.choose(planning_problem(problem, solver), machine_of(backend), Tuning(form=form))


def planning_problem(problem: Problem, solver: str) -> plan.Problem:
    """The problem as the cost model sees it."""
    return plan.Problem(*problem.sizes, problem.A.element_size(), SOLVERS[solver])


def machine_of(backend: str) -> hardware.Machine:
    return hardware.machine_of(torch.empty(0), backend)


def method_of(solver: str, backend: str, device: torch.device = CPU) -> Method:
    """How a fit would compute half-steps."""
    record = SOLVERS[solver]
    name, ops = select(record.operations + record.fused, device, backend)
    return Method(record, name, ops)


def iteration(
    problem: Problem, solver: str, backend: str, chosen: Plan, iterations: int = 1
) -> Timing:
    """Iterations of fastnmf by this plan from the problem's factors, set-up included."""
    method, stopping = method_of(solver, backend), Stopping(iterations, 0)

    def step(Z, D):
        factorize_(State(InMemory(Z), D), Data(problem.A), method, chosen, stopping)
        return Z, D

    return Timing(
        lambda: (problem.Z.clone(), problem.D.clone()),
        step,
        {
            "kind": "iteration",
            "contender": f"fastnmf ({backend})",
            "solver": solver,
            "backend": backend,
            "form": chosen.form,
            "block": chosen.block,
            # results files keep the former name
            "piece_rows": chosen.tile_rows,
            "flops": chosen.flops,
            "predicted_seconds": chosen.seconds,
            "iterations": iterations,
        },
        scale=1 / iterations,
    )


def time_iteration(bench: Bench, solver: str, backend: str) -> None:
    """Check one iteration, then time it alone and as one of several that share the set-up."""
    refuse_unusable(solver, backend)
    problem, chosen = bench.problem, planned(bench.problem, solver, backend)
    alone = iteration(problem, solver, backend, chosen)
    factors, first, growth = called(alone)
    error = checked(problem, solver, factors)
    if ITERATIONS * first > LONGEST_ROUND:
        bench.record(alone, (first, growth), relative_error=error)
        bench.note(seconds_alone=bench.benchmark.extra_info["seconds"])
        return
    calls = [first, *(called(alone)[1] for _ in range(2))]
    bench.record(
        iteration(problem, solver, backend, chosen, ITERATIONS),
        (ITERATIONS * min(calls), growth),
        seconds_alone=min(calls),
        relative_error=error,
    )


def half_step(problem: Problem, solver: str, backend: str, half: str) -> Timing:
    """Half an iteration, 'codes' or 'dictionary', as in the second iteration of a fit.

    In residual form the codes then start from the residual of the dictionary half. One iteration
    in REFRESH computes the residual anew; 'codes afresh' is that one.
    """
    method, chosen = method_of(solver, backend), planned(problem, solver, backend)
    n, d, K = problem.sizes
    side = half.split()[0]
    m, p = (n, d) if side == "codes" else (d, n)
    # of the sweep alone, without the 2 n d K of a new residual
    flops = 4 * n * d * K + 2 * m * K * chosen.block
    if getattr(chosen, side) == "normal":
        flops = method.solver.work("normal", Size(m, p, K, chosen.block), 1).flops

    def fresh():
        state = State(InMemory(problem.Z.clone()), problem.D.clone())
        step = Step(state, Data(problem.A), method, chosen, allowed="highest", waits=True)
        if half != "codes afresh":
            step.update_codes_()
        if half == "codes":
            step.update_dictionary_()
        return (step,)

    update = Step.update_codes_ if side == "codes" else Step.update_dictionary_
    label = {
        "kind": "half-step",
        "half": half,
        "contender": f"fastnmf ({backend})",
        "solver": solver,
        "backend": backend,
        "form": getattr(chosen, side),
        "block": chosen.block,
        # results files keep the former name
        "piece_rows": chosen.tile_rows if side == "codes" else d,
        "flops": flops,
    }
    return Timing(fresh, lambda step: update(step), label)


def checked(problem: Problem, solver: str, factors: tuple) -> float:
    """Return the relative error after one iteration, after comparing it with the reference's."""
    Z, D = (torch.as_tensor(factor) for factor in factors)
    error = relative_error(problem.A, Z, D)
    assert error == pytest.approx(expected_error(problem, solver), rel=AGREEMENT)
    return error


@functools.cache
def expected_error(problem: Problem, solver: str) -> float:
    """The relative error after one iteration of the reference.

    For the smallest size the float64 loops of the tests, else plain torch in residual form.
    """
    if problem.workload.name == "digits":
        A, Z, D = (M.double().numpy() for M in (problem.A, problem.Z, problem.D))
        Z, D = _pgd_loop(A, Z, D) if solver == "pgd" else oracle_iterate(solver, A, Z, D, 1)
        return float(np.linalg.norm(A - Z @ D) / np.linalg.norm(A))
    plain = iteration(problem, solver, "torch", planned(problem, solver, "torch", "residual"))
    return relative_error(problem.A, *plain.step(*plain.fresh()))


def _pgd_loop(A, Z, D):
    steps = len(momenta())
    Z = pgd_half_step(Z.T, A, D, _eigenvalue_bound(D), steps).T
    return Z, pgd_half_step(D, A.T, Z.T, _eigenvalue_bound(Z.T), steps)


def _eigenvalue_bound(B) -> float:
    G = torch.from_numpy(B @ B.T)
    return float(largest_eigenvalue(lambda v: G @ v, G.diagonal()))
