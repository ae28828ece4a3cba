"""Layers as each library stores them, with the codes and values that they are to decode to, by integers of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit.codes.gptq import AWQ_ORDER

Tensors = dict[str, NDArray[Any]]
NAME = "model.layers.0.q_proj"
OUT, IN, GROUP = 24, 64, 16


def words(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Rows of codes as 32-bit words, lowest bits first, by Python's integers."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> (32 * k) & 0xFFFFFFFF for k in range(count)])
    return np.array(rows, np.uint32).view(np.int32)


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


class Case:
    """One layer as a method stores it, with its codes and values in the order of the layout."""

    def __init__(self, config: dict[str, object], tensors: Tensors, codes: NDArray[Any], values: NDArray[Any]) -> None:
        self.config, self.tensors, self.codes, self.values = config, tensors, codes, values


def gptq(seed: int, *, bits: int = 4, form: str = "gptq", order: bool = False) -> Case:
    rng = rng_of(seed, bits)
    codes = rng.integers(0, 2**bits, (IN, OUT))
    zeros = rng.integers(0, 2**bits, (IN // GROUP, OUT))
    scales = rng.uniform(0.5, 1, zeros.shape).astype(np.float16)
    group = rng_of(7).permutation(IN) // GROUP if order else np.arange(IN) // GROUP
    tensors: Tensors = {
        f"{NAME}.qweight": words(codes.T, bits).T.copy(),
        f"{NAME}.qzeros": _less_one(words(zeros, bits), bits) if form == "gptq" else words(zeros, bits),
        f"{NAME}.scales": scales,
    }
    if order:
        tensors[f"{NAME}.g_idx"] = group.astype(np.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": form}
    values = scales[group].astype(np.float32) * (codes - zeros[group]).astype(np.float32)
    return Case(config, tensors, codes, values)


def _less_one(packed: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Words as format v1 stores them: less one in every code, as one number modulo 2^32."""
    ones = sum(1 << at for at in range(0, 32, bits))
    return np.array([[(word - ones) % 2**32 for word in row] for row in packed.tolist()], np.uint32).view(np.int32)


