"""What is shown of concepts, gathered from codes, dictionary and data."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.products import Matrix, dense
from ...errors import InvalidInput
from .concepts import Concepts
from .maps import places
from .pictures import Heat, Patches, kind_of
from .statistics import (
    Numbers,
    histograms,
    largest_of_groups,
    numbers_of,
    top_rows,
    twins,
)

# top features of each concept; those of concepts with details
FEATURES, DETAILED = 5, 10
# bytes of pictures on a page, at most
_BYTES = 3_500_000


@dataclass(frozen=True)
class Wanted:
    """What a caller says about rows and features. texts: a word of each row, and how many words of
    context to show on each side."""

    features: Sequence[str] | None = None
    rows: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    context: int = 8
    image_shape: Any = None
    tokens: Any = None
    images: Any = None
    top: int = 8
    details: int = 200
    map: str = "svd"
    name: str = "Concepts"


def gather(A: Matrix | None, Z: Tensor, D: Tensor, wanted: Wanted) -> Concepts:
    """The concepts of codes Z (n, K) and a dictionary D (K, d), both on the CPU. A (n, d): the
    rows, or None where there are only texts or labels to show."""
    n, d = len(Z), D.shape[1]
    names = _names("features", wanted.features, d, "features")
    rows = _names("rows", wanted.rows, n, "rows")
    texts = _names("texts", wanted.texts, n, "rows")
    kind = kind_of(n, d, wanted.image_shape, wanted.tokens, wanted.images)
    # before what takes longer: it may be refused
    xy = places(D, wanted.map)
    numbers = numbers_of(Z, D)
    chosen = numbers.energy.argsort(descending=True)[: wanted.details]
    chosen = chosen[numbers.energy[chosen] > 0]
    found = _Details((A, Z, D), numbers, chosen, wanted.top)
    details, left = found.common(names), _BYTES
    for place, k in enumerate(chosen.tolist()):
        shown = found.pictures(place, kind) if left > 0 else {}
        left -= len(shown.get("picture", ""))
        details[k] |= shown | found.rows(place, rows, texts, wanted.context)
    features = top_features(D, names)
    return Concepts(numbers, xy, features, details, wanted.name, wanted.map)


def of_dictionary(
    D: Tensor, energy: Sequence[float], name: str, image_shape: Any = None
) -> Concepts:
    """The concepts of a model of which only the dictionary D (K, d) and the energy are there."""
    none = torch.full((len(D),), torch.nan, dtype=torch.float64, device="cpu")
    share = torch.tensor(energy, dtype=torch.float64, device="cpu")
    numbers = Numbers(share, none, none, none, *twins(D))
    chosen = share.argsort(descending=True)[: Wanted.details]
    kind, left = kind_of(0, D.shape[1], image_shape, None, None), _BYTES
    details: dict[int, dict[str, Any]] = {}
    for k in chosen[share[chosen] > 0].tolist():
        details[k] = {"features": _weights(D[k], None)}
        if isinstance(kind, Patches) and left > 0:
            picture = kind.picture(D[k].float().numpy(), np.zeros((0, D.shape[1])))
            left -= len(picture)
            details[k] |= {"picture": picture, "alt": f"Concept {k}"}
    return Concepts(numbers, places(D), top_features(D, None), details, name)


def top_features(D: Tensor, names: Sequence[str] | None) -> list[list[str]]:
    """The names of the features with the largest absolute weights of each concept; those of
    weight 0 are left out."""
    weights, place = D.abs().topk(min(FEATURES, D.shape[1]), dim=1)
    listed = zip(place.tolist(), weights.tolist(), strict=True)
    return [
        [_name(names, j) for j, weight in zip(*each, strict=True) if weight > 0] for each in listed
    ]


class _Details:
    """What is shown of the chosen concepts."""

    def __init__(
        self,
        factors: tuple[Matrix | None, Tensor, Tensor],
        numbers: Numbers,
        chosen: Tensor,
        top: int,
    ) -> None:
        """factors: A, Z and D, as `gather` takes them."""
        self.A, self.Z, self.D = factors
        self.numbers, self.chosen = numbers, chosen
        self.top = top
        self._rows, self._codes = top_rows(self.Z, chosen, top)
        self._largest: Tensor | None = None

    def _tops(self, place: int) -> tuple[list[int], list[float]]:
        """The top rows of a chosen concept, and their codes."""
        codes = self._codes[place]
        return self._rows[place][codes > 0].tolist(), codes[codes > 0].tolist()

    def common(self, names: Sequence[str] | None) -> dict[int, dict[str, Any]]:
        """Top features with their weights, and the histogram, of each chosen concept."""
        counts = histograms(self.Z, self.chosen, self.numbers.largest).tolist()
        return {
            k: {"features": _weights(self.D[k], names), "histogram": bars}
            for k, bars in zip(self.chosen.tolist(), counts, strict=True)
        }

    def rows(
        self,
        place: int,
        names: Sequence[str] | None,
        texts: Sequence[str] | None,
        context: int,
    ) -> dict[str, Any]:
        """The top rows of a chosen concept: number, code, name, and the words around it."""
        listed = []
        for i, code in zip(*self._tops(place), strict=True):
            row: dict[str, Any] = {"row": i, "code": code}
            if names is not None:
                row["name"] = names[i]
            if texts is not None:
                row["word"] = texts[i]
                row["before"] = " ".join(texts[max(0, i - context) : i])
                row["after"] = " ".join(texts[i + 1 : i + 1 + context])
            listed.append(row)
        return {"rows": listed}

    def pictures(self, place: int, kind: Patches | Heat | None) -> dict[str, Any]:
        """The picture of a chosen concept, and what is seen on it."""
        k, (tops, _) = int(self.chosen[place]), self._tops(place)
        if isinstance(kind, Patches):
            shown = self._data(tops)
            text = f"Concept {k}, the mean of its {len(shown)} top rows, and these rows"
            return {"picture": kind.picture(self.D[k].numpy(), shown), "alt": text}
        if isinstance(kind, Heat):
            h, w = kind.tokens
            best, images = self._of_images(h * w)[place].topk(min(self.top, len(kind.images)))
            images = images[best > 0].tolist()
            if images:
                codes = [_codes_of(self.Z, number * h * w, h * w, k) for number in images]
                heat = np.stack([each.reshape(h, w) for each in codes])
                text = f"Codes of concept {k} over images {', '.join(map(str, images))}"
                return {"picture": kind.picture(images, heat), "alt": text}
        return {}

    def _of_images(self, count: int) -> Tensor:
        """The largest code (chosen, N) in each image, which is `count` rows."""
        if self._largest is None:
            self._largest = largest_of_groups(self.Z, self.chosen, count)
        return self._largest

    def _data(self, tops: list[int]) -> np.ndarray:
        """Rows of A, where it is there."""
        if self.A is None or not tops:
            return np.zeros((0, self.D.shape[1]), np.float32)
        return torch.cat([dense(self.A[i : i + 1]).float() for i in tops]).numpy()


def _codes_of(Z: Tensor, first: int, count: int, k: int) -> np.ndarray:
    if not Z.is_sparse_csr:
        return Z[first : first + count, k].float().numpy()
    crow, found = Z.crow_indices(), np.zeros(count, np.float32)
    for row in range(count):
        inside = slice(int(crow[first + row]), int(crow[first + row + 1]))
        here = (Z.col_indices()[inside] == k).nonzero()
        if len(here):
            found[row] = float(Z.values()[inside][here[0, 0]])
    return found


def _weights(concept: Tensor, names: Sequence[str] | None) -> list[tuple[str, float]]:
    """The top features of a concept (d,), with their weights."""
    place = concept.abs().topk(min(DETAILED, len(concept))).indices.tolist()
    return [(_name(names, j), float(concept[j])) for j in place if float(concept[j]) != 0]


def _name(names: Sequence[str] | None, number: int) -> str:
    return str(number) if names is None else names[number]


def _names(option: str, given: Any, count: int, of: str) -> list[str] | None:
    """Names as text. Raises InvalidInput for another number of them."""
    if given is None:
        return None
    if isinstance(given, str) or not hasattr(given, "__len__"):
        raise InvalidInput(f"{option}= must be a list of {count:,} names; give one for each")
    if len(given) != count:
        raise InvalidInput(f"{option}= has {len(given):,} names, A has {count:,} {of}")
    # what is no text in UTF-8, as half of a character, could not be written
    return [str(name).encode("utf-8", "replace").decode() for name in given]
