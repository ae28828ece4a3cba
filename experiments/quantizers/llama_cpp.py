"""The quantizer of llama.cpp itself: `llama-cpp:q4_k_m` has the values of the file that its `llama-quantize` writes.

The named weights go into a GGUF file, llama.cpp quantizes the file, and values are read from its bytes by the `gguf` package.
So the mix is llama.cpp's own: which tensors of `q4_k_m` are Q6_K by kind and layer, and what takes the place of a type whose
blocks do not divide the rows, Q5_0 for Q4_K, Q8_0 for Q6_K and float16 where rows are no multiple of 32.

    quantize_state(state, linear_names(model), "llama-cpp:q4_k_m")

Layers count as those of a Llama. Rows keep the order of Transformers, which llama.cpp permutes for queries and keys: a block
lies in one row, so no value depends on it. As with every quantizer of a run, embeddings and output head are left alone.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State
from unforgotten.records.extras import module_of, need

if TYPE_CHECKING:
    from torch import Tensor

REQUIREMENT = "llama-cpp-python==0.3.36"
K_QUANTS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
FILES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *K_QUANTS)
"""Types of files that llama.cpp writes without an importance matrix."""
ERROR = 4
"""Level of an error in what llama.cpp logs."""
ARCHITECTURES = ("LLAMA", "PHI3")
"""Architectures by whose tables weights are named: PHI3 has what other models join, queries with keys and values."""


class Stored(NamedTuple):
    """A tensor of a GGUF file.

    Attributes:
        kind: name of its type, as Q6_K.
        data: its bytes, (rows, bytes).
    """

    kind: str
    data: NDArray[np.uint8]


def checked(name: str) -> None:
    """Return None: a file holds tensors of several formats.

    Raises:
        ValueError: it is no type of file that llama.cpp writes without an importance matrix.
    """
    if name not in FILES:
        raise ValueError(f"format must be one of {', '.join(FILES)} for llama-cpp:, got {name!r}")


def file_names(names: Sequence[str]) -> Mapping[str, str]:
    """Return the name of each weight in a GGUF file.

    Raises:
        ValueError: llama.cpp has no name for one, as for an expert that is a matrix of its own.
    """
    import gguf

    layers = 1 + max((int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)), default=0)
    tables = [gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], layers) for kind in ARCHITECTURES]
    found = {}
    for name in names:
        known = (table.get_name(name, try_suffixes=(".weight",)) for table in tables)
        found[name] = next((key for key in known if key), "")
        if not found[name]:
            raise ValueError(f"weights must have a name in llama.cpp for llama-cpp:, got {name}")
    return found


def quantized_file(weights: State, names: Sequence[str], file_type: str) -> Mapping[str, Stored]:
    """Return what llama.cpp writes for the named weights, by their names.

    Args:
        weights: weights by name, (rows, columns).
        names: names of the weights to quantize.
        file_type: type of the file, one of `FILES`.

    Raises:
        ValueError: gguf or llama-cpp-python is missing, a weight is not finite or has no name in llama.cpp, or llama.cpp
            refuses the weights.
    """
    checked(file_type)
    need("unforgotten[gguf]", "gguf")
    need(REQUIREMENT, module_of(REQUIREMENT))
    import gguf

    stored = file_names(names)
    with TemporaryDirectory() as folder:
        plain, written = Path(folder) / "plain.gguf", Path(folder) / "quantized.gguf"
        write_plain(plain, {stored[name]: name for name in names}, weights)
        quantize_gguf(plain, written, file_type)
        reader = gguf.GGUFReader(str(written))
        tensors = {t.name: Stored(t.tensor_type.name, np.array(t.data).view(np.uint8)) for t in reader.tensors}
    return {name: tensors[stored[name]] for name in names}


def write_plain(path: Path, names: Mapping[str, str], weights: State) -> None:
    """Write a GGUF file of a Llama with these weights and no others, one after the other, in float32.

    Args:
        path: path of the file.
        names: names of the weights by their names in the file.
        weights: weights by name.
    """
    import gguf

    shapes = {key: tuple(weights[name].shape) for key, name in names.items()}
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in _hyperparameters(shapes).items():
        getattr(writer, f"add_{key}")(value)
    for key, shape in shapes.items():
        writer.add_tensor_info(key, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names.values():
        x = np.ascontiguousarray(weights[name].detach().cpu().float().numpy())
        if not np.isfinite(x).all():
            writer.close()
            raise ValueError(f"weights must be finite to be quantized by llama-cpp:, got nan or inf in {name}")
        writer.write_tensor_data(x)
    writer.close()


def _hyperparameters(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    """Return what llama.cpp must know of a Llama to choose types: how many layers, and queries a key.

    Args:
        shapes: shapes of the tensors by their names in the file.
    """
    layers = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blk."))
    of_kind = {key.split(".", 2)[2]: shape for key, shape in shapes.items() if key.startswith("blk.")}
    query, value = of_kind.get("attn_q.weight", (1,)), of_kind.get("attn_v.weight", (1,))
    return {
        "block_count": layers,
        "context_length": 1,
        "embedding_length": 64 * (query[0] // value[0]),
        "feed_forward_length": 1,
        "head_count": query[0] // value[0],
        "head_count_kv": 1,
        "layer_norm_rms_eps": 1e-5,
    }


@contextmanager
def heard(library: Any) -> Iterator[list[str]]:
    """Collect the errors that llama.cpp logs meanwhile, and drop all else.

    Args:
        library: module `llama_cpp`.
    """
    said: list[str] = []

    def note(level: int, text: bytes, _: Any) -> None:
        if level >= ERROR:
            said.append(text.decode(errors="replace").strip())

    listener = library.llama_log_callback(note)  # held until the call is over
    library.llama_log_set(listener, None)
    try:
        yield said
    finally:
        library.llama_log_set(library.llama_log_callback(0), None)


def quantize_gguf(plain: Path, written: Path, file_type: str) -> None:
    """Let llama.cpp quantize a file; of what it logs only an error is kept.

    Raises:
        ValueError: it refuses the file.
    """
    import torch

    library = import_module("llama_cpp")
    params = library.llama_model_quantize_default_params()
    params.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    params.nthread = torch.get_num_threads()
    with heard(library) as said:
        code = library.llama_model_quantize(str(plain).encode(), str(written).encode(), ctypes.byref(params))
    if code != 0:
        reason = " ".join(said) or f"code={code}"
        raise ValueError(f"weights must be such that llama.cpp can write {file_type}, got {reason}")


def stored_values(stored: Stored) -> NDArray[np.float32]:
    """Return the values of a tensor of a file, float32 (rows, columns), as the package `gguf` reads them."""
    from gguf import GGMLQuantizationType, quants

    values: NDArray[np.float32] = quants.dequantize(stored.data, GGMLQuantizationType[stored.kind])
    return values


def llama_cpp_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
    """Return the state with Q(w) in place of the named weights; the file is written when the first is asked for."""
    import torch

    from unforgotten.experiments.models.states import LazyState

    checked(format_name)
    touched = set(names)

    @cache
    def stored() -> Mapping[str, Stored]:
        return quantized_file(state, names, format_name)

    def weight(key: str) -> Tensor:
        w = state[key]
        return torch.from_numpy(stored_values(stored()[key])).reshape(w.shape).to(w) if key in touched else w

    return LazyState(state, weight)


QUANTIZERS = (
    Quantizer(
        "llama-cpp",
        None,
        llama_cpp_state,
        ours=checked,
        formats={", ".join(FILES): "files of llama.cpp's own quantizer, with its mix of types"},
        packages=(REQUIREMENT,),
    ),
)
