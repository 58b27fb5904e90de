"""Random problems of exact non-negative least squares, and their check:
python tests/fuzz_nnls.py --problems 200000 --backend cpp.

Codes must be finite, never worse than zero codes, have a small KKT residual and a true info, and
their squared error must be near a lower bound of what any codes reach. The bound is of a dual
problem, so it holds whoever solved the problem. Where concepts depend on each other it may be
loose: an error above it is a fault only if scipy finds codes with a smaller one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import fastnmf
from fastnmf.backends.nnls.residual import measure, solve_by_residual
from fastnmf.backends.nnls.result import SOLVED
from fastnmf.exact import kept, rows

# features and concepts: fewer, as many and many more concepts than features
SIZES = ((2, 3), (3, 8), (10, 10), (10, 40), (20, 60), (64, 128), (64, 512))
KINDS = (
    "gaussian",
    "integers",
    "spanning",
    "duplicated",
    "nearly dependent",
    "non-negative",
    "non-negative, nearly dependent",
    "nearly orthogonal",
)
# of ‖a‖²: by how much a squared error may be above the least; and the KKT residual
OBJECTIVE = {torch.float32: 1e-5, torch.float64: 1e-9}
KKT = {torch.float32: 1e-5, torch.float64: 1e-9}
# of ‖a‖²: a bound that is no further below the error is close enough
_CLOSE = 1e-10
# of ‖a‖: slopes of unit concepts above minus this are zero or positive, for all that rounding shows
# in float64, and with as many digits as NumPy has
_ROUNDING = {np.float64: 1e-15, np.longdouble: 10 * float(np.finfo(np.longdouble).eps)}


def draw(kind: str, d: int, K: int, rows: int, generator: np.random.Generator):
    """A (rows, d) and D (K, d) in float64."""
    A, D = generator.normal(size=(rows, d)), generator.normal(size=(K, d))
    half = K // 2
    if kind == "integers":
        A, D = np.round(2 * A), np.round(2 * D)
    elif kind == "spanning":
        # pairs of opposite concepts: some x ≥ 0 has Dᵀ x = 0
        D[half : 2 * half] = -D[:half]
    elif kind == "duplicated":
        D[half : 2 * half] = D[:half]
    if "non-negative" in kind:
        A, D = abs(A), abs(D)
    elif kind == "nearly orthogonal":
        # of data to all concepts: products of them cancel
        D = abs(D)
        A += -A @ np.linalg.pinv(D) @ D + 1e-5 * abs(A) @ np.linalg.pinv(D) @ D
    if "nearly dependent" in kind:
        D[half : 2 * half] = D[:half] + 10.0 ** -generator.uniform(3, 9) * D[half : 2 * half]
    return A, D


def lower_bound(a: np.ndarray, D: np.ndarray, z: np.ndarray, number: type = np.float64) -> float:
    """A lower bound of ‖a − y D‖² over y ≥ 0, close to it where z (K,) is near a solution.

    For any u with D u ≤ 0 and y ≥ 0, u·a ≤ u·(a − y D) ≤ ‖u‖ ‖a − y D‖; so (u·a)² / ‖u‖² is a
    bound where u·a > 0. u is the residual a − z D without its part in the span of all concepts
    whose slope is positive or zero up to rounding: their slopes are then zero, and the others
    negative by more than rounding. number: the type to compute with. Where concepts depend on each
    other up to 10⁻⁹, float64 leaves seven digits of that span.
    """
    a, D, z = (np.asarray(M, dtype=number) for M in (a, D, z))
    norms = np.sqrt(np.square(D).sum(1))
    unit = D[norms > 0] / norms[norms > 0, None]
    size, u = np.sqrt(a @ a), a - z @ D
    near = np.zeros(len(unit), dtype=bool)
    while np.sqrt(u @ u) > 1e-12 * size:
        joining = (unit @ u > -_ROUNDING[number] * size) & ~near
        if not joining.any():
            along = max(number(0), a @ u)
            return float(along**2 / (u @ u))
        near |= joining
        basis = span(unit[near]) if number is np.float64 else span_of_many_digits(unit[near])
        # twice, as the first leaves rounding
        for _ in range(2):
            u = u - basis.T @ (basis @ u)
    return 0.0


def span(unit: np.ndarray) -> np.ndarray:
    """An orthonormal basis (r, d) of the rows (q, d), in float64."""
    _, values, basis = np.linalg.svd(unit, full_matrices=False)
    return basis[values > 1e-14 * values[0]]


def span_of_many_digits(unit: np.ndarray) -> np.ndarray:
    """The same in the type of `unit`, by the Gram-Schmidt process, the row that is furthest from
    the span of those before it first."""
    left, basis, least = unit.copy(), [], 1e3 * np.finfo(unit.dtype).eps
    while len(basis) < min(unit.shape):
        far = int(np.square(left).sum(1).argmax())
        row, size = left[far], np.sqrt(left[far] @ left[far])
        if not size > least:
            break
        for other in basis:
            row = row - (other @ row) * other
        basis.append(row / np.sqrt(row @ row))
        left = left - (left @ basis[-1])[:, None] * basis[-1]
    return np.array(basis)


def lower_bound_of_slopes(a: np.ndarray, D: np.ndarray, z: np.ndarray) -> float:
    """A lower bound of ‖a − y D‖² over y ≥ 0 for D ≥ 0, close to it where z (K,) nearly solves.

    By convexity it is at least ‖a − z D‖² + 2 w·z − 2 w·y for the slopes w = D (a − z D)ᵀ. A y that
    is no worse than zero has ‖y D‖ ≤ 2 ‖a‖, so Σ y_k ‖D_k‖ ≤ ‖y D‖₁ ≤ 2 √d ‖a‖ bounds w·y.
    """
    norms, e = np.linalg.norm(D, axis=1), a - z @ D
    w = D @ e
    steepest = (w[norms > 0] / norms[norms > 0]).max(initial=0)
    most = 2 * np.sqrt(len(a)) * np.linalg.norm(a)
    return float(e @ e + 2 * w @ z - 2 * steepest * most)


def gap(a: np.ndarray, D: np.ndarray, z: np.ndarray, reference: np.ndarray) -> float:
    """How far the squared error of z is above a lower bound, relative to ‖a‖². reference: codes
    near a solution."""
    square = max(a @ a, np.finfo(float).tiny)
    error, least = np.square(a - z @ D).sum() / square, 0.0
    # the cheapest first
    bounds = [lower_bound_of_slopes] if (D >= 0).all() else []
    for bound in (*bounds, lower_bound):
        if error - least <= _CLOSE:
            return error - least
        least = max(least, bound(a, D, reference) / square)
    if error - least > _CLOSE:
        other = solve_by_residual(*map(torch.from_numpy, (a, D)), 1e-14).numpy()
        least = max(least, lower_bound(a, D, other) / square)
        for codes in (reference, other):
            if error - least > _CLOSE:
                least = max(least, lower_bound(a, D, codes, np.longdouble) / square)
    return error - least


def least_found(a: np.ndarray, D: np.ndarray) -> float:
    """The squared error, relative to ‖a‖², of the codes that scipy's solver finds in float64, with
    exact codes on their support."""
    from scipy import optimize

    try:
        z = optimize.nnls(D.T, a, maxiter=30 * len(D))[0]
    except RuntimeError:  # its limit of iterations
        return np.inf
    used = z > 0
    polished = np.zeros_like(z)
    polished[used] = np.linalg.lstsq(D[used].T, a, rcond=None)[0]
    errors = [np.square(a - y @ D).sum() for y in (z, polished) if (y >= 0).all()]
    return float(min(errors) / max(a @ a, np.finfo(float).tiny))


def gaps(A: torch.Tensor, D: torch.Tensor, Z: torch.Tensor) -> np.ndarray:
    """The gap of each row (n,); where it is a fault, rather that to codes of another solver, if
    these are no better."""
    dtype, references, (A, D, wide) = Z.dtype, Z, (M.double() for M in (A, D, Z))
    if Z.dtype != torch.float64:
        with warnings.catch_warnings(action="ignore"):
            references = fastnmf.nnls(A, D)
    A, D, Z, references = (M.numpy() for M in (A, D, wide, references))
    found = np.array([gap(a, D, z, near) for a, z, near in zip(A, Z, references, strict=True)])
    for i in np.flatnonzero(found > OBJECTIVE[dtype]):
        error = np.square(A[i] - Z[i] @ D).sum() / max(A[i] @ A[i], np.finfo(float).tiny)
        other = least_found(A[i], D)
        found[i] = min(found[i], max(0.0, error - other)) if np.isfinite(other) else found[i]
    return found


def faults(A: torch.Tensor, D: torch.Tensor, backend: str) -> list[str]:
    """What is wrong with the codes of A, and with what is reported of them."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Z, info = fastnmf.nnls(A, D, backend=backend, return_info=True)
    found = []
    kkt, change, _ = measure(A, D, Z)
    if not bool(Z.isfinite().all() and (Z >= 0).all()):
        found.append("codes that are not finite or negative")
    if bool((change > 0).any()):
        found.append(f"{int((change > 0).sum())} rows worse than zero codes")
    if float(kkt.max()) > KKT[Z.dtype]:
        found.append(f"KKT residual {float(kkt.max()):.1e}")
    solved = info.status == SOLVED
    if not torch.allclose(info.kkt, kkt, rtol=1e-3, atol=1e-14):
        found.append("a KKT residual that is not true")
    if bool(solved.all()) == bool(warned):
        found.append(f"{int((~solved).sum())} rows unsolved, {len(warned)} warnings")
    above = gaps(A, D, Z)[solved.numpy()]
    if (above > OBJECTIVE[Z.dtype]).any():
        found.append(f"a squared error {above.max():.1e} of ‖a‖² above the least, called solved")
    return found + [f"{int(solved.logical_not().sum())} rows unsolved"] * (not bool(solved.all()))


