"""What to write here for names of elsewhere: options and attributes of scikit-learn's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from ..fit.options import ELSEWHERE, refuse_unknown

P = ParamSpec("P")

# names that users of scikit-learn look for, and what they are here
ATTRIBUTES = {
    "transform": "encode(A)",
    "fit_transform": "fit(A), which returns (Z, D)",
    "inverse_transform": "decode(Z)",
    "components_": "get_dictionary() or D",
    "reconstruction_err_": "fit_info_.relative_error",
    "n_iter_": "fit_info_.iterations",
}


def with_hints(init: Callable[P, None]) -> Callable[P, None]:
    """The constructor of a model, which says what to write for a name of elsewhere before Python
    says that nb_concepts is missing."""

    @functools.wraps(init)
    def hinting(*given: P.args, **options: P.kwargs) -> None:
        if len(given) == 1 and "nb_concepts" not in options:
            refuse_unknown({name: options[name] for name in options if name in ELSEWHERE}, "NMF")
        init(*given, **options)  # pyright: ignore[reportCallIssue]

    return hinting
