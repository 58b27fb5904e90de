"""The Triton backend: whether its kernels are usable here, and how they are loaded."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable

import numpy as np
import torch

# torch's types of devices that Triton compiles for; those of AMD are "cuda" as well
GPUS = ("cuda", "xpu")
# each is in the module of kernels/ that its name begins with
OPERATIONS = (
    *("hals_block_", "hals_sweep_"),
    *("mu_normal_", "mu_residual_"),
    *("pgd_normal_", "pgd_residual_"),
    "round_tf32_",
)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: for tests and debugging."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def probe() -> str | None:
    """None if the kernels are usable here, else why not."""
    try:
        importlib.import_module("fastnmf.kernels.hals")
    except ImportError as error:
        return f"Triton or its kernels cannot be imported ({error}); pip install triton"
    if interpreted():
        return _probe_interpreter()
    if not any(getattr(torch, kind).is_available() for kind in GPUS if hasattr(torch, kind)):
        return "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


def _probe_interpreter() -> str | None:
    """Sweep one number: Triton 3.6 counts loops by a conversion that NumPy 2.4 no longer allows."""
    triton = importlib.import_module("triton")
    F, sums = torch.ones(1, 1, device="cpu"), torch.zeros(2, dtype=torch.float64, device="cpu")
    try:
        importlib.import_module("fastnmf.kernels.hals").hals_sweep_(F, F, F, sums)
    except triton.runtime.errors.InterpreterError as error:
        pair = f"Triton {triton.__version__} does not work beside NumPy {np.__version__}"
        return (
            f"the interpreter of {pair} ({error}); pip install -U torch triton, or an older numpy"
        )
    return None


def load() -> dict[str, Callable]:
    """The operations, by name."""
    modules = {name: f"fastnmf.kernels.{name.partition('_')[0]}" for name in OPERATIONS}
    return {name: getattr(importlib.import_module(at), name) for name, at in modules.items()}
