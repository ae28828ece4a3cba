"""Readers under hostile bytes: a ValueError or OSError of one line, or a result; never anything else, nor a read outside.

Mutations are of bytes and of structure. Files are in memory, and a range outside of one fails the test, so what is
allocated is bounded by the file. `-m nightly` runs 180,000 cases.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.audit.codes.compare import compare_layers
from unforgotten.audit.codes.gguf import compare_gguf_codes
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.findings.coverage import coverage_findings
from unforgotten.audit.sources.checkpoint import Checkpoint, SafetensorsCheckpoint, join_shards, read_index
from unforgotten.audit.sources.gguf import GgufCheckpoint, gguf_of
from unforgotten.audit.sources.hostile_json import parse_json_object
from unforgotten.audit.sources.hub import HubName, _parse_listing
from unforgotten.audit.sources.matching.comparable import comparable
from unforgotten.audit.sources.pairing import check_finite, pair
from unforgotten.audit.sources.peft_config import parse_adapter_config
from unforgotten.audit.sources.quantization import Scheme, read_scheme
from unforgotten.audit.sources.safetensors_header import CheckpointError, read_header
from unforgotten.verification.profiles import SLOW_STRATEGIES

FILE = Path("/nowhere/model.safetensors")


@dataclass(frozen=True)
class Memory:
    """A weight file that fails the test when it is read outside its bytes."""

    content: bytes
    path: Path = FILE

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        assert 0 <= offset <= offset + nbytes <= self.size, "a read outside of the file"
        return np.frombuffer(self.content, np.uint8, nbytes, offset).copy()


def only_refusals(act: Callable[[], object]) -> bool:
    """Whether the act was refused, in the one way that is allowed."""
    message = None
    try:
        act()
    except CheckpointError as error:  # a ValueError that names the file
        message = str(error)
    assert message is None or (message.isprintable() and len(message) < 2000), repr(message)
    return message is not None


def read_everything(checkpoint: Checkpoint) -> None:
    for name, info in checkpoint.tensors.items():
        whole = checkpoint.read(name)
        assert (whole.shape, whole.dtype) == (info.shape, info.dtype)
        if info.shape:
            half = info.shape[0] // 2
            part = checkpoint.read_rows(name, half, info.shape[0])
            assert part.tobytes() == whole[half:].tobytes()
        only_refusals(lambda name=name: check_finite(checkpoint, name))  # type: ignore[misc]


WILD_INTEGERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**32 - 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400]
)
WILD = st.one_of(
    WILD_INTEGERS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.lists(WILD_INTEGERS, max_size=40),
    st.just([[[]]]),
    st.just({"a": {"a": 1}}),
    st.sampled_from(["../x.safetensors", "/etc/passwd", "\x00", "F32", "BF16", "F8_E4M3", "a" * 300]),
)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes replaced, cut or doubled, mostly in the first part, where structure is. Shrinks to `content`."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4)) if draw(st.booleans()) else 0):
        at = draw(st.integers(0, max(0, min(len(raw), 400) - 1)))
        kind = draw(st.sampled_from(["byte", "word", "cut", "drop", "double"]))
        if kind == "byte":
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "word":
            raw[at : at + 8] = struct.pack("<Q", draw(WILD_INTEGERS.filter(lambda n: 0 <= n < 2**64)))
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + draw(st.integers(1, 9))]
        else:
            raw[at:at] = raw[at : at + draw(st.integers(1, 40))]
    return bytes(raw)


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> Any:
    """Up to three places of a JSON value replaced by wild ones. Shrinks to `value`."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        holder = place = value
        key = None
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            holder, key = place, draw(st.sampled_from(keys))
            place = holder[key]
            if draw(st.booleans()):
                break
        if key is None:
            continue
        if draw(st.booleans()) and isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = holder.pop(key)
        else:
            holder[key] = json.loads(json.dumps(draw(WILD)))  # a copy: a shared one could hold itself
    return value


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A valid file of up to four tensors, its header mutated as JSON, the whole as bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for i in range(draw(st.integers(0, 4))):
        dtype, size = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("F8_E8M0", 1), ("F4", 0.5)]))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        if dtype == "F4":
            shape = [*shape, 2 * draw(st.integers(0, 2))]
        if shape.count(0) > 1 and draw(st.booleans()):  # no bytes still, and a shape beyond all bounds
            shape[shape.index(0)] = draw(st.sampled_from([2**31, 2**60]))
        end = position + int(math.prod(shape) * size)
        header[f"t{i}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(draw(mutated_json(header))).encode()
    content = struct.pack("<Q", len(text)) + text + draw(st.binary(min_size=position, max_size=position))
    return draw(mutated_bytes(content))


def check_safetensors(content: bytes) -> None:
    def act() -> None:
        file = Memory(content)
        read_everything(SafetensorsCheckpoint(FILE, None, (file,), read_header(file)))

    only_refusals(act)


@st.composite
def indexes(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes]]:
    """An index over two shards, each with one tensor, mutated; the shards too."""
    shards = {}
    for name in ("a", "b"):
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        text = json.dumps(draw(mutated_json({name: entry}))).encode()
        shards[f"{name}.safetensors"] = struct.pack("<Q", len(text)) + text + bytes(8)
    index = {"metadata": {"total_size": 16}, "weight_map": {n: f"{n}.safetensors" for n in "ab"}}
    return draw(mutated_bytes(json.dumps(draw(mutated_json(index))).encode())), shards


