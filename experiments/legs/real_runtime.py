"""Quantized models that run by their own library, in place of a plain model with their values.

Transformers loads checkpoints, llama.cpp runs GGUF files:

check_runtime(("qt", "qu"))  # before a weight is read
model = load_real("qt", like=pair.shell.model)
ran_real(model, "qt")["runtime"]  # "transformers 5.17.0 with bitsandbytes 0.50.2"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from unforgotten.audit.verdict.legs import Ran
from unforgotten.experiments.legs.llama_cpp import PACKAGE, LlamaCpp, llama_cpp_model, llama_cpp_name
from unforgotten.experiments.legs.ran import devices_of, dtype_of
from unforgotten.experiments.models.saved import LOADING, first_line
from unforgotten.records.extras import module_of, need

Sources = tuple[str, str]
"""Directories, or GGUF files, of the quantized target and of the quantized unlearned model."""

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "compressed-tensors": ("compressed-tensors", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum", "accelerate"),
}
"""Packages that run a checkpoint, by the `quant_method` of its configuration; the first is named as the runtime."""
GGUF = "gguf"


def check_runtime(sources: Sequence[str]) -> None:
    """Refuse quantized models that cannot be run here, before anything is measured.

    Raises:
        ValueError: one is no directory, has a method that no library here runs, or its library is missing; one line.
    """
    for source in sources:
        method = method_of(source)
        for package in (PACKAGE,) if method == GGUF else LIBRARIES[method]:
            need(package, module_of(package))


def method_of(source: str) -> str:
    """Return the method by which a checkpoint is quantized, one of LIBRARIES, or GGUF.

    Raises:
        ValueError: it is none of them.
    """
    if Path(source).is_file() and source.endswith(".gguf"):
        return GGUF
    path = Path(source) / "config.json"
    if not path.is_file():
        rule = "must be a GGUF file or a directory that transformers runs for --runtime deployed"
        raise ValueError(f"{source}: {rule}, got {'no config.json' if Path(source).is_dir() else 'no such file'}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError:
        config = None
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in LIBRARIES:
        raise ValueError(f"{path}: quant_method must be one of {', '.join(LIBRARIES)}, got {method!r}")
    return str(method)


def load_real(source: str, like: PreTrainedModel) -> PreTrainedModel:
    """Return the quantized model as its library runs it, on the first device of another model, in the dtype of its own file.

    Args:
        source: directory of the checkpoint, or GGUF file.
        like: the model that it was made from, by the names of its weights.

    Raises:
        ValueError: the library cannot load it, its vocabulary is another, or weights are missing that transformers would
            make up.
    """
    if method_of(source) == GGUF:
        return llama_cpp_model(source, like)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto",
            device_map={"": str(like.device)},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (*LOADING, ImportError) as error:
        raise ValueError(f"{source}: must be a model that transformers runs, got {first_line(error)}") from None
    model: PreTrainedModel = loaded[0]
    absent = sorted(loaded[1]["missing_keys"])
    if absent:
        raise ValueError(f"{source}: must hold every weight of the model, got none for {absent[0]}")
    own, theirs = model.config.vocab_size, like.config.vocab_size
    if own != theirs:
        raise ValueError(f"{source}: vocab_size must be the target's, {theirs}, got {own}")
    return model.eval()


def ran_real(model: PreTrainedModel, source: str) -> Ran:
    """Return how a quantized model ran: by which library, and in which dtype its activations were."""
    if isinstance(model, LlamaCpp):
        return Ran(dtype=dtype_of(model), devices=model.devices, runtime=llama_cpp_name(), rounded=[])
    library = LIBRARIES[method_of(source)][0]
    name = f"transformers {version('transformers')} with {library} {version(library)}"
    return Ran(dtype=dtype_of(model), devices=devices_of(model), runtime=name, rounded=[])
