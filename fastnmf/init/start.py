"""Starts (Z, D) of a factorisation: random, NNDSVDa, rows of the data, or given.

A is what Rows holds: (n, d), finite, non-negative. Starts are of the dtype that is computed in."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Generator, Tensor

from ..errors import InvalidInput
from ..numerics import compute_dtype, product, tiny, wide, wide_pieces, widened
from .rows import any_rows, spread_rows
from .svd import Sum, leading_svd, normal, piece_rows

STARTS = ("auto", "random", "nndsvda", "rows", "spread")
# NNDSVD counts entries below this as zero; scikit-learn's number
NNDSVD_EPS = 1e-6
_ALLOWED = f"one of {STARTS} or a pair (Z0, D0)"


def random_codes(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """Z (n, K) = |normal| · sqrt(mean(A) / K), Overcomplete's random start.

    On A's device, in its dtype. Drawn where the generator lives; None is torch's global generator
    of A's device.
    """
    return folded_normal((A.shape[0], K), A[:0], _mean(A) / K, generator)


def random_dictionary(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """D (K, d) = |normal| · sqrt(mean(A) / K); the rest as for random_codes."""
    return folded_normal((K, A.shape[1]), A[:0], _mean(A) / K, generator)


@torch.no_grad()
def nndsvda(
    A: Tensor,
    K: int,
    generator: Generator | None = None,
    svd: tuple[Tensor, Tensor, Tensor] | None = None,
    unit: Tensor | float = 1,
) -> tuple[Tensor, Tensor]:
    """Z, D ← non-negative parts of A's K leading singular pairs, zeros filled with mean(A).

    The factors are those of A / unit: what counts as zero, and the fill, depend on A's scale.
    svd is (U, S, Vt), by default leading_svd(A, K, generator). The scale is the paper's, not the
    best one: see scale_to_data_. Zero data gives exactly zero Z and D. Raises InvalidInput when
    K > min(n, d). Source: Boutsidis & Gallopoulos, 2008.
    """
    if K > min(A.shape):
        raise InvalidInput(
            f"init='nndsvda' needs nb_concepts ≤ min(n, d), got nb_concepts={K} for A of shape "
            f"{tuple(A.shape)}; use init='random'"
        )
    U, S, Vt = leading_svd(A, K, generator) if svd is None else (F.clone() for F in svd)
    U, V = U.contiguous(), Vt.T.contiguous()
    parts_of_u, parts_of_v = non_negative_parts(S / unit, part_norms(U), part_norms(V))
    for F, parts in ((U, parts_of_u), (V, parts_of_v)):
        take_parts_(F, *parts, _mean(A) / unit)
    return U, V.T.contiguous()


def non_negative_parts(
    S: Tensor, u: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """(sign and factor of every column, factor of the first) with which take_parts_ makes U, and V,
    of singular values S, the factors of NNDSVD; u, v: their part_norms."""
    (up, un), (vp, vn) = u, v
    positive = up * vp > un * vn
    root = (S * torch.where(positive, up * vp, un * vn)).sqrt()
    sign = torch.where(positive, 1.0, -1.0).to(S.dtype)
    norms = torch.where(positive, up, un), torch.where(positive, vp, vn)
    return tuple((sign, root / norm.clamp(min=tiny(norm)), S[0].sqrt()) for norm in norms)


def take_parts_(F: Tensor, sign: Tensor, factors: Tensor, leading: Tensor, mean: Tensor) -> None:
    """F (m, K) ← max(0, sign F) · factors, small entries ← mean, in place."""
    # the leading pair of A ≥ 0 has one sign, so it is used whole
    first = F[:, 0].abs() * leading
    F.mul_(sign).clamp_(min=0).mul_(factors)
    F[:, 0] = first
    for Fi in F.split(piece_rows(F.shape[1], F.itemsize)):
        Fi.masked_fill_(Fi < NNDSVD_EPS, mean)


@torch.no_grad()
def scale_to_data_(Z: Tensor, D: Tensor, A: Tensor) -> None:
    """Z, D ← √c Z, √c D with c = ⟨A, ZD⟩ / ‖ZD‖², the scalar of least loss; in place.

    Both are left alone when A or ZD is zero. Summed in float64 over pieces of rows; 2ndK flops.
    """
    rows = piece_rows(A.shape[1], 2 * D.itemsize)
    root = scale_of(zip(Z.split(rows), map(widened, A.split(rows)), strict=True), D)
    if root is not None:
        Z *= root
        D *= root


def scale_of(
    pieces: Iterable[tuple[Tensor, Tensor]], D: Tensor, sum_: Sum = lambda _: None
) -> float | None:
    """√c for scale_to_data_, from the pieces (Z_i, A_i); None where both are left alone."""
    sums = torch.zeros(2, dtype=wide(D.device), device=D.device)
    inner, square = sums
    for Zi, Ai in pieces:
        P = (Zi @ D).flatten()
        inner += P @ Ai.flatten()
        square += P @ P
    sum_(sums)
    inner, square = sums.tolist()
    usable = 0 < inner < math.inf and 0 < square < math.inf
    return math.sqrt(inner / square) if usable else None


def given(
    init: object, n: int, d: int, K: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return fresh row-contiguous copies of the pair init = (Z0 (n, K), D0 (K, d)).

    Tensors, arrays or nested lists. Raises InvalidInput unless the shapes fit and every entry is
    finite and non-negative in dtype.
    """
    if not isinstance(init, (tuple, list)) or len(init) != 2:
        size = f" of {len(init)}" if isinstance(init, (tuple, list)) else ""
        raise InvalidInput(f"init is a {type(init).__name__}{size}; give {_ALLOWED}")
    Z = given_factor("Z0", init[0], (n, K), dtype, device)
    return Z, given_factor("D0", init[1], (K, d), dtype, device)


def resolve(init: object, n: int, d: int, K: int) -> str:
    """Name the start that `init` means: one of STARTS, but not 'auto', or 'given'.

    'auto' is Overcomplete's rule: nndsvda if K ≤ min(n, d), else random, which of all starts there
    are then leaves the least error (README, choosing a start). Raises InvalidInput for an unknown
    name.
    """
    if not isinstance(init, str):
        return "given"
    if init not in STARTS:
        nearest = difflib.get_close_matches(init, STARTS, n=1, cutoff=0)[0]
        raise InvalidInput(
            f"init={init!r} is no start (did you mean {nearest!r}?); give {_ALLOWED}"
        )
    if init == "auto":
        return "nndsvda" if min(n, d) >= K else "random"
    return init


def start(
    A: Tensor, K: int, init: object = "auto", generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Z (n, K), D (K, d) to start from: drawn and scaled to A, or the given pair as it is.

    init: a name in STARTS, or (Z0, D0); see resolve, given. 'rows', 'spread': the concepts are
    rows of A, any, or such as differ from each other; where there are too few, the rest is random.
    'nndsvda' takes rows for concepts beyond min(n, d). Codes are then those of cold_start.
    """
    n, d = A.shape
    kind = resolve(init, n, d, K)
    if kind == "given":
        return given(init, n, d, K, compute_dtype(A), A.device)
    if kind == "nndsvda" and min(n, d) >= K:
        Z, D = nndsvda(A, K, generator, unit=_unit(A))
    elif kind != "random":
        D = _dictionary_of_rows(A, K, kind, generator)
        Z = cold_start(A, D)
    else:
        # codes first: Overcomplete's order, so that one seed means one start
        Z, D = random_codes(A, K, generator), random_dictionary(A, K, generator)
    scale_to_data_(Z, D, A)
    return Z, D


def cold_start(A: Tensor, D: Tensor) -> Tensor:
    """Codes (n, K) that use every concept alike, scaled to each row: deterministic, differentiable,
    row by row.

    z_i = ⟨a_i, s⟩ / ‖s‖² for s = Σ_k D_k; zero for zero concepts and for zero rows.
    """
    total = D.sum(0)
    scale = product(A, total) / total.square().sum().clamp(min=tiny(D))
    alive = (D.square().sum(1) > 0).to(D.dtype)
    return scale[:, None] * alive


@torch.no_grad()
def _dictionary_of_rows(A: Tensor, K: int, kind: str, generator: Generator | None) -> Tensor:
    """D (K, d): rows of A; after the concepts of NNDSVDa, as long as they; before random ones."""
    D = widened(A[:0])
    if kind == "nndsvda":
        _, D = nndsvda(A, min(A.shape), generator, unit=_unit(A))
        parts = torch.stack([torch.linalg.vector_norm(piece) for piece in wide_pieces(A)])
        norms = torch.linalg.vector_norm(parts), torch.linalg.vector_norm(D)
        # the mean square of a row is that of a concept
        D *= norms[0] / norms[1].clamp(min=tiny(D)) * (len(D) / len(A)) ** 0.5
    draw = spread_rows if kind == "spread" else any_rows
    D = torch.cat((D, widened(A[draw(A, K - len(D), generator)])))
    if len(D) < K:
        D = torch.cat((D, random_dictionary(A, K, generator)[len(D) :]))
    return D


@torch.no_grad()
def folded_normal(
    shape: tuple[int, int], like: Tensor, square: Tensor, generator: Generator | None
) -> Tensor:
    """|normal| · √square, in what is computed in with numbers like these, on their device."""
    return normal(shape, widened(like), generator).abs_().mul_(square.sqrt())


def _mean(A: Tensor) -> Tensor:
    shares = [piece.mean() * (len(piece) / len(A)) for piece in wide_pieces(A)]
    return torch.stack(shares).sum()


def _unit(A: Tensor) -> Tensor:
    """What to divide A by for the same start whatever its unit: its mean, or more than 0."""
    mean = _mean(A)
    return mean.clamp(min=tiny(mean))


def part_norms(F: Tensor) -> tuple[Tensor, Tensor]:
    """(‖max(0, F_k)‖, ‖max(0, −F_k)‖) for every column k."""
    return tuple(part_squares(F).sqrt().to(F.dtype))


def part_squares(F: Tensor) -> Tensor:
    """Their squares (2, K), summed in float64."""
    squares = torch.zeros(2, F.shape[1], dtype=wide(F.device), device=F.device)
    for Fi in F.split(piece_rows(F.shape[1], 2 * F.itemsize)):
        squares[0] += Fi.clamp(min=0).square_().sum(dim=0, dtype=squares.dtype)
        squares[1] += Fi.clamp(max=0).square_().sum(dim=0, dtype=squares.dtype)
    return squares


def given_factor(
    name: str, value: object, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    try:
        F = value.detach() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is a {type(value).__name__}, no tensor: {error}") from error
    if tuple(F.shape) != shape or F.is_complex():
        raise InvalidInput(
            f"{name} is {F.dtype} of shape {tuple(F.shape)}; expected real numbers of shape {shape}"
        )
    # a copy even where device and dtype fit: the solver writes into it
    F = F.to(device, dtype, copy=True).contiguous()
    bad = ~(F.isfinite() & (F >= 0))
    if bad.any():
        i, j = bad.nonzero()[0].tolist()
        raise InvalidInput(
            f"{name} has {int(bad.sum())} entries that are negative or not finite, the first at "
            f"row {i}, column {j}: {F[i, j].item()}; a start must be ≥ 0 and finite"
        )
    return F
