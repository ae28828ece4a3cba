"""Settings, pairs and quantized layers that no honest writer made, and what readers may answer."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from unforgotten.audit.codes.compare import compare_layers
from unforgotten.audit.codes.fused_experts import fused_layers
from unforgotten.audit.codes.layer import Layer
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.findings.coverage import coverage_findings
from unforgotten.audit.sources.checkpoint import SafetensorsCheckpoint
from unforgotten.audit.sources.hostile_json import parse_json_object
from unforgotten.audit.sources.hub import HubName, _parse_listing
from unforgotten.audit.sources.matching.comparable import comparable
from unforgotten.audit.sources.pairing import pair
from unforgotten.audit.sources.peft_config import parse_adapter_config
from unforgotten.audit.sources.quantization import Scheme, read_scheme
from unforgotten.audit.sources.safetensors_header import CheckpointError, read_header
from unforgotten.verification.domains.hostile_files import (
    FILE,
    Memory,
    mutated_bytes,
    mutated_json,
    only_refusals,
    read_everything,
)

ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/name",
    "r": 8,
    "lora_alpha": 16,
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"^k_proj": 2.5},
    "use_rslora": True,
    "revision": None,
    "init_lora_weights": True,
    "lora_bias": False,
    "trainable_token_indices": {"embed_tokens": [3, 1]},
}
SCHEMES = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq"},
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "dynamic": {"-:.*lm_head": {}, "+:.*down": {"bits": 8, "group_size": 32}},
    },
    {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}}},
    },
    {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}}},
    },
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
    {"quant_method": "mxfp4"},
]
LISTING = {
    "sha": "a" * 40,
    "siblings": [
        {"rfilename": "model.safetensors", "size": 5, "lfs": {"sha256": "b" * 64}},
        {"rfilename": "config.json", "size": 9},
    ],
}


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


SETTINGS: dict[str, tuple[list[Any], Callable[[bytes], object]]] = {
    "adapter": ([ADAPTER], lambda text: _use_adapter(text)),
    "scheme": (SCHEMES, lambda text: read_scheme(FILE, parse_json_object(FILE, text))),
    "listing": ([LISTING], lambda text: _parse_listing(HubName("o/n", None), parse_json_object(FILE, text))),
}


def _use_adapter(text: bytes) -> None:
    config = parse_adapter_config(FILE, text)
    for module in ("model.q_proj", "k_proj", "embed_tokens", ""):
        assert config.tokens_of(module) is None or min(config.tokens_of(module) or [0]) >= 0
        assert math.isfinite(config.scaling_of(module))
        assert config.rank_of(module) >= 1


def settings_files() -> st.SearchStrategy[tuple[str, bytes]]:
    """Draw a configuration of any kind, mutated as JSON and as bytes."""
    return st.sampled_from(sorted(SETTINGS)).flatmap(
        lambda kind: (
            st.sampled_from(SETTINGS[kind][0])
            .flatmap(mutated_json)
            .map(as_bytes)
            .flatmap(mutated_bytes)
            .map(lambda text: (kind, text))
        )
    )


def check_settings(case: tuple[str, bytes]) -> None:
    kind, text = case
    only_refusals(lambda: SETTINGS[kind][1](text))


NAMES = (
    "model.layers.0.mlp.experts.gate_up_proj",
    "model.layers.0.mlp.experts.down_proj",
    "model.layers.0.mlp.experts.down_proj[0]",
    "language_model.model.layers.0.mlp.experts.down_proj",
    "model.layers.0.mlp.experts.0.down_proj.weight",
    "model.layers.0.mlp.experts.1.down_proj.weight",
    "model.layers.0.block_sparse_moe.experts.0.w2.weight",
    "model.layers.1.eh_proj.weight",
    "mtp.fc.weight",
    "model.language_model.lm_head.weight",
    "model.layers.0.q_proj.weight",
    "layers.0.q_proj.weight",
    "_orig_mod.model.layers.0.q_proj.weight",
    "model.layers.0.mlp.gate.weight",
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.rotary_emb.inv_freq",
    "a.b",
)


def file_of_zeros(table: list[tuple[str, str, list[int], int]]) -> bytes:
    """Return a valid file of these tensors: name, dtype, shape, bytes of one number."""
    header: dict[str, object] = {}
    position = 0
    for name, dtype, shape, size in table:
        end = position + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(256)) * (position // 256) + bytes(position % 256)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two files whose names and shapes nearly fit. Shrinks to files without a tensor."""
    sides: list[list[tuple[str, str, list[int], int]]] = [[], []]
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=7)):
        fused = "experts" in name and "[" not in name and not name.endswith(".weight")
        axes = 3 if fused else draw(st.sampled_from([1, 2, 2, 2, 3]))
        shape = draw(st.lists(st.integers(0, 4), min_size=axes, max_size=axes))
        for side in sides:
            if draw(st.integers(0, 5)):
                own = [*shape]
                if own and not draw(st.integers(0, 5)):
                    own[draw(st.integers(0, len(own) - 1))] = draw(st.integers(0, 4))
                dtype, size = draw(st.sampled_from([("F32", 4), ("F32", 4), ("BF16", 2), ("U8", 1)]))
                side.append((name, dtype, own, size))
    return file_of_zeros(sides[0]), file_of_zeros(sides[1])


def check_pair(case: tuple[bytes, bytes]) -> None:
    """Check that views read what they show, and never outside of it; what cannot be matched is refused."""

    def act() -> None:
        both = comparable(*(_opened(content) for content in case))
        for checkpoint in both:
            read_everything(checkpoint)
        coverage_findings(both[0], dict.fromkeys(both[0].tensors, True), moved=False)
        pair(*both)

    only_refusals(act)


