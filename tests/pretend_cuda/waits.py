"""Where the host waits for a pretended device, and what crosses from it to the host."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tape import tensors

HERE, TORCH = Path(__file__).parent, str(Path(torch.__file__).parent)
# what pretends is not where something waits; what tests it is
_OWN = tuple(str(path) for path in HERE.glob("*.py") if not path.name.startswith("test_"))
# their results need the numbers, or the size depends on these; and the library reads its own report
_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_WAITING = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"),
}
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


@dataclass(frozen=True)
class Wait:
    """The host waited: for which operation, and where in fastnmf."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


@dataclass(frozen=True)
class Crossed:
    """Numbers that were copied to the host: how many, and where in fastnmf."""

    shape: tuple[int, ...]
    bytes: int
    where: str


@dataclass(frozen=True)
class Crossing:
    """A copy between the host and the device."""

    to_host: bool
    source: torch.Tensor
    non_blocking: bool

    @classmethod
    def of(cls, name, args, kwargs, target) -> Crossing | None:
        """The copy that an operation is, or None."""
        if name == "_to_copy":
            source, to = args[0], target or args[0].device
            asked = kwargs.get("non_blocking", False)
        elif name == "copy_":
            to, source = args[0].device, args[1]
            asked = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            return None
        if source.device.type == to.type:
            return None
        return cls(to.type == "cpu", source, asked)


def here() -> str:
    """The innermost line of fastnmf that is running, else of who called."""
    frame, outside = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        if "/fastnmf/" in path or "/kernels/" in path:
            return f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
        if outside is None and not path.startswith((TORCH, *_OWN)):
            outside = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return outside or "?"


def note(device, func, name, args, crossing: Crossing | None) -> None:
    """Count the operation if the host waits for it, and what it takes to the host."""
    if name == "_local_scalar_dense":
        number = args[0]
        device.crossed.append(Crossed((), number.element_size(), here()))
    if crossing is not None and crossing.to_host:
        source = crossing.source
        size = source.numel() * source.element_size()
        device.crossed.append(Crossed(tuple(source.shape), size, here()))
    if _waits(device, func, name, args, crossing):
        device.wait(name if crossing is None else f"{name} to {_to(crossing)}")


def _to(crossing: Crossing) -> str:
    return "the host" if crossing.to_host else "the device"


def _waits(device, func, name, args, crossing) -> bool:
    if crossing is not None:
        # a copy from memory that is not pinned goes through a buffer of the driver
        free = crossing.non_blocking and (crossing.to_host or device.is_pinned(crossing.source))
        return not free
    if name in _INDEXING:
        chosen = tensors(args[1])
        masks = [X for X in chosen if X.dtype in (torch.bool, torch.uint8)]
        # torch fills by a mask without counting it
        fills = name != "index" and len(chosen) == 1 and args[2].numel() == 1
        return (bool(masks) and not fills) or any(X.device.type == "cpu" for X in chosen)
    return name in _WAITING or bool(_WAITING_TAGS & set(func.tags))
