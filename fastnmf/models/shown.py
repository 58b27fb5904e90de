"""What a model shows of itself: plots of its fit, and its concepts."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import checks
from ..data.arrays import Expected, read_matrix
from ..errors import InvalidInput, NotFitted
from ..frames import names_of_columns
from ..isolation import isolated
from .base import DictionaryModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..results.concepts.concepts import Concepts
    from ..results.info import FitInfo

# codes that are dense beyond this number of entries are kept in compressed rows
_DENSE = 1 << 28


class ShownModel(DictionaryModel):
    """A model that draws its fit and shows its concepts. The class that extends it has
    `fit_info_`, `encode`, `get_dictionary`, `expected` and `public_name`."""

    fit_info_: FitInfo | None

    def plot(self) -> Figure:
        """Draw `fit_info_`: error over time, active concepts per row, energy of the concepts.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook displays it by itself; elsewhere save it by ``savefig``. pyplot is not used.

        Raises
        ------
        NotFitted
            If there is no summary of a fit.
        ModuleNotFoundError
            If matplotlib (the extra ``plot``) is not installed.
        """
        from ..results import plot

        self._assert_fitted()
        if self.fit_info_ is None:
            raise NotFitted(
                "there is no summary of a fit to draw, the dictionary was loaded or learned by "
                "partial_fit: call fit(A)"
            )
        return plot.draw(self.fit_info_)

    def _repr_html_(self) -> str:
        """How a notebook displays the model: its options, those that differ from their defaults
        set apart, and the summary of its fit or of its online learning."""
        from ..notebook import folded

        options = {
            name: each.default
            for name, each in inspect.signature(type(self).__init__).parameters.items()
            if each.kind is not each.VAR_KEYWORD and hasattr(self, name)
        }
        shown = {name: _option_text(getattr(self, name)) for name in options}
        marked = [name for name, value in options.items() if shown[name] != _option_text(value)]
        info: Any = self.fit_info_ or getattr(self, "online_info_", None)
        inside = "" if info is None else info._repr_html_()
        state = "fitted" if self.fitted else "not fitted"
        title = f"{type(self).__name__}({self.nb_concepts}), {state}"
        note = "bold: other than the default"
        return folded(title, shown, marked, inside=inside, note=note)

    @isolated
    def show_concepts(
        self,
        A: Any = None,
        Z: Any = None,
        *,
        weights: Any = None,
        features: Sequence[str] | None = None,
        rows: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        context: int = 8,
        image_shape: tuple[int, ...] | None = None,
        tokens: tuple[int, int] | None = None,
        images: Any = None,
        top: int = 8,
        details: int = 200,
        map: str = "svd",
    ) -> Concepts:
        """Show the concepts: what they are made of, and the rows that have most of them.

        Parameters
        ----------
        A : (…, d), non-negative in NMF, optional
            The data: a tensor, an array or a memory map, a data frame, a sparse matrix, or an
            AnnData. Without it Z is needed, and rows are shown by number, name or text only.
        Z : (…, K), optional
            Codes of A, as `fit` returns them, dense, a sparse tensor or a sparse matrix of SciPy.
            By default they are computed by `encode`.
        weights : matrix, optional
            Weights of the squared errors, as in `encode`, which computes the codes with them. What
            has the weight 0 may be NaN; in pictures it is estimated by the means of what is known.
        features : sequence of str, optional
            Names of the d features; by default those of the columns of a data frame, or of the
            variables of an AnnData.
        rows : sequence of str, optional
            Names of the n rows.
        texts : sequence of str, optional
            A word (token) for each of the n rows, in their order.
        context : int, default 8
            Words to show on each side of that of a row.
        image_shape : (h, w, c) or (h, w), optional
            Rows of A are images of this shape, with c = 1, 3 or 4. The concept, the mean of its top
            rows, and these rows are drawn.
        tokens : (h, w), optional
            Rows of A are the places of images, image after image, as from a convolution or a vision
            transformer. The codes are drawn over `images`.
        images : (N, H, W, c), optional
            The images of `tokens`: uint8, or numbers from 0 to 1.
        top : int, default 8
            Rows to show of each concept, at least 1.
        details : int, default 200
            Concepts, from the most energy down, of which more than numbers are shown; at least 0.
        map : {'svd', 'tsne', 'umap'}, default 'svd'
            How places on the map are found: on the two leading singular vectors, in a moment; by
            t-SNE, which needs scikit-learn; or by UMAP, which needs umap-learn. The last two are
            for 5 to 5,000 concepts, show groups better, and take longer: seconds to minutes.

        Returns
        -------
        Concepts
            Print it, let a notebook display it, or ``save('concepts.html')``.

        Raises
        ------
        NotFitted
            If there is no dictionary yet.
        InvalidInput
            For data or names that do not fit the model.
        ModuleNotFoundError
            If what the map needs is not installed.

        Notes
        -----
        The page has pictures of at most 3.5 MB, those of the concepts with the most energy. The map
        is one of the directions of the concepts, and the same in each call.

        Examples
        --------
        >>> import torch
        >>> from fastnmf import NMF
        >>> nmf = NMF(2).load_dictionary([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
        >>> print(nmf.show_concepts([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]], features=["a", "b", "c"]))
         concept   energy   active           like  top features
               0   83.33%   50.00%       1 (0.00)  a, c
               1   16.67%   50.00%       0 (0.00)  b
        """
        from ..results.concepts.gather import Wanted, gather
        from ..results.concepts.maps import MAPS

        D = self.get_dictionary().detach()
        named = {name: value for name, value in locals().items() if name in _WANTED}
        for name, least in (("context", 0), ("top", 1), ("details", 0)):
            named[name] = checks.whole(name, named[name], at_least=least)
        named["map"] = checks.one_of("map", map, MAPS)
        wanted = Wanted(**named, name=f"Concepts of {self.public_name()}")
        if A is None and Z is None:
            raise InvalidInput("show_concepts needs the data A, or their codes Z; give one of them")
        if features is None:
            wanted = replace(wanted, features=names_of_columns(A))
        with torch.no_grad():
            rows_of_A, of_weights = (None, None) if A is None else self._rows(A, weights, D)
            if Z is None:
                Z = self._computed(A, rows_of_A, of_weights)
            codes = _codes(rows_of_A, Z, len(D))
            return gather(rows_of_A, codes, D.cpu(), wanted)

    def _rows(self, A: Any, weights: Any, D: Tensor) -> tuple[Any, Any]:
        """A as a matrix (n, d) on the CPU, checked, with estimates of what has the weight 0; and
        the weights of the same shape."""
        from ..data.sparse.arrays import is_sparse, sparse_matrix
        from ..data.sparse.files import loaded
        from ..data.weights.given import read_weights
        from ..data.weights.observed import observed
        from ..fit.rows import with_weights_as_rows

        d, expected = D.shape[1], self.expected()
        A, weights, _ = with_weights_as_rows(loaded(A), weights, d)
        if is_sparse(A):
            A = sparse_matrix(A, expected)
        elif weights is None:
            A = read_matrix(A, "cpu", expected).detach()
        else:
            A = observed(A, read_weights(weights, d), expected, torch.device("cpu"))[0].detach()
        if A.shape[1] != d:
            raise InvalidInput(f"A has {A.shape[1]} features, the dictionary has {d}")
        return A, weights

    def _computed(self, A: Any, rows: Any, weights: Any) -> Tensor:
        """Codes of A, which has these rows."""
        place = "memory" if len(rows) * self.nb_concepts <= _DENSE else "sparse"
        # of these, zeros that are stored are left out
        return self.encode(A if isinstance(weights, str) else rows, weights=weights, codes=place)


def _codes(A: Any, Z: Any, K: int) -> Tensor:
    """Codes (n, K) of A, checked, on the CPU; sparse ones as a CSR tensor."""
    from ..data.sparse.arrays import is_sparse, sparse_matrix
    from ..data.sparse.codes import csr_tensor
    from ..fit.rows import as_rows

    expected = Expected("Z", K, "concepts")
    if is_sparse(Z):
        Z = csr_tensor(sparse_matrix(Z, expected))
    else:
        Z = read_matrix(as_rows(Z, K)[0], "cpu", expected)
    if A is not None and len(Z) != len(A):
        raise InvalidInput(f"Z has shape {tuple(Z.shape)}, A has {len(A):,} rows")
    return Z.detach()


def _option_text(value: Any) -> str:
    """An option in one line; factors by their shapes."""
    if isinstance(value, tuple):
        return ", ".join(f"{tuple(getattr(F, 'shape', ()))}" for F in value)
    return str(value) if isinstance(value, torch.device) else repr(value).strip("'")


_WANTED = (
    *("features", "rows", "texts", "context", "image_shape", "tokens", "images", "top", "details"),
)
