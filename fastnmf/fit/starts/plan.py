"""The plan of a fit, of all rows or of a sample of them."""

from __future__ import annotations

import functools
from dataclasses import replace

from ...data.dataset import Data
from ...data.sparse.codes import are_sparse
from ...engine.state import Method
from ...init.start import SAMPLE
from ...planning import hardware
from ...planning.beside import plan_beside
from ...planning.inner import accelerated
from ...planning.memory import fits, refuse_too_large, sizes_of_fit
from ...planning.plan import Plan, Problem, choose
from ..options import Options
from ..refusals import FEWER
from ..weighted.plan import weighted_plan
from .begin import name_of_start


def problem_of(options: Options, data: Data, method: Method) -> Problem:
    """What a fit computes, as the cost model takes it."""
    sizes = data.n, data.d, options.nb_concepts, data.dtype.itemsize
    kind = {"stored": data.stored, "constraint": method.constraint, "streams": data.made_dense}
    return Problem(*sizes, method.solver, **kind)


def plan_of(options: Options, data: Data, method: Method) -> Plan:
    """The plan of a fit. Raises InvalidInput where what it needs does not fit in memory."""
    like, processes, problem = data.like, data.processes, problem_of(options, data, method)
    if data.weights is not None:
        return weighted_plan(data, problem, options)
    if data.in_memory_here:
        free = hardware.free_bytes(data.device)
        plan = plan_beside(data.A, problem, method.backend, method.tuning, free)
    else:
        # of a process, on average
        here = replace(
            problem,
            n=-(-data.n // processes.size),
            streams=problem.streams or not data.resident,
            processes=processes.size,
        )
        on = hardware.machine_of(like, method.backend)
        plan = choose(here, on, replace(method.tuning, chunk_rows=data.chunk_rows))
        # the same in all processes, except the tiles
        plan = replace(processes.gather(plan)[0], tile_rows=plan.tile_rows)
    # few of the codes in compressed rows are not zero
    rows = 0 if are_sparse(options.destination()) else data.n_here
    of_start = {"rows": rows, "start": name_of_start(options, data)}
    sizes = functools.partial(sizes_of_fit, problem, **of_start)
    if _accelerates(options, data, method, plan):
        faster = accelerated(plan, problem, hardware.machine_of(like, method.backend))
        # 'auto' does without the copies that would not fit
        if options.accelerate is True or not any(
            processes.any(not fits(sizes(faster), data.device))
        ):
            plan = faster
    if data.resident:
        with processes.agreed():
            needed = sizes(plan)
            if options.n_init > 1 and options.start_name != SAMPLE:
                # of the better half, and of the one that runs
                needed["codes of other starts"] = options.n_init // 2 * needed["the codes"]
            refuse_too_large(needed, data.device, FEWER)
    return plan


def _accelerates(options: Options, data: Data, method: Method, plan: Plan) -> bool:
    """Return whether to extrapolate. 'auto' does where it pays: up to min(n, d) concepts, in normal
    form, with half-steps that are neither exact nor penalised; but not where a start or a form is
    given, and the iterates of the plain loop may be wanted (docs/acceleration.md). Codes that are
    not in memory have no copies to extrapolate from, and of sparse ones few are not zero."""
    if are_sparse(options.destination()):
        return False
    if not data.resident or options.accelerate != "auto" or options.constraint.of_rows:
        return options.accelerate is True
    free = isinstance(options.init, str) and method.tuning.form is None
    few = min(data.n, data.d) >= options.nb_concepts
    normal = plan.form == "normal" and not method.solver.exact
    return free and not method.penalties and few and normal
