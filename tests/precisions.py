"""Settings of torch's float32 precision by both of its interfaces, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# torch 2.9 and later
NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")
OLDER = ("highest", "high", "medium")
INHERITED = ("none", "ieee", "tf32")
VALUES = (*INHERITED, "bf16")


def _set(backend: str, operation: str, value: str) -> None:
    # no public setter of the parent of mkldnn: that sets the one of all backends
    torch._C._set_fp32_precision_setter(backend, operation, value)


@dataclass(frozen=True)
class Setting:
    """Values of the older interface, and of the newer one for all operations and for products;
    cuda, mkldnn: None for what the older one makes them."""

    older: str = "highest"
    all: str = "none"
    cuda_all: str = "none"
    cuda: str | None = None
    mkldnn_all: str = "none"
    mkldnn: str | None = None

    def apply(self) -> None:
        torch.set_float32_matmul_precision(self.older)
        if NEWER:
            _set("generic", "all", self.all)
            for backend in ("cuda", "mkldnn"):
                _set(backend, "all", getattr(self, f"{backend}_all"))
                if getattr(self, backend) is not None:
                    _set(backend, "matmul", getattr(self, backend))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """In effect in the context, and then the one that torch begins with."""
        try:
            self.apply()
            yield
        finally:
            Setting(cuda="none", mkldnn="none").apply()


def older_or_newer() -> list[Setting]:
    """Every value of `all`, `cuda` and `mkldnn` with each of the older interface."""
    if not NEWER:
        return [Setting(older) for older in OLDER]
    product = itertools.product(OLDER, VALUES, INHERITED, VALUES)
    return [Setting(older, all=a, cuda=c, mkldnn=m) for older, a, c, m in product]


def inherited() -> list[Setting]:
    """Every value at every level."""
    product = itertools.product(OLDER, VALUES, INHERITED, INHERITED, INHERITED, VALUES)
    return [Setting(*values) for values in product] if NEWER else older_or_newer()


def stored() -> Setting:
    """The values of products as they were set; those that they may inherit are then 'none'."""
    for backend in ("generic", "cuda", "mkldnn"):
        _set(backend, "all", "none")
    cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    values = {"cuda": cuda.fp32_precision, "mkldnn": mkldnn.fp32_precision}
    cuda.fp32_precision = mkldnn.fp32_precision = "ieee"
    return Setting(torch.get_float32_matmul_precision(), **values)


def _of(read: Callable[[], Any]) -> Any:
    """What it returns; 'raises' where one interface contradicts the other."""
    try:
        return read()
    except RuntimeError:
        return "raises"


def told() -> dict[str, Any]:
    """What torch tells by each getter of the precision of float32."""
    backends, found = torch.backends, {"older": _of(torch.get_float32_matmul_precision)}
    for name, of in (("cuda", backends.cuda.matmul), ("cudnn", backends.cudnn)):
        found[f"allow {name}"] = _of(lambda of=of: of.allow_tf32)
    if NEWER:
        readers = {"all": backends, "cuda.matmul": backends.cuda.matmul, "cudnn": backends.cudnn}
        readers |= {f"cudnn.{name}": getattr(backends.cudnn, name) for name in ("conv", "rnn")}
        readers |= {"mkldnn": backends.mkldnn}
        names = ("matmul", "conv", "rnn")
        readers |= {f"mkldnn.{name}": getattr(backends.mkldnn, name) for name in names}
        found |= {name: _of(lambda r=r: r.fp32_precision) for name, r in readers.items()}
    return found
