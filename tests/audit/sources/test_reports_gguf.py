"""Public reports about GGUF: heads tied in one file alone, rope factors, rows that K-quants cannot take, big-endian files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit import AuditResult, CheckpointError, audit_pair, open_source

gguf = pytest.importorskip("gguf", reason="what writes the files")

Pair = Callable[..., tuple[Path, Path]]
Tensors = dict[str, NDArray[Any]]
MATRIX, EMBEDDING, HEAD, ROPE = "blk.0.attn_q.weight", "token_embd.weight", "output.weight", "rope_freqs.weight"


def draw(seed: int, rows: int = 8, columns: int = 64) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def save(path: Path, tensors: Tensors, kind: str) -> Path:
    """A file whose matrices are of one type."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, w in tensors.items():
        stored = gguf.GGMLQuantizationType[kind if w.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(w, stored), raw_dtype=stored)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def audited(folder: Path, one: Tensors, two: Tensors, kind: str, formats: list[str] | None) -> AuditResult:
    base = {MATRIX: draw(0), EMBEDDING: draw(1)}
    t = save(folder / "t.gguf", base | one, kind)
    return audit_pair(t, save(folder / "u.gguf", base | {MATRIX: draw(2)} | two, kind), formats)


WAYS = [("Q8_0", None), ("Q8_0", ["int8-row"]), ("F32", ["int8-row"])]
"""Codes that are counted, and values that are quantized again."""


@pytest.mark.parametrize(("kind", "formats"), WAYS)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", [HEAD, ROPE])
def test_what_one_file_alone_stores_and_changes_nothing_is_left_out(
    name: str, side: int, kind: str, formats: list[str] | None, tmp_path: Path
) -> None:
    """llama.cpp stores a tied head twice in some releases, and rope factors only for some models."""
    only: Tensors = {HEAD: draw(1)} if name == HEAD else {ROPE: np.linspace(1, 8, 32, dtype=np.float32)}
    result = audited(tmp_path, *((only, {}) if side == 0 else ({}, only)), kind, formats)
    assert name not in result["coverage"]["kept_changed"]
    word = ("target", "unlearned")[side]
    assert any(note.startswith(f"Only the {word} stores") and name in note for note in result["notes"])


def test_an_untied_head_of_one_file_is_compared_by_values(tmp_path: Path) -> None:
    result = audited(tmp_path, {}, {HEAD: draw(5)}, "Q8_0", ["int8-row"])
    assert HEAD in result["coverage"]["kept_changed"]
    assert any("has an untied output.weight" in note for note in result["notes"])


def test_an_untied_head_of_one_file_has_no_codes_to_compare_and_says_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'output\.weight' must be in both files \(name --formats"):
        audited(tmp_path, {}, {HEAD: draw(5)}, "Q8_0", None)


@pytest.mark.parametrize(
    ("fmt", "columns", "other"),
    [("q3_k", 64, "q4_0"), ("q4_k", 64, "q5_0"), ("q6_k", 160, "q8_0"), ("q4_k", 40, "float16")],
)
def test_rows_that_k_quants_cannot_take_name_the_fallback(
    fmt: str, columns: int, other: str, report_pair: Pair
) -> None:
    """llama-quantize falls back without a word of which type the model then runs in."""
    name, w = "model.layers.0.mlp.up_proj.weight", draw(0, 8, columns)
    pair = report_pair({name: w, MATRIX_HF: None}, {name: w, MATRIX_HF: None})
    see = "" if other == "float16" else rf": see gguf:{fmt.upper()}(_M)?"
    words = rf"must fit {fmt} \(llama\.cpp stores such rows as {other}{see}\), got rows must be whole blocks of 256"
    with pytest.raises(CheckpointError, match=words) as caught:
        audit_pair(*pair, [fmt])
    assert str(caught.value).isprintable()


MATRIX_HF = "model.layers.0.self_attn.q_proj.weight"


def test_a_file_with_such_rows_names_the_fallback(tmp_path: Path) -> None:
    name = MATRIX.encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", len(name)) + name
    head += struct.pack("<IQQIQ", 2, 64, 4, 12, 0)
    (tmp_path / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(144))
    with pytest.raises(
        CheckpointError, match=r"multiple of 256 weights for Q4_K \(llama\.cpp stores such rows as Q5_0\)"
    ):
        open_source(tmp_path / "x.gguf")


@pytest.mark.parametrize("version", [2, 3])
def test_a_big_endian_file_is_named_as_such(version: int, tmp_path: Path) -> None:
    """Files for s390x begin with the same magic, and were refused as "version 50331648"."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", version, 0, 0))
    with pytest.raises(CheckpointError, match=rf"must be little-endian .*got a big-endian file of version {version}"):
        open_source(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_codes_of_another_vocabulary_are_refused_with_what_would_work(name: str, tmp_path: Path) -> None:
    """llama.cpp#5910: a vocabulary that was padded on conversion; its common rows are compared as decoded values."""
    one, two = {name: draw(1)}, {name: draw(1, rows=16)}
    words = r"\[8, 64\] \(name --formats to compare decoded values instead, of the common rows\), got \[16, 64\]"
    with pytest.raises(CheckpointError, match=words):
        audited(tmp_path, one, two, "Q8_0", None)
    result = audited(tmp_path, one, two, "Q8_0", ["int8-row"])
    assert any("The vocabularies differ by rows: the first 8 of both are compared" in n for n in result["notes"])


def test_codes_of_another_width_are_refused_without_such_words(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must have the target's shape \[8, 64\], got \[8, 32\]"):
        audited(tmp_path, {EMBEDDING: draw(1)}, {EMBEDDING: draw(1, columns=32)}, "Q8_0", None)


@pytest.mark.parametrize(("kind", "formats"), WAYS)
def test_a_layer_of_multi_token_prediction_of_one_file_is_named(
    kind: str, formats: list[str] | None, tmp_path: Path
) -> None:
    draft = {"blk.1.nextn.eh_proj.weight": draw(3), "blk.1.attn_q.weight": draw(4)}
    result = audited(tmp_path, draft, {}, kind, formats)
    assert any("2 tensors with 50.0 % of its numbers are not compared" in note for note in result["notes"])


@pytest.mark.parametrize(("factors", "says"), [((1, 8), "divides the frequencies of RoPE"), ((1, 1), "are all 1")])
def test_rope_factors_of_one_file_are_said_for_what_they_are(
    factors: tuple[float, float], says: str, tmp_path: Path
) -> None:
    """llama.cpp#8676: factors of Llama 3.1 stand in the file alone; a file without them runs otherwise."""
    only: Tensors = {ROPE: np.linspace(*factors, 32, dtype=np.float32)}
    for number, formats in enumerate((None, ["int8-row"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (note,) = audited(folder, only, {}, "Q8_0", formats)["notes"]
        assert note.startswith("Only the target stores rope_freqs.weight")
        assert says in note
        assert "anew" not in note