def check_index(case: tuple[bytes, dict[str, bytes]]) -> None:
    text, shards = case

    def act() -> None:
        shard_of = read_index(FILE, text)
        for shard in shard_of.values():
            assert "/" not in shard
            assert "\\" not in shard
            assert shard not in (".", "..")
            if shard not in shards:
                raise CheckpointError(FILE, "must name only shards that exist", repr(shard))
        files = {s: Memory(shards[s], Path(s)) for s in sorted(set(shard_of.values()))}
        tensors = join_shards(FILE, shard_of, files)
        read_everything(SafetensorsCheckpoint(FILE, None, tuple(files.values()), tensors))

    only_refusals(act)


def text_of(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


@st.composite
def gguf_files(draw: st.DrawFn) -> bytes:
    """A valid file of some fields and up to three tensors of any known type, mutated."""
    kinds = {
        0: (1, 4),
        1: (1, 2),
        30: (1, 2),
        2: (32, 18),
        6: (32, 22),
        8: (32, 34),
        12: (256, 144),
        14: (256, 210),
        34: (256, 54),
        39: (32, 17),
    }
    fields = [
        text_of("general.alignment") + struct.pack("<II", 4, 32),
        text_of("names") + struct.pack("<IIQ", 9, 8, 2) + text_of("ab") + text_of(""),
        text_of("numbers") + struct.pack("<IIQ", 9, 5, 3) + bytes(12),
        text_of("flag") + struct.pack("<IB", 7, 1),
    ]
    fields = fields[: draw(st.integers(0, 4))]
    table, data = b"", b""
    count = draw(st.integers(0, 3))
    for i in range(count):
        kind = draw(st.sampled_from(sorted(kinds)))
        weights, nbytes = kinds[kind]
        shape = [draw(st.integers(0, 2)) * weights, *draw(st.lists(st.integers(0, 3), max_size=2))]
        table += text_of(f"t{i}.weight") + struct.pack("<I", len(shape))
        table += b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, len(data))
        size = math.prod(shape) // weights * nbytes
        data += np.random.default_rng(i + size).bytes(size)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(fields)) + b"".join(fields) + table
    return draw(mutated_bytes(head + bytes(-len(head) % 32) + data))


def check_gguf(content: bytes) -> None:
    with np.errstate(all="ignore"):  # the package gguf multiplies infinities aloud
        only_refusals(lambda: read_everything(gguf_of(Memory(content))))
        only_refusals(lambda: _count_codes(gguf_of(Memory(content))))


def _count_codes(checkpoint: GgufCheckpoint) -> None:
    leg = compare_gguf_codes(checkpoint, checkpoint)
    assert not any(counts.code_flips or counts.value_changes for counts in leg.layers.values())


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
}
SCHEMES = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq"},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 64}}},
    },
    {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}}},
    },
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
    {"quant_method": "mxfp4"},
]
LISTING = {"sha": "a" * 40, "siblings": [{"rfilename": "model.safetensors", "size": 5, "lfs": {"sha256": "b" * 64}}]}


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


SETTINGS: dict[str, tuple[list[Any], Callable[[bytes], object]]] = {
    "adapter": ([ADAPTER], lambda text: _use_adapter(text)),
    "scheme": (SCHEMES, lambda text: read_scheme(FILE, parse_json_object(FILE, text))),
    "listing": ([LISTING], lambda text: _parse_listing(HubName("o/n", None), parse_json_object(FILE, text))),
}


def _use_adapter(text: bytes) -> None:
    config = parse_adapter_config(FILE, text)
    for module in ("model.q_proj", "k_proj", ""):
        assert math.isfinite(config.scaling_of(module))
        assert config.rank_of(module) >= 1


