"""Checkpoints that are quantized already: codes and values against the libraries or against integers of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint
from unforgotten.audit.codes.compare import CodeCounts, compare_codes, scheme_of
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.verification.domains.quantized_layers import (
    CASES,
    IN,
    NAME,
    OUT,
    Case,
    Tensors,
    gptq,
    rng_of,
    save,
    words,
)


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
