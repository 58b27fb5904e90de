"""Facts about the machine, Python and the packages that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

import torch

from .._version import __version__
from ..precision import allowed

PACKAGES = ("torch", "triton", "numpy", "safetensors", "scikit-learn", "overcomplete")


def facts() -> dict[str, str]:
    """Name → what is found, in the order to print it in."""
    cuda = torch.version.cuda or "not in this torch"
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        cuda += f", {', '.join(names)}"
    elif torch.version.cuda:
        cuda += ", no device"
    extension = importlib.util.find_spec("fastnmf._C")
    return {
        "fastnmf": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} in {sys.prefix}",
        "platform": platform.platform(),
        "cpu": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        **{name: _version(name) for name in PACKAGES},
        "cuda": cuda,
        "matmul": f"float32 precision {allowed()}",
        "extension": "not built" if extension is None else str(extension.origin),
        "FASTNMF_BACKEND": os.environ.get("FASTNMF_BACKEND", "not set"),
    }


def _cpu() -> str:
    """The model of the CPU; platform.processor() does not return it on Linux."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
