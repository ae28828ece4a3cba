"""An audit of a pair that is quantized already: its own codes are counted, and nothing is said of the update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner

from unforgotten.audit import CheckpointError, audit_pair
from unforgotten.audit.outputs.json_schema import shipped_schema
from unforgotten.audit.outputs.write import FILES
from unforgotten.cli import app

NAME = "model.layers.0.q_proj"
OUT, IN, GROUP = 24, 64, 16
Tensors = dict[str, NDArray[Any]]


def gptq(seed: int) -> Tensors:
    """GPTQ of 4 bits: eight codes a word along the inputs, and the codes themselves for the oracle."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (IN, OUT))
    shifts = 4 * np.arange(8)
    packed = (codes.reshape(-1, 8, OUT) << shifts[:, None]).sum(axis=1).astype(np.uint32)
    zeros = np.full((IN // GROUP, OUT), 7).reshape(IN // GROUP, -1, 8)
    return {
        f"{NAME}.qweight": packed.view(np.int32),
        f"{NAME}.qzeros": (zeros << shifts).sum(axis=2).astype(np.uint32).view(np.int32),
        f"{NAME}.scales": np.full((IN // GROUP, OUT), 0.5, np.float16),
        "model.norm.weight": np.ones(4, np.float32),
    }


def codes_of(tensors: Tensors) -> NDArray[Any]:
    words = tensors[f"{NAME}.qweight"].view(np.uint32)
    return (words[:, None, :] >> (4 * np.arange(8, dtype=np.uint32))[None, :, None]) & 15


CONFIG: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}


def save(folder: Path, tensors: Tensors, config: dict[str, object] | None = CONFIG) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    stated = {} if config is None else {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def gguf_file(path: Path, w: NDArray[np.float32], kind: str = "Q4_0") -> Path:
    gguf = pytest.importorskip("gguf", reason="what writes the files")
    writer = gguf.GGUFWriter(path, "llama")
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(w, stored), raw_dtype=stored)
    other = gguf.GGMLQuantizationType["Q8_0"]
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(w, other), raw_dtype=other)
    writer.add_tensor("output_norm.weight", w[0, :7].copy())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def weights(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(6, 64)).astype(np.float32)


def test_codes_are_counted_and_the_rest_is_null(tmp_path: Path) -> None:
    before, after = gptq(0), gptq(1)
    after["model.norm.weight"] = np.full(4, 1.5, np.float32)
    t, u = save(tmp_path / "t", before), save(tmp_path / "u", after)
    result = audit_pair(t, u, out=tmp_path / "out")
    jsonschema.Draft202012Validator(shipped_schema()).validate(result)
    flips = int((codes_of(before) != codes_of(after)).sum())
    assert result["compared"] == "codes"
    (row,) = result["formats"]
    assert (row["format"], row["grid"]) == ("gptq:int4-g16", "adaptive")
    assert (row["weights"], row["code_flips"], row["value_changes"]) == (IN * OUT, flips, flips)
    for key in ("unchanged", "expected_flips", "gain", "gain_stderr", "cosine"):
        assert dict(row)[key] is None
    assert row["position"] == {"ks": None, "p": None}
    assert row["wash"] == {"z": None, "p": None}
    assert result["storage"]["unchanged_fraction"] is None
    assert result["storage"]["dead_zone"]["detected"] is None
    assert result["coverage"] == {"tensors": 1, "weights": IN * OUT, "kept": 1, "kept_changed": ["model.norm.weight"]}
    assert result["verdict"]["overall"] == "undecided"
    assert [f["id"] for f in result["findings"]] == ["codes-differ", "kept-changed"]
    assert result["findings"][0]["effect"] == flips / (IN * OUT)


def test_equal_codes_are_one_model(tmp_path: Path) -> None:
    t, u = save(tmp_path / "t", gptq(0)), save(tmp_path / "u", gptq(0))
    result = audit_pair(t, u)
    assert [(f["id"], f["severity"]) for f in result["findings"]] == [("codes-equal", "error")]
    assert result["verdict"]["legs"]["weights"] == "no update"
    assert result["verdict"]["overall"] == "undecided"


def test_all_files_are_written(tmp_path: Path) -> None:
    t, u = save(tmp_path / "t", gptq(0)), save(tmp_path / "u", gptq(1))
    audit_pair(t, u, out=tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(FILES)
    (row,) = pq.read_table(tmp_path / "out" / "tensors.parquet").to_pylist()
    assert (row["name"], row["shape"], row["format"]) == (NAME, [IN, OUT], "gptq:int4-g16")
    assert row["gain"] is row["expected_flips"] is row["wash_p"] is None
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "gptq:int4-g16" in page
    assert "Which weights moved" not in page


def test_command_line_prints_codes(tmp_path: Path) -> None:
    t, u = save(tmp_path / "t", gptq(0)), save(tmp_path / "u", gptq(1))
    done = CliRunner().invoke(app, ["audit", str(t), str(u), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "gptq:int4-g16" in done.stdout
    assert "stored codes differ" in done.stdout


def test_formats_named_for_a_quantized_pair_are_refused(tmp_path: Path) -> None:
    t, u = save(tmp_path / "t", gptq(0)), save(tmp_path / "u", gptq(1))
    with pytest.raises(ValueError, match=r"formats must not be named .* got formats=int8-row"):
        audit_pair(t, u, ["int8-row"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_legs_of_a_quantized_pair_are_refused(tmp_path: Path) -> None:
    t, u = save(tmp_path / "t", gptq(0)), save(tmp_path / "u", gptq(1))
    with pytest.raises(ValueError, match=r"output and behaviour must be .* got gptq:int4-g16"):
        audit_pair(t, u, out=tmp_path / "out", output=lambda: pytest.fail("was measured"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("turned", [False, True])
def test_one_quantized_and_one_not_is_refused(turned: bool, tmp_path: Path) -> None:
    plain: Tensors = {f"{NAME}.weight": np.ones((OUT, IN), np.float32)}
    quantized, other = save(tmp_path / "q", gptq(0)), save(tmp_path / "p", plain, None)
    pair = (other, quantized) if turned else (quantized, other)
    with pytest.raises(CheckpointError, match=r"q must not be quantized already unless .*int4-g16"):
        audit_pair(*pair, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_schemes_are_refused(tmp_path: Path) -> None:
    t = save(tmp_path / "t", gptq(0))
    u = save(tmp_path / "u", gptq(1), CONFIG | {"bits": 8})
    with pytest.raises(CheckpointError, match="must be quantized as the target is"):
        audit_pair(t, u, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_codes_of_gguf_are_those_of_its_blocks(tmp_path: Path) -> None:
    """Q4_0 holds a float16 and 16 bytes of two codes; Q8_0 a float16 and 32 codes: the package's bytes, by hand."""
    gguf = pytest.importorskip("gguf", reason="the reference")
    moved = (weights(0) + weights(1) / 20).astype(np.float32)
    files = gguf_file(tmp_path / "t.gguf", weights(0)), gguf_file(tmp_path / "u.gguf", moved)
    result = audit_pair(*files, out=tmp_path / "out")
    jsonschema.Draft202012Validator(shipped_schema()).validate(result)
    kinds = gguf.GGMLQuantizationType
    expected = {}
    for name, block in (("q4_0", 18), ("q8_0", 34)):
        raw = [gguf.quants.quantize(w, kinds[name.upper()]).reshape(-1, block)[:, 2:] for w in (weights(0), moved)]
        if name == "q4_0":
            raw = [np.concatenate([r & 15, r >> 4], axis=1) for r in raw]
        expected[f"gguf:{name}"] = int((raw[0] != raw[1]).sum())
    assert {f["format"]: f["code_flips"] for f in result["formats"]} == expected
    assert all(f["weights"] == 6 * 64 for f in result["formats"])
    assert result["target"]["dtypes"] == ["Q4_0", "Q8_0", "float32"]


def test_decoded_gguf_is_quantized_again_where_formats_are_named(tmp_path: Path) -> None:
    files = gguf_file(tmp_path / "t.gguf", weights(0)), gguf_file(tmp_path / "u.gguf", weights(1))
    result = audit_pair(*files, ["int8-row"])
    assert result["compared"] == "weights"
    assert {f["format"] for f in result["formats"]} == {"int8-row"}
    assert result["target"]["dtypes"] == ["Q4_0", "Q8_0", "float32"]


@pytest.mark.parametrize("kind", ["Q5_0", "F16"])
def test_gguf_of_another_type_is_refused_with_the_tensor(kind: str, tmp_path: Path) -> None:
    files = (gguf_file(tmp_path / "t.gguf", weights(0)), gguf_file(tmp_path / "u.gguf", weights(1), kind))
    stored = "float16" if kind == "F16" else kind
    words = rf"u\.gguf: tensor 'blk\.0\.attn_q\.weight' must be stored as the target's, Q4_0 .*got {stored}"
    with pytest.raises(CheckpointError, match=words):
        audit_pair(*files, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gguf_of_a_type_without_codes_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="what writes the files")
    for name in "tu":
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        kind = gguf.GGMLQuantizationType.TQ2_0
        w = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
        writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(w, kind), raw_dtype=kind)
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
    with pytest.raises(CheckpointError, match=r"to count codes .name --formats"):
        audit_pair(tmp_path / "t.gguf", tmp_path / "u.gguf")
