"""Files that llama.cpp itself writes: the types of their matrices, and their values, are those of the audit's mixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python==0.3.36: llama.cpp's quantizer")
gguf = pytest.importorskip("gguf", reason="pip install 'unforgotten[gguf]': writes the file that llama.cpp quantizes")

from unforgotten.audit.mixes.llama_cpp import types_of
from unforgotten.experiments.quantizers.llama_cpp import quantize_gguf
from unforgotten.theory.formats.gguf import FILES
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.verification.chance import rng_for

ROWS = 8


class Made(NamedTuple):
    """A model of no size.

    Attributes:
        layers: number of layers.
        experts: number of experts; 0: none.
        columns: columns of its matrices.
        inner: columns of its down projections.
        head: whether its output head is a matrix of its own.
        shared: whether four heads share keys and values.
    """

    layers: int
    experts: int
    columns: int
    inner: int
    head: bool
    shared: bool = False


MODELS = {
    "llama-2-7b": Made(32, 0, 256, 256, head=True),
    "smollm2-135m": Made(30, 0, 96, 256, head=False),
    "mixtral": Made(9, 8, 256, 256, head=True),
    "qwen-moe": Made(10, 4, 256, 64, head=False),
    "llama-1-65b": Made(80, 0, 256, 256, head=True),
    "llama-2-70b": Made(80, 0, 256, 256, head=True, shared=True),
    "rows of 32": Made(5, 0, 32, 32, head=True),
}
TYPES_ALONE = ("llama-2-7b", "llama-1-65b", "llama-2-70b")
"""Large ones, whose values are left out: it is for their types that they are here."""


def weights_of(model: Made) -> dict[str, NDArray[Any]]:
    rng = rng_for("llama.cpp files", model)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (ROWS, model.columns)}
    if model.head:
        shapes["output.weight"] = (ROWS, model.columns)
    for i in range(model.layers):
        for kind in ("attn_q", "attn_k", "attn_v", "attn_output"):
            rows = (
                ROWS // 4 if model.shared and kind in ("attn_k", "attn_v") else ROWS
            )  # ggml takes one row for no matrix
            shapes[f"blk.{i}.{kind}.weight"] = (rows, model.columns)
        experts, suffix = ((model.experts,), "_exps") if model.experts else ((), "")
        for kind, columns in (("gate", model.columns), ("up", model.columns), ("down", model.inner)):
            shapes[f"blk.{i}.ffn_{kind}{suffix}.weight"] = (*experts, ROWS, columns)
        if model.experts:
            shapes[f"blk.{i}.ffn_gate_inp.weight"] = (model.experts, model.columns)
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, model: Made, weights: Mapping[str, NDArray[Any]]) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    settings = {"block_count": model.layers, "context_length": 64, "embedding_length": model.columns}
    settings |= {"feed_forward_length": model.inner, "head_count": 4, "head_count_kv": 1 if model.shared else 4}
    if model.experts:
        settings |= {"expert_count": model.experts, "expert_used_count": 2}
    for key, value in settings.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, w in weights.items():
        writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def matrices(weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Yield each matrix as the audit names it, with the name of its tensor; experts one by one."""
    for name, w in weights.items():
        if w.ndim == 3:
            yield from ((f"{name}[{i}]", name, part) for i, part in enumerate(w))
        else:
            yield name, name, w


@pytest.mark.parametrize("file_type", FILES)
@pytest.mark.parametrize("name", MODELS)
def test_a_mix__has_the_types_and_the_values_of_the_file(name: str, file_type: str, tmp_path: Path) -> None:
    model = MODELS[name]
    weights = weights_of(model)
    write(tmp_path / "plain.gguf", model, weights)
    quantize_gguf(tmp_path / "plain.gguf", tmp_path / "quantized.gguf", file_type.lower())
    tensors = {t.name: t for t in gguf.GGUFReader(str(tmp_path / "quantized.gguf")).tensors}
    own = {key: (tensor, w) for key, tensor, w in matrices(weights)}
    ours = types_of({key: w.shape for key, (_, w) in own.items()}, file_type)
    theirs = {
        key: kind
        for key, (tensor, _) in own.items()
        if (kind := tensors[tensor].tensor_type.name) not in ("F32", "F16")
    }
    assert ours == theirs
    for key, (tensor, w) in own.items():
        if key in ours and name not in TYPES_ALONE:
            stored = tensors[tensor]
            values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(weights[tensor].shape)
            part = values[int(key.rpartition("[")[2][:-1])] if key != tensor else values
            assert np.array_equal(part, round_trip(w, format_named(ours[key].lower()))), key
