"""The record of a solver: all that other packages use of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .constraints import NON_NEGATIVE, Constraint
from .half_step import Compute, FixedFactor, HalfStepData, fix_gram
from .penalties import Penalty

# concepts up to which the product with the data is computed in the sweep, not by a GEMM before it:
# 0.92 to 0.98 of an iteration (AVX-512, K = 10 to 200)
_FEW = 256


class Size(NamedTuple):
    """Sizes of a half-step: F (K, m) with B (K, p) held fixed, in blocks of concepts."""

    m: int
    p: int
    K: int
    block: int


@dataclass(frozen=True)
class Work:
    """Cost of half-steps, for the cost model.

    flops: all of them; products: those in products of large matrices; swept: those in the kernel
    that updates a block of concepts one by one. updated: entries that element-wise updates read or
    write. steps: passes over F in each half-step.

    For the model of a GPU, of the products, those of Gram matrices (gram), of a residual that is
    computed anew (fresh), in a kernel that updates too (fused), and of searches on all of G
    (searched). operands: matrices that such a kernel multiplies with B; stored: entries of F, and
    what is moved with it, that it reads or writes. rounded, passed: entries that are rounded
    to tf32, and that other passes read or write. calls, fixed_calls: launches by torch and by
    Triton for each block in each pass, and besides; rounds: those of a block that round to tf32;
    prepared: those of torch before all tiles.
    """

    flops: float
    products: float
    swept: float = 0.0
    updated: float = 0.0
    steps: int = 1
    gram: float = 0.0
    fresh: float = 0.0
    fused: float = 0.0
    searched: float = 0.0
    operands: int = 1
    stored: float = 0.0
    rounded: float = 0.0
    passed: float = 0.0
    calls: tuple[float, float] = (1, 2)
    fixed_calls: tuple[float, float] = (6, 0)
    rounds: int = 0
    prepared: float = 0.0


HalfSteps = Callable[[Tensor, HalfStepData, FixedFactor, Compute, Tensor, int], None]
Fix = Callable[[str, Tensor | None, Tensor | None, int, Penalty, Compute], FixedFactor]


def fix_normal(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor in normal form, the only one: G with the penalty's curvature."""
    return fix_gram(B, G, penalty)


def work_normal(form: str, size: Size, times: int) -> Work:
    """C = B Xᵀ and G = B Bᵀ once, and a product G F in each half-step."""
    m, p, K, _ = size
    gram = 2 * p * K * K
    flops = 2 * m * p * K + gram + times * 2 * m * K * K
    return Work(flops, flops, gram=gram)


@dataclass(frozen=True)
class Solver:
    """A method for one half of an iteration, and for both in turn.

    Only the first three fields are required, for a solver in normal form in plain torch; the others
    say how it differs from that (tests/solvers/test_toy_solver.py).

    Parameters
    ----------
    name, title : str
        The name that users give, and the full name.
    half_steps_ : callable
        ``half_steps_(F, data, fixed, compute, sums, times)``: half-steps on the same data, `times`
        of them; F (K, m) is changed in place; sums (4,) float64 is increased by ‖ΔF‖², ‖F‖² and,
        where the half-step computes it anyway, ‖X − Fᵀ B‖².
    operations : tuple of str
        Operations of a backend that it calls, by name.
    fix : callable
        ``fix(form, B, G, m, penalty, compute)``: the FixedFactor of half-steps on m columns,
        computed once for all chunks.
    work : callable
        ``work(form, size, times)``: the Work of half-steps, for the cost model.
    workspace : callable
        ``workspace(K, d, block)``: entries of workspace for each row of a chunk, at most.
    forms : tuple of str
        Forms in which its half-steps exist.
    fused : tuple of str
        Operations that combine products and update, which a backend may supply in addition.
    rows_operation : str or None
        The fused operation that takes rows of the data as they are, a tile at a time.
    exact : bool
        Whether one half-step solves its problem.
    widens : bool
        Whether ZᵀA and ZᵀZ are summed in float64 for it, since it magnifies their rounding.
    sweeps_blocks : bool
        Whether concepts are updated one by one within blocks, so that the block size matters.
    keeps_residual : bool
        Whether a half-step in residual form leaves the residual of the new factor.
    reports_error_before : bool
        Whether the error that a half-step in residual form reports is that before its update.
    penalised_by_slope : bool
        Whether a slope l1 is subtracted from C; else the half-step applies it.
    needs_all_concepts : bool
        Whether its workspace in residual form has all concepts, not a block of them.
    searches_line : bool
        Whether codes for a fixed dictionary are extrapolated by a line search, not by momentum: for
        half-steps that are no gradient steps, which momentum may lead away from the optimum.
    keeps_zeros : bool
        Whether an entry that is zero stays zero.
    restricts : bool
        Whether its half-steps may be restricted to few concepts of each row (supports/restricted).
    least_share : float
        The share of an entry that an extrapolation must leave.
    inner_share_of_many : float
        Time of inner half-steps, relative to what they share, from hundreds of concepts on.
    batch_half_steps : int
        Half-steps of the codes of a batch of online learning.
    constraints : tuple of Constraint
        What the dictionary may be that it updates, or holds fixed while it updates codes.
    solves_free : bool
        Whether a free dictionary is the exact least squares solution, not its half-step.
    most : int or None
        Codes of a row that are not zero, at most; None: any number.
    learns_by : Solver or None
        What updates the dictionary, and has the forms of that half, where this one updates codes
        only; None: itself.
    learns_up_to : float
        Concepts up to which it updates the dictionary; beyond, one sweep of hals does.
    device_workspace : callable or None
        ``device_workspace(total)``: bytes of a GPU's memory that its own workspaces take.
    rows_at_once : callable or None
        ``rows_at_once(K, total)``: rows on all K concepts whose workspaces fit in their share of a
        GPU's memory.
    """

    name: str
    title: str
    half_steps_: HalfSteps
    operations: tuple[str, ...] = ()
    fix: Fix = fix_normal
    work: Callable[[str, Size, int], Work] = work_normal
    workspace: Callable[[int, int, int], int] = lambda K, d, block: 4 * K
    forms: tuple[str, ...] = ("normal",)
    fused: tuple[str, ...] = ()
    rows_operation: str | None = None
    exact: bool = False
    widens: bool = False
    sweeps_blocks: bool = False
    keeps_residual: bool = False
    reports_error_before: bool = False
    penalised_by_slope: bool = True
    needs_all_concepts: bool = False
    searches_line: bool = False
    keeps_zeros: bool = False
    restricts: bool = False
    least_share: float = 0.0
    inner_share_of_many: float = 2.0
    batch_half_steps: int = 4
    constraints: tuple[Constraint, ...] = (NON_NEGATIVE,)
    solves_free: bool = False
    most: int | None = None
    learns_by: Solver | None = None
    learns_up_to: float = float("inf")
    device_workspace: Callable[[int], int] | None = None
    rows_at_once: Callable[[int, int], float] | None = None

    def penalise(self, C: Tensor, fixed: FixedFactor, out: Tensor | None = None) -> Tensor:
        """C (K, m) minus the slope l1 of a penalty, in `out` if given; C itself where there is no
        penalty or the half-step applies it."""
        return torch.sub(C, fixed.l1, out=out) if fixed.l1 and self.penalised_by_slope else C

    def takes_rows(self, B: Tensor, compute: Compute) -> bool:
        """Whether half-steps in normal form with B (K, p) fixed can do without C, given data that
        are `in_tiles`."""
        few = B.shape[0] <= min(compute.block, _FEW)
        return few and self.rows_operation in compute.ops
