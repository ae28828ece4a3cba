"""GGUF files: values against the package gguf, layouts, and what is refused."""

from __future__ import annotations

import builtins
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_source
from unforgotten.audit.sources.gguf import OWN, open_gguf
from unforgotten.audit.sources.gguf_decode import BLOCK_TYPES

gguf = pytest.importorskip("gguf", reason="the reference, and what writes the files")

MATRIX = "blk.0.attn_q.weight"
SHAPE = (6, 512)
NUMBERS = {name: number for number, name in OWN.items()}
F32 = 0


def text(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def entry(name: str | bytes = MATRIX, shape: tuple[int, ...] = SHAPE, kind: int = F32, offset: int = 0) -> bytes:
    axes = b"".join(struct.pack("<Q", n) for n in reversed(shape))
    return text(name) + struct.pack("<I", len(shape)) + axes + struct.pack("<IQ", kind, offset)


def file_of(
    entries: list[bytes],
    data: bytes,
    fields: bytes = b"",
    count: int = 0,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file with this table, whatever it says."""
    stated = len(entries) if tensors is None else tensors
    head = magic + struct.pack("<IQQ", version, stated, count) + fields + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def weights(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def blocks_of(kind: str, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes of whole blocks; every bit pattern occurs, subnormal and infinite scales too."""
    layout = BLOCK_TYPES[kind]
    n = SHAPE[0] * SHAPE[1] // layout.weights
    return np.random.default_rng(seed).integers(0, 256, (n, layout.nbytes), np.uint8)


def test_numbers_and_sizes_are_those_of_gguf() -> None:
    for number, name in OWN.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (number, *gguf.GGML_QUANT_SIZES[kind]) == (int(kind), *BLOCK_TYPES[name][:2])


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # gguf multiplies infinities aloud
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_values_are_those_of_gguf(kind: str) -> None:
    blocks = np.concatenate([blocks_of(kind, seed) for seed in range(20)])
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    with np.errstate(all="ignore"):
        ours = BLOCK_TYPES[kind].decode(blocks).values
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.isfinite(ours).mean() > 0.5


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_rows_are_those_of_the_tensor(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_of([entry(kind=NUMBERS[kind])], blocks_of(kind).tobytes()))
    checkpoint = open_source(path)
    info, whole = checkpoint.tensors[MATRIX], checkpoint.read(MATRIX)
    assert (info.shape, info.dtype, info.stored) == (SHAPE, np.dtype(np.float32), kind)
    for start, stop in ((0, 6), (0, 0), (2, 3), (1, 6)):
        part = checkpoint.read_rows(MATRIX, start, stop)
        assert np.array_equal(part, whole[start:stop], equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64])
def test_plain_types_are_read_as_stored(dtype: Any, tmp_path: Path) -> None:
    kind = {np.float32: 0, np.float16: 1, ml_dtypes.bfloat16: 30, np.int8: 24, np.int64: 27}[dtype]
    w = (100 * weights()).astype(dtype)
    (tmp_path / "x.gguf").write_bytes(file_of([entry(kind=kind)], w.tobytes()))
    found = open_source(tmp_path / "x.gguf").read(MATRIX)
    assert found.dtype == dtype
    assert np.array_equal(found, w)


def written(path: Path, w: NDArray[np.float32], kind: str) -> Path:
    """A file as the package gguf writes it, with a vocabulary, a norm and a tied head."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token{i}" for i in range(1000)])
    writer.add_array("some.floats", [1.5, 2.5])
    writer.add_string("general.name", "x" * 5000)
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(MATRIX, gguf.quants.quantize(w, stored), raw_dtype=stored)
    writer.add_tensor("token_embd.weight", w[:3])
    writer.add_tensor("output_norm.weight", w[0, :7].copy())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q5_1"])
def test_written_by_gguf_and_audited(kind: str, tmp_path: Path) -> None:
    w = weights()
    t, u = (
        written(tmp_path / "t.gguf", w, kind),
        written(tmp_path / "u.gguf", (w + weights(1) / 9).astype(np.float32), kind),
    )
    stored = gguf.GGMLQuantizationType[kind]
    values = gguf.quants.dequantize(gguf.quants.quantize(w, stored), stored)
    assert np.array_equal(open_source(t).read(MATRIX), values)
    assert np.array_equal(open_source(t).read("output_norm.weight"), w[0, :7])
    result = audit_pair(t, u, ["int4-row"], tmp_path / "out")
    assert result["coverage"]["tensors"] == 1
    assert result["coverage"]["weights"] == w.size
    assert result["formats"][0]["code_flips"] > 0


def test_type_of_the_package_is_decoded_by_it(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.TQ2_0
    raw = gguf.quants.quantize(weights(), kind)
    (tmp_path / "x.gguf").write_bytes(file_of([entry(kind=int(kind))], raw.tobytes()))
    checkpoint = open_source(tmp_path / "x.gguf")
    assert checkpoint.tensors[MATRIX].stored == "TQ2_0"
    assert np.array_equal(checkpoint.read(MATRIX), gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize("kind", ["Q4_K", "TQ2_0"])
def test_without_the_package(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own types are read; another is refused with the way to install it."""
    number = gguf.GGMLQuantizationType[kind]
    weights_, nbytes = gguf.GGML_QUANT_SIZES[number]
    data = bytes(SHAPE[0] * SHAPE[1] // weights_ * nbytes)
    (tmp_path / "x.gguf").write_bytes(file_of([entry(kind=int(number))], data))
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    if kind in BLOCK_TYPES:
        assert not open_source(tmp_path / "x.gguf").read(MATRIX).any()
        return
    with pytest.raises(CheckpointError, match=rf"'{MATRIX}' must be .*pip install 'unforgotten\[gguf\]', got type 35"):
        open_source(tmp_path / "x.gguf")


def test_zero_sizes_and_scalars(tmp_path: Path) -> None:
    entries = [entry("a", (0, 4)), entry("b", ()), entry("c", (3,), offset=32)]
    (tmp_path / "x.gguf").write_bytes(file_of(entries, bytes(44)))
    checkpoint = open_source(tmp_path / "x.gguf")
    assert [checkpoint.read(n).shape for n in "abc"] == [(0, 4), (), (3,)]


def field(key: str, kind: int, value: bytes) -> tuple[bytes, int]:
    return text(key) + struct.pack("<I", kind) + value, 1


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


DATA = weights().tobytes()
DEEP = field("deep", 9, array(9, 1) * 10)
BAD: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("begin with b'GGUF'", "got b''")),
    "a zip": (b"PK\x03\x04" + bytes(99), ("begin with b'GGUF'",)),
    "magic alone": (b"GGUF", ("truncated", "got 8")),
    "version 1": (file_of([entry()], DATA, version=1), ("version (2, 3)", "got 1")),
    "big-endian": (file_of([entry()], DATA, version=3 << 24), ("little-endian", "a big-endian file of version 3")),
    "2^63 tensors": (file_of([], b"", tensors=1 << 63), ("at most 4194304", "more tensors")),
    "2^63 fields": (file_of([], b"", count=1 << 63), ("at most 4194304", "more fields")),
    "more tensors than there are": (file_of([entry()], b"", tensors=99), ("truncated",)),
    "key of exabytes": (file_of([], b"", struct.pack("<Q", 1 << 60), 1), ("at most 1024 bytes",)),
    "text of exabytes": (file_of([], b"", *field("k", 8, struct.pack("<Q", 1 << 60))), ("truncated",)),
    "array of exabytes": (file_of([], b"", *field("k", 9, array(4, 1 << 60))), ("truncated",)),
    "array of 2^40 texts": (file_of([], b"", *field("k", 9, array(8, 1 << 40))), ("more elements",)),
    "arrays in arrays": (file_of([], b"", *DEEP), ("4 deep", "type 9")),
    "unknown type of field": (file_of([], b"", *field("k", 77, b"")), ("known type", "type 77")),
    "field twice": (file_of([], b"", field("k", 0, b"1")[0] * 2, 2), ("'k' twice",)),
    "name no UTF-8": (file_of([entry(b"\xff\xfe")], DATA), ("UTF-8",)),
    "alignment 3": (
        file_of([entry()], DATA, *field("general.alignment", 4, struct.pack("<I", 3))),
        ("power of two", "got 3"),
    ),
    "alignment 0": (file_of([entry()], DATA, *field("general.alignment", 4, bytes(4))), ("got 0",)),
    "alignment a text": (
        file_of([entry()], DATA, *field("general.alignment", 8, text("32"))),
        ("general.alignment", "got None"),
    ),
    "a part": (
        file_of([entry()], DATA, *field("split.count", 2, b"\x03\x00")),
        ("llama-gguf-split", "got a part of 3"),
    ),
    "nine axes": (file_of([entry(shape=(1,) * 9)], DATA), (MATRIX, "4 axes", "got 9")),
    "huge shape": (file_of([entry(shape=(2**62, 2**62))], DATA), (MATRIX, "multiply to")),
    "huge shape behind a 0": (file_of([entry(shape=(0, 2**62, 2**62))], DATA), (MATRIX, "multiply")),
    "unknown type": (file_of([entry(kind=999)], DATA), (MATRIX, "type that gguf", "type 999")),
    "type that gguf cannot decode": (file_of([entry(kind=15)], DATA), (MATRIX, "type 15")),
    "row no multiple": (file_of([entry(shape=(4, 100), kind=12)], DATA), (MATRIX, "256", "Q4_K")),
    "scalar of blocks": (file_of([entry(shape=(), kind=12)], DATA), (MATRIX, "axis")),
    "twice": (file_of([entry(), entry()], DATA), (MATRIX, "once", "twice")),
    "overlap": (file_of([entry(), entry("b", (8,), offset=32)], DATA), ("'b'", "32 (overlap)")),
    "hole": (file_of([entry(offset=64)], DATA + bytes(64)), (MATRIX, "64 (hole)")),
    "not aligned": (file_of([entry("a", (1,)), entry("b", (1,), offset=4)], DATA), ("'b'", "at 32")),
    "truncated": (file_of([entry()], DATA[:-1]), (MATRIX, "truncated", f"end {len(DATA)}")),
    "no data": (file_of([entry()], b""), (MATRIX, "truncated")),
    "left over": (file_of([entry()], DATA + bytes(64)), ("end with its last", f"{len(DATA) + 64}")),
    "evil name": (file_of([entry("a\n<b>\x1b", kind=999)], DATA), (r"a\n<b>\x1b",)),
    "nan": (
        file_of([entry()], np.full(SHAPE, np.nan, np.float32).tobytes()),
        (MATRIX, "finite", "(3072 of 3072 weights)"),
    ),
}


