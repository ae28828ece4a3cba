"""Public reports about quantized experts in one tensor of three axes: they were named as not measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint
from unforgotten.audit.codes import compare
from unforgotten.audit.codes.compare import compare_codes, scheme_of
from unforgotten.audit.codes.fused_experts import fused_layers
from unforgotten.audit.codes.layer import Layer

Tensors = dict[str, NDArray[Any]]
Config = dict[str, object]
NAME = "model.layers.0.mlp.experts.gate_up_proj"
COUNT, ROWS, COLUMNS = 3, 48, 32
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def save(folder: Path, config: Config, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors | {"model.norm.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def float8(
    ending: str, shape: tuple[int, ...], seed: int, dtype: Any = np.float32, tile: tuple[int, int] | None = None
) -> tuple[Tensors, NDArray[Any]]:
    """The tensors, and their values: scales over tiles of a size, the last row of which is cut, or over equal parts."""
    rng = np.random.default_rng(seed)
    stored = rng.normal(size=(COUNT, ROWS, COLUMNS)).astype(FP8)
    scale = np.random.default_rng(9).uniform(0.5, 1, shape).astype(dtype)
    wide = np.asarray(scale, np.float32)
    if wide.ndim == 3:
        high, long = tile or (ROWS // wide.shape[1], COLUMNS // wide.shape[2])
        wide = wide.repeat(high, axis=1).repeat(long, axis=2)[:, :ROWS, :COLUMNS]
    else:
        wide = wide.reshape(-1, 1, 1)
    return {NAME: stored, NAME + ending: scale}, stored.astype(np.float32) * wide


def nvfp4(seed: int, *, down: bool, second: tuple[int, ...] = ()) -> tuple[Tensors, NDArray[Any]]:
    """Codes of (inputs, out) packed along the inputs, as ModelOpt does Llama 4; or of (out, inputs)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (COUNT, ROWS, COLUMNS))
    axis = 1 if down else 2
    even, odd = (codes.take(np.arange(n, codes.shape[axis], 2), axis) for n in (0, 1))
    blocks = list(codes.shape)
    blocks[axis] //= 16
    scale = np.random.default_rng(8).uniform(1, 400, blocks).astype(FP8)
    other = np.random.default_rng(9).uniform(0.01, 0.02, second).astype(np.float32)
    levels = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    both = scale.astype(np.float32) * np.asarray(other).reshape(-1, 1, 1)
    tensors = {NAME: (even | odd << 4).astype(np.uint8), f"{NAME}_weight_scale": scale, f"{NAME}_weight_scale_2": other}
    return tensors, levels * both.repeat(16, axis=axis)


Made = Callable[[int], tuple[Tensors, NDArray[Any]]]
TILES: Config = {"quant_method": "fp8", "weight_block_size": [32, 16]}
ONE: Config = {"quant_method": "fp8", "activation_scheme": "static"}
FBGEMM: Config = {"quant_method": "fbgemm_fp8"}
MODELOPT8: Config = {"quant_method": "modelopt", "quant_algo": "FP8"}
MODELOPT4: Config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
KINDS: dict[str, tuple[Config, Made]] = {
    "tiles": (TILES, lambda s: float8("_scale_inv", (COUNT, 2, 2), s, tile=(32, 16))),
    "tiles, E8M0": (TILES, lambda s: float8("_scale_inv", (COUNT, 2, 2), s, ml_dtypes.float8_e8m0fnu, (32, 16))),
    "one a half": (ONE, lambda s: float8("_scale_inv", (COUNT, 2, 1), s)),
    "one an expert": (ONE, lambda s: float8("_scale_inv", (COUNT, 1, 1), s)),
    "Llama 4 of Meta": (FBGEMM, lambda s: float8("_scale", (COUNT, 1, COLUMNS), s)),
    "one a row": (FBGEMM, lambda s: float8("_scale", (COUNT, ROWS, 1), s)),
    "Llama 4 of ModelOpt, FP8": (MODELOPT8, lambda s: float8("_weight_scale", (), s)),
    "a vector": (MODELOPT8, lambda s: float8("_weight_scale", (COUNT,), s)),
    "Llama 4 of ModelOpt, NVFP4": (MODELOPT4, lambda s: nvfp4(s, down=True)),
    "NVFP4, a second scale an expert": (MODELOPT4, lambda s: nvfp4(s, down=True, second=(COUNT, 1, 1))),
    "NVFP4 along the last axis": (MODELOPT4, lambda s: nvfp4(s, down=False, second=(COUNT,))),
}


