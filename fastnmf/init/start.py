"""Starts of a factorization: random, NNDSVDa, rows of the data, or given; by sums over chunks of
rows, of which data in memory are one."""

from __future__ import annotations

import difflib
import functools
import math
from typing import Any

import torch
from torch import Generator, Tensor

from ..backends.products import Matrix, Rebuilt, dense, dot, row_maxima
from ..data.dataset import Data
from ..data.storage import Compressed, InMemory, Kept, row_blocks
from ..errors import InvalidInput
from ..numerics import tiny, wide
from ..planning.memory import SINGULAR, return_memory
from ..solvers.constraints import NON_NEGATIVE, Constraint
from ..solvers.supports.rows import Mixture
from . import mixed, nndsvd, signed
from .drawn import codes_by_rows_, draw_codes_, drawn, drawn_codes
from .factors import given_codes, given_factor
from .rows import any_rows, spread_rows, take_rows
from .svd import tile_rows, width

# those in SINGULAR fill zeros with the mean, leave them, or fill them with small random numbers
STARTS = ("auto", "random", *SINGULAR, "rows", "spread")
# a fit of a sample of the rows, by fit/starts/sample.py, which begins with one of the others
SAMPLE = "sample"
# size of the numbers that fill zeros, relative to the mean; scikit-learn's number
_FILLED = 0.01


@torch.no_grad()
def start(
    data: Data,
    codes: Kept | None,
    K: int,
    init: Any = "auto",
    generator: Generator | None = None,
    constraint: Constraint = NON_NEGATIVE,
) -> Tensor:
    """Return D (K, d) to start from, and write its codes into `codes`; None: codes are not kept and
    have no part in the start.

    init: a name in STARTS, or (Z0, D0), which is copied as it is; Z0 is None for codes that are not
    kept. Other starts are scaled to the data. 'rows' and 'spread' take rows of A, any or such as
    differ from each other, and random concepts where there are too few; those in SINGULAR take rows
    for concepts beyond min(n, d). Their codes are then those of cold_start. In a fit that processes
    share, all get the same D up to rounding, and codes of the rows here. constraint: of the
    dictionary; those of a free one are in signed.py.
    """
    kind = resolve(init, data.n, data.d, K, constraint)
    if kind == "given":
        return _given(data, codes, K, init, constraint)
    if constraint.signed:
        return signed.start(data, codes, K, kind, generator)
    if kind in SINGULAR and min(data.n, data.d) >= K:
        D = _of_singular_vectors(data, codes, K, kind, generator)
    elif kind == "random":
        # codes first: Overcomplete's order, so that one seed means one start
        if codes is not None:
            draw_codes_(codes, data, (data.mean / K).sqrt(), generator)
        D = _draw_dictionary(data, K, generator)
    else:
        D = _dictionary_of_rows(data, K, kind, generator)
        if codes is not None:
            codes_by_rows_(codes, data, functools.partial(cold_start, D=D.clone()))
    if codes is not None:
        scale_to_data_(codes, D, data)
    if data.stored is not None:
        # whose workspaces may take more than the data
        return_memory()
    return D


def begin(
    data: Data,
    codes: Kept | None,
    K: int,
    init: Any,
    generator: Generator | None,
    constraint: Constraint,
) -> tuple[Tensor, Mixture | None]:
    """`start`, and the mixture that D is where concepts are mixtures of rows."""
    given = data, codes, K, init, generator
    if constraint.of_rows:
        return mixed.start(*given, convex=constraint.sums_to_one)
    return start(*given, constraint), None


def starts_of(constraint: Constraint) -> tuple[str, ...]:
    """The names of starts for dictionaries with this constraint."""
    if constraint.of_rows:
        return mixed.STARTS
    return (*(signed.STARTS if constraint.signed else STARTS), SAMPLE)


