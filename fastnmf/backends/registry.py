"""The backends that supply operations: which are usable here, why the others are not, and the
choice of one."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BackendUnavailable, InvalidInput
from . import triton
from .torch import REFERENCE

log = logging.getLogger(__name__)
ENVIRONMENT = "FASTNMF_BACKEND"


@dataclass(frozen=True)
class Backend:
    """A supplier of operations.

    Attributes
    ----------
    name : str
        The name that users give.
    operations : tuple of str
        Names of the operations that it supplies.
    devices : tuple of str
        Types of torch devices that it computes on; empty: all.
    probe : callable
        ``probe()``: None if it is usable on this machine, else the reason why not.
    load : callable
        ``load()``: its operations by name; called at first use only.
    automatic : tuple of str
        Types of devices where backend='auto' may choose it; empty: wherever it is usable.
    """

    name: str
    operations: tuple[str, ...]
    devices: tuple[str, ...]
    probe: Callable[[], str | None]
    load: Callable[[], dict[str, Callable]]
    automatic: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """None if it is usable on this machine, else why not."""
        return self.probe()

    def refuses(self, operations: tuple[str, ...], device_type: str) -> str | None:
        """Why it cannot supply any of these operations on a type of device, or None."""
        if operations and not set(operations) & set(self.operations):
            return f"it does not supply {', '.join(operations)}"
        if self.devices and device_type not in self.devices:
            return f"it computes on {', '.join(self.devices)}, not on {device_type}"
        return self.probe()


def _not_installed(extension: str) -> str | None:
    """Why an extension of fastnmf cannot be imported, or None."""
    try:
        importlib.import_module(f"fastnmf.{extension}")
    except ImportError as error:
        # setup.py writes the reason here when it cannot build the extension
        left = Path(__file__).parents[1] / f"{extension}.missing"
        return (
            left.read_text().strip()
            if left.exists()
            else f"{error}; built with FASTNMF_BUILD={'none' if extension == '_C' else 'cpu'}?"
        )
    return None


# what backends/cpp.py, accelerated.py, nnls/compiled.py and restricted/compiled.py call of the
# extension
_CALLED = (
    "Accelerated",
    *("count_candidates", "fill_candidates", "hals_candidates", "hals_concepts"),
    *("cross", "extrapolate", "hals_block", "hals_block_free", "hals_each", "hals_each_free"),
    *("hals_masked", "hals_normal", "hals_normal_free", "hals_rows", "hals_stored", "kkt"),
    *("measure", "moments", "moved", "mu_update", "nnls", "nnls_rows", "on_supports"),
    *("pgd_update", "rescale", "scales", "sparse_product"),
)


@functools.cache
def _probe_cpp() -> str | None:
    if why := _not_installed("_C"):
        return f"the compiled extension is not installed ({why})"
    extension = importlib.import_module("fastnmf._C")
    if lacking := [name for name in _CALLED if not hasattr(extension, name)]:
        return (
            f"the compiled extension is older than fastnmf's code, it lacks {', '.join(lacking)}; "
            "install fastnmf again"
        )
    return None


def _load_cpp() -> dict[str, Callable]:
    return importlib.import_module("fastnmf.backends.cpp").OPERATIONS


# the lowest compute capability that setup.py compiles the extension for CUDA for
_CAPABILITY = (8, 0)


@functools.cache
def _probe_cuda() -> str | None:
    if why := _not_installed("_cuda"):
        return f"the extension for CUDA is not installed ({why})"
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    try:
        # its CUDA runtime is not torch's, and may require a newer driver
        count = importlib.import_module("fastnmf._cuda").devices()
    except RuntimeError as error:
        return f"no GPU that it can use ({error})"
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    best = max(torch.cuda.get_device_capability(number) for number in range(count))
    if best < _CAPABILITY:
        return f"the best GPU has capability {best[0]}.{best[1]}, and 8.0 is needed"
    return None


def _load_cuda() -> dict[str, Callable]:
    return importlib.import_module("fastnmf.backends.cuda").OPERATIONS


# products on a CPU are never tf32
_ON_CPU = tuple(name for name in REFERENCE if name != "round_tf32_")
# in order of preference: the last is the fallback
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", _ON_CPU, ("cpu",), _probe_cpp, _load_cpp),
        Backend("cuda", ("nnls_", "nnls_on_"), ("cuda",), _probe_cuda, _load_cuda),
        Backend(
            "triton",
            triton.OPERATIONS,
            ("cpu", *triton.GPUS) if triton.interpreted() else triton.GPUS,
            triton.probe,
            triton.load,
            # the interpreter is slow: only an explicit request uses it
            automatic=triton.GPUS,
        ),
        Backend("torch", tuple(REFERENCE), (), lambda: None, lambda: REFERENCE),
    )
}


@dataclass(frozen=True)
class BackendTable:
    """Show the backends in order of preference: iterate over it, index it by name, or print it.

    Parameters
    ----------
    backends : tuple of Backend
        Each has a name, its operations, its devices and a reason: None if it is usable here, else
        why not.

    Examples
    --------
    >>> from fastnmf import available_backends
    >>> backends = available_backends()
    >>> [backend.name for backend in backends]
    ['cpp', 'cuda', 'triton', 'torch']
    >>> backends["torch"].reason is None
    True
    >>> print(backends)                                                   # doctest: +ELLIPSIS
    backend  devices    operations ...
    """

    backends: tuple[Backend, ...]

    def __iter__(self) -> Iterator[Backend]:
        return iter(self.backends)

    def __len__(self) -> int:
        return len(self.backends)

    def __getitem__(self, name: str) -> Backend:
        return BACKENDS[name]

    def __str__(self) -> str:
        lines = [("backend", "devices", "operations", "usable")]
        for backend in self.backends:
            usable = "yes" if backend.reason is None else f"no: {backend.reason}"
            operations = ", ".join(name.rstrip("_") for name in backend.operations)
            lines.append((backend.name, ", ".join(backend.devices) or "all", operations, usable))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
            + "  "
            + line[3]
            for line in lines
        )

    __repr__ = __str__


def available_backends() -> BackendTable:
    """List the backends, and for each whether it is usable here, or why not.

    Returns
    -------
    BackendTable
        One entry for each backend; printed, a table. ``fastnmf info`` prints the same.

    Notes
    -----
    ``NMF(backend=…)`` chooses one by name, else the environment variable FASTNMF_BACKEND, else
    'auto': the first usable one that supplies operations of the solver on the device. `torch`
    supplies everything everywhere, and what the chosen one leaves out.

    Examples
    --------
    >>> from fastnmf import available_backends
    >>> len(available_backends())
    4
    """
    return BackendTable(tuple(BACKENDS.values()))


def select(
    operations: tuple[str, ...], device: torch.device, requested: str
) -> tuple[str, dict[str, Callable]]:
    """The name of the backend for these operations on a device, and all operations by name.

    operations: those of a solver (Solver.operations and fused). requested: the argument `backend`;
    where it is 'auto' the environment variable FASTNMF_BACKEND decides. A backend requested by name
    is used or BackendUnavailable is raised; 'auto' uses the first usable one. Operations that it
    does not supply come from `torch`. Raises InvalidInput for an unknown name.
    """
    source, requested = _requested(requested)
    refusals = {b.name: b.refuses(operations, device.type) for b in BACKENDS.values()}
    if requested == "auto":
        chosen = next(
            name
            for name, reason in refusals.items()
            if reason is None and device.type in (BACKENDS[name].automatic or (device.type,))
        )
    elif refusals[requested] is None:
        chosen = requested
    else:
        raise BackendUnavailable(
            f"{source}={requested!r} is not usable for {', '.join(operations)} on "
            f"{device.type}: {_listed(requested, refusals)}"
        )
    passed_over = {name: why for name, why in refusals.items() if why is not None}
    log.info(
        "backend %s for %s on %s; not usable: %s",
        chosen,
        ", ".join(operations),
        device,
        passed_over or "none",
    )
    return chosen, {**REFERENCE, **_load(chosen)}


def select_each(
    groups: tuple[tuple[str, ...], ...], device: torch.device, requested: str
) -> tuple[str, dict[str, Callable]]:
    """select for several groups of operations: 'auto' chooses for each group. The name is that of
    the first."""
    if _requested(requested)[1] != "auto":
        # some group may be torch's
        return select(tuple(name for group in groups for name in group), device, requested)
    found = [select(group, device, requested) for group in groups]
    chosen = dict(found[0][1])
    for group, (_, ops) in zip(groups, found, strict=True):
        chosen |= {name: ops[name] for name in group if name in ops}
    return found[0][0], chosen


def choice_of(requested: str) -> tuple[object, ...]:
    """All that the choice of a backend by `select` depends on, besides operations and device, to
    compare."""
    return *_requested(requested), *BACKENDS.values()


def _requested(requested: str) -> tuple[str, str]:
    """Where the name of a backend comes from, the argument or the environment, and the name. Raises
    InvalidInput for an unknown one."""
    source = "backend"
    if requested == "auto":
        source, requested = ENVIRONMENT, os.environ.get(ENVIRONMENT, "auto")
    if requested != "auto" and requested not in BACKENDS:
        raise InvalidInput(
            f"{source}={requested!r} is not a backend; known are: auto, {', '.join(BACKENDS)}"
        )
    return source, requested


def _listed(requested: str, refusals: dict[str, str | None]) -> str:
    others = [f"{name}: {why or 'usable'}" for name, why in refusals.items() if name != requested]
    return ". ".join([str(refusals[requested]), *others])


@functools.cache
def _load(name: str) -> dict[str, Callable]:
    return BACKENDS[name].load()