def _opened(content: bytes) -> SafetensorsCheckpoint:
    file = Memory(content)
    return SafetensorsCheckpoint(FILE, None, (file,), read_header(file))


PARTS: dict[str, list[tuple[str, str, list[int], int]]] = {
    "gptq": [("qweight", "I32", [2, 8], 4), ("qzeros", "I32", [1, 1], 4), ("scales", "F16", [1, 8], 2)],
    "ct-packed": [
        ("weight_packed", "I32", [3, 1], 4),
        ("weight_scale", "BF16", [3, 1], 2),
        ("weight_shape", "I64", [2], 8),
        ("weight_zero_point", "I8", [3, 1], 1),
    ],
    "fp8-tensor": [("weight", "F8_E4M3", [6, 8], 1), ("weight_scale", "F32", [2], 4)],
    "fp8": [("weight", "F8_E4M3", [3, 8], 1), ("weight_scale_inv", "F32", [2, 2], 4)],
    "ct-block": [("weight", "F8_E4M3", [3, 8], 1), ("weight_scale", "BF16", [2, 2], 2)],
    "modelopt-nvfp4": [
        ("weight", "U8", [3, 16], 1),
        ("weight_scale", "F8_E4M3", [3, 2], 1),
        ("weight_scale_2", "F32", [], 4),
    ],
    "mxfp4": [("_blocks", "U8", [2, 3, 1, 16], 1), ("_scales", "U8", [2, 3, 1], 1)],
    "bnb-4bit": [
        ("weight", "BF16", [16, 1], 2),
        ("weight.absmax", "F32", [1], 4),
        ("weight.quant_map", "F32", [16], 4),
    ],
}
FUSED: dict[str, list[tuple[str, str, list[int], int]]] = {
    "fp8": [("experts.up_proj", "F8_E4M3", [2, 3, 8], 1), ("experts.up_proj_scale_inv", "F32", [2, 2, 2], 4)],
    "fp8-tensor": [
        ("experts.gate_up_proj", "F8_E4M3", [2, 4, 8], 1),
        ("experts.gate_up_proj_scale", "F32", [2, 2, 1], 4),
    ],
    "modelopt-nvfp4": [
        ("experts.up_proj", "U8", [2, 8, 3], 1),
        ("experts.up_proj_weight_scale", "F8_E4M3", [2, 1, 3], 1),
        ("experts.up_proj_weight_scale_2", "F32", [2], 4),
    ],
}
"""Layout -> parts of the experts of a layer in one tensor."""
PARTS |= {f"fused {layout}": parts for layout, parts in FUSED.items()}
LAYER = "x.gate_up_proj"
"""A name of two matrices: its scale may be two."""
STATE = as_bytes({"shape": [8, 8], "blocksize": 64})
SIZES = {"I64": 8, "I32": 4, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1}


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw the parts of one quantized layer, some of another dtype or shape, over any bytes. Shrinks to a valid layer."""
    layout = draw(st.sampled_from(sorted(PARTS)))
    header: dict[str, object] = {}
    data = b""
    for name, dtype, shape, _ in PARTS[layout]:
        kind = draw(st.sampled_from(sorted(SIZES))) if not draw(st.integers(0, 9)) else dtype
        own = [draw(st.integers(0, 4)) if not draw(st.integers(0, 9)) else n for n in shape]
        size = math.prod(own) * SIZES[kind]
        raw = draw(st.binary(min_size=size, max_size=size))
        if name == "weight_shape" and size == 16 and draw(st.integers(0, 9)):
            raw = struct.pack("<qq", 3, 8)
        full = f"{LAYER}{name}" if name.startswith("_") else f"{LAYER}.{name}"
        header[full] = {"dtype": kind, "shape": own, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if layout == "bnb-4bit":
        state = draw(mutated_bytes(STATE))
        header[f"{LAYER}.weight.quant_state.bitsandbytes__nf4"] = {
            "dtype": "U8",
            "shape": [len(state)],
            "data_offsets": [len(data), len(data) + len(state)],
        }
        data += state
    text = json.dumps(header).encode()
    return layout, struct.pack("<Q", len(text)) + text + data


def check_layer(case: tuple[str, bytes]) -> None:
    with np.errstate(all="ignore"):  # as compare_layers, which finds what is not finite
        only_refusals(lambda: _decode(case))


def _decode(case: tuple[str, bytes]) -> None:
    layout, content = case
    fused, layout = layout.startswith("fused "), layout.removeprefix("fused ")
    tile = (2, 4) if layout in ("fp8", "ct-block") else (1, 1)
    scheme = Scheme(layout, layout, 4, -1, zero_shift=1, detail="nf4", tile=tile)
    checkpoint = _opened(content)
    opened = fused_layers(scheme, checkpoint).values() if fused else [LAYOUTS[layout].open(scheme, checkpoint, LAYER)]
    if not opened:
        raise CheckpointError(FILE, "must hold a layer", "none")
    for layer in opened:
        _decode_layer(layer)


def _decode_layer(layer: Layer) -> None:
    whole = layer.decode(0, layer.units)
    assert whole.codes.size == whole.values.size == math.prod(layer.shape)
    if layer.units > 1:
        half = layer.units // 2
        codes, values = layer.decode(half, layer.units)
        assert codes.tobytes() == whole.codes.reshape(-1)[-codes.size :].tobytes()
        assert np.array_equal(values.reshape(-1), whole.values.reshape(-1)[-values.size :], equal_nan=True)
    only_refusals(lambda: compare_layers(layer, layer))