def resolve(init: object, n: int, d: int, K: int, constraint: Constraint = NON_NEGATIVE) -> str:
    """Name the start that `init` means: one of starts_of(constraint), but not 'auto', or 'given'.

    'auto' is Overcomplete's rule: nndsvda if K ≤ min(n, d), else random, which of all starts then
    leaves the least error (docs/starts.md); of a free dictionary, see signed.py. SAMPLE is no
    start of its own. Raises InvalidInput for an unknown name.
    """
    if not isinstance(init, str):
        return "given"
    if init not in (starts := starts_of(constraint)):
        nearest = difflib.get_close_matches(init, starts, n=1, cutoff=0)[0]
        raise InvalidInput(
            f"init={init!r} is no start (did you mean {nearest!r}?); give {_allowed(constraint)}"
        )
    if constraint.of_rows:
        return mixed.resolve(init)
    if constraint.signed:
        return signed.resolve(init, n, d, K)
    if init == "auto":
        return "nndsvda" if min(n, d) >= K else "random"
    return init


def cold_start(A: Matrix, D: Tensor, out: Tensor | None = None, *, free: bool = False) -> Tensor:
    """Codes (n, K), in `out` if given, that use every concept alike, scaled to each row:
    deterministic, differentiable, row by row. free: of D of any signs, as in signed.py.

    z_i = ⟨a_i, s⟩ / ‖s‖² for s = Σ_k D_k; zero for zero concepts and for zero rows.
    """
    if free:
        return signed.cold_start(A, D, out)
    total = D.sum(0)
    scale = dot(A, total) / total.square().sum().clamp(min=tiny(D))
    alive = (D.square().sum(1) > 0).to(D.dtype)
    return torch.mul(scale[:, None], alive, out=out)


@torch.no_grad()
def scale_to_data_(codes: Kept, D: Tensor, data: Data) -> None:
    """Z, D ← √c Z, √c D with c = ⟨A, ZD⟩ / ‖ZD‖², the scalar of least loss; in place. Rows of zeros
    get the codes zero, which half-steps may only approach.

    They are not scaled when A or ZD is zero. Summed in float64 over tiles of rows; 2 n d K flops.
    """
    sums = torch.zeros(2, dtype=wide(D.device), device=D.device)
    (inner, square), rebuilt = sums, Rebuilt(D)
    rows = tile_rows(width(data, len(D)), 2 * D.itemsize)
    # rows that are made whenever they are read are multiplied then
    made, all_used = codes.start if isinstance(codes, Compressed) else None, []
    for X, Z, _ in data.tiles(codes, rows, save=made is None):
        used = row_maxima(X)[:, None] > 0
        all_used.append(used[:, 0])
        # a GPU would be waited for in every tile
        if X.device.type != "cpu" or not used.all():
            Z.mul_(used)
        product, its_square = rebuilt.inner_and_square(X, Z)
        inner += product
        square += its_square
    data.processes.sum_(sums)
    inner, square = sums.tolist()
    root = 1.0
    if 0 < inner < math.inf and 0 < square < math.inf:
        root = math.sqrt(inner / square)
        for Z in codes.blocks_() if made is None else ():
            Z.mul_(root)
        D *= root
    if made is not None:
        made.used, made.factor = torch.cat(all_used), root


# what Overcomplete's methods of these names return, of a matrix A in memory


