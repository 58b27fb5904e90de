"""Exact non-negative least squares, and what codes need of the Gram matrix, by the extension: as in
reference.py and on_supports.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ... import _C
from ...precision import products_in
from .. import torch as reference
from ..pointers import NnlsLimits, nnls_arguments, nnls_operations, read_report, view
from .result import BLOCK, RANK_TOLERANCE, NnlsInfo

# concepts between which our products of rows with D are faster in float32: 0.6 of the vendor's time
# with 10, 1.2 with 50; in float64 0.4 to 0.7 up to 200 (AVX2 by AMD)
_FEW, _FEW_WIDE = (5, 16), 128
# of ‖e‖: a bound of what slopes of e with unit concepts are off in bfloat16, which rounds both, and
# the slopes, by 2⁻⁹ at most
ROUGHNESS = 2**-8 + 2**-9 + 2**-12
# entries of products from which bfloat16 is worth a copy of the concepts
_MANY_PRODUCTS = 1 << 25
# rows in flight, those of a pursuit, and their slopes and bytes of their factors at most: products
# of 512 rows with 10,000 concepts run at twice the rate of 128, and rows of a pursuit end together
_SLOTS, _SLOTS_OF_PURSUIT, _SLOPES, _FACTORS = 128, 512, 1 << 23, 1 << 29


def _solve_rows(F, C, gram, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    report = torch.empty(F.shape[1], 4, dtype=torch.float64, device="cpu")
    rows = nnls_arguments(F, C, gram, report, warm, max_steps)
    _C.nnls(*rows, view(sums), torch.get_num_threads())
    return read_report(report)


def cross_(out: Tensor, X: Tensor, D: Tensor, l1: float) -> None:
    """As torch.cross_."""
    (m, K), most = out.shape, _FEW_WIDE if out.dtype == torch.float64 else _FEW[1]
    if not _FEW[0] <= K <= most or not m or X.stride(1) != 1:
        return reference.cross_(out, X, D, l1)
    B = D.T.contiguous()
    _C.cross(view(out.T), view(X), view(B), l1, torch.get_num_threads())


def kkt_(out: Tensor, F: Tensor, C: Tensor, G: Tensor, penalty: tuple[float, float]) -> None:
    """As kkt_ of nnls/reference.py; F and C in any layout."""
    _C.kkt(view(out), view(F), view(C), view(G), penalty, torch.get_num_threads())


def solve_supports_(X: Tensor, R: Tensor, G: Tensor, used: Tensor) -> None:
    """As solve_supports_ of nnls/on_supports.py."""
    R, used = R.contiguous(), used.contiguous()
    dependent = torch.empty(len(X), dtype=torch.uint8, device="cpu")
    most = int(used.sum(1).max()) if used.numel() else 0
    limits, threads = (most, RANK_TOLERANCE[torch.float64]), torch.get_num_threads()
    chosen = view(used.view(torch.uint8)), view(dependent)
    _C.on_supports(view(X), view(R), view(G), *chosen, limits, threads)
    if len(left := dependent.nonzero()[:, 0]):
        some = torch.empty_like(R[left])
        reference.solve_supports_(some, R[left], G, used[left])
        X[left] = some


@functools.cache
def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: 2.4 times on AMD's Zen 4."""
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def nnls_rows_(
    F: Tensor,
    X: Tensor,
    concepts: tuple[Tensor, Tensor, Tensor | None, float, Tensor | None],
    sums: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
    most: int | None = None,
) -> NnlsInfo:
    """F ← argmin ½ ‖X − Fᵀ B‖² plus a penalty, over F ≥ 0, in place, each column separately.

    F (K, m) in any layout, X (m, p) with contiguous rows. concepts = (B, scale, unit, l1,
    curvature): fields of working_set.Concepts. warm: start from F, else from zero. max_steps: how
    many times concepts may enter the support of a column, up to BLOCK at once; None: most_steps(K).
    most: at most that many concepts for each column, by orthogonal matching pursuit: the steepest
    concept enters and F becomes the exact solution on the support, until it has that many. sums
    (3,) float64 is increased by ‖Δ‖², ‖F‖² and the squared residual.

    The slopes of all concepts are one product for all columns in flight; each takes some 10 to 40.
    Where the processor is faster in bfloat16, slopes that are still large are computed in it, and
    those of candidates again in float64: so the codes are as exact, and those of at most `most`
    concepts are chosen in the order of the exact slopes.
    """
    (K, m), p = F.shape, X.shape[1]
    B, scale, unit, l1, curvature = concepts
    report = torch.zeros(m, 4, dtype=torch.float64, device="cpu")
    if not F.numel():
        sums[2] += X.square().sum(dtype=torch.float64)
        return read_report(report)[0]
    # curved concepts are independent, however many they are
    capacity = K if curvature is not None else min(K, p)
    if most is not None:
        capacity = min(capacity, 2 * most + BLOCK)
    limits = NnlsLimits.of(F.dtype, K, max_steps, warm=warm)
    # products of concepts are computed in float64 as soon as they are in doubt
    limits = limits._replace(rank_tolerance=RANK_TOLERANCE[torch.float64], capacity=capacity)
    slots = _SLOTS if most is None else max(_SLOTS, min(_SLOTS_OF_PURSUIT, _SLOPES // K))
    slots = min(m, max(BLOCK, min(slots, _FACTORS // (4 * capacity**2))))
    W, E = F.new_empty(slots, K), F.new_empty(slots, p)
    unit, curvature = (None if M is None else view(M) for M in (unit, curvature))
    fixed = view(B), view(scale), unit, l1, curvature
    rough = m * K * p >= _MANY_PRODUCTS and F.dtype == torch.float32 and fast_bfloat16()
    search = most or 0, slots, ROUGHNESS if rough else 0.0
    rows = _C.nnls_rows(view(F), view(X), fixed, limits, search, view(report), view(sums))
    threads = torch.get_num_threads()
    narrow = (B.bfloat16().T, W.bfloat16()) if rough else None
    with products_in("highest"):
        while (found := rows.step(view(W), view(E), threads))[0]:
            active, first = found
            if narrow is not None and first:
                torch.mm(E[:first].bfloat16(), narrow[0], out=narrow[1][:first])
                W[:first] = narrow[1][:first]
            if first < active:
                torch.mm(E[first:active], B.T, out=W[first:active])
    return read_report(report)[0]


OPERATIONS = {
    **nnls_operations(_solve_rows),
    "nnls_rows_": nnls_rows_,
    "cross_": cross_,
    "kkt_": kkt_,
    "solve_supports_": solve_supports_,
}
