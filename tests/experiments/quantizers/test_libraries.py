"""Each library's back end against the library's own layer, bit for bit; skipped where the library is missing."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")
# Transformers imports hqq where it is installed, which warns: importorskip lets no warning of an import through.
pytest.importorskip("unforgotten.experiments.models.runtime", reason="needs unforgotten[experiments]")

from torch import Tensor, nn

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.shell import linear_names, state_of
from unforgotten.experiments.quantizers.quantizer import Calibration
from unforgotten.experiments.quantizers.registry import QUANTIZERS, known_formats, ours_of, quantize_state
from unforgotten.theory.formats.names import FAMILIES, format_named

ROWS, COLUMNS = 24, 256
BITSANDBYTES = [
    *(f"bnb:{kind}-b{size}{more}" for kind in ("nf4", "fp4") for size in (64, 128) for more in ("", "-dq")),
    "bnb:llmint8-row",
    "bnb-dynamic:llmint8-row",
]
HQQ = [f"hqq:hqq{bits}-g64{more}" for bits in (2, 3, 4, 8) for more in ("", "-opt", "-opt-round")]
TORCHAO = [
    *(f"torchao:int{b}-{g}-ao{more}" for b in (2, 4, 8) for g in ("g64", "row") for more in ("", "-asym")),
    "torchao-dynamic:int8-row-ao",
]
GGUF = [f"gguf:{name}" for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q6_k")]
CT = [
    *(f"ct:int{b}-{g}-ct{more}" for b in (2, 4, 8) for g in ("g64", "row", "tensor") for more in ("", "-asym")),
    *(f"ct:{name}" for name in ("fp8-g64", "fp8-row", "fp8-tensor", "fp8-b16x32", "mxfp4-b32-ct", "nvfp4")),
]
PRESETS = {
    "ct:int4-g128-ct": "W4A16",
    "ct:int4-g128-ct-asym": "W4A16_ASYM",
    "ct:int8-g128-ct": "W8A16",
    "ct:int8-row-ct": "INT8",
    "ct:fp8-row": "FP8_DYNAMIC",
    "ct:fp8-b128x128": "FP8_BLOCK",
    "ct:mxfp4-b32-ct": "MXFP4A16",
    "ct:nvfp4": "NVFP4A16",
}
MODULES = {
    "ct": "compressed_tensors",
    "bnb": "bitsandbytes",
    "bnb-dynamic": "bitsandbytes",
    "torchao-dynamic": "torchao",
}


def weights() -> Tensor:
    w = np.random.default_rng(7).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    w[1] *= 30
    w[2] = 0
    w[3] = np.abs(w[3])
    return torch.from_numpy(w)


def tokens() -> Tensor:
    x = np.random.default_rng(8).normal(size=(2, 5, COLUMNS)).astype(np.float32)
    x[0, 1, 3] = 20  # an outlier column for LLM.int8
    return torch.from_numpy(x)


def need_library(name: str) -> Any:
    prefix = name.partition(":")[0]
    return pytest.importorskip(MODULES.get(prefix, prefix), reason=f"{prefix}: compares with the library")


def linear(w: Tensor) -> nn.Linear:
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight = nn.Parameter(w.clone(), requires_grad=False)
    return layer


def computed(name: str) -> Tensor:
    """What the back end says: Q(w), or the outputs of the layer for the tokens."""
    state = quantize_state({"w": weights()}, ["w"], name)
    if not isinstance(state, RuntimeState):
        return state["w"]
    layer = state.layer("w")
    assert layer is not None
    with torch.no_grad():
        return layer(tokens(), None)


@pytest.mark.parametrize("name", [n for n in BITSANDBYTES if "llmint8" not in n])
def test_4_bits_are_those_of_bitsandbytes_layer(name: str) -> None:
    library = need_library(name)
    kind, block = name.removeprefix("bnb:").removesuffix("-dq").split("-b")
    parameter = library.nn.Params4bit(
        weights(), requires_grad=False, blocksize=int(block), compress_statistics=name.endswith("-dq"), quant_type=kind
    ).to("cpu")
    theirs = library.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    assert torch.equal(computed(name), theirs)


def test_llm_int8_is_that_of_bitsandbytes_layer() -> None:
    library = need_library("bnb:llmint8-row")
    layer = library.nn.Linear8bitLt(COLUMNS, ROWS, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = library.nn.Int8Params(weights(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    with torch.no_grad():
        theirs = layer(tokens())
    ours = computed("bnb-dynamic:llmint8-row")
    assert torch.equal(ours, theirs)
    plain = nn.functional.linear(tokens(), quantize_state({"w": weights()}, ["w"], "bnb-dynamic:llmint8-row")["w"])
    assert not torch.equal(ours, plain)
    codes, scales, _ = library.functional.int8_vectorwise_quant(weights())
    assert torch.equal(computed("bnb:llmint8-row"), library.functional.int8_vectorwise_dequant(codes, scales))


@pytest.mark.parametrize("name", HQQ)
def test_values_are_those_of_hqqs_layer(name: str) -> None:
    need_library(name)
    library = import_module("hqq.core.quantize")
    BaseQuantizeConfig = library.BaseQuantizeConfig
    HQQLinear = library.HQQLinear

    config = BaseQuantizeConfig(nbits=int(name[7]), group_size=64, axis=1)
    if (int(name[7]) == 4) == name.endswith("-opt-round"):
        assert config["weight_quant_params"]["round_zero"] == name.endswith("-round")  # its own default
    config["weight_quant_params"] |= {"optimize": "-opt" in name, "round_zero": name.endswith("-round")}
    layer = HQQLinear(linear(weights()), config, compute_dtype=torch.float32, device="cpu")
    assert torch.equal(computed(name), layer.dequantize())


@pytest.mark.parametrize("name", [n for n in TORCHAO if n.startswith("torchao:")])
def test_values_are_those_of_torchaos_layer(name: str) -> None:
    need_library(name)
    quantization = import_module("torchao.quantization")
    IntxWeightOnlyConfig = quantization.IntxWeightOnlyConfig
    PerAxis = quantization.PerAxis
    PerGroup = quantization.PerGroup
    quantize_ = quantization.quantize_
    MappingType = import_module("torchao.quantization.quant_primitives").MappingType

    layer = nn.Sequential(linear(weights()))
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, name.partition(":")[2].partition("-")[0]),
        granularity=PerGroup(64) if "-g64-" in name else PerAxis(0),
        mapping_type=MappingType.ASYMMETRIC if name.endswith("-asym") else MappingType.SYMMETRIC,
    )
    quantize_(layer, config)
    weight: Any = layer[0].weight
    assert torch.equal(computed(name), weight.dequantize())


def test_outputs_are_those_of_torchaos_dynamic_layer() -> None:
    name = TORCHAO[-1]
    need_library(name)
    quantization = import_module("torchao.quantization")
    Int8DynamicActivationInt8WeightConfig = quantization.Int8DynamicActivationInt8WeightConfig
    quantize_ = quantization.quantize_

    layer = nn.Sequential(linear(weights()))
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    weight: Any = layer[0].weight
    with torch.no_grad():
        assert torch.equal(computed(name), layer(tokens()))
    assert torch.equal(quantize_state({"w": weights()}, ["w"], name)["w"], weight.dequantize())


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_values_are_those_of_llm_compressors_layer(name: str, preset: str) -> None:
    """A layer with a scheme that users name, its scales those of llm-compressor's observer."""
    need_library(name)
    pytest.importorskip("llmcompressor", reason="its observer")
    fake_quantize = import_module("compressed_tensors.quantization.lifecycle.forward").fake_quantize

    layer = observed(weights(), preset)
    theirs = fake_quantize(
        layer.weight,
        layer.weight_scale,
        getattr(layer, "weight_zero_point", None),
        layer.quantization_scheme.weights,
        global_scale=getattr(layer, "weight_global_scale", None),
    )
    assert torch.equal(computed(name), theirs)


