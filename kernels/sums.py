"""Sums over programs in a fixed order: the same bits in every run, which atomic additions do not
give."""

import torch
import triton
import triton.language as tl

from .registers import FUSED


@triton.jit
def store_partial(partial_ptr, changed, squared):
    """Leave this program's part of ‖Δ‖² and ‖F‖², each the sum of a tile, for `add_partials_`."""
    program = tl.program_id(0).to(tl.int64)
    tl.store(partial_ptr + 2 * program, tl.sum(changed))
    tl.store(partial_ptr + 2 * program + 1, tl.sum(squared))


# one compiled kernel for any number of programs
@triton.jit(do_not_specialize=["programs"])
def _add_partials_kernel(sums_ptr, partial_ptr, programs, BLOCK: tl.constexpr):
    which = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for step in range(0, tl.cdiv(programs, BLOCK)):
        index = step * BLOCK + offsets
        part = tl.load(partial_ptr + 2 * index + which, mask=index < programs, other=0.0)
        total += part.to(tl.float64)
    tl.store(sums_ptr + which, tl.load(sums_ptr + which) + tl.sum(total, 0))


def empty_partials(F: torch.Tensor, programs: int) -> torch.Tensor:
    """(programs, 2) for `store_partial`, in F's dtype on its device; contents arbitrary."""
    return torch.empty(programs, 2, dtype=F.dtype, device=F.device)


def add_partials_(sums: torch.Tensor, partials: torch.Tensor) -> None:
    """sums[:2] += the sum of partials (programs, 2), in float64. One launch, no synchronisation."""
    _add_partials_kernel[(2,)](sums, partials, len(partials), BLOCK=512, num_warps=4, **FUSED)
