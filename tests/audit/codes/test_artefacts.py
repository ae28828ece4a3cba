"""Checkpoints that are quantized already: codes and values against the libraries or against integers of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint
from unforgotten.audit.codes.compare import CodeCounts, compare_codes, scheme_of
from unforgotten.audit.codes.gptq import AWQ_ORDER
from unforgotten.audit.codes.layouts import LAYOUTS

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


def ct_packed(seed: int, *, bits: int = 4, zero: bool = False, ins: int = IN) -> Case:
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
        tensors[f"{NAME}.weight_zero_point"] = words(zeros.T, bits).T.copy()
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP}
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
    "awq": awq,
    "packed": ct_packed,
    "packed, 8 bits": lambda seed: ct_packed(seed, bits=8),
    "packed, 3 bits": lambda seed: ct_packed(seed, bits=3, zero=True),
    "packed, odd width": lambda seed: ct_packed(seed, ins=IN - 3),
    "packed, zero point": lambda seed: ct_packed(seed, zero=True),
    "int8": ct_int8,
    "float8": ct_float8,
    "nvfp4": ct_nvfp4,
    "bitsandbytes int8": bnb_8bit,
    "float8 in blocks": ct_block,
    "fp8": fp8,
    "fp8, E8M0 scales": lambda seed: fp8(seed, dtype=ml_dtypes.float8_e8m0fnu),
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}


def save(folder: Path, config: object, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


@pytest.mark.parametrize("kind", CASES)
def test_codes_and_values_are_decoded(kind: str, tmp_path: Path) -> None:
    case = CASES[kind](0)
    checkpoint = open_checkpoint(save(tmp_path / "t", case.config, case.tensors))
    scheme = scheme_of(tmp_path / "t")
    assert scheme is not None
    layer = LAYOUTS[scheme.layout].open(scheme, checkpoint, NAME)
    assert layer.parts == set(case.tensors)
    assert layer.units * layer.unit_weights == case.codes.size
    for start, stop in ((0, layer.units), (1, 3), (layer.units - 1, layer.units)):
        codes, values = layer.decode(start, stop)
        rows = slice(start * case.codes.shape[0] // layer.units, stop * case.codes.shape[0] // layer.units)
        assert np.array_equal(codes, case.codes[rows])
        assert values.dtype == np.float32
        assert np.array_equal(values, case.values[rows])


@pytest.mark.parametrize("kind", CASES)
def test_counts_are_those_of_the_codes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = CASES[kind](0), CASES[kind](1)
    t = open_checkpoint(save(tmp_path / "t", before.config, before.tensors))
    u = open_checkpoint(save(tmp_path / "u", after.config, after.tensors))
    expected = CodeCounts(
        before.codes.size, int((before.codes != after.codes).sum()), int((before.values != after.values).sum())
    )
    leg = compare_codes(t, u)
    assert leg.total == leg.layers[NAME] == expected
    assert leg.kept == {"model.norm.weight": False}
    monkeypatch.setattr("unforgotten.audit.codes.compare.CHUNK_WEIGHTS", 100)
    assert compare_codes(t, u) == leg
    assert compare_codes(t, t).total == CodeCounts(before.codes.size, 0, 0)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((24, 128), 64), ((7, 33), 64), ((96, 512), 128)])
def test_4bit_is_that_of_bitsandbytes(
    kind: str, nested: bool, shape: tuple[int, int], block: int, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="bitsandbytes needs torch")
    functional = pytest.importorskip("bitsandbytes.functional", reason="the reference")
    cases = []
    for seed in range(2):
        w = torch.from_numpy(rng_of(seed).normal(size=shape).astype(np.float32))
        packed, state = functional.quantize_4bit(w, blocksize=block, quant_type=kind, compress_statistics=nested)
        parts = {f"{NAME}.weight.{k}": v.numpy() for k, v in state.as_dict(packed=True).items()}
        byte = packed.numpy().reshape(-1)
        codes = np.stack([byte >> 4, byte & 15], axis=1).reshape(-1)[: w.numel()]
        flat = functional.dequantize_4bit(packed.reshape(-1, 1), _flat_state(state, w.numel()))
        cases.append((parts | {f"{NAME}.weight": packed.numpy()}, codes, flat.numpy().reshape(-1)))
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    t, u = (open_checkpoint(save(tmp_path / n, config, c[0])) for n, c in zip("tu", cases, strict=True))
    scheme = scheme_of(tmp_path / "t")
    assert scheme is not None
    layer = LAYOUTS[scheme.layout].open(scheme, t, NAME)
    codes, values = layer.decode(0, layer.units)
    assert np.array_equal(codes, cases[0][1])
    # nested: one product and one sum each rounded, with or without fused multiply-add, then one product
    slack = 4 * np.finfo(np.float32).eps * np.abs(values).max() if nested else 0
    assert (np.abs(values - cases[0][2]) <= slack).all()
    total = compare_codes(t, u).total
    assert total.weights == codes.size
    assert total.code_flips == (cases[0][1] != cases[1][1]).sum()


def _flat_state(state: Any, count: int) -> Any:
    """The state of a flat tensor: rows that no block divides are decoded wrongly by bitsandbytes on some CPUs."""
    state.shape = (count, 1)
    return state


def test_packing_is_that_of_compressed_tensors() -> None:
    torch = pytest.importorskip("torch", reason="compressed-tensors needs torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", reason="the reference")
    for bits in range(2, 9):
        codes = rng_of(bits).integers(0, 2**bits, (OUT, 61))
        signed = torch.from_numpy((codes - 2 ** (bits - 1)).astype(np.int8))
        assert np.array_equal(helpers.pack_to_int32(signed, bits).numpy(), words(codes, bits))


Change = Callable[[Case], object]


def put(ending: str, w: NDArray[Any]) -> Change:
    return lambda case: case.tensors.update({NAME + ending: w})


def drop(ending: str) -> Change:
    return lambda case: case.tensors.pop(NAME + ending)


def say(**changes: object) -> Change:
    return lambda case: case.config.update(changes)


BAD: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "unknown method": ("gptq", say(quant_method="hqq"), ("config.json", "quant_method", "'hqq'")),
    "method no text": ("gptq", say(quant_method=["gptq"]), ("quant_method",)),
    "3 bits": ("gptq", say(bits=3), ("bits in [2, 4, 8]", "got 3")),
    "bits a text": ("gptq", say(bits="4"), ("bits in", "'4'")),
    "group of 0": ("gptq", say(group_size=0), ("group size", "got 0")),
    "group of 2^60": ("awq", say(group_size=2**60), ("group size",)),
    "marlin": ("gptq", say(checkpoint_format="marlin"), ("gptq_v2", "'marlin'")),
    "gemv": ("awq", say(version="gemv"), ("gemm", "'gemv'")),
    "no zeros": ("gptq", drop(".qzeros"), (f"'{NAME}.qzeros'", "no such tensor")),
    "no scales": ("awq", drop(".scales"), (f"'{NAME}.scales'",)),
    "no layer": ("awq", drop(".qweight"), ("layer quantized by awq",)),
    "scales of integers": ("awq", put(".scales", np.ones((4, OUT), np.int32)), ("scales", "int32")),
    "wrong groups": ("gptq", put(".scales", np.ones((5, OUT), np.float16)), ("[4, 24]", "[5, 24]")),
    "words of 64 bits": ("gptq", put(".qweight", np.ones((8, OUT), np.int64)), ("qweight", "int64")),
    "no weight": ("gptq", put(".qweight", np.ones((2**20, 0), np.int32)), ("hold a weight",)),
    "group out of range": ("gptq", put(".g_idx", np.full(IN, 4, np.int32)), ("g_idx", "0 … 3")),
    "group below 0": ("gptq", put(".g_idx", np.full(IN, -1, np.int32)), ("g_idx", "got -1")),
    "scale nan": ("awq", put(".scales", np.full((4, OUT), np.nan, np.float16)), (NAME, "finite")),
    "shape of lies": ("packed", put(".weight_shape", np.array([OUT, 2**40])), ("weight_packed",)),
    "shape below 0": ("packed", put(".weight_shape", np.array([-1, -1])), ("weight_shape", "[-1")),
    "unknown format": ("packed", say(format="marlin-24"), ("pack-quantized", "'marlin-24'")),
    "sparse": ("packed", say(sparsity_config={"format": "sparse-24"}), ("must not be sparse",)),
    "no groups": ("packed", say(config_groups={}), ("config_groups",)),
    "global scale 0": ("nvfp4", put(".weight_global_scale", np.zeros(1, np.float32)), ("finite",)),
    "rows out of order": (
        "bitsandbytes int8",
        put(".weight_format", np.array(2, np.uint8)),
        ("weight_format", "must be 0"),
    ),
    "object for config": ("gptq", lambda case: setattr(case, "config", [1]), ("object", "[1]")),
}


@pytest.mark.parametrize("side", ["t", "u"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_artefact_is_refused_in_one_line(kind: str, side: str, tmp_path: Path) -> None:
    method, change, words_ = BAD[kind]
    for name in "tu":
        case = CASES[method](0)
        if name == side:
            change(case)
        save(tmp_path / name, case.config, case.tensors)
    with pytest.raises(CheckpointError) as caught:
        compare_codes(open_checkpoint(tmp_path / "t"), open_checkpoint(tmp_path / "u"))
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(tmp_path / side))
    assert not [word for word in words_ if word not in message], message


BAD_STATES: dict[str, tuple[object, str]] = {
    "no JSON": (b"{", "valid JSON"),
    "no shape": ({"blocksize": 64}, "shape of sizes"),
    "huge shape": ({"shape": [2**31 - 1] * 8, "blocksize": 64}, "must have the shape"),
    "block 0": ({"shape": [2, 64], "blocksize": 0}, "blocksize >= 1"),
    "block odd": ({"shape": [2, 64], "blocksize": 3}, "even blocksize"),
    "offset infinite": ({"shape": [2, 64], "blocksize": 64, "nested_offset": float("inf")}, "finite"),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_bad_state_of_bitsandbytes_is_refused(kind: str, tmp_path: Path) -> None:
    state, words_ = BAD_STATES[kind]
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    tensors: Tensors = {
        f"{NAME}.weight": np.zeros((64, 1), np.uint8),
        f"{NAME}.weight.absmax": np.ones(2, np.float32),
        f"{NAME}.weight.quant_map": np.ones(16, np.float32),
        f"{NAME}.weight.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8),
    }
    config = {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}
    checkpoint = open_checkpoint(save(tmp_path / "t", config, tensors))
    with pytest.raises(CheckpointError, match=words_) as caught:
        compare_codes(checkpoint, checkpoint)
    assert NAME in str(caught.value) or kind == "no JSON"


def test_other_schemes_and_layers_are_refused(tmp_path: Path) -> None:
    one, two = gptq(0), gptq(0, bits=8)
    t = open_checkpoint(save(tmp_path / "t", one.config, one.tensors))
    u = open_checkpoint(save(tmp_path / "u", two.config, two.tensors))
    with pytest.raises(CheckpointError, match="quantized as the target is"):
        compare_codes(t, u)
    more = one.tensors | {n.replace(".0.", ".1."): w for n, w in one.tensors.items()}
    v = open_checkpoint(save(tmp_path / "v", one.config, more))
    for pair in ((t, v), (v, t)):
        with pytest.raises(CheckpointError, match=r"'model\.layers\.1\.q_proj' must be quantized in"):
            compare_codes(*pair)


@pytest.mark.parametrize("kind", CASES)
def test_an_audit_counts_the_codes_of_every_layout(kind: str, tmp_path: Path) -> None:
    before, after = CASES[kind](0), CASES[kind](1)
    for name, case in (("t", before), ("u", after)):
        save(tmp_path / name, case.config, case.tensors)
    (row,) = audit_pair(tmp_path / "t", tmp_path / "u", out=tmp_path / "out")["formats"]
    assert row["code_flips"] == (before.codes != after.codes).sum()
    assert row["value_changes"] == (before.values != after.values).sum()
    assert row["gain"] is None
    assert row["format"].split(":")[0] == before.config["quant_method"]


def test_unquantized_has_no_scheme(tmp_path: Path) -> None:
    save(tmp_path / "t", None, {})
    assert scheme_of(tmp_path / "t") is None
    checkpoint = open_checkpoint(tmp_path / "t")
    with pytest.raises(CheckpointError, match="must state its quantization_config"):
        compare_codes(checkpoint, checkpoint)
