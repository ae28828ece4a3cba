"""Files of weights that no honest writer made, in memory, and what readers may answer: a refusal of one line, or a result."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.audit.codes.gguf import compare_gguf_codes
from unforgotten.audit.sources.checkpoint import Checkpoint, SafetensorsCheckpoint, join_shards, read_index
from unforgotten.audit.sources.gguf import GgufCheckpoint, gguf_of
from unforgotten.audit.sources.pairing import check_finite
from unforgotten.audit.sources.safetensors_header import CheckpointError, read_header

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
    """Draw the content with some bytes replaced, cut or doubled, mostly in the first part, where structure is. Shrinks to `content`."""
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
    """Draw a valid file of up to four tensors, its header mutated as JSON, the whole as bytes."""
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
    """Draw an index over two shards, each with one tensor, mutated; the shards too."""
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
    """Draw a valid file of some fields and up to three tensors of any known type, mutated."""
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
