"""Public reports about what config.json says of quantized layers: one float8 scale, `dynamic`, zero points as bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint
from unforgotten.audit.codes.compare import compare_codes, scheme_of
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.verification.domains.quantized_layers import CASES, NAME, gptq, gptq_dynamic

Tensors = dict[str, NDArray[Any]]
QKV, GATE_UP = "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "hidden_size": 16}


def save(folder: Path, quantization: object, tensors: Tensors, **config: object) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization, **config}))
    return folder


def decoded(folder: Path, name: str) -> NDArray[Any]:
    scheme = scheme_of(folder)
    assert scheme is not None
    layer = LAYOUTS[scheme.layout].open(scheme, open_checkpoint(folder), name)
    return layer.decode(0, layer.units).values


def float8(rows: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(rows, 16)).astype(ml_dtypes.float8_e4m3fn)


FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}


def test_float8_of_one_scale_is_compared(tmp_path: Path) -> None:
    """vllm#4332: AutoFP8 states no weight_block_size, and a pair was refused for it."""
    w = float8(8)
    other = w.copy()
    other.view(np.uint8)[3, :5] ^= 1
    scales: Tensors = {f"{NAME}.weight_scale": np.array(0.5, np.float32), f"{NAME}.input_scale": np.ones(1, np.float32)}
    t = save(tmp_path / "t", FP8, {f"{NAME}.weight": w, **scales})
    u = save(tmp_path / "u", FP8, {f"{NAME}.weight": other, **scales})
    (row,) = audit_pair(t, u)["formats"]
    assert (row["format"], row["weights"], row["code_flips"]) == ("fp8:e4m3", w.size, 5)


@pytest.mark.parametrize("config", [FP8, MODELOPT])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("inner", [False, True])
def test_scales_of_queries_keys_and_values_are_of_their_rows(
    inner: bool, shape: tuple[int, ...], config: dict[str, object], tmp_path: Path
) -> None:
    """neuralmagic/nm-vllm#336: a fused matrix with one scale for each of the three it was made of."""
    w, scale = float8(32), np.array([1, 2, 3], np.float32)
    tensors: Tensors = {f"{QKV}.weight": w, f"{QKV}.weight_scale": scale.reshape(shape)}
    heads: dict[str, Any] = {"text_config": HEADS} if inner else HEADS
    found = decoded(save(tmp_path / "t", config, tensors, **heads), QKV)
    assert np.array_equal(found, w.astype(np.float32) * np.repeat(scale, (16, 8, 8))[:, None])


def test_scales_of_gate_and_up_are_of_their_halves(tmp_path: Path) -> None:
    w, scale = float8(6), np.array([1, 2], np.float32)
    found = decoded(save(tmp_path / "t", FP8, {f"{GATE_UP}.weight": w, f"{GATE_UP}.weight_scale": scale}), GATE_UP)
    assert np.array_equal(found, w.astype(np.float32) * np.repeat(scale, 3)[:, None])


@pytest.mark.parametrize("config", [{}, HEADS | {"head_dim": 8}, {"num_attention_heads": "4"}, {"text_config": 3}])
def test_scales_of_unknown_rows_are_refused(config: dict[str, object], tmp_path: Path) -> None:
    scale = np.array([1, 2, 3], np.float32)
    t = save(tmp_path / "t", FP8, {f"{QKV}.weight": float8(32), f"{QKV}.weight_scale": scale}, **config)
    with pytest.raises(CheckpointError, match="which rows a scale is for") as caught:
        decoded(t, QKV)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("rows", [1, 5])
def test_scales_of_halves_that_are_none_are_refused(rows: int, tmp_path: Path) -> None:
    """One row with two scales ended in an error of numpy; the fuzz found it."""
    tensors = {f"{GATE_UP}.weight": float8(rows), f"{GATE_UP}.weight_scale": np.ones(2, np.float32)}
    with pytest.raises(CheckpointError, match="must have one scale, or 2 of an even number of rows, got"):
        decoded(save(tmp_path / "t", FP8, tensors), GATE_UP)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{NAME}.weight_scale": np.ones(3, np.float32)}, r"weight_scale' must have the shape \[8, 1\] or"),
        (dict.fromkeys((f"{NAME}.weight_scale", f"{NAME}.weight_scale_inv"), np.ones(1, np.float32)), "got both"),
    ],
)
def test_other_scales_of_float8_are_refused(tensors: Tensors, words: str, tmp_path: Path) -> None:
    t = save(tmp_path / "t", FP8, {f"{NAME}.weight": float8(8), **tensors})
    with pytest.raises(CheckpointError, match=words):
        compare_codes(open_checkpoint(t), open_checkpoint(t))


