"""Command → the function that runs it and returns its exit status."""

from __future__ import annotations

from .. import fit
from . import machine, models, selection, show

RUNS = {
    "fit": fit.run,
    "encode": models.encode,
    "decode": models.decode,
    "report": models.report,
    "show": show.show,
    "choose": selection.choose,
    "stability": selection.stability,
    "info": machine.info,
    "demo": machine.demo,
    "completion": machine.completion,
}
