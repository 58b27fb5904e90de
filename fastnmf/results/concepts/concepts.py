"""The concepts of a model, for a person to look at: as text, as a page, in a notebook."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import os
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ...data.paths import check_output, replacing
from . import page
from .statistics import Numbers

SUFFIXES = (".html", ".htm")
# concepts that printing shows, at most
_PRINTED = 20


@dataclass(frozen=True, eq=False)
class Concepts:
    """The concepts of a model: print it, let a notebook display it, or save it as a page.

    Attributes
    ----------
    numbers : Numbers
        Tensors (K,) of each concept: ``energy``, its share of Σ ‖Z_k‖² ‖D_k‖²; ``active``, the
        share of the rows that have a code of it; ``largest`` and ``mean`` of these codes; ``twin``,
        the most similar other concept, and ``cosine``, how similar that is.
    places : Tensor (K, 2)
        The map, each axis from −1 to 1.
    features : list of list of str
        The names of the top features of each concept.
    details : dict
        Of the concepts with the most energy: top features with their weights, top rows, histogram
        of the codes, and pictures, by the number of the concept.
    name : str
        What the page is called.
    map : str
        How the map was made: 'svd', 'tsne' or 'umap'.
    """

    numbers: Numbers
    places: Any
    features: list[list[str]]
    details: dict[int, dict[str, Any]] = field(repr=False)
    name: str
    map: str = "svd"

    def __len__(self) -> int:
        return len(self.features)

    def __str__(self) -> str:
        order = self.numbers.energy.argsort(descending=True).tolist()
        lines = [f"{'concept':>8} {'energy':>8} {'active':>8}  {'like':>13}  top features"]
        for k in order[:_PRINTED]:
            twin, cosine = int(self.numbers.twin[k]), float(self.numbers.cosine[k])
            like = f"{twin} ({cosine:.2f})" if twin >= 0 else ""
            lines.append(
                f"{k:>8,} {float(self.numbers.energy[k]):>8.2%} "
                f"{float(self.numbers.active[k]):>8.2%}  {like:>13}  {', '.join(self.features[k])}"
            )
        left = len(order) - _PRINTED
        more = [f"{left:,} more; save('concepts.html') shows all"] if left > 0 else []
        return "\n".join([*lines, *more])

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self):,} concepts; print() or save('concepts.html') shows them>"

    def html(self) -> str:
        """Return the page: one HTML text without links to other files."""
        return page.compose(self)

    def _repr_html_(self) -> str:
        style = "width:100%;height:44rem;border:0"
        title = escape(self.name, quote=True)
        content = escape(self.html(), quote=True)
        return f'<iframe title="{title}" style="{style}" srcdoc="{content}"></iframe>'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, whole or not at all.

        Parameters
        ----------
        path : path
            An .html file.

        Raises
        ------
        InvalidInput
            For another suffix.
        OSError
            If the file cannot be written.
        """
        path, content = check_output(path, SUFFIXES), self.html()
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