def awq(seed: int) -> Case:
    rng = rng_of(seed)
    codes, zeros = rng.integers(0, 16, (IN, OUT)), rng.integers(0, 16, (IN // GROUP, OUT))
    scales = rng.uniform(0.5, 1, zeros.shape).astype(np.float16)

    def packed(values: NDArray[Any]) -> NDArray[np.int32]:
        return words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), 4)

    tensors: Tensors = {f"{NAME}.qweight": packed(codes), f"{NAME}.qzeros": packed(zeros), f"{NAME}.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    group = np.arange(IN) // GROUP
    values = scales[group].astype(np.float32) * (codes - zeros[group]).astype(np.float32)
    return Case(config, tensors, codes, values)


def ct_packed(seed: int, *, bits: int = 4, zero: bool = False, ins: int = IN, whole: bool = False) -> Case:
    """Dense codes; `whole` stores zero points as signed bytes, as releases before compressed-tensors 0.9.5 do."""
    rng = rng_of(seed, bits)
    codes = rng.integers(0, 2**bits, (OUT, ins))
    groups = -(-ins // GROUP)
    scales = rng.uniform(0.5, 1, (OUT, groups)).astype(ml_dtypes.bfloat16)
    zeros = rng.integers(0, 2**bits, scales.shape) if zero else np.full(scales.shape, 2 ** (bits - 1))
    tensors: Tensors = {
        f"{NAME}.weight_packed": words(codes, bits),
        f"{NAME}.weight_scale": scales,
        f"{NAME}.weight_shape": np.array([OUT, ins]),
    }
    if zero:
        signed = (zeros - 2 ** (bits - 1)).astype(np.int8)
        tensors[f"{NAME}.weight_zero_point"] = signed if whole else words(zeros.T, bits).T.copy()
    weights = {"num_bits": bits, "type": "int", "symmetric": not zero, "strategy": "group", "group_size": GROUP}
    group = np.arange(ins) // GROUP
    values = scales.astype(np.float32)[:, group] * (codes - zeros[:, group]).astype(np.float32)
    return Case(_ct("pack-quantized", weights), tensors, codes, values)


def _ct(form: str, weights: dict[str, object]) -> dict[str, object]:
    groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def ct_int8(seed: int) -> Case:
    rng = rng_of(seed)
    codes = rng.integers(-128, 128, (OUT, IN)).astype(np.int8)
    scales = rng.uniform(0.5, 1, (OUT, 1)).astype(np.float32)
    tensors: Tensors = {f"{NAME}.weight": codes, f"{NAME}.weight_scale": scales}
    config = _ct("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})
    return Case(config, tensors, codes.view(np.uint8), scales * codes.astype(np.float32))


def ct_int8_zero(seed: int) -> Case:
    case = ct_int8(seed)
    zeros = rng_of(seed, 9).integers(-128, 128, (OUT, 1)).astype(np.int8)
    levels = case.tensors[f"{NAME}.weight"].astype(np.float32) - zeros.astype(np.float32)
    config = _ct("int-quantized", {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"})
    tensors = case.tensors | {f"{NAME}.weight_zero_point": zeros}
    return Case(config, tensors, case.codes, case.tensors[f"{NAME}.weight_scale"] * levels)


def fp8_tensor(seed: int, *, ending: str = "weight_scale", shape: tuple[int, ...] = (), method: str = "fp8") -> Case:
    """One scale a tensor, as AutoFP8, or a row, as FBGEMM; Mistral calls it `weight_scale_inv`, and multiplies by it."""
    stored = rng_of(seed).normal(size=(OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng_of(seed, 1).uniform(0.5, 1, shape or (1,)).astype(np.float32)
    tensors: Tensors = {f"{NAME}.weight": stored, f"{NAME}.{ending}": scale.reshape(shape)}
    config: dict[str, object] = {"quant_method": method, "activation_scheme": "static", "weight_block_size": None}
    return Case(config, tensors, stored.view(np.uint8), stored.astype(np.float32) * scale)


def gptq_dynamic(seed: int, *, order: bool = False) -> Case:
    """Return a layer of 4 bits in a checkpoint of 8, by a pattern of GPTQModel's `dynamic`."""
    case = gptq(seed, order=order)
    dynamic = {"-:.*lm_head": {}, r"+:.*\.q_proj": {"bits": 4, "group_size": GROUP}, ".*k_proj": {"bits": 2}}
    return Case(case.config | {"bits": 8, "group_size": 32, "dynamic": dynamic}, case.tensors, case.codes, case.values)


def ct_float8(seed: int) -> Case:
    stored = rng_of(seed).normal(size=(OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    scale = np.array([0.25], np.float32)
    tensors: Tensors = {f"{NAME}.weight": stored, f"{NAME}.weight_scale": scale}
    config = _ct("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"})
    return Case(config, tensors, stored.view(np.uint8), stored.astype(np.float32) / 4)


def ct_nvfp4(seed: int) -> Case:
    rng = rng_of(seed)
    codes = rng.integers(0, 16, (OUT, IN))
    scales = rng.uniform(1, 400, (OUT, IN // 16)).astype(ml_dtypes.float8_e4m3fn)
    tensors: Tensors = {
        f"{NAME}.weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8),
        f"{NAME}.weight_scale": scales,
        f"{NAME}.weight_global_scale": np.array([64], np.float32),
    }
    levels = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    values = levels * np.repeat(scales.astype(np.float32) / 64, 16, axis=1)
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    return Case(_ct("nvfp4-pack-quantized", weights), tensors, codes, values)


def ct_block(seed: int) -> Case:
    """Tiles of 16 x 32 over (24, 64): the last row of tiles is cut."""
    rng = rng_of(seed)
    stored = rng.normal(size=(OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.5, 1, (2, 2)).astype(ml_dtypes.bfloat16)
    values = stored.astype(np.float32) * np.kron(scale.astype(np.float32), np.ones((16, 32), np.float32))[:OUT]
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}
    tensors: Tensors = {f"{NAME}.weight": stored, f"{NAME}.weight_scale": scale}
    return Case(_ct("float-quantized", weights), tensors, stored.view(np.uint8), values)


def fp8(seed: int, *, dtype: Any = np.float32) -> Case:
    """As DeepSeek stores it; `scale_inv` is multiplied."""
    case = ct_block(seed)
    scale = case.tensors.pop(f"{NAME}.weight_scale").astype(np.float32)
    if dtype != np.float32:
        scale = (2.0 ** np.round(np.log2(scale))).astype(np.float32)
    stored = case.tensors[f"{NAME}.weight"]
    values = stored.astype(np.float32) * np.kron(scale.astype(np.float32), np.ones((16, 32), np.float32))[:OUT]
    tensors = case.tensors | {f"{NAME}.weight_scale_inv": scale.astype(dtype)}
    return Case({"quant_method": "fp8", "weight_block_size": [16, 32]}, tensors, case.codes, values)


def modelopt(seed: int) -> Case:
    """ModelOpt's second scale multiplies, where that of compressed-tensors divides."""
    case = ct_nvfp4(seed)
    scales = case.tensors[f"{NAME}.weight_scale"]
    levels = case.codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    tensors: Tensors = {
        f"{NAME}.weight": case.tensors[f"{NAME}.weight_packed"],
        f"{NAME}.weight_scale": scales,
        f"{NAME}.weight_scale_2": np.array(0.03, np.float32),
    }
    values = levels * np.repeat(scales.astype(np.float32) * np.float32(0.03), 16, axis=1)
    return Case({"quant_method": "modelopt", "quant_algo": "NVFP4"}, tensors, case.codes, values)


def mxfp4(seed: int) -> Case:
    """Three experts of (8, 64) in one tensor, as gpt-oss; codes and values by rows of all experts."""
    rng = rng_of(seed)
    codes = rng.integers(0, 16, (3, 8, 2, 32))
    scales = rng.integers(120, 130, (3, 8, 2)).astype(np.uint8)
    levels = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    tensors: Tensors = {
        f"{NAME}_blocks": (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8),
        f"{NAME}_scales": scales,
    }
    values = levels * (2.0 ** (scales.astype(np.float64) - 127)).astype(np.float32)[..., None]
    return Case({"quant_method": "mxfp4"}, tensors, codes.reshape(24, 64), values.reshape(24, 64))


def bnb_8bit(seed: int) -> Case:
    rng = rng_of(seed)
    codes = rng.integers(-127, 128, (OUT, IN)).astype(np.int8)
    largest = rng.uniform(0.5, 1, OUT).astype(np.float32)
    tensors: Tensors = {f"{NAME}.weight": codes, f"{NAME}.SCB": largest, f"{NAME}.weight_format": np.array(0, np.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    values = codes.astype(np.float32) * (largest[:, None] / np.float32(127))
    return Case(config, tensors, codes, values)


CASES: dict[str, Callable[[int], Case]] = {
    "gptq": gptq,
    "gptq, 2 bits": lambda seed: gptq(seed, bits=2),
    "gptq, 8 bits": lambda seed: gptq(seed, bits=8),
    "gptq, act order": lambda seed: gptq(seed, order=True),
    "gptq v2": lambda seed: gptq(seed, form="gptq_v2"),
    "gptq, dynamic": gptq_dynamic,
    "gptq, dynamic and act order": lambda seed: gptq_dynamic(seed, order=True),
    "awq": awq,
    "packed": ct_packed,
    "packed, 8 bits": lambda seed: ct_packed(seed, bits=8),
    "packed, 3 bits": lambda seed: ct_packed(seed, bits=3, zero=True),
    "packed, odd width": lambda seed: ct_packed(seed, ins=IN - 3),
    "packed, zero point": lambda seed: ct_packed(seed, zero=True),
    "packed, zero point as int8": lambda seed: ct_packed(seed, zero=True, whole=True),
    "packed, 3 bits, zero point as int8": lambda seed: ct_packed(seed, bits=3, zero=True, whole=True),
    "int8": ct_int8,
    "int8, zero point": ct_int8_zero,
    "float8": ct_float8,
    "nvfp4": ct_nvfp4,
    "bitsandbytes int8": bnb_8bit,
    "float8 in blocks": ct_block,
    "fp8": fp8,
    "fp8, one scale": fp8_tensor,
    "fp8, one scale of Mistral": lambda seed: fp8_tensor(seed, ending="weight_scale_inv"),
    "fp8, a scale a row": lambda seed: fp8_tensor(seed, shape=(OUT, 1), method="fbgemm_fp8"),
    "fp8, E8M0 scales": lambda seed: fp8(seed, dtype=ml_dtypes.float8_e8m0fnu),
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}


def save(folder: Path, config: object, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder
