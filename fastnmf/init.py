"""Starts (Z, D) of a factorisation: random, NNDSVDa or given.

A is a tensor that was checked at the door: (n, d), float32 or float64, finite, non-negative.
"""

from __future__ import annotations

import difflib
import math

import numpy as np
import torch
from torch import Generator, Tensor

from .errors import InvalidInput

STARTS = ("auto", "random", "nndsvda")
# of a piece of rows in hand; 1 to 32 MB cost the same on two cores with AVX-512
WORKSPACE_BYTES = 8 * 2**20
# columns of the random basis beyond K; scikit-learn's number
OVERSAMPLES = 10
# NNDSVD counts entries below this as zero; scikit-learn's number
NNDSVD_EPS = 1e-6
# the least normal float32, to divide by in place of 0
TINY = 2.0**-126
_ALLOWED = f"one of {STARTS} or a pair (Z0, D0)"


def random_codes(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """Z (n, K) = |normal| · sqrt(mean(A) / K), Overcomplete's random start.

    On A's device, in its dtype. Drawn where the generator lives; None is torch's global generator
    of A's device.
    """
    return _folded_normal((A.shape[0], K), A, K, generator)


def random_dictionary(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """D (K, d) = |normal| · sqrt(mean(A) / K); the rest as for random_codes."""
    return _folded_normal((K, A.shape[1]), A, K, generator)


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
    up, un = _part_norms(U)
    vp, vn = _part_norms(V)
    positive = up * vp > un * vn
    S, mean = S / unit, A.mean() / unit
    root = (S * torch.where(positive, up * vp, un * vn)).sqrt()
    sign = torch.where(positive, 1.0, -1.0).to(A.dtype)
    for F, norms in ((U, torch.where(positive, up, un)), (V, torch.where(positive, vp, vn))):
        # the leading pair of A ≥ 0 has one sign, so it is used whole
        leading = F[:, 0].abs() * S[0].sqrt()
        F.mul_(sign).clamp_(min=0).mul_(root / norms.clamp(min=TINY))
        F[:, 0] = leading
        for Fi in F.split(_piece_rows(K, F.itemsize)):
            Fi.masked_fill_(Fi < NNDSVD_EPS, mean)
    return U, V.T.contiguous()


@torch.no_grad()
def leading_svd(A: Tensor, K: int, generator: Generator | None = None) -> tuple[Tensor, ...]:
    """A ≈ U diag(S) Vt: the K ≤ min(n, d) leading singular triplets; U (n, K), S (K,), Vt (K, d).

    Randomised subspace iteration on the smaller side, then the eigenvectors of a float64 Gram
    matrix in that space. A space of over a quarter of the side is all of it, and nothing random.
    The largest entry of each row of Vt (if n < d, column of U) is positive. A singular value of 0
    has a zero vector on the longer side.
    Workspace: (min(n, d), K) and a few MB. Source: Halko, Martinsson & Tropp, 2011.
    """
    X = A if A.shape[0] >= A.shape[1] else A.T
    p = X.shape[1]
    size = K + OVERSAMPLES
    # whole: 2 m p² flops in float64; iterated: 20 m p · size or more
    whole = p <= 4 * size
    # keeps XᵀX Q and the norms in range for data near the limits of the dtype
    inverse = 1 / X.amax().clamp(min=TINY)
    # one more than scikit-learn, whose 7 or 4 end with half a pass
    passes = 8 if K < 0.1 * p else 5
    Q = None if whole else _range_basis(X, inverse, _normal((p, size), A, generator), passes)
    G = torch.zeros(2 * [p if whole else size], dtype=_wide(A.device), device=A.device)
    for Xi in X.split(_piece_rows(p, 8)):
        Yi = (Xi if whole else Xi @ Q).to(G.dtype)
        G.addmm_(Yi.T, Yi)
    W = torch.linalg.eigh(G).eigenvectors[:, -K:].flip(1).to(A.dtype)  # largest first
    V = W if whole else Q @ W  # (p, K)
    V *= V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()
    U = X @ (V * inverse)  # (m, K)
    norms = torch.linalg.vector_norm(U, dim=0)
    U /= norms.clamp(min=TINY)
    S = norms / inverse
    return (U, S, V.T) if X is A else (V, S, U.T)


@torch.no_grad()
def scale_to_data_(Z: Tensor, D: Tensor, A: Tensor) -> None:
    """Z, D ← √c Z, √c D with c = ⟨A, ZD⟩ / ‖ZD‖², the scalar of least loss; in place.

    Both are left alone when A or ZD is zero. Summed in float64 over pieces of rows; 2ndK flops.
    """
    inner, square = torch.zeros(2, dtype=_wide(A.device), device=A.device)
    rows = _piece_rows(A.shape[1], 2 * A.itemsize)
    for Zi, Ai in zip(Z.split(rows), A.split(rows), strict=True):
        P = (Zi @ D).flatten()
        inner += P @ Ai.flatten()
        square += P @ P
    inner, square = inner.item(), square.item()
    if 0 < inner < math.inf and 0 < square < math.inf:
        root = math.sqrt(inner / square)
        Z *= root
        D *= root


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
    Z = _given_factor("Z0", init[0], (n, K), dtype, device)
    return Z, _given_factor("D0", init[1], (K, d), dtype, device)


def resolve(init: object, n: int, d: int, K: int) -> str:
    """Name the start that `init` means: 'random', 'nndsvda' or 'given'.

    'auto' is Overcomplete's rule: nndsvda if K ≤ min(n, d), else random. Raises InvalidInput for
    an unknown name.
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

    init: 'auto', 'random', 'nndsvda' or (Z0, D0); see resolve, given.
    """
    n, d = A.shape
    kind = resolve(init, n, d, K)
    if kind == "given":
        return given(init, n, d, K, A.dtype, A.device)
    if kind == "nndsvda":
        # the same start whatever the unit of A
        Z, D = nndsvda(A, K, generator, unit=A.mean().clamp(min=TINY))
    else:
        # codes first: Overcomplete's order, so that one seed means one start
        Z, D = random_codes(A, K, generator), random_dictionary(A, K, generator)
    scale_to_data_(Z, D, A)
    return Z, D


@torch.no_grad()
def _folded_normal(shape: tuple[int, int], A: Tensor, K: int, source: Generator | None) -> Tensor:
    return _normal(shape, A, source).abs_().mul_((A.mean() / K).sqrt())


def _normal(shape: tuple[int, int], A: Tensor, generator: Generator | None) -> Tensor:
    """Draw where the generator lives, then move to A's device: a CPU seed serves every device."""
    place = A.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=A.dtype, device=place).to(A.device)


def _range_basis(X: Tensor, inverse: Tensor, Q: Tensor, passes: int) -> Tensor:
    """Orthonormal Q (p, size) ≈ the leading right singular space of X (m, p): Q ← orth(XᵀX Q)."""
    # a quarter of the rows does for all but the last three passes: at 0.6 of the time, the energy
    # that scikit-learn captures to 4e-4 on activations, to 2e-3 on a flat spectrum
    sample = X[::4] if X.shape[0] >= 7 * X.shape[1] else X
    for following in reversed(range(passes)):
        scaled, Y = Q * inverse, torch.zeros_like(Q)
        for Xi in (X if following < 3 else sample).split(_piece_rows(Q.shape[1], X.itemsize)):
            Y.addmm_(Xi.T, Xi @ scaled)
        Q = torch.linalg.qr(Y).Q
    return Q


def _part_norms(F: Tensor) -> tuple[Tensor, Tensor]:
    """(‖max(0, F_k)‖, ‖max(0, −F_k)‖) for every column k."""
    squares = torch.zeros(2, F.shape[1], dtype=_wide(F.device), device=F.device)
    for Fi in F.split(_piece_rows(F.shape[1], 2 * F.itemsize)):
        squares[0] += Fi.clamp(min=0).square_().sum(dim=0, dtype=squares.dtype)
        squares[1] += Fi.clamp(max=0).square_().sum(dim=0, dtype=squares.dtype)
    return tuple(squares.sqrt().to(F.dtype))


def _given_factor(
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


def _piece_rows(width: int, itemsize: int) -> int:
    return max(1, WORKSPACE_BYTES // (width * itemsize))


def _wide(device: torch.device) -> torch.dtype:
    # MPS has no float64
    return torch.float32 if device.type == "mps" else torch.float64
