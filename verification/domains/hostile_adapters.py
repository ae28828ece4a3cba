"""Adapters that no honest writer made, over a small base, and what merging may answer."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import strategies as st

from unforgotten.audit.sources.checkpoint import SafetensorsCheckpoint
from unforgotten.audit.sources.peft import AdapterCheckpoint, merged_over
from unforgotten.audit.sources.peft_config import parse_adapter_config
from unforgotten.audit.sources.safetensors_header import read_header
from unforgotten.verification.domains.hostile_files import FILE, Memory, mutated_json, only_refusals, read_everything
from unforgotten.verification.domains.hostile_layers import file_of_zeros

BASE = [
    ("model.layers.0.q_proj.weight", "F32", [3, 4], 4),
    ("model.layers.0.q_proj.bias", "BF16", [3], 2),
    ("model.embed_tokens.weight", "F32", [5, 4], 4),
    ("model.norm.weight", "F32", [4], 4),
]
MODULE = "base_model.model.model.layers.0.q_proj"
NAMES: dict[str, list[int]] = {
    f"{MODULE}.lora_A.weight": [2, 4],
    f"{MODULE}.lora_B.weight": [3, 2],
    f"{MODULE}.lora_B.bias": [3],
    f"{MODULE}.lora_magnitude_vector": [3],
    "base_model.model.language_model.model.embed_tokens.token_adapter.trainable_tokens_delta": [2, 4],
    "base_model.model.lm_head.lora_A.default.weight": [2, 4],
    "base_model.model.lm_head.lora_B.default.weight": [5, 2],
    "base_model.model.model.norm.modules_to_save.weight": [4],
}
SETTINGS = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "lora_bias": False,
    "use_dora": False,
    "trainable_token_indices": {"embed_tokens": [4, 1]},
}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw the tensors and the configuration of an adapter that nearly fits. Shrinks to a plain LoRA."""
    pair = list(NAMES)[:2] if draw(st.integers(0, 9)) else []
    more = draw(st.lists(st.sampled_from(list(NAMES)[2:]), unique=True, max_size=3))
    table = []
    for name in (*pair, *more):
        shape = [draw(st.integers(0, 5)) if not draw(st.integers(0, 15)) else n for n in NAMES[name]]
        dtype, size = draw(
            st.sampled_from([("F32", 4), ("F32", 4), ("F32", 4), ("BF16", 2), ("I8", 1)][: 6 - len(more)])
        )
        table.append((name, dtype, shape, size))
    settings = SETTINGS | {
        "lora_bias": any(n.endswith("bias") for n in more),
        "use_dora": any("magni" in n for n in more),
    }
    if draw(st.booleans()):
        settings = draw(mutated_json(settings))
    return file_of_zeros(table), json.dumps(settings).encode()


def opened_adapter(case: tuple[bytes, bytes]) -> AdapterCheckpoint:
    """Return the base with the adapter merged into it."""
    weights, text = case
    own, base = (Memory(content) for content in (weights, file_of_zeros(BASE)))
    adapter, under = (SafetensorsCheckpoint(FILE, None, (file,), read_header(file)) for file in (own, base))
    return merged_over(under, adapter, parse_adapter_config(FILE, text), Memory(text))


def check_adapter(case: tuple[bytes, bytes]) -> None:
    """Check that what is merged has the shapes of its base, whatever rows are read; the rest is refused."""

    def act() -> None:
        merged = opened_adapter(case)
        read_everything(merged)
        assert len(merged.sha256()) == 64

    with np.errstate(all="ignore"):
        only_refusals(act)
