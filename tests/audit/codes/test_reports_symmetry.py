"""Public reports about quantized layers whose zero points and configuration contradict each other; scales of AWQ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair

Tensors = dict[str, NDArray[Any]]
NAME = "model.layers.0.self_attn.q_proj"
SIZE = 16


def save(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(SIZE, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def compressed(form: str, symmetric: object, **weights: Any) -> dict[str, Any]:
    stated = {"num_bits": 8, "strategy": "channel", "symmetric": symmetric, **weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": {"weights": stated}}}


def layer(form: str, zero: int | None, seed: int) -> Tensors:
    """One layer of 8 bits; `zero` is the zero point of all rows."""
    codes = np.random.default_rng(seed).integers(-128, 128, (SIZE, SIZE)).astype(np.int8)
    found: Tensors = {f"{NAME}.weight_scale": np.ones((SIZE, 1), np.float32)}
    if form == "int-quantized":
        zeros = None if zero is None else np.full((SIZE, 1), zero, np.int8)
        return found | {f"{NAME}.weight": codes} | ({} if zeros is None else {f"{NAME}.weight_zero_point": zeros})
    found |= {f"{NAME}.weight_packed": (codes.view(np.uint8) ^ 128).view(np.int32)}
    found |= {f"{NAME}.weight_shape": np.array([SIZE, SIZE])}
    if zero is not None:
        stored = np.full((1, SIZE), zero + 128, np.uint8)
        found[f"{NAME}.weight_zero_point"] = stored.view(np.int32).reshape(-1, 1).copy()
    return found


FORMS = ["pack-quantized", "int-quantized"]
RULES = [
    (False, None, "must be there where the configuration says symmetric: false"),
    (True, 3, "must be 0 everywhere where the configuration says symmetric: true, got 16 others"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("symmetric", "zero", "rule"), RULES)
def test_zero_points_that_contradict_the_configuration_are_refused(
    form: str, symmetric: bool, zero: int | None, rule: str, tmp_path: Path
) -> None:
    """transformers#47430: an asymmetric layer without zero points was decoded as symmetric."""
    t, u = (save(tmp_path / str(i), layer(form, zero, i), compressed(form, symmetric)) for i in range(2))
    with pytest.raises(CheckpointError, match=rule) as caught:
        audit_pair(t, u)
    assert f"'{NAME}.weight_zero_point'" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("symmetric", "zero"), [(False, 3), (True, None), (True, 0), (None, None), (None, 3)])
def test_zero_points_that_fit_are_compared(form: str, symmetric: bool | None, zero: int | None, tmp_path: Path) -> None:
    t, u = (save(tmp_path / str(i), layer(form, zero, i), compressed(form, symmetric)) for i in range(2))
    assert audit_pair(t, u)["formats"][0]["code_flips"] > 0


@pytest.mark.parametrize(
    ("form", "weights", "rule"),
    [
        ("nvfp4-pack-quantized", {"num_bits": 4}, "symmetric true with nvfp4-pack-quantized"),
        ("float-quantized", {"strategy": "block", "block_structure": [8, 8]}, "symmetric true with strategy block"),
        ("int-quantized", {"symmetric": "no"}, "must have true or false for symmetric"),
    ],
)
def test_an_asymmetry_that_no_layout_here_stores_is_refused(
    form: str, weights: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    config = compressed(form, symmetric=False, **{k: v for k, v in weights.items() if k != "symmetric"})
    config["config_groups"]["g"]["weights"] |= weights
    t, u = (save(tmp_path / str(i), layer("int-quantized", 0, i), config) for i in range(2))
    with pytest.raises(CheckpointError, match=rule):
        audit_pair(t, u)


def words(method: str, seed: int) -> Tensors:
    """A layer of GPTQ or AWQ with random codes and zero points, 4 bits."""
    rng = np.random.default_rng(seed)
    shape = (SIZE // 8, SIZE) if method == "gptq" else (SIZE, SIZE // 8)
    draw = {"qweight": shape, "qzeros": (1, SIZE // 8)}
    found = {f"{NAME}.{k}": rng.integers(0, 2**31, s).astype(np.int32) for k, s in draw.items()}
    return found | {f"{NAME}.scales": np.ones((1, SIZE), np.float16)}


@pytest.mark.parametrize("sym", [True, False])
def test_zero_points_of_gptq_that_contradict_sym_are_said(sym: bool, tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": sym, "checkpoint_format": "gptq_v2"}
    t, u = (save(tmp_path / str(i), words("gptq", i), config) for i in range(2))
    notes = audit_pair(t, u)["notes"]
    assert sum("sym: true, but" in note for note in notes) == 2 * sym


@pytest.mark.parametrize("seed", [0, 1])
def test_codes_of_awq_that_differ_are_no_measure_of_an_update(seed: int, tmp_path: Path) -> None:
    """llm-compressor#2296: AWQ of one model twice differs in 71 % of codes, by its scales alone."""
    config = {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}
    t, u = (save(tmp_path / name, words("awq", s), config) for name, s in (("t", 0), ("u", seed)))
    assert any(note.startswith("AWQ multiplies channels") for note in audit_pair(t, u)["notes"]) is (seed == 1)


def test_norms_of_quantized_models_stored_as_one_plus_w_are_another_convention(tmp_path: Path) -> None:
    """vllm#31464: one file stores w of Gemma's norms, the other 1 + w."""
    config = {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}
    t, u = (save(tmp_path / str(i), words("awq", 0), config) for i in range(2))
    norm = {"model.norm.weight": np.full(SIZE, 2.0, np.float32)}
    save_file(words("awq", 0) | norm, u / "model.safetensors")
    result = audit_pair(t, u)
    assert result["findings"][0]["id"] == "other-layout"
    assert "as where the unlearned stores 1 + w" in result["verdict"]["reasons"][0]
