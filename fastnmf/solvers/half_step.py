"""What half-steps of all solvers share: their data in the two forms, the fixed factor, operations
and workspaces.

A half-step updates F (K, m) with B (K, p) fixed, for data X (m, p). Each solver is in a module of
its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..backends.products import Matrix
from ..precision import in_tf32, products_in
from .constraints import NON_NEGATIVE, Constraint
from .penalties import NO_PENALTY, Penalty
from .supports.rows import Mixing
from .supports.working_set import Concepts

FORMS = ("normal", "residual")
Operations = dict[str, Callable[..., Any]]

# rows for each thread from which reading a tile at a time beats a GEMM, which divides features
# among the threads too: two tiles. With fewer a GEMM is up to 1.3x faster (AVX-512, d = 2,000 and
# 100,000, one thread)
LEAST_ROWS = 96
# units of rounding of its squared mean up to which the variance of a row is zero
_CONSTANT = 256


class Workspace:
    """Scratch tensors of one device and dtype, stored by name so that tiles reuse them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._kept: dict[str, Tensor] = {}
        self._dtype, self._device = dtype, device

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape with arbitrary contents. It overwrites the last one of
        this name."""
        size = 1
        for length in shape:
            size *= length
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size, dtype=self._dtype, device=self._device)
        return kept[:size].view(shape)

    def like(self, F: Tensor, name: str) -> Tensor:
        """The same in the shape and layout of F: concepts or columns adjacent."""
        K, m = F.shape
        return self(name, K, m) if F.stride(1) == 1 else self(name, m, K).T


@dataclass(frozen=True)
class Compute:
    """What all half-steps of a run compute with.

    block: concepts in a block. allowed: the precision that torch allows products; used in residual
    form only, where it does no harm (docs/notes/precision.md). residual: that of the residual
    itself, for mu and pgd. sum_(X): turns sums over the part of B of this process into sums over
    all processes, in place, for hals; None where B is whole. means (K, 1): of the rows of B, for a
    dictionary with an offset: in residual form half-steps subtract them, in normal form C and G are
    without them; else None. rows: of all processes. factor, fixed: what F and B may be. mixing: the
    rows of the data that concepts are mixtures of, or None.
    """

    ops: Operations
    block: int
    scratch: Workspace
    allowed: str = "highest"
    residual: str = "highest"
    sum_: Callable[..., None] | None = None
    means: Tensor | None = None
    rows: float = 0
    factor: Constraint = NON_NEGATIVE
    fixed: Constraint = NON_NEGATIVE
    mixing: Mixing | None = None

    @property
    def bounded(self) -> bool:
        """Whether entries of F are ≥ 0."""
        return not self.factor.signed

    @functools.cached_property
    def other_half(self) -> Compute:
        """That of the other half: `turned`, made once, as it takes as long as a small product."""
        return self.turned()

    def turned(self, sum_: Callable[..., None] | None = None) -> Compute:
        """The same for the other half, where F and B have changed places."""
        return replace(self, sum_=sum_, factor=self.fixed, fixed=self.factor)

    def centred(self, B: Tensor, S: slice) -> Tensor:
        """B_S (s, p), minus the means, in scratch, where there are some."""
        if self.means is None:
            return B[S]
        return torch.sub(B[S], self.means[S], out=self.scratch.like(B[S], "centred"))

    def squares(self, G: Tensor) -> Tensor:
        """The squared norms (K,) of the rows of B, given its G, which is less than B Bᵀ where there
        are means."""
        squares = G.diagonal()
        if self.means is None:
            return squares
        return squares + self.rows * self.means[:, 0].to(G).square()

    def keep_constant_(self, R: Tensor, gram: Tensor, S: slice) -> None:
        """Set R_k and gram_k to zero, so that F_k stays, where B_k minus its mean is rounding."""
        if self.means is not None:
            of_means = self.rows * self.means[S, 0].square()
            varying = varies(gram.diagonal(), of_means)
            gram.mul_(varying).mul_(varying[:, None])
            R.mul_(varying[:, None])

    def blocks(self, K: int) -> Iterator[slice]:
        """Slices of all K concepts, `block` at a time."""
        return (slice(k, min(k + self.block, K)) for k in range(0, K, self.block))


def packed_bytes(total_bytes: int) -> int:
    """The bytes of a GPU's memory in which kernels copy their operands (kernels/packing.py)."""
    return min(384 << 20, total_bytes // 8)


def in_tiles(X: Matrix) -> bool:
    """Whether X (m, p) can be read a tile of rows at a time, with tiles for all threads."""
    if not isinstance(X, Tensor):
        return False
    return X.stride(1) == 1 and X.shape[0] >= LEAST_ROWS * torch.get_num_threads()


@dataclass(frozen=True)
class FixedFactor:
    """The fixed factor B (K, p), and what a half-step needs of it.

    G (K, K) = B Bᵀ in normal form, where B may be absent; else None. grams: first concept of a
    block → B_S B_Sᵀ, for hals in residual form, which adds them as it comes to them. step: 1 / L,
    where L bounds the largest eigenvalue of G, for pgd. concepts: norms of B, and G of unit
    concepts if stored, for anls in residual form. l1, curvature (K, 1): of a penalty on F, or zero
    and None; G and grams include the curvature. penalty: for hals, which finds the curvature of a
    block with its gram.
    """

    B: Tensor | None
    G: Tensor | None = None
    grams: dict[int, Tensor] = field(default_factory=dict)
    step: Tensor | None = None
    concepts: Concepts | None = None
    l1: float = 0.0
    curvature: Tensor | None = None
    penalty: Penalty = NO_PENALTY

    def penalise_(self, slope: Tensor, F: Tensor, S: slice, sign: int = 1) -> None:
        """slope ← slope + sign (l1 + curvature F), for a block S of concepts F (s, m)."""
        if self.curvature is not None:
            slope.add_(sign * self.l1).addcmul_(self.curvature[S], F, value=sign)


def fix_gram(B: Tensor | None, G: Tensor | None, penalty: Penalty = NO_PENALTY) -> FixedFactor:
    """The fixed factor of a half-step in normal form: G = B Bᵀ, unless given, and the penalty's
    curvature. 2 K² p flops unless G is given."""
    return FixedFactor(B, penalty.gram(B @ B.T if G is None else G), l1=penalty.l1)


def varies(squares: Tensor, of_means: Tensor) -> Tensor:
    """Whether rows of B, of these squared norms (K,) minus their means, differ from these by more
    than rounding; of_means: the squared norms of the means. Elsewhere the offset is as good as the
    concept, which is not updated."""
    return squares > _CONSTANT * torch.finfo(squares.dtype).eps * of_means


def centred_gram(G: Tensor, means: Tensor, p: int | Tensor) -> Tensor:
    """G − p μ μᵀ in place: of B (K, p) minus the means μ (K,) of its rows, given G = B Bᵀ. Rows and
    columns of rows that do not vary become zero."""
    of_means = p * means.square()
    varying = varies(G.diagonal() - of_means, of_means)
    G.addr_(means * p, means, alpha=-1)
    return G.mul_(varying).mul_(varying[:, None])


@dataclass(frozen=True)
class NormalData:
    """Normal form: C (K, m) = B Xᵀ, after Solver.penalise.

    swept: whether F is the result of a half-step, for anls an exact solution to start from.
    """

    C: Tensor
    swept: bool = False


@dataclass(frozen=True)
class RowData:
    """Normal form of hals without C: X (m, p) itself and Bt (p, K), for a backend that computes
    their product a tile at a time.

    moves, moments: as Extrapolation.moves and Statistics.moments; the backend then extrapolates the
    codes, and adds their products to the statistics, while they are in the cache.
    """

    X: Tensor
    Bt: Tensor
    moves: tuple[Tensor, Tensor, float, Tensor, Tensor] | None = None
    moments: tuple[Tensor, Tensor, bool] | None = None


@dataclass(frozen=True)
class ResidualData:
    """Residual form: Xt (p, m), in the dtype of F or one of numerics.NARROW, and Et (p, m) for the
    residual Xt − Bᵀ F.

    hals leaves the residual of the new F in Et, and reads Et where it is `fresh`; for the others it
    is scratch. carried: whether Et, not fresh, holds an older residual that was updated since.
    swept: as for NormalData. offset: the means (m,) of X, which are subtracted from Xt, or None.
    """

    Xt: Tensor
    Et: Tensor
    fresh: bool = False
    carried: bool = False
    swept: bool = False
    offset: Tensor | None = None

    def copy_to_(self, E: Tensor) -> Tensor:
        """E (p, m) ← X, as it is meant."""
        E.copy_(self.Xt)
        return E if self.offset is None else E.sub_(self.offset)


def add_product_(
    E: Tensor, B: Tensor, F: Tensor, compute: Compute, beta: int = 1, alpha: int = 1
) -> Tensor:
    """E ← beta E + alpha Bᵀ F, with E (p, m). Where the residual may be tf32, both factors are
    rounded to the nearest tf32 in blocks of concepts."""
    with products_in(compute.residual):
        if not in_tf32(E):
            return E.addmm_(B.T, F, beta=beta, alpha=alpha)
        for S in compute.blocks(len(F)):
            some, theirs = rounded(B[S], "rounded", compute), rounded(F[S], "rounded F", compute)
            E.addmm_(some.T, theirs, beta=beta if S.start == 0 else 1, alpha=alpha)
    return E


def rounded(X: Tensor, name: str, compute: Compute) -> Tensor:
    """X itself, or where its products are tf32, X rounded to the nearest in scratch of this
    name."""
    if not in_tf32(X):
        return X
    out = compute.scratch.like(X, name)
    compute.ops["round_tf32_"](out, X)
    return out


def residual_(
    F: Tensor, data: ResidualData, fixed: FixedFactor, compute: Compute, sign: int = 1
) -> Tensor:
    """E ← sign (X − Fᵀ B); where there are means, of X and B minus those of their rows."""
    E = add_product_(data.copy_to_(data.Et), fixed.B, F, compute, beta=sign, alpha=-sign)
    return E if compute.means is None else E.add_(compute.means.T @ F, alpha=sign)


HalfStepData = NormalData | RowData | ResidualData