def random_codes(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """Z (n, K) = |normal| · sqrt(mean(A) / K), Overcomplete's random start.

    On A's device, in the dtype that is computed in. Drawn where the generator lives; None is
    torch's global generator of A's device.
    """
    data = Data(A)
    codes = _codes_of(data, K)
    draw_codes_(codes, data, (data.mean / K).sqrt(), generator)
    return codes.Z


def random_dictionary(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """D (K, d) = |normal| · sqrt(mean(A) / K); the rest as for random_codes."""
    return _draw_dictionary(Data(A), K, generator)


def nndsvda(A: Tensor, K: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """(Z, D) of nndsvd.nndsvda with unit 1, not scaled to the data.

    Raises InvalidInput when K > min(n, d).
    """
    if K > min(A.shape):
        raise InvalidInput(
            f"init='nndsvda' needs nb_concepts ≤ min(n, d), got nb_concepts={K} for A of shape "
            f"{tuple(A.shape)}; use init='random'"
        )
    data = Data(A)
    codes = _codes_of(data, K)
    D = nndsvd.nndsvd(data, codes, K, generator)
    return codes.Z, D


def _of_singular_vectors(
    data: Data, codes: Kept | None, K: int, kind: str, generator: Generator | None
) -> Tensor:
    """D (K, d) by one of SINGULAR, of A in units of its mean; its codes go into `codes`."""
    unit = nndsvd.unit_of(data)
    D = nndsvd.nndsvd(data, codes, K, generator, unit, fills=kind == "nndsvda")
    if kind == "nndsvdar":
        share = data.mean / unit * _FILLED
        for part, fill in () if codes is None else drawn_codes(data, K, generator):
            Z = codes.load(part)
            codes.save(part, torch.where(Z.to(fill) > 0, Z.to(fill), fill.mul_(share)))
        D = torch.where(D > 0, D, drawn((K, data.d), data, generator).abs_().mul_(share))
    return D


def _codes_of(data: Data, K: int) -> InMemory:
    return InMemory(data.like.new_empty(data.n, K))


@torch.no_grad()
def _draw_dictionary(data: Data, K: int, generator: Generator | None) -> Tensor:
    """D (K, d) = |normal| · sqrt(mean(A) / K)."""
    return drawn((K, data.d), data, generator).abs_().mul_((data.mean / K).sqrt())


def _dictionary_of_rows(data: Data, K: int, kind: str, generator: Generator | None) -> Tensor:
    """D (K, d) of rows: after concepts of SINGULAR, as long as they; before random ones."""
    D = data.like.new_empty(0, data.d)
    if kind in SINGULAR:
        D = _of_singular_vectors(data, None, min(data.n, data.d), kind, generator)
        norm = torch.linalg.vector_norm(D).clamp(min=tiny(D))
        # the mean square of a row is that of a concept
        D *= float(data.squared_norm) ** 0.5 / norm * (len(D) / data.n) ** 0.5
    draw = spread_rows if kind == "spread" else any_rows
    D = torch.cat((D, take_rows(data, draw(data, K - len(D), generator))))
    if len(D) < K:
        D = torch.cat((D, _draw_dictionary(data, K, generator)[len(D) :]))
    return D


def _allowed(constraint: Constraint) -> str:
    return f"one of {starts_of(constraint)} or a pair (Z0, D0)"


def _given(data: Data, codes: Kept | None, K: int, init: object, constraint: Constraint) -> Tensor:
    """A copy of the given D0; Z0, or where that is None a cold start, goes into codes. Raises
    InvalidInput unless the shapes fit and every entry is finite and, in Z0 and by the constraint in
    D0, non-negative in the dtype that is computed in."""
    if not isinstance(init, (tuple, list)) or len(init) != 2:
        size = f" of {len(init)}" if isinstance(init, (tuple, list)) else ""
        given = f"init is a {type(init).__name__}{size}"
        raise InvalidInput(f"{given}; give {_allowed(constraint)}")
    if codes is None and init[0] is not None:
        raise InvalidInput(
            "init=(Z0, D0) gives codes, and codes=None keeps none; give init=(None, D0)"
        )
    shape, cold = (K, data.d), init[0] is None
    Z = None if codes is None or cold else given_codes(init[0], (data.n_here, K), data.like)
    D = given_factor("D0", init[1], shape, data.like, signed=constraint.signed)
    for part in () if Z is None else row_blocks(data.n_here, data.chunk_rows):
        codes.save(part, dense(Z[part]))
    D = D.clone(memory_format=torch.contiguous_format)
    if codes is not None and cold:
        made = functools.partial(cold_start, D=D.clone(), free=constraint.signed)
        codes_by_rows_(codes, data, made)
    return D