@pytest.mark.parametrize("side", ["target", "unlearned"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_in_one_line(
    kind: str, side: str, tmp_path: Path, audit_refuses: Callable[..., None]
) -> None:
    content, words = BAD[kind]
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(file_of([entry()], DATA))
    bad.write_bytes(content)
    pair = (bad, good) if side == "target" else (good, bad)
    audit_refuses(pair, bad, words)


def test_pair_with_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(file_of([entry()], DATA))
    save_file({MATRIX: weights()}, tmp_path / "x.safetensors")
    for pair in (("x.gguf", "x.safetensors"), ("x.safetensors", "x.gguf")):
        with pytest.raises(CheckpointError, match="must be GGUF if the target is"):
            audit_pair(tmp_path / pair[0], tmp_path / pair[1], ["int8-row"])


def test_disguised_as_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(file_of([entry()], DATA))
    with pytest.raises(CheckpointError, match=r"must be safetensors .*got a GGUF file"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
def test_file_that_changes_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_of([entry()], DATA))
    checkpoint = open_gguf(path)
    changes: dict[str, Callable[[], object]] = {
        "longer": lambda: path.write_bytes(file_of([entry()], DATA + b"x")),
        "touched": lambda: os.utime(path, ns=(1, 1)),
        "gone": path.unlink,
    }
    changes[change]()
    with pytest.raises((CheckpointError, OSError), match=r"must stay as it is|No such file"):
        checkpoint.read(MATRIX)
