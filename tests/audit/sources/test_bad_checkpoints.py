"""Every checkpoint that breaks a rule: one line that names file, tensor and value, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair

NAME = "layers.0.q_proj.weight"
SHAPE = (4, 64)
DATA = np.linspace(-1, 1, 256, dtype=np.float32).tobytes()
ENTRY = {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, len(DATA)]}
INDEX = "model.safetensors.index.json"
Builder = Callable[[Path], None]


def raw(header: object, data: bytes = DATA) -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def single(header: object, data: bytes = DATA) -> Builder:
    return lambda folder: _write(folder / "model.safetensors", raw(header, data))


def bytes_of(content: bytes) -> Builder:
    return lambda folder: _write(folder / "model.safetensors", content)


def entry(**changes: object) -> Builder:
    return single({NAME: {**ENTRY, **changes}})


def only(*names: str) -> Builder:
    def build(folder: Path) -> None:
        for name in names:
            _write(folder / name, b"\x80\x04.")

    return build


def sharded(index: object, **shards: dict[str, object]) -> Builder:
    def build(folder: Path) -> None:
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        _write(folder / INDEX, text)
        for stem, header in shards.items():
            _write(folder / f"{stem}.safetensors", raw(header))

    return build


def mapped(shard: object) -> dict[str, object]:
    return {"weight_map": {NAME: shard}}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def remove(folder: Path) -> None:
    folder.rmdir()


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")


def two_tensors(first: list[int], second: list[int]) -> Builder:
    half = {"dtype": "F32", "shape": [2, 64]}
    return single({"a.weight": {**half, "data_offsets": first}, "b.weight": {**half, "data_offsets": second}})


SURROGATE = json.dumps({"bad\ud800": ENTRY}).encode()
BAD: dict[str, tuple[Builder, tuple[str, ...]]] = {
    "missing directory": (remove, ("bad", "that exists")),
    "empty directory": (only(), ("bad", "got nothing")),
    "no safetensors": (only("config.json"), ("model.safetensors", "config.json")),
    "another name": (only("adapter_model.safetensors"), ("adapter_model.safetensors",)),
    "pickle .bin": (only("pytorch_model.bin"), ("pickle", "pytorch_model.bin")),
    "pickle .pt": (only("model.pt"), ("pickle", "model.pt")),
    "pickle .pth": (only("model.pth"), ("pickle", "model.pth")),
    "pickle .ckpt": (only("model.ckpt"), ("pickle", "model.ckpt")),
    "pickle .pkl": (only("model.pkl"), ("pickle", "model.pkl")),
    "fifo": (fifo, ("model.safetensors", "must be a file")),
    "empty file": (bytes_of(b""), ("model.safetensors", "got 0 bytes")),
    "seven bytes": (bytes_of(bytes(7)), ("model.safetensors", "got 7 bytes")),
    "header too long": (bytes_of(raw(b"{}")[:9]), ("model.safetensors", "at most 1 ", "got 2")),
    "header of exabytes": (bytes_of(b"\xff" * 64), ("at most 56 bytes", f"got {2**64 - 1}")),
    "no JSON": (single(b"{]"), ("model.safetensors", "valid JSON")),
    "no UTF-8": (single(b'{"\xff": 1}'), ("model.safetensors", "valid JSON")),
    "deep JSON": (single(b"[" * 100_000), ("model.safetensors", "valid JSON")),
    "lone surrogate": (single(SURROGATE), ("model.safetensors", "valid JSON")),
    "key twice": (single(b'{"a": 1, "a": 2}'), ("model.safetensors", "'a' twice")),
    "list for header": (single([]), ("model.safetensors", "JSON object", "got list")),
    "entry no object": (single({NAME: 3}), (NAME, "JSON object", "got 3")),
    "unknown dtype": (entry(dtype="F6_E2M3"), (NAME, "BF16", "'F6_E2M3'")),
    "dtype no text": (entry(dtype=["F32"]), (NAME, "dtype", "['F32']")),
    "quantized already": (
        single({NAME: {"dtype": "U8", "shape": [4, 64], "data_offsets": [0, 256]}}, DATA[:256]),
        (NAME, "F32", "got uint8"),
    ),
    "negative shape": (entry(shape=[-4, -64]), (NAME, "shape", "[-4, -64]")),
    "fraction in shape": (entry(shape=[4, 64.0]), (NAME, "shape", "64.0")),
    "boolean in shape": (entry(shape=[True, 256]), (NAME, "shape", "True")),
    "no shape": (entry(shape=None), (NAME, "shape", "got None")),
    "huge shape": (entry(shape=[2**62, 2**62]), (NAME, "must span", "[0, 1024]")),
    "one offset": (entry(data_offsets=[0]), (NAME, "two data_offsets", "[0]")),
    "negative offset": (entry(data_offsets=[-1024, 0]), (NAME, "data_offsets", "[-1024, 0]")),
    "offsets turned": (entry(data_offsets=[1024, 0]), (NAME, "must span", "[1024, 0]")),
    "offsets against shape": (entry(data_offsets=[0, 1020]), (NAME, "1024 bytes", "[0, 1020]")),
    "offsets beyond the end": (two_tensors([0, 512], [1024, 1536]), ("'b.weight'", "end 1536")),
    "overlap": (two_tensors([0, 512], [256, 768]), ("'b.weight'", "256 (overlap)")),
    "hole": (two_tensors([0, 512], [512 + 8, 1032]), ("'b.weight'", "got")),
    "hole at the start": (single({NAME: {**ENTRY, "data_offsets": [8, 1032]}}, DATA + bytes(8)), (NAME, "8 (hole)")),
    "bytes left over": (single({NAME: ENTRY}, DATA + b"x"), ("byte 1024", "got 1025")),
    "truncated file": (single({NAME: ENTRY}, DATA[:-1]), (NAME, "1023 data bytes", "end 1024")),
    "truncated shard": (
        sharded(mapped("s.safetensors"), s={NAME: {**ENTRY, "shape": [8, 64], "data_offsets": [0, 2048]}}),
        ("s.safetensors", NAME, "end 2048"),
    ),
    "index no JSON": (sharded(b"{"), (INDEX, "valid JSON")),
    "index without map": (sharded({"metadata": {}}), (INDEX, "weight_map", "got None")),
    "index with empty map": (sharded({"weight_map": {}}), (INDEX, "weight_map", "got {}")),
    "missing shard": (sharded(mapped("s.safetensors")), (INDEX, "missing shard 's.safetensors'")),
    "shard no text": (sharded(mapped(7)), (INDEX, NAME, "got 7")),
    "traversal": (sharded(mapped("../t/model.safetensors")), (INDEX, NAME, "../t/model")),
    "absolute path": (sharded(mapped("/etc/x.safetensors")), (INDEX, NAME, "/etc/x")),
    "Windows path": (sharded(mapped("C:x.safetensors")), (INDEX, NAME, "C:x")),
    "shard is a pickle": (sharded(mapped("s.bin")), (INDEX, NAME, "'s.bin'")),
    "NUL in shard": (sharded(mapped("\0.safetensors")), (INDEX, NAME, "x00")),
    "not in its shard": (
        sharded({"weight_map": {NAME: "s.safetensors", "b": "s.safetensors"}}, s={NAME: ENTRY}),
        (INDEX, "'b'", "no such tensor"),
    ),
    "not in the index": (
        sharded(mapped("s.safetensors"), s={"a": {**ENTRY, "shape": [0], "data_offsets": [0, 0]}, NAME: ENTRY}),
        ("s.safetensors", "'a'", "None"),
    ),
    "newline in a name": (single({"evil\nname.weight": 3}), (r"evil\nname",)),
    "long name": (single({"n" * 9999: 3}), ("nnn", "…", "got 3")),
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    save_file({NAME: np.frombuffer(DATA, np.float32).reshape(SHAPE)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("side", ["target", "unlearned"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoint_is_refused_in_one_line(
    kind: str, side: str, target: Path, tmp_path: Path, audit_refuses: Callable[..., None]
) -> None:
    build, words = BAD[kind]
    bad = tmp_path / "bad"
    bad.mkdir()
    build(bad)
    pair = (bad, target) if side == "target" else (target, bad)
    audit_refuses(pair, bad, words)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pkl"])
def test_pickle_file_is_refused_by_name(name: str, target: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"{name} must be safetensors .*got {name}"):
        audit_pair(target, path, ["int4-g64"])


def test_file_for_out_directory_is_refused_before_reading(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(ValueError, match="out must be a directory"):
        audit_pair(tmp_path / "no", tmp_path / "no", ["int4-g64"], out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("formats", "words"), [(["int9-row"], "int9-row"), ([], "at least one")])
def test_bad_format_is_refused(formats: list[str], words: str, target: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(target, tmp_path / "other"))
    with pytest.raises(ValueError, match=words) as caught:
        audit_pair(target, other, formats, tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()