@contextlib.contextmanager
def backend_named(name: str):
    """The backend of this name; 'emulated' is that of CUDA, compiled for the CPU."""
    if name != "emulated":
        yield name
        return
    import emulated

    with tempfile.TemporaryDirectory() as folder:
        emulated.build(Path(folder))
        with emulated.installed(Path(folder) / "_cuda.so"):
            yield "cuda"


@contextlib.contextmanager
def form_forced(form: str | None):
    """All solves in this form; None: in the one that is faster."""
    faster, few = rows._faster_form, kept._ROWS
    if form is not None:
        rows._faster_form = lambda *given: form
        # what is kept for few rows has a form of its own
        kept._ROWS = 0
    try:
        yield
    finally:
        rows._faster_form, kept._ROWS = faster, few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200_000)
    parser.add_argument("--backend", default="cpp", help="cpp, torch, cuda or emulated")
    parser.add_argument("--form", choices=("normal", "residual"), help="of all solves, if given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=50, help="problems for each dictionary (50)")
    arguments = parser.parse_args()
    generator, begun = np.random.default_rng(arguments.seed), time.perf_counter()
    together = arguments.rows
    cases = list(itertools.product(SIZES, KINDS, OBJECTIVE))
    done = failed = 0
    with backend_named(arguments.backend) as backend, form_forced(arguments.form):
        while done < arguments.problems:
            for (d, K), kind, dtype in cases:
                A, D = (
                    torch.from_numpy(M).to(dtype) for M in draw(kind, d, K, together, generator)
                )
                for fault in faults(A, D, backend):
                    failed += 1
                    print(f"d = {d}, K = {K}, {kind}, {dtype}: {fault}", flush=True)
                done += together
    seconds = time.perf_counter() - begun
    print(f"{done:,} problems on {arguments.backend} in {seconds:.0f} s: {failed} faults")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