def settings_files() -> st.SearchStrategy[tuple[str, bytes]]:
    """A configuration of any kind, mutated as JSON and as bytes."""
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
    """A valid file of these tensors: name, dtype, shape, bytes of one number."""
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
        axes = 3 if "experts" in name and "[" not in name else draw(st.sampled_from([1, 2, 2, 2, 3]))
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
    """Views read what they show, and never outside of it; what cannot be matched is refused."""

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
STATE = as_bytes({"shape": [8, 8], "blocksize": 64})
SIZES = {"I32": 4, "F16": 2, "BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1}


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, bytes]:
    """The parts of one quantized layer, some of another dtype or shape, over any bytes. Shrinks to a valid layer."""
    layout = draw(st.sampled_from(sorted(PARTS)))
    header: dict[str, object] = {}
    data = b""
    for name, dtype, shape, _ in PARTS[layout]:
        kind = draw(st.sampled_from(sorted(SIZES))) if not draw(st.integers(0, 9)) else dtype
        own = [draw(st.integers(0, 4)) if not draw(st.integers(0, 9)) else n for n in shape]
        raw = draw(st.binary(min_size=math.prod(own) * SIZES[kind], max_size=math.prod(own) * SIZES[kind]))
        full = f"x{name}" if name.startswith("_") else f"x.{name}"
        header[full] = {"dtype": kind, "shape": own, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if layout == "bnb-4bit":
        state = draw(mutated_bytes(STATE))
        header["x.weight.quant_state.bitsandbytes__nf4"] = {
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
    tile = (2, 4) if layout in ("fp8", "ct-block") else (1, 1)
    scheme = Scheme(layout, layout, 4, -1, zero_shift=1, detail="nf4", tile=tile)
    layer = LAYOUTS[layout].open(scheme, _opened(content), "x")
    whole = layer.decode(0, layer.units)
    assert whole.codes.size == whole.values.size == math.prod(layer.shape)
    if layer.units > 1:
        half = layer.units // 2
        codes, values = layer.decode(half, layer.units)
        assert codes.tobytes() == whole.codes.reshape(-1)[-codes.size :].tobytes()
        assert np.array_equal(values.reshape(-1), whole.values.reshape(-1)[-values.size :], equal_nan=True)
    only_refusals(lambda: compare_layers(layer, layer))


CHECKS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "safetensors": (check_safetensors, safetensors_files()),
    "index": (check_index, indexes()),
    "gguf": (check_gguf, gguf_files()),
    "settings": (check_settings, settings_files()),
    "pair": (check_pair, pairs()),
    "layer": (check_layer, layers()),
}
FEW, MANY = 300, 30_000


def fuzz(kind: str, cases: int) -> None:
    check, strategy = CHECKS[kind]
    ran = 0

    def counted(case: Any) -> None:
        nonlocal ran
        ran += 1
        check(case)

    options = settings(max_examples=cases, deadline=None, database=None, suppress_health_check=SLOW_STRATEGIES)
    options(given(strategy)(counted))()
    assert ran >= cases


@pytest.mark.parametrize("kind", CHECKS)
def test_only_refusals(kind: str) -> None:
    fuzz(kind, FEW)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", CHECKS)
def test_only_refusals_in_180000_cases(kind: str) -> None:
    fuzz(kind, MANY)


@pytest.mark.parametrize("kind", CHECKS)
def test_both_outcomes_occur(kind: str) -> None:
    """The fuzz would show nothing if every case were refused at its first byte, or none.

    Of settings 6 % are accepted (18 of 300), so fewer than 1 % would be: less often than once in 10^5.
    """
    outcomes: list[bool] = []
    _, strategy = CHECKS[kind]

    def outcome(case: Any) -> None:
        outcomes.append(_is_refused(kind, case))

    options = settings(
        max_examples=FEW, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW_STRATEGIES
    )
    options(given(strategy)(outcome))()
    assert len(outcomes) / 10 < sum(outcomes) < len(outcomes) * 0.99


def _is_refused(kind: str, case: Any) -> bool:
    acts: dict[str, Callable[[], object]] = {
        "safetensors": lambda: read_header(Memory(case)),
        "index": lambda: read_index(FILE, case[0]),
        "gguf": lambda: gguf_of(Memory(case)),
        "settings": lambda: SETTINGS[case[0]][1](case[1]),
        "pair": lambda: pair(*comparable(*(_opened(content) for content in case))),
        "layer": lambda: _decode(case),
    }
    with np.errstate(all="ignore"):
        return only_refusals(acts[kind])
