"""Back ends that see more than one tensor, against their libraries bit for bit; skipped where the library is missing."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")
pytest.importorskip("unforgotten.experiments.models.runtime", reason="needs unforgotten[experiments]")

from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.layer_inputs import Inputs, no_inputs
from unforgotten.experiments.models.shell import Shell, linear_names, state_of
from unforgotten.experiments.models.states import fill
from unforgotten.experiments.quantizers import gptqmodel, llama_cpp, llmcompressor_awq
from unforgotten.experiments.quantizers.quantizer import Calibration
from unforgotten.experiments.quantizers.registry import quantize_state
from unforgotten.theory.formats.gptq import GPTQ_RULES, fit_groups
from unforgotten.theory.formats.group_grids import encode_group
from unforgotten.theory.formats.names import format_named

DOCUMENTS = [[1, 5, 9, 12, 7, 44], [1, 8, 8, 3], [1, 30, 31, 32, 33]]
ROWS, COLUMNS = 24, 256
GPTQ = ["int4-g64", "int4-g128-asym", "int4-row", "int3-g32", "int2-g64-asym", "int8-row-asym"]
ROUNDINGS = 2**-7
"""What float32 may change of an output, in units of what quantization changes: 2^-24 against a step of 4 bits, with room."""
LLAMA_FILES = ["q4_0", "q4_k_m", "q6_k"]


def imported(module: str, reason: str) -> Any:
    """The module, or a skip; what its import warns of is its own."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is missing: {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(module)


def weights(rows: int = ROWS, columns: int = COLUMNS, seed: int = 7) -> Tensor:
    w = np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)
    w[1] *= 30
    w[3] = np.abs(w[3])
    return torch.from_numpy(w)


def whole_inputs(columns: int = COLUMNS) -> Tensor:
    """Inputs of unequal sizes whose products have sums that are exact in float32, in any order; one column is dead."""
    rng = np.random.default_rng(8)
    x = rng.integers(-3, 4, (512, columns)) * rng.choice([1, 2, 4], columns) + rng.integers(-2, 3, (512, 1))
    x[:, 7] = 0
    return torch.from_numpy(x.astype(np.float32))


def seen(x: Tensor) -> Inputs:
    found = no_inputs(x.shape[1])
    found.add(x)
    return found


def small(width: int = 64, feed_forward: int = 64, layers: int = 2, heads: int = 2) -> PreTrainedModel:
    base = BaseConfig(vocabulary=300, width=width, feed_forward=feed_forward, layers=layers, heads=heads)
    return TINY.model(base, 0).eval()


@pytest.mark.parametrize("name", GPTQ)
def test_gptq_is_that_of_gptqmodel_on_its_own_sums(name: str) -> None:
    imported("gptqmodel", "compares with the library")
    fmt = format_named(name)
    task = gptqmodel.library_task(weights(), fmt)
    task.add_batch(whole_inputs()[None], None)
    theirs = task.quantize()[0]
    ours = gptqmodel.library_values(weights(), seen(whole_inputs()), fmt)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, gptqmodel.library_values(weights(), seen(whole_inputs().flip(1)), fmt))
    for row in (ours.reshape(-1, fmt.block_size or COLUMNS))[1:4]:
        assert len(torch.unique(row)) <= 2**fmt.bits


@pytest.mark.parametrize("text", ["retain", "forget"])
def test_gptqmodel_walks_through_a_model_by_the_text_that_the_format_names(text: str) -> None:
    imported("gptqmodel", "runs the library")
    model, name = small(), f"gptqmodel-{text}:int4-g32"
    state, other = state_of(model), [[1, 200, 201, 202], [1, 250]]
    shell = Shell(model, None, {text: DOCUMENTS})
    found = shell.quantized(state, name)
    swapped = Shell(model, None, {text: other}).quantized(state, name)
    plain = quantize_state(state, shell.names, "int4-g32")
    assert all(torch.isfinite(found[key]).all() and not torch.equal(found[key], plain[key]) for key in shell.names)
    assert any(not torch.equal(found[key], swapped[key]) for key in shell.names)
    assert all(found[key] is state[key] for key in set(state) - set(shell.names))


