"""Files that other people's quantizers write of a model on the CPU, and what those tools decode them to.

A tool takes a directory that transformers loads and token ids to calibrate on, and writes a directory or file of its own:

    TOOLS["gptqmodel"].write(Path("models/target"), Path("quantized/target"), documents)
    TOOLS["gptqmodel"].decode(Path("quantized/target"))["model.layers.0.mlp.down_proj.weight"]

Each library runs with its own defaults, 4 bits in groups of 64 where it has groups. AWQ of gptqmodel loads models in float16.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.models.shell import linear_names, state_of
from unforgotten.experiments.quantizers import gptqmodel, llama_cpp, llmcompressor
from unforgotten.records.extras import module_of, need

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 64
LLAMA_CPP_FILE = "Q4_K_M"
Values = Mapping[str, NDArray[Any]]


class Tool(NamedTuple):
    """A quantizer that writes files.

    Attributes:
        requirement: package that it needs.
        ours: our format of the same name.
        write: function of a model's directory, the path to write, and token ids.
        decode: function that returns what the tool makes of its file, (rows, columns) by the name of the weight.
        dtype: name of the dtype that it decodes to.
    """

    requirement: str
    ours: str
    write: Callable[[Path, Path, Documents], None]
    decode: Callable[[Path], Values]
    dtype: str


def _gptqmodel(method: str) -> Callable[[Path, Path, Documents], None]:
    def write(model: Path, path: Path, documents: Documents) -> None:
        import torch

        os.environ.setdefault(gptqmodel.WORKERS, "2")
        os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")  # a C++ helper that takes a minute to compile
        library = import_module("gptqmodel")
        settings: dict[str, Any] = {"bits": 4, "group_size": GROUP, "offload_to_disk": False}
        arguments: dict[str, Any] = {}
        if method == "awq":
            kinds = import_module("gptqmodel.quantization")
            settings |= {"quant_method": kinds.METHOD.AWQ, "format": kinds.FORMAT.GEMM}
            arguments["backend"] = library.BACKEND.AWQ_TORCH
        dtype = torch.float16 if method == "awq" else torch.float32
        loaded = library.GPTQModel.load(str(model), library.QuantizeConfig(**settings), dtype=dtype, device="cpu")
        texts = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in documents]
        loaded.quantize(texts, batch_size=1, **arguments)
        loaded.save(str(path))

    return write


def _gptqmodel_gptq_values(path: Path) -> Values:
    import torch

    os.environ.setdefault(gptqmodel.WORKERS, "2")
    library = import_module("gptqmodel")
    model = library.GPTQModel.load(str(path), backend=library.BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16)
    modules: Iterator[tuple[str, Any]] = model.model.named_modules()
    return {
        f"{name}.weight": module.dequantize_weight().T.contiguous().numpy()
        for name, module in modules
        if hasattr(module, "dequantize_weight")
    }


def _gptqmodel_awq_values(path: Path) -> Values:
    from safetensors.torch import load_file

    dequantize = import_module("gptqmodel.quantization.awq.utils.packing_utils").dequantize_gemm
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    parts = {layer: [tensors[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")] for layer in layers}
    return {f"{layer}.weight": dequantize(*found, 4, GROUP).T.contiguous().numpy() for layer, found in parts.items()}


def _llmcompressor(method: str) -> Callable[[Path, Path, Documents], None]:
    def write(model: Path, path: Path, documents: Documents) -> None:
        import torch
        from torch.utils.data import DataLoader

        oneshot = import_module("llmcompressor").oneshot
        modifiers = import_module("llmcompressor.modifiers.quantization")
        cache = import_module("llmcompressor.pipelines.cache").IntermediatesCache
        patch_attr = import_module("compressed_tensors.utils").patch_attr
        weights = {"num_bits": 4, "type": "int", "symmetric": method != "awq", "strategy": "group", "group_size": GROUP}
        groups = {"config_groups": {"all": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}
        if method == "awq":
            awq = import_module("llmcompressor.modifiers.transform.awq").AWQModifier
            recipe = [awq(), modifiers.QuantizationModifier(**groups)]
        else:
            recipe = [modifiers.GPTQModifier(**groups)]
        loaded = load_model(model)
        batches: Any = [{"input_ids": torch.tensor([list(ids)])} for ids in documents]
        with patch_attr(cache, "pin_memory", lambda cache, batch: None):  # which raises where there is no accelerator
            data = DataLoader(batches, batch_size=None)
            oneshot(model=loaded, dataset=data, processor=object(), recipe=recipe, pipeline="sequential")
        loaded.save_pretrained(path, save_compressed=True)

    return write


def _llmcompressor_values(path: Path) -> Values:
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    dense: Any = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=dense)
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: found[name].detach().numpy() for name in linear_names(model)}


def _llama_cpp(model: Path, path: Path, documents: Documents) -> None:
    loaded = load_model(model)
    names = linear_names(loaded)
    stored = llama_cpp.file_names(names)
    plain = path.with_suffix(".plain")
    llama_cpp.write_plain(plain, {stored[name]: name for name in names}, state_of(loaded))
    llama_cpp.quantize_gguf(plain, path, LLAMA_CPP_FILE)
    plain.unlink()


def _llama_cpp_values(path: Path) -> Values:
    from gguf import GGUFReader, quants

    return {t.name: quants.dequantize(np.array(t.data).view(np.uint8), t.tensor_type) for t in GGUFReader(path).tensors}


TOOLS: Mapping[str, Tool] = {
    "llama-cpp": Tool(llama_cpp.REQUIREMENT, f"gguf:{LLAMA_CPP_FILE}", _llama_cpp, _llama_cpp_values, "float32"),
    "gptqmodel": Tool(gptqmodel.REQUIREMENT, f"int4-g{GROUP}", _gptqmodel("gptq"), _gptqmodel_gptq_values, "float16"),
    "gptqmodel-awq": Tool(
        gptqmodel.REQUIREMENT, f"int4-g{GROUP}-asym", _gptqmodel("awq"), _gptqmodel_awq_values, "float16"
    ),
    "llmcompressor-gptq": Tool(
        llmcompressor.REQUIREMENT, f"int4-g{GROUP}-ct", _llmcompressor("gptq"), _llmcompressor_values, "float32"
    ),
    "llmcompressor-awq": Tool(
        llmcompressor.REQUIREMENT, f"int4-g{GROUP}-ct-asym", _llmcompressor("awq"), _llmcompressor_values, "float32"
    ),
}


def check_tools(names: Sequence[str]) -> None:
    """Refuse tools that are unknown or not installed.

    Raises:
        ValueError: one is.
    """
    for name in names:
        if name not in TOOLS:
            raise ValueError(f"tools must be of {', '.join(TOOLS)}, got {name!r}")
        need(TOOLS[name].requirement, module_of(TOOLS[name].requirement))