def test_a_quantized_layer_of_multi_token_prediction_of_one_file_is_named(tmp_path: Path) -> None:
    """transformers#35688, of the FP8 files themselves."""
    before, after = CASES["fp8"](0), CASES["fp8"](1)
    draft = {n.replace("layers.0.", "layers.1."): w for n, w in before.tensors.items()}
    draft["model.layers.1.eh_proj.weight"] = np.ones((4, 4), np.float32)
    t = save(tmp_path / "t", before.config, before.tensors | draft)
    (row,) = audit_pair(t, u := save(tmp_path / "u", after.config, after.tensors))["formats"]
    assert (row["weights"], row["code_flips"]) == (before.codes.size, (before.codes != after.codes).sum())
    assert any("3 tensors with" in note and "multi-token prediction" in note for note in audit_pair(t, u)["notes"])


def test_layers_of_dynamic_are_rows_of_their_own_format(tmp_path: Path) -> None:
    """vllm#15665: `dynamic` of GPTQModel gives single modules other bits, and their shapes were refused."""
    folders = []
    for side, seed in (("t", 0), ("u", 1)):
        four, eight = gptq_dynamic(seed), gptq(seed, bits=8)
        other = {n.replace(".0.", ".1."): w for n, w in eight.tensors.items()}
        folders.append(save(tmp_path / side, four.config | {"group_size": 16}, four.tensors | other))
    result = audit_pair(folders[0], folders[1], out=tmp_path / "out")
    rows = {row["format"]: row for row in result["formats"]}
    assert list(rows) == ["gptq:int4-g16", "gptq:int8-g16"]
    for name, bits in (("gptq:int4-g16", 4), ("gptq:int8-g16", 8)):
        codes = [gptq(seed, bits=bits).codes for seed in (0, 1)]
        assert rows[name]["code_flips"] == (codes[0] != codes[1]).sum()
    assert any("0x01010101 or 0x11111111 added to every whole word" in note for note in result["notes"])


def test_a_layer_of_other_bits_on_each_side_is_refused(tmp_path: Path) -> None:
    four, eight = gptq_dynamic(0), gptq(0, bits=8)
    config = four.config | {"group_size": 16}
    t, u = save(tmp_path / "t", config, four.tensors), save(tmp_path / "u", config, eight.tensors)
    with pytest.raises(
        CheckpointError, match=r"q_proj' must be stored as the target's gptq:int4-g16, got gptq:int8-g16"
    ):
        audit_pair(t, u)


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        ([1], "object of patterns for dynamic"),
        ({"q": 4}, "an object for 'q' of dynamic"),
        ({"q": {"bits": 3}}, r"bits in \[2, 4, 8\], got 3"),
        ({"q": {"group_size": 0}}, "group size in"),
        ({"q": {"bits": 2}}, r"must have the shapes of one of the settings of config\.json \(8 bits in groups of 32"),
        ({"q": {"bits": 4, "group_size": 17}, "k": {"bits": 4, "group_size": 18}}, "must have the shapes of just one"),
    ],
)
def test_bad_dynamic_is_refused_in_one_line(dynamic: object, words: str, tmp_path: Path) -> None:
    case = gptq_dynamic(0)
    t = save(tmp_path / "t", case.config | {"dynamic": dynamic}, case.tensors)
    with pytest.raises(CheckpointError, match=words) as caught:
        compare_codes(open_checkpoint(t), open_checkpoint(t))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["packed, zero point", "packed, zero point as int8", "int8, zero point"])
def test_a_zero_point_that_is_promised_and_missing_is_refused(kind: str, tmp_path: Path) -> None:
    """transformers#47430: without it codes of `symmetric: false` decode to weights that are off by a constant."""
    case = CASES[kind](0)
    del case.tensors[f"{NAME}.weight_zero_point"]
    t = save(tmp_path / "t", case.config, case.tensors)
    with pytest.raises(
        CheckpointError, match=r"weight_zero_point' must be there where the configuration says symmetric: false"
    ):
        compare_codes(open_checkpoint(t), open_checkpoint(t))


def test_zero_points_as_bytes_and_in_words_decode_alike(tmp_path: Path) -> None:
    """compressed-tensors#296: before it, zero points of packed weights were stored as int8, and were refused."""
    words, whole = (CASES[kind](0) for kind in ("packed, zero point", "packed, zero point as int8"))
    t, u = save(tmp_path / "t", words.config, words.tensors), save(tmp_path / "u", whole.config, whole.tensors)
    assert np.array_equal(decoded(t, NAME), decoded(u, NAME))
    (row,) = audit_pair(t, u)["formats"]
    assert (row["code_flips"], row["value_changes"]) == (0, 0)