def test_a_layer_that_no_token_reached_is_rounded_to_nearest_by_gptqmodel() -> None:
    """A group of one sign, row 3, has half the step and loses what is above 7 steps: the library's symmetric grid."""
    imported("gptqmodel", "runs the library")
    ours = gptqmodel.library_values(weights(), no_inputs(COLUMNS), format_named("int4-g64"))
    grid = fit_groups(weights().numpy(), replace(GPTQ_RULES["gptqmodel"], bits=4, group_size=64, symmetric=True))
    assert np.array_equal(ours.numpy(), grid.scale * (encode_group(weights().numpy(), grid, 4) - grid.zero))
    assert (weights()[3] - ours[3]).max() > 7 * float(grid.scale[3, 0])


def factors_of(found: dict[str, Tensor], layer: str) -> Tensor:
    return found[layer] if layer in found else torch.ones(64)


@pytest.mark.parametrize("name", ["int4-g32-ct", "int3-g32-ct-asym"])
def test_awq_is_that_of_llm_compressors_oneshot(name: str) -> None:
    """Scaled by what the library did to norms and weights, values are its codes on its grids; outputs are its model's."""
    imported("llmcompressor", "runs the library")
    model, fmt = small(), format_named(name)
    state, names = state_of(model), linear_names(model)
    found = quantize_state(state, names, f"llmcompressor-awq-forget:{name}", Calibration(model, DOCUMENTS))
    theirs = fill(copy.deepcopy(model), state)
    scalings = llmcompressor_awq.scaled_model(theirs, names, fmt, Calibration(theirs, DOCUMENTS))
    columns = {layer: s.factors for s in scalings for layer in s.layers}
    rows = {s.before: s.factors for s in scalings}
    assert any(len(torch.unique(factors)) > 1 for factors in columns.values())
    for key in names:
        layer: Any = theirs.get_submodule(key.removesuffix(".weight"))
        into, out = (factors_of(x, key.removesuffix(".weight")) for x in (columns, rows))
        scale, zero = layer.weight_scale, layer.weight_zero_point.float()
        half = 2 ** (fmt.bits - 1)
        codes = torch.round((layer.weight / scale.repeat_interleave(32, 1)) + zero.repeat_interleave(32, 1))
        codes = codes.clamp(-half, half - 1) - zero.repeat_interleave(32, 1)
        assert torch.equal(torch.round(found[key] * into / out[:, None] / scale.repeat_interleave(32, 1)), codes)
    norms = {s.before: s.factors for s in scalings if s.before.endswith("norm")}
    for before, factors in norms.items():  # the library's own model, not the record of it
        scaled = (state[f"{before}.weight"].double() / factors).float()
        assert torch.equal(theirs.get_submodule(before).weight, scaled)
    assert all(found[key] is state[key] for key in set(state) - set(names))
    ids = torch.tensor([DOCUMENTS[0]])
    with torch.no_grad():
        plain, expected = fill(model, state)(ids).logits, theirs(ids).logits
        ours = fill(model, found)(ids).logits
    assert (ours - expected).abs().max() < ROUNDINGS * (plain - expected).abs().max()


