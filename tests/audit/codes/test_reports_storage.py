"""Public reports about how quantized weights are stored: NF4 as bfloat16, NVFP4 of ModelOpt, MXFP4 of gpt-oss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair

Tensors = dict[str, NDArray[Any]]
NAME = "model.layers.0.self_attn.q_proj"
SHAPE = (24, 64)


def save(folder: Path, tensors: Tensors, files: dict[str, object]) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(16, np.float32)}, folder / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def nf4(seed: int, storage: Any) -> Tensors:
    packed = np.random.default_rng(seed).integers(0, 256, SHAPE[0] * SHAPE[1] // 2).astype(np.uint8)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(SHAPE)}).encode()
    return {
        f"{NAME}.weight": packed.view(storage).reshape(-1, 1),
        f"{NAME}.weight.absmax": np.linspace(0.5, 1, SHAPE[0], dtype=np.float32),
        f"{NAME}.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        f"{NAME}.weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8),
    }


@pytest.mark.parametrize("storage", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_nf4_may_be_stored_as_another_dtype(storage: Any, tmp_path: Path) -> None:
    """bnb_4bit_quant_storage of QLoRA under FSDP: the bytes of the codes stand in a bfloat16 tensor."""
    config: dict[str, object] = {
        "config.json": {"quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}}
    }
    t = save(tmp_path / "t", nf4(0, np.uint8), config)
    u = save(tmp_path / "u", nf4(0, storage), config)
    v = save(tmp_path / "v", nf4(1, storage), config)
    (same,) = audit_pair(t, u)["formats"]
    assert (same["weights"], same["code_flips"], same["value_changes"]) == (1536, 0, 0)
    (other,) = audit_pair(t, v)["formats"]
    nibbles = [np.stack([raw >> 4, raw & 15]) for raw in (nf4(s, np.uint8)[f"{NAME}.weight"] for s in (0, 1))]
    assert other["code_flips"] == (nibbles[0] != nibbles[1]).sum()


def nvfp4(seed: int, second: float = 0.5) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        f"{NAME}.weight": rng.integers(0, 256, (24, 32)).astype(np.uint8),
        f"{NAME}.weight_scale": np.ones((24, 4), ml_dtypes.float8_e4m3fn),
        f"{NAME}.weight_scale_2": np.array(second, np.float32),
        f"{NAME}.input_scale": np.array(1, np.float32),
    }


ALGORITHM = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
PLACES: dict[str, dict[str, object]] = {
    "config.json": {"config.json": {"quantization_config": {"quant_method": "modelopt", **ALGORITHM}}},
    "hf_quant_config.json": {
        "config.json": {"model_type": "llama"},
        "hf_quant_config.json": {"quantization": ALGORITHM},
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_nvfp4_of_modelopt_is_compared(place: str, tmp_path: Path) -> None:
    """Its second scale multiplies, and older exports say what they are beside config.json."""
    t = save(tmp_path / "t", nvfp4(0), PLACES[place])
    u = save(tmp_path / "u", nvfp4(0, 0.25), PLACES[place])
    (row,) = audit_pair(t, u)["formats"]
    zeros = np.isin(np.stack([nvfp4(0)[f"{NAME}.weight"] & 15, nvfp4(0)[f"{NAME}.weight"] >> 4]), [0, 8]).sum()
    assert (row["format"], row["code_flips"]) == ("modelopt:nvfp4-g16", 0)
    assert row["value_changes"] == 24 * 64 - zeros


@pytest.mark.parametrize("algorithm", ["W4A8_AWQ", None, 3])
def test_another_algorithm_of_modelopt_is_refused(algorithm: object, tmp_path: Path) -> None:
    files: dict[str, object] = {"hf_quant_config.json": {"quantization": {"quant_algo": algorithm}}}
    t = save(tmp_path / "t", nvfp4(0), files)
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json must have quant_algo NVFP4 or FP8"):
        audit_pair(t, shutil.copytree(t, tmp_path / "u"))


def test_mxfp4_experts_of_gpt_oss_are_counted_and_the_router_is_kept(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 32, 2, 16)).astype(np.uint8)
    tensors: Tensors = {
        f"{experts}_blocks": blocks,
        f"{experts}_scales": np.full((4, 32, 2), 120, np.uint8),
        f"{experts}_bias": np.zeros((4, 32), ml_dtypes.bfloat16),
        "model.layers.0.mlp.router.weight": rng.normal(size=(4, 64)).astype(np.float32),
    }
    moved = blocks.copy()
    moved[2, 5, 1, 7] ^= 0x11
    config: dict[str, object] = {"config.json": {"quantization_config": {"quant_method": "mxfp4"}}}
    t = save(tmp_path / "t", tensors, config)
    u = save(tmp_path / "u", tensors | {f"{experts}_blocks": moved}, config)
    result = audit_pair(t, u, out=tmp_path / "out")
    (row,) = result["formats"]
    assert (row["format"], row["weights"], row["code_flips"]) == ("mxfp4:e2m1-g32", 4 * 32 * 64, 2)
    assert any("'model.layers.0.mlp.router.weight'" in note for note in result["notes"])
    assert "not-measured" not in [f["id"] for f in result["findings"]]


def test_codes_that_no_configuration_speaks_of_are_not_passed_over(tmp_path: Path) -> None:
    """Blocks of gpt-oss without their config.json stood among the tensors that quantizers leave alone."""
    blocks = np.zeros((4, 32, 2, 16), np.uint8)
    plain = {f"{NAME}.weight": np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)}
    t = save(tmp_path / "t", plain | {"model.layers.0.mlp.experts.down_proj_blocks": blocks}, {})
    u = save(tmp_path / "u", plain | {"model.layers.0.mlp.experts.down_proj_blocks": blocks + np.uint8(1)}, {})
    result = audit_pair(t, u, ["int8-row"])
    assert "in tensors that this audit does not measure; 1 of these 1 changed" in result["verdict"]["reasons"][0]
    assert result["verdict"]["legs"]["weights"] == "unclear"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": 128}, "two sizes for weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [1, 1]}, "two sizes for weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, -1]}, "two sizes for weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, 10**30]}, "group size in"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32}, "group_size 16 for NVFP4"),
    ],
)
def test_bad_settings_are_refused_in_one_line(config: object, words: str, tmp_path: Path) -> None:
    t = save(tmp_path / "t", nvfp4(0), {"config.json": {"quantization_config": config}})
    with pytest.raises(CheckpointError, match=words) as caught:
        audit_pair(t, shutil.copytree(t, tmp_path / "u"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_a_layer_that_lost_its_scale_is_no_tensor_that_is_kept(dtype: Any, tmp_path: Path) -> None:
    """bitsandbytes#960, unslothai/unsloth#6978: such a matrix counted as stored unquantized, and the pair as one model."""
    config: dict[str, object] = {
        "config.json": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    }
    lost = {"model.layers.9.mlp.up_proj.weight": np.ones((16, 16), dtype)}
    t = save(tmp_path / "t", nvfp4(0) | lost, config)
    u = save(tmp_path / "u", nvfp4(0) | lost, config)
    rule = r"'model\.layers\.9\.mlp\.up_proj\.weight' must have the scale of a layer beside it"
    with pytest.raises(CheckpointError, match=rule):
        audit_pair(t, u)
