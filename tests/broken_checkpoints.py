"""Ways to break the file of a checkpoint, and the message for each."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    safetensors.torch.save_file({"weight": torch.rand(3)}, path)


def rewritten(path, **changes):
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    safetensors.torch.save_file(tensors, path, metadata={**metadata, **changes})


def newer(path):
    rewritten(path, format_version="2", fastnmf_version="9.0")


def without_settings(path):
    rewritten(path, settings="{")


BROKEN = {
    truncated: "cannot be read as .safetensors",
    cut_in_the_header: "cannot be read as .safetensors",
    empty: "cannot be read as .safetensors",
    foreign: "holds weight, and is no checkpoint",
    newer: "is in format 2 of fastnmf 9.0.*upgrade",
    without_settings: "cannot be read as .safetensors",
}


def gone(path):
    path.unlink()


def of_another_run(path):
    rewritten(path, save="2-another")


def of_four(path):
    path.rename(path.with_name(path.name.replace("-of-00002", "-of-00004")))
