"""HALS restricted to few concepts of each row, by the extension: as in reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ..pointers import view
from .reference import Compressed


def candidates_(S: Tensor, codes: Compressed, bound: float) -> Compressed:
    """As reference.candidates_; S is left as it is."""
    threads, given = torch.get_num_threads(), tuple(map(view, codes))
    crow = torch.empty_like(codes[0])
    _C.count_candidates(view(S), given, bound, view(crow), threads)
    nnz = int(crow[-1])
    out = crow, codes[1].new_empty(nnz), codes[2].new_empty(nnz)
    _C.fill_candidates(view(S), given, bound, tuple(map(view, out)), threads)
    return out


def hals_candidates_(
    codes: Compressed,
    E: Tensor,
    B: Tensor,
    penalty: tuple[float, Tensor, Tensor],
    sweeps: int,
    sums: Tensor,
) -> None:
    """As reference.hals_candidates_."""
    l1, *of_concepts = penalty
    how = (l1, *map(view, of_concepts)), sweeps, view(sums), torch.get_num_threads()
    _C.hals_candidates(tuple(map(view, codes)), view(E), view(B), *how)


def hals_concepts_(
    F: Tensor,
    E: Tensor,
    codes: Compressed,
    curvature: Tensor | None,
    sums: Tensor,
    bounded: bool = True,
) -> None:
    """As reference.hals_concepts_."""
    curved = None if curvature is None else view(curvature)
    how = curved, bounded, view(sums), torch.get_num_threads()
    _C.hals_concepts(view(F), view(E), tuple(map(view, codes)), *how)


OPERATIONS = {
    "candidates_": candidates_,
    "hals_candidates_": hals_candidates_,
    "hals_concepts_": hals_concepts_,
}
