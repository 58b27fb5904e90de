"""Half-steps: one factor updated with the other held fixed, in normal and in residual form, over
blocks of concepts.

A half-step sees the columns of F in hand (a piece), the data they are fitted to, and what is known
of the factor held fixed. The updates themselves (`ops`) come from solvers.py or from a faster
backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .penalties import NO_PENALTY, Penalty
from .precision import in_tf32, products_in, round_tf32
from .rows import WIDENED_BYTES
from .solvers import SOLVERS, add_squares_, largest_eigenvalue, pgd_momenta, squared_norm
from .working_set import Concepts, hold_concepts, working_set_

log = logging.getLogger(__name__)

Operations = dict[str, Callable]

# concepts up to which the product with the data is taken in the sweep, not by a GEMM before it:
# 0.92 to 0.98 of an iteration (AVX-512, K = 10 to 200)
_FEW = 256
# and rows for each thread from which on: two tiles. Of fewer a GEMM, which shares out features too,
# is up to 1.3x quicker (AVX-512, d = 2,000 and 100,000, one thread)
LEAST_ROWS = 96


class Workspace:
    """Scratch tensors of one device and dtype, kept by name so that pieces reuse them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._kept: dict[str, Tensor] = {}
        self._dtype, self._device = dtype, device

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape with arbitrary contents; the last one of this name is
        overwritten."""
        size = 1
        for length in shape:
            size *= length
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size, dtype=self._dtype, device=self._device)
        return kept[:size].view(shape)

    def like(self, F: Tensor, name: str) -> Tensor:
        """The same for a tensor of F's shape, laid out as F is: concepts or columns adjacent."""
        K, m = F.shape
        return self(name, K, m) if F.stride(1) == 1 else self(name, m, K).T


@dataclass(frozen=True)
class Sweep:
    """What all half-steps of a run share: the operations, the concepts in a block, scratch, and the
    precision that torch allows products: it is used in residual form only, where it does no harm
    (README, design). residual: that of the residual itself, for mu and pgd. sum_ makes sums over
    the entries of B in hand those over all; hals has it."""

    ops: Operations
    block: int
    scratch: Workspace
    allowed: str = "highest"
    residual: str = "highest"
    sum_: Callable[..., None] = lambda *_: None

    def blocks(self, K: int) -> Iterator[slice]:
        return (slice(k, min(k + self.block, K)) for k in range(0, K, self.block))

    def forms_none(self, solver: str, B: Tensor) -> bool:
        """Whether half-steps in normal form with B (K, p) held can do without C, given data that
        are `in_tiles`."""
        few = len(B) <= min(self.block, _FEW)
        return few and solver == "hals" and SOLVERS[solver].fused[0] in self.ops


def in_tiles(X: Tensor) -> bool:
    """Whether X (m, p) can be read a tile of rows at a time, and all threads have some."""
    return X.stride(1) == 1 and len(X) >= LEAST_ROWS * torch.get_num_threads()


@dataclass(frozen=True)
class Held:
    """The factor held fixed, B (K, p), and what a half-step needs to know of it.

    G (K, K) = B Bᵀ in normal form, where B may be absent; else None. grams: B_S B_Sᵀ of every
    block, for hals in residual form. step: 1 / L, L a bound of the largest eigenvalue of G, for
    pgd. concepts: norms of B and perhaps G of unit concepts, for anls in residual form. l1,
    curvature (K, 1): of a penalty on F, or zero and None; G and grams have the curvature already.
    """

    B: Tensor | None
    G: Tensor | None = None
    grams: tuple[Tensor, ...] = ()
    step: Tensor | None = None
    concepts: Concepts | None = None
    l1: float = 0.0
    curvature: Tensor | None = None

    def penalise_(self, slope: Tensor, F: Tensor, S: slice, sign: int = 1) -> None:
        """slope ← slope + sign (l1 + curvature F), for a block S of concepts F (s, m)."""
        if self.curvature is not None:
            slope.add_(sign * self.l1).addcmul_(self.curvature[S], F, value=sign)