def plain_file(path: Path, state: Any, names: list[str], library: Any) -> dict[str, str]:
    """Write a file of all weights of a Llama by the package alone, as its converter names and describes them."""
    table = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, 8)
    writer = library.GGUFWriter(str(path), "llama")
    keys = {name: str(table.get_name(name, try_suffixes=(".weight",))) for name in names}
    writer.add_block_count(8)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(320)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in names:
        writer.add_tensor(keys[name], state[name].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return keys


@pytest.mark.parametrize("file_type", LLAMA_FILES)
def test_values_are_those_of_the_file_that_llama_cpp_writes(file_type: str, tmp_path: Path) -> None:
    """The whole model in the file, embeddings and norms too, written apart from the back end."""
    tool = imported("llama_cpp", "compares with the library")
    library = imported("gguf", "reads the file")
    model = small(width=256, feed_forward=320, layers=8, heads=4)
    state, names = state_of(model), linear_names(model)
    keys = plain_file(tmp_path / "plain.gguf", state, sorted(set(state) - {"lm_head.weight"}), library)
    params = tool.llama_model_quantize_default_params()
    params.ftype = int(library.LlamaFileType[f"MOSTLY_{file_type.upper()}"])
    files = [str(tmp_path / name).encode() for name in ("plain.gguf", "quantized.gguf")]
    assert tool.llama_model_quantize(*files, params) == 0
    theirs = {t.name: t for t in library.GGUFReader(str(tmp_path / "quantized.gguf")).tensors}
    found = quantize_state(state, names, f"llama-cpp:{file_type}")
    for name in names:
        stored = theirs[keys[name]]
        values = library.quants.dequantize(np.array(stored.data).view(np.uint8), stored.tensor_type)
        assert np.array_equal(found[name].numpy(), values.reshape(state[name].shape))
        assert not np.array_equal(values.reshape(state[name].shape), state[name].numpy())
        own = quantize_state(state, [name], stored.tensor_type.name.lower())[name]
        assert torch.equal(found[name], own)  # what the audit knows of these types
    kinds = {t.tensor_type.name for key, t in theirs.items() if key.startswith("blk.") and "norm" not in key}
    expected = {"q4_0": {"Q4_0"}, "q4_k_m": {"Q4_K", "Q6_K", "Q5_0", "Q8_0"}, "q6_k": {"Q6_K", "Q8_0"}}
    assert kinds == expected[file_type]  # rows of 320 are no super-blocks of 256


def test_llama_cpp_refuses_what_it_has_no_name_for_and_what_is_not_finite() -> None:
    imported("llama_cpp", "runs the library")
    state = {"model.layers.0.mlp.down_proj.weight": weights(), "own.weight": weights()}
    with pytest.raises(ValueError, match=r"must have a name in llama\.cpp for llama-cpp:, got own\.weight"):
        quantize_state(state, list(state), "llama-cpp:q4_0")["own.weight"]
    name = next(iter(state))
    state[name][0, 0] = 1e30
    with pytest.raises(ValueError, match=r"such that llama\.cpp can write q4_0, got .*validation"):
        quantize_state(state, [name], "llama-cpp:q4_0")[name]
    state[name][0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"must be finite.*nan or inf in {name}"):
        quantize_state(state, [name], "llama-cpp:q4_0")[name]


def test_rows_of_no_blocks_are_float16_as_llama_cpp_stores_them() -> None:
    imported("llama_cpp", "runs the library")
    name = "model.layers.0.mlp.down_proj.weight"
    w = weights(8, 40)
    found = quantize_state({name: w}, [name], "llama-cpp:q4_k_m")[name]
    assert torch.equal(found, w.half().float())
    assert llama_cpp.quantized_file({name: w}, [name], "q4_k_m")[name].kind == "F16"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("llama-cpp:q4_k_m", "llama_cpp"),
        ("gptqmodel-retain:int4-g32", "gptqmodel"),
        ("llmcompressor-awq-retain:int4-g32-ct", "llmcompressor"),
    ],
)
def test_a_missing_library_is_named_in_one_line(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *more: None if found == module else find(found, *more)
    )
    shell = Shell(small(), None, {"retain": DOCUMENTS})
    with pytest.raises(ValueError, match=rf"^{module} is missing: pip install '[\w.=-]+'$"):
        shell.quantized(state_of(shell.model), name)[shell.names[0]]
