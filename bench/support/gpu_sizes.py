"""The sizes of the GPU study: in full, and small enough to rehearse it without a GPU."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fastnmf.planning.plan import REFRESH

Size = tuple[int, int, int]
# options of the fits whose graphs are checked
GRAPHED = {
    "accelerated": {},
    "plain": {"accelerate": False},
    "penalised": {"alpha_Z": 1e-3, "alpha_D": 1e-3, "l1_ratio": 0.5},
    "unit norm": {"alpha_Z": 1e-3, "l1_ratio": 1.0, "unit_norm": True},
}


@dataclass(frozen=True)
class Sizes:
    """Each is n rows, d features, K concepts.

    checked: of every kernel. normal: of those of few concepts. unpacked: of those that copy an
    operand unless it is large. first: of the sweep, before HALS is timed. graphs: of fits with CUDA
    graphs, their iterations, and which fits. many, few, narrow (16 bits), million, streamed: of
    what is timed. repeats: iterations that are timed together, and rounds after the one that
    compiles and warms up; 0: that one is timed. loop: concepts of Overcomplete's loop over concepts
    that are timed of `many`, the rest is extrapolated. accelerated: which fits of `few` are timed,
    (solver, accelerate). iterations: of these fits, narrow ones and streamed ones. nnls,
    nnls_timed, exact_fits: of exact least squares. rows: of these, those that a slow contender
    begins with.
    """

    first: tuple[Size, ...]
    checked: tuple[Size, ...]
    normal: tuple[Size, ...]
    unpacked: tuple[Size, ...]
    graphs: tuple[Size, int, tuple[tuple[str, str], ...]]
    many: Size
    repeats: tuple[int, int]
    loop: int
    few: Size
    accelerated: tuple[tuple[str, str | bool], ...]
    narrow: Size
    million: Size
    streamed: Size
    iterations: tuple[int, int, int]
    nnls: tuple[Size, ...]
    nnls_timed: tuple[Size, ...]
    exact_fits: tuple[Size, ...]
    rows: int


FULL = Sizes(
    # a block of 1,024 concepts, which is the widest that a plan takes
    first=((20_000, 768, 1024),),
    # aligned to nothing; the widest block
    checked=((5_003, 77, 131), (20_000, 768, 1024)),
    # a tile is too wide for so few
    normal=((63_701, 384, 10),),
    # all codes take more than kernels/packing.py copies
    unpacked=((70_000, 64, 1024),),
    graphs=((20_000, 512, 10), 30, tuple(itertools.product(("hals", "mu", "pgd"), GRAPHED))),
    many=(100_000, 768, 10_000),
    # which share one residual, as in a fit
    repeats=(REFRESH, 2),
    loop=64,
    few=(63_700, 2_048, 10),
    accelerated=tuple(itertools.product(("hals", "mu", "pgd"), (False, "auto"))),
    narrow=(400_000, 2_048, 50),
    million=(1_000_000, 768, 10_000),
    streamed=(400_000, 2_048, 50),
    iterations=(100, 10, 5),
    # a warp a row, a block a row, more concepts than features, working sets
    nnls=((5_003, 64, 32), (2_001, 256, 200), (601, 128, 512), (301, 256, 6_000)),
    nnls_timed=((100_000, 64, 32), (100_000, 256, 128), (20_000, 384, 2_000), (4_000, 768, 10_000)),
    exact_fits=((60_000, 384, 256), (20_000, 384, 1_000)),
    rows=16,
)
# the interpreter takes up to a second for a tile of a sweep
SMALL = Sizes(
    first=((6, 5, 3),),
    checked=((6, 5, 3),),
    normal=((7, 5, 2),),
    unpacked=((4, 5, 2),),
    graphs=((12, 5, 2), 4, (("hals", "plain"), *(("mu", variant) for variant in GRAPHED))),
    many=(12, 6, 8),
    repeats=(1, 0),
    loop=2,
    few=(12, 6, 2),
    accelerated=(("hals", False), ("mu", False), ("mu", "auto"), ("pgd", False)),
    narrow=(12, 6, 2),
    million=(12, 6, 8),
    streamed=(96, 16, 3),
    iterations=(4, 1, 1),
    nnls=((5, 4, 6),),
    nnls_timed=((5, 4, 3),),
    exact_fits=((8, 5, 3),),
    rows=3,
)