def hold(
    solver: str,
    form: str,
    sweep: Sweep,
    B: Tensor | None,
    G: Tensor | None = None,
    m: int = 1,
    penalty: Penalty = NO_PENALTY,
) -> Held:
    """What a half-step of this solver and form on m columns needs to know of B, computed once for
    all pieces. penalty: on F.

    2 K² p flops in normal form unless G is given; 2 K |S| p for hals in residual form, where G is
    never formed.
    """
    if form == "normal":
        G = penalty.gram(B @ B.T if G is None else G)
        step = 1 / largest_eigenvalue(lambda v: G @ v, G.diagonal()) if solver == "pgd" else None
        return Held(B, G, step=step, l1=penalty.l1)
    if solver == "anls":
        return Held(B, concepts=hold_concepts(B, m, penalty))
    if solver == "hals":
        grams = _grams(B, sweep)
        if not penalty:
            return Held(B, grams=grams)
        curvature = penalty.curvature(torch.cat([gram.diagonal() for gram in grams]))
        for gram, S in zip(grams, sweep.blocks(B.shape[0]), strict=True):
            gram.diagonal().add_(curvature[S])
        return Held(B, grams=grams, l1=penalty.l1, curvature=curvature[:, None])
    if solver == "mu" and not penalty:
        return Held(B)
    # no B.square(): B may be all codes
    squares = torch.linalg.vector_norm(B, dim=1).square()
    curvature = penalty.curvature(squares) if penalty else torch.zeros_like(squares)
    step = None
    if solver == "pgd":
        bound = largest_eigenvalue(lambda v: B @ (B.T @ v) + curvature * v, squares + curvature)
        step = 1 / bound
    kept = curvature[:, None] if penalty else None
    return Held(B, step=step, l1=penalty.l1, curvature=kept)


def _grams(B: Tensor, sweep: Sweep) -> tuple[Tensor, ...]:
    """B_S B_Sᵀ of every block, side by side, so that one call sums all."""
    blocks = [B[S] for S in sweep.blocks(B.shape[0])]
    sizes = [len(some) ** 2 for some in blocks]
    held = B.new_empty(sum(sizes))
    grams = tuple(
        part.view(len(some), -1) for some, part in zip(blocks, held.split(sizes), strict=True)
    )
    for some, gram in zip(blocks, grams, strict=True):
        sweep.ops["moments_"](some, None, gram)
    sweep.sum_(held)
    return grams


@dataclass(frozen=True)
class Normal:
    """The data of a half-step in normal form: C (K, m) = B Xᵀ; see `penalised`.

    swept: F is what a half-step of the same kind left, for anls an exact solution to start from.
    """

    C: Tensor
    swept: bool = False


def penalised(
    solver: str, C: Tensor, held: Held, swept: bool = False, out: Tensor | None = None
) -> Normal:
    """The data of a half-step on penalised F: C = B Xᵀ less the slope l1, in `out` if given.

    mu, which keeps F positive, has l1 in its denominator instead, and C as it is.
    """
    if held.l1 and solver != "mu":
        C = torch.sub(C, held.l1, out=out)
    return Normal(C, swept)


@dataclass(frozen=True)
class Unformed:
    """The data of a half-step of hals in normal form: X (m, p) itself, and Bt (p, K), contiguous,
    for a backend that takes their product a tile at a time, and does what follows of the codes
    while they are in hand: moves, as Extrapolation.moves, and moments, as Statistics.moments."""

    X: Tensor
    Bt: Tensor
    moves: tuple[Tensor, Tensor, float, Tensor, Tensor] | None = None
    moments: tuple[Tensor, Tensor, bool] | None = None


@dataclass(frozen=True)
class Residual:
    """The data of a half-step in residual form: Xt (p, m), in the dtype of F or one of rows.NARROW,
    and Et (p, m) for the residual Xt − Bᵀ F.

    hals leaves the residual of the new F in Et, and takes Et as it is where it is `fresh`; for the
    others it is scratch. carried: whether Et, not fresh, holds what became of an older residual.
    swept: as for Normal.
    """

    Xt: Tensor
    Et: Tensor
    fresh: bool = False
    carried: bool = False
    swept: bool = False


def hals_(
    F: Tensor, piece: Normal | Unformed | Residual, held: Held, sweep: Sweep, sums: Tensor, times=1
) -> None:
    """So many HALS sweeps over all concepts, in place. 2 m K² flops in normal form, 4 m p K in
    residual form, each."""
    if isinstance(piece, Unformed):
        data, then = (piece.X, piece.Bt, held.G), (piece.moves, piece.moments)
        return sweep.ops["hals_rows_"](F, *data, held.l1, times, sums, *then)
    if isinstance(piece, Normal) and F.shape[0] <= sweep.block:
        return sweep.ops["hals_sweep_"](F, piece.C, held.G, sums, times)
    once_ = _hals_residual_ if isinstance(piece, Residual) else _hals_normal_
    for _ in range(times):
        once_(F, piece, held, sweep, sums)