def observed(w: Tensor, preset: str) -> Any:
    """Return a layer with a scheme of this name, its scales those of llm-compressor's observer."""
    lifecycle = pytest.importorskip("llmcompressor.modifiers.quantization.calibration", reason="its observer")
    quantization = import_module("compressed_tensors.quantization")
    initialize_module_for_quantization = quantization.initialize_module_for_quantization
    preset_name_to_scheme = quantization.preset_name_to_scheme

    layer: Any = linear(w)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.input_activations = None
    initialize_module_for_quantization(layer, scheme)
    lifecycle.initialize_observer(layer, "weight")
    lifecycle.observe(layer, "weight")
    lifecycle.update_qparams(layer, "weight")
    return layer


@pytest.mark.parametrize(("name", "preset"), [("int4-g128-ct", "W4A16"), ("int4-g128-ct-asym", "W4A16_ASYM")])
def test_gptq_is_that_of_llm_compressor_on_its_own_scales(name: str, preset: str) -> None:
    gptq = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize", reason="compares with the library")
    from unforgotten.experiments.quantizers.llmcompressor import library_values

    x = tokens().reshape(-1, COLUMNS).double()
    hessian = x.T @ x + torch.eye(COLUMNS, dtype=torch.float64)
    layer = observed(weights(), preset)
    args = layer.quantization_scheme.weights.model_copy(update={"actorder": "weight"})
    scale, zero = layer.weight_scale.data[None], layer.weight_zero_point.data[None]
    theirs = gptq.quantize_weight(weights()[None], hessian.float()[None], scale, zero, None, args)[0][0]
    ours = library_values(weights(), hessian, format_named(name))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, quantize_state({"w": weights()}, ["w"], f"ct:{name}")["w"])