def layers(folder: Path) -> dict[str, Layer]:
    scheme = scheme_of(folder)
    assert scheme is not None
    return fused_layers(scheme, open_checkpoint(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_decoded_one_by_one(kind: str, tmp_path: Path) -> None:
    config, made = KINDS[kind]
    tensors, values = made(0)
    found = layers(save(tmp_path / "t", config, tensors))
    assert list(found) == [f"{NAME}[{e}]" for e in range(COUNT)]
    for e, layer in enumerate(found.values()):
        assert layer.shape == values.shape[1:]
        assert layer.parts == set(tensors)
        whole = layer.decode(0, layer.units).values
        assert whole.dtype == np.float32
        assert np.array_equal(whole, values[e])
        per_unit = values.shape[1] // layer.units
        for start, stop in ((0, 1), (5, 9), (layer.units - 1, layer.units)):
            assert np.array_equal(layer.decode(start, stop).values, values[e, start * per_unit : stop * per_unit])


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_one_expert_is_counted_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused experts of transformers 5 and of Llama 4 stood among the tensors that an audit does not measure."""
    config, made = KINDS[kind]
    tensors, values = made(0)
    changed = tensors[NAME].view(np.uint8).copy()
    changed[1, 3, :5] ^= 0x11
    t = save(tmp_path / "t", config, tensors)
    u = save(tmp_path / "u", config, tensors | {NAME: changed.view(tensors[NAME].dtype)})
    result = audit_pair(t, u, out=tmp_path / "out")
    (row,) = result["formats"]
    flips = 10 if config is MODELOPT4 else 5
    assert (row["weights"], row["code_flips"]) == (values.size, flips)
    assert (result["coverage"]["tensors"], result["coverage"]["kept_changed"]) == (COUNT, [])
    assert "not-measured" not in [finding["id"] for finding in result["findings"]]
    assert any(
        f"1 tensors of fused experts are measured expert by expert, as NAME[0]: '{NAME}'" in n for n in result["notes"]
    )
    rows = {r["name"]: r["code_flips"] for r in pq.read_table(tmp_path / "out/tensors.parquet").to_pylist()}
    assert rows == {f"{NAME}[{e}]": flips if e == 1 else 0 for e in range(COUNT)}
    monkeypatch.setattr(compare, "CHUNK_WEIGHTS", 100)
    assert compare_codes(open_checkpoint(t), open_checkpoint(u)).total.code_flips == flips


def put(name: str, w: NDArray[Any]) -> Tensors:
    return {NAME + name: w}


BAD: dict[str, tuple[str, Tensors, str]] = {
    "a scale a weight": (
        "one an expert",
        put("_scale_inv", np.ones((COUNT, ROWS, COLUMNS), np.float32)),
        "must have the shape",
    ),
    "tiles of another size": ("tiles", put("_scale_inv", np.ones((COUNT, 3, 2), np.float32)), r"shape \[3, 2, 2\] or"),
    "one scale in tiles": ("tiles", put("_scale_inv", np.ones((), np.float32)), r"must have the shape"),
    "an expert less": (
        "one an expert",
        put("_scale_inv", np.ones((COUNT - 1, 1, 1), np.float32)),
        "must have the shape",
    ),
    "integers": ("one an expert", put("_scale_inv", np.ones((COUNT, 1, 1), np.int32)), "must be .*float32.* got int32"),
    "nan": (
        "one an expert",
        put("_scale_inv", np.full((COUNT, 1, 1), np.nan, np.float32)),
        r"gate_up_proj\[0\]' must be finite",
    ),
    "no second scale": ("Llama 4 of ModelOpt, NVFP4", {}, "_weight_scale_2' must be there beside"),
    "blocks of 32": (
        "NVFP4 along the last axis",
        put("_weight_scale", np.ones((COUNT, ROWS, 1), FP8)),
        "must have the shape",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_scales_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    base, change, words = BAD[kind]
    config, made = KINDS[base]
    tensors = made(0)[0] | change
    if kind == "no second scale":
        del tensors[f"{NAME}_weight_scale_2"]
    t = open_checkpoint(save(tmp_path / "t", config, tensors))
    with pytest.raises(CheckpointError, match=words) as caught:
        compare_codes(t, t)
    assert str(caught.value).isprintable()


def test_experts_that_one_side_skips_count_as_differing(tmp_path: Path) -> None:
    tensors, values = KINDS["tiles"][1](0)
    more: Tensors = {n.replace("layers.0", "layers.1"): w for n, w in tensors.items()}
    t = save(tmp_path / "t", TILES, tensors | more)
    u = save(tmp_path / "u", TILES, more | {NAME: values.astype(np.float32)})
    result = audit_pair(t, u)
    assert result["coverage"]["weights"] == values.size
    assert result["coverage"]["kept_changed"] == [f"{NAME}[{e}]" for e in range(COUNT)]
    assert any(f"{COUNT} layers are quantized in one checkpoint alone" in note for note in result["notes"])


def test_codes_without_a_scale_are_not_passed_over(tmp_path: Path) -> None:
    tensors, _ = KINDS["tiles"][1](0)
    lost: Tensors = {n.replace("layers.0", "layers.1"): w for n, w in tensors.items() if n == NAME}
    t = save(tmp_path / "t", TILES, tensors | lost)
    u = save(tmp_path / "u", TILES, tensors | {n: np.zeros_like(w) for n, w in lost.items()})
    result = audit_pair(t, u)
    assert "in tensors that this audit does not measure; 1 of these 1 changed" in result["verdict"]["reasons"][0]
