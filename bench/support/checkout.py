"""fastnmf of this checkout, for programs that are run where it may not be installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def use() -> None:
    """Make fastnmf and its kernels importable."""
    if importlib.util.find_spec("fastnmf") is None:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("fastnmf.kernels") is None:
        # kernels/ is installed as fastnmf.kernels
        importlib.import_module("fastnmf").__path__.append(str(ROOT))
