"""Which tensor of the base a tensor of a PEFT adapter speaks of, by its name.

>>> part_of("base_model.model.model.layers.0.q_proj.lora_A.default.weight")
('a', 'model.layers.0.q_proj.weight')
>>> part_of("base_model.model.lm_head.modules_to_save.weight")
('whole', 'lm_head.weight')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from unforgotten.audit.sources.matching.prefixes import core

ROOT = "base_model.model."
PREFIX = "model."  # of a language model saved with its head, missing where it is saved without
PARTS: Mapping[str, str] = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding a",
    ".lora_embedding_B": "embedding b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
}
WHOLE = "whole"
"""The part of a tensor that takes the place of the base's."""
DEFAULT = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save|trainable_tokens_delta)"
    r"\.default(?=\.|$)"
)
"""The name of an adapter within a key, as a state dict has it that was not saved by `save_pretrained`."""


def part_of(name: str) -> tuple[str, str]:
    """Return which part a tensor of an adapter is, and the tensor of the base it speaks of."""
    inner = DEFAULT.sub(r".\1", name.removeprefix(ROOT))
    ending = next((end for end in PARTS if inner.endswith(end)), None)
    if ending is None:
        return WHOLE, inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    return PARTS[ending], inner.removesuffix(ending) + ".weight"


class BaseNames:
    """The tensors of a base, found by the names that an adapter has for them.

    Attributes:
        renamed: the adapter's name -> the base's, for those that differ by wrappers alone.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.renamed: dict[str, str] = {}
        self._by_core: dict[str, list[str]] = {}
        for name in self.names:
            self._by_core.setdefault(core(name), []).append(name)

    def find(self, wanted: str) -> str | None:
        """Return the base's name of a tensor: as it is, with or without `model.`, or the only one but for wrappers."""
        for candidate in (wanted, PREFIX + wanted, wanted.removeprefix(PREFIX)):
            if candidate in self.names:
                return candidate
        found = self._by_core.get(core(wanted), [])
        if len(found) != 1:
            return None
        self.renamed[wanted] = found[0]
        return found[0]