def _hals_normal_(F: Tensor, piece: Normal, held: Held, sweep: Sweep, sums: Tensor) -> None:
    for S in sweep.blocks(F.shape[0]):
        R = sweep.scratch("R", S.stop - S.start, F.shape[1])
        torch.addmm(piece.C[S], held.G[S], F, alpha=-1, out=R)
        delta = sweep.scratch("delta", *R.shape)
        sweep.ops["hals_block_"](F[S], R, held.G[S, S], delta, sums)


def _hals_residual_(F: Tensor, piece: Residual, held: Held, sweep: Sweep, sums: Tensor) -> None:
    if not piece.fresh:
        _refresh_(F, piece, held, sweep, sums)
    with products_in(sweep.allowed):
        for S, gram in zip(sweep.blocks(F.shape[0]), held.grams, strict=True):
            B = held.B[S]
            R = torch.mm(B, piece.Et, out=sweep.scratch("R", len(B), F.shape[1]))
            sweep.sum_(R)
            held.penalise_(R, F[S], S, sign=-1)
            delta = sweep.scratch("delta", *R.shape)
            sweep.ops["hals_block_"](F[S], R, gram, delta, sums)
            if in_tf32(B):
                B = round_tf32(B, sweep.scratch.like(B, "rounded"))
            piece.Et.addmm_(B.T, delta, alpha=-1)


def _refresh_(F: Tensor, piece: Residual, held: Held, sweep: Sweep, sums: Tensor) -> None:
    """E ← X − Fᵀ B in the dtype of F; where products are less than that, sums[3] is increased by
    what E had drifted, squared."""
    if not piece.carried or sweep.allowed == "highest":
        # the copy, in which 16-bit numbers are widened, is one that torch.addmm makes as well
        piece.Et.copy_(piece.Xt).addmm_(held.B.T, F, alpha=-1)
        return
    p, m = piece.Xt.shape
    fresh = sweep.scratch("fresh", m, p).T
    fresh.copy_(piece.Xt).addmm_(held.B.T, F, alpha=-1)
    sums[3] += squared_norm(piece.Et.sub_(fresh))
    piece.Et.copy_(fresh)


def _add_product_(
    E: Tensor, B: Tensor, F: Tensor, sweep: Sweep, beta: int = 1, alpha: int = 1
) -> Tensor:
    """E ← beta E + alpha Bᵀ F; where the residual may be tf32, from blocks of concepts of both
    factors that are rounded to nearest."""
    with products_in(sweep.residual):
        if not in_tf32(E):
            return E.addmm_(B.T, F, beta=beta, alpha=alpha)
        for S in sweep.blocks(len(F)):
            rounded = round_tf32(B[S], sweep.scratch.like(B[S], "rounded"))
            block = round_tf32(F[S], sweep.scratch.like(F[S], "rounded F"))
            E.addmm_(rounded.T, block, beta=beta if S.start == 0 else 1, alpha=alpha)
    return E


def mu_(F: Tensor, piece: Normal | Residual, held: Held, sweep: Sweep, sums: Tensor) -> None:
    """One multiplicative update of all concepts at once, in place.

    2 m K² flops in normal form, 6 m p K in residual form, where the Gram matrix is never formed.
    """
    if isinstance(piece, Normal):
        return _mu_normal_(F, piece.C, held, sweep, sums)
    reconstruction = _add_product_(piece.Et, held.B, F, sweep, beta=0)
    sums[2] += squared_norm(piece.Xt - reconstruction)
    if fused_ := sweep.ops.get("mu_residual_"):
        penalty = held.l1, held.curvature
        with products_in(sweep.allowed):
            return fused_(F, piece.Xt.T, reconstruction.T, held.B, sums, *penalty)
    for S in sweep.blocks(F.shape[0]):
        B = held.B[S]
        denominator = torch.mm(B, reconstruction, out=sweep.scratch.like(F[S], "denominator"))
        held.penalise_(denominator, F[S], S)
        C = _cross(B, piece.Xt, sweep, sweep.scratch.like(F[S], "numerator"))
        sweep.ops["mu_"](F[S], C, denominator, sums)


