"""Facts about the machine, Python and the packages (`fastnmf info`; what is printed: test_main)."""

from __future__ import annotations

from importlib import util

import torch

import fastnmf
from fastnmf.cli import environment


def test_facts_are_those_of_this_process(monkeypatch):
    monkeypatch.delenv("FASTNMF_BACKEND", raising=False)
    facts = environment.facts()
    assert facts["fastnmf"].startswith(fastnmf.__version__)
    assert facts["fastnmf"].endswith(f" in {fastnmf.__path__[0]}")
    assert facts["torch"] == torch.__version__ or torch.__version__.startswith(facts["torch"])
    assert facts["FASTNMF_BACKEND"] == "not set"
    extension = util.find_spec("fastnmf._C")
    assert facts["extension"] == ("not built" if extension is None else extension.origin)


def test_cpu_is_named_where_the_system_has_no_list_of_processors(monkeypatch):
    monkeypatch.setattr(environment.Path, "exists", lambda _: False)
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    assert environment.facts()["cpu"].startswith(environment.platform.machine())


def test_devices_are_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.facts()["cuda"] == "12.8, no device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert environment.facts()["cuda"] == "12.8, card 0, card 1"
