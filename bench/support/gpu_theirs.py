"""What iterations on a GPU are compared with: Overcomplete, or the same in plain torch where it is
not installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from support import loops
from support.gaussian import draw
from support.gpu_sizes import Size
from support.seconds import least_seconds, seconds_of

OVERCOMPLETE, PLAIN = "Overcomplete", "plain torch, as Overcomplete"


@functools.cache
def overcomplete() -> tuple[ModuleType | None, str]:
    """Its module of NMF, or None; and why it cannot be imported."""
    try:
        from overcomplete.optimization import nmf
    except (ImportError, AttributeError) as error:
        # version 0.3 reads plt.cm.get_cmap, which matplotlib 3.9 no longer has
        return None, f"{type(error).__name__}: {error}"
    return nmf, ""


def name() -> str:
    """The contender that is timed."""
    return PLAIN if overcomplete()[0] is None else OVERCOMPLETE


def steps() -> dict[str, Callable]:
    """Solver → step(A, Z, D); for pgd the loop, with max_iter."""
    library = overcomplete()[0]
    if library is None:
        return {"hals": loops.overcomplete_hals, "mu": loops.overcomplete_mu,
                "pgd": loops.overcomplete_adam}  # fmt: skip
    adam = functools.partial(library.projected_gradient_descent, tol=0)
    return {"hals": library._one_step_hals, "mu": library._one_step_multiplicative_rule,
            "pgd": adam}  # fmt: skip


def iteration(solver: str, size: Size, loop: int, rounds: int, device: str) -> dict:
    """The time of one iteration; of hals with many concepts, `loop` of them are timed."""
    A, Z, D = draw(*size, device)
    K, step = size[2], steps()[solver]
    if solver == "pgd":
        # three iterations share what Adam sets up
        return {"seconds": least_seconds(lambda: step(A, Z, D, max_iter=3), rounds, device) / 3}
    if solver == "mu" or loop >= K:
        return {"seconds": least_seconds(lambda: step(A, Z, D), rounds, device)}
    made = [A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z]
    fixed = least_seconds(lambda: (A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z), rounds, device)
    looped = least_seconds(lambda: loops.overcomplete_loop(*made, Z, D, loop), rounds, device)
    return {"seconds": fixed + looped * K / loop, "measured_on": f"{loop} of {K:,} concepts"}


def fit(solver: str, A: torch.Tensor, K: int, iterations: int, begins: bool) -> dict:
    """The time of a fit: its start, if begins and the library is there, and its iterations."""
    n, d = A.shape
    library, device = overcomplete()[0], str(A.device)
    Z, D = (X.to(A) for X in draw(n, d, K, device)[1:])
    step = steps()[solver]
    whole = functools.partial(loops.overcomplete_fit, step) if solver != "pgd" else step
    seconds, _ = seconds_of(lambda: whole(A, Z, D, max_iter=iterations), device)
    if library is None or not begins:
        return {"seconds": seconds, "start": "not counted"}
    # by scikit-learn, on the CPU
    began, _ = seconds_of(lambda: library.NMF(K, device=device).init_nndsvda(A), device)
    return {"seconds": seconds + began, "start_seconds": began}


def note() -> Iterator[dict]:
    """Which of both is timed."""
    library, reason = overcomplete()
    if library is None:
        yield {"note": f"Overcomplete is not installed ({reason}); its iterations are those of "
               "bench/support/loops.py, in plain torch"}  # fmt: skip