def test_gptq_of_llm_compressor_walks_through_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "llmcompressor-gptq-forget:int4-g64-ct"
    model = TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=2, heads=2), 0).eval()
    state, names = state_of(model), linear_names(model)
    calibration = Calibration(model, [[1, 5, 9, 12, 7, 44], [1, 8, 8, 3]])
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda module: None)
        with pytest.raises(ValueError, match=r"^llmcompressor is missing: pip install 'llmcompressor==[\d.]+'$"):
            quantize_state(state, names, name, calibration)
    pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize", reason="runs the library")
    found, plain = quantize_state(state, names, name, calibration), quantize_state(state, names, "int4-g64-ct")
    assert all(torch.isfinite(found[key]).all() and not torch.equal(found[key], plain[key]) for key in names)


@pytest.mark.parametrize("name", GGUF)
def test_values_are_read_from_the_bytes_of_a_file(name: str, tmp_path: Any) -> None:
    library = need_library(name)
    from unforgotten.experiments.quantizers.gguf import stored_bytes

    kind = library.GGMLQuantizationType[name.removeprefix("gguf:").upper()]
    writer = library.GGUFWriter(str(tmp_path / "w.gguf"), "llama")
    writer.add_tensor("w", stored_bytes(weights().numpy(), kind.name.lower()), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = library.GGUFReader(str(tmp_path / "w.gguf")).tensors[0]
    assert stored.tensor_type == kind
    theirs = library.quants.dequantize(stored.data, kind)
    assert np.array_equal(computed(name).numpy(), theirs)


@pytest.mark.parametrize("name", [*BITSANDBYTES, *HQQ, *TORCHAO, *CT, *GGUF])
def test_a_format_of_ours_that_is_named_has_the_same_weights(name: str) -> None:
    need_library(name)
    ours = ours_of(name)
    if ours is None:
        assert name.endswith(("-dq", "-opt", "-round")) or name.startswith("bnb-dynamic")
        return
    theirs, own = (quantize_state({"w": weights()}, ["w"], n)["w"] for n in (name, ours))
    assert torch.equal(theirs, own)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bnb:int4-g64", "nf4-bN"),
        ("bnb-dynamic:int8-row", "llmint8-row"),
        ("hqq:hqq5-g64", "2, 3, 4 or 8 bits"),
        ("hqq:int4-g64", "hqqB-gN"),
        ("torchao:int4-g64", "intB-gN-ao"),
        ("torchao-dynamic:int8-row", "int8-row-ao"),
        ("gguf:q2_k", "q4_0, q4_1"),
        ("ct:int4-g64", "for ct:"),
        ("llmcompressor-gptq:int4-g64", "for llmcompressor-gptq"),
        ("llama-cpp:q4_k", "q4_k_s, q4_k_m"),
        ("llama-cpp:iq2_xxs", "for llama-cpp:"),
        ("gptqmodel:int4-g64-ct", "for gptqmodel"),
        ("gptqmodel:int5-g64", "2, 3, 4 or 8 bits"),
    ],
)
def test_a_format_that_a_library_lacks_is_refused_by_its_name(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ours_of(name)


@pytest.mark.parametrize(
    "name", ["hqq:hqq4-g48", "torchao:int4-g48-ao", "ct:int4-g48-ct", "gguf:q4_0", "gguf:q4_k", "bnb:nf4-b48"]
)
def test_parts_of_blocks_are_refused(name: str) -> None:
    need_library(name)
    with pytest.raises(ValueError, match=r"whole (groups|blocks) of"):
        quantize_state({"w": torch.ones(3, 40)}, ["w"], name)["w"]


@pytest.mark.parametrize("name", ["bnb:nf4-b64", "bnb-dynamic:llmint8-row", HQQ[0], *TORCHAO[-2:], GGUF[0]])
def test_a_missing_library_is_named_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    module = MODULES.get(name.partition(":")[0], name.partition(":")[0])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *more: None if found == module else find(found, *more)
    )
    with pytest.raises(ValueError, match=rf"^{module} is missing: pip install '[\w.=\[\]]+'$"):
        quantize_state({"w": weights()}, ["w"], name)["w"]


def test_every_quantizer_lists_its_formats_and_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = known_formats()
    assert next(iter(listed)) in FAMILIES
    for quantizer in QUANTIZERS.values():
        own = [name for name in listed if name.rpartition(":")[0].rpartition(" ")[2] == quantizer.name]
        assert len(own) == len(quantizer.formats) > 0
        for name in own:
            assert all(f"needs {p.partition('==')[0]}" in listed[name] for p in quantizer.packages)
            assert (quantizer.text is None) == ("calibrated on" not in listed[name])
    monkeypatch.setattr("unforgotten.experiments.quantizers.registry.find_spec", lambda name: None)
    assert known_formats()["bnb:llmint8-row"].endswith(
        "; needs bitsandbytes, missing here: pip install 'unforgotten[quantizers]'"
    )
    assert known_formats()["gptq-forget:FORMAT"].endswith("; calibrated on forget text")