def _cross(B: Tensor, Xt: Tensor, sweep: Sweep, out: Tensor) -> Tensor:
    """B Xt → out; Xt (p, m) in 16 bits is widened some of its p rows at a time."""
    if Xt.dtype == B.dtype:
        return torch.mm(B, Xt, out=out)
    rows = max(1, WIDENED_BYTES // (4 * Xt.shape[1]))
    for first, part in enumerate(Xt.split(rows)):
        wide = sweep.scratch.like(part, "widened").copy_(part)
        some = B[:, first * rows : first * rows + len(part)]
        out.addmm_(some, wide, beta=1 if first else 0)
    return out


def _mu_normal_(F: Tensor, C: Tensor, held: Held, sweep: Sweep, sums: Tensor) -> None:
    if fused_ := sweep.ops.get("mu_normal_"):
        updated = sweep.scratch.like(F, "updated")
        fused_(F, C, held.G, updated, sums, held.l1)
        F.copy_(updated)
        return
    denominator = torch.mm(held.G, F, out=sweep.scratch.like(F, "denominator"))
    if held.l1:
        denominator.add_(held.l1)
    sweep.ops["mu_"](F, C, denominator, sums)


def pgd_(F: Tensor, piece: Normal | Residual, held: Held, sweep: Sweep, sums: Tensor) -> None:
    """A few accelerated projected gradient steps of length 1 / L on all concepts, in place.

    Each step takes 2 m K² flops in normal form, 4 m p K in residual form, where the Gram matrix is
    never formed. The momentum starts anew in every half-step.
    """
    fused = "pgd_normal_" if isinstance(piece, Normal) else "pgd_residual_"
    if fused in sweep.ops:
        return _pgd_fused_(F, piece, held, sweep, sums)
    start = sweep.scratch.like(F, "start").copy_(F)
    Y = sweep.scratch.like(F, "Y").copy_(F)
    for index, momentum in enumerate(pgd_momenta()):
        if isinstance(piece, Normal):
            gradient = sweep.scratch.like(F, "gradient")
            torch.addmm(piece.C, held.G, Y, beta=-1, out=gradient)
            sweep.ops["pgd_"](F, Y, gradient, held.step, momentum)
            continue
        _add_product_(piece.Et.copy_(piece.Xt), held.B, Y, sweep, beta=-1)
        if index == 0:
            sums[2] += squared_norm(piece.Et)
        for S in sweep.blocks(F.shape[0]):
            gradient = sweep.scratch.like(F[S], "gradient")
            torch.mm(held.B[S], piece.Et, out=gradient)
            held.penalise_(gradient, Y[S], S)
            sweep.ops["pgd_"](F[S], Y[S], gradient, held.step, momentum)
    add_squares_(sums, start.sub_(F), F)


def _pgd_fused_(F: Tensor, piece: Normal | Residual, held: Held, sweep: Sweep, sums: Tensor):
    """The same with a kernel for each step. F is the start, and written by the last step only."""
    scratch = sweep.scratch
    newest = scratch.like(F, "newest")
    points = scratch.like(F, "Y"), scratch.like(F, "next Y")
    before, Y, momenta = F, F, pgd_momenta()
    for index, momentum in enumerate(momenta):
        last = index + 1 == len(momenta)
        after = F if last else newest
        rest = (after, points[index % 2], F, held.step, momentum, sums if last else None)
        if isinstance(piece, Normal):
            sweep.ops["pgd_normal_"](before, Y, piece.C, held.G, *rest)
        else:
            _add_product_(piece.Et.copy_(piece.Xt), held.B, Y, sweep, alpha=-1)
            if index == 0:
                sums[2] += squared_norm(piece.Et)
            with products_in(sweep.allowed):
                penalty = held.l1, held.curvature
                sweep.ops["pgd_residual_"](before, Y, piece.Et.T, held.B, *rest, *penalty)
        before, Y = newest, points[index % 2]


def anls_(F: Tensor, piece: Normal | Residual, held: Held, sweep: Sweep, sums: Tensor) -> None:
    """The exact solution of the half-step, in place, by active sets. The cost depends on the
    supports. In residual form on working sets, without work on all of C or G.

    Logs a warning when columns of F are given up."""
    if isinstance(piece, Normal):
        info = sweep.ops["nnls_"](F, piece.C, held.G, sums, warm=piece.swept)
    else:
        solve = sweep.ops["nnls_on_"]
        info = working_set_(F, piece.Xt, held.concepts, sums, solve, warm=piece.swept)
    if info.capped:
        log.warning("anls: %d of %d columns are not solved: %s", info.capped, F.shape[1], info)


HALF_STEPS = {"hals": hals_, "mu": mu_, "pgd": pgd_, "anls": anls_}


def half_steps_(solver: str, times: int, F: Tensor, piece, held: Held, sweep: Sweep, sums) -> None:
    """So many half-steps, one after the other, of which the data are the same."""
    if solver == "hals":
        return hals_(F, piece, held, sweep, sums, times)
    for _ in range(times):
        HALF_STEPS[solver](F, piece, held, sweep, sums)
