"""Matrices stored as (in, out), as `Conv1D` of GPT-2 does, where `nn.Linear` stores (out, in).

Quantizers turn them first: their blocks lie along the inputs. A name does not tell, for gpt_bigcode gives `nn.Linear` the
names of Conv1D; the type of the model does, or the shape of `c_attn`, which makes three outputs of each input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unforgotten.audit.sources.matching.kinds import is_quantized
from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.safetensors_header import TensorInfo

CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "decision_transformer", "imagegpt", "clvp_decoder"})
"""Model types of transformers whose blocks are made of Conv1D."""
LINEAR_TYPES = frozenset({"codeshell", "gpt_bigcode", "mpt", "starcoder2"})
"""Model types that give `nn.Linear` a name of CONV1D_MODULES."""
CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Last names of the modules that are Conv1D there."""
TELLING = ".c_attn.weight"


def may_be_conv1d(name: str) -> bool:
    """Return whether a tensor has the name of a weight of Conv1D."""
    return name.removesuffix(".weight").rpartition(".")[2] in CONV1D_MODULES


def has_conv1d(tensors: Mapping[str, TensorInfo], model_type: str | None) -> bool | None:
    """Return whether a model's blocks are made of Conv1D; None where nothing says."""
    if model_type in CONV1D_TYPES or model_type in LINEAR_TYPES:
        return model_type in CONV1D_TYPES
    shapes = {info.shape for name, info in tensors.items() if name.endswith(TELLING) and len(info.shape) == 2}
    if shapes and all(columns == 3 * rows for rows, columns in shapes):
        return True
    if shapes and all(rows == 3 * columns for rows, columns in shapes):
        return False
    return None


def conv1d_weights(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the matrices to quantize that have the name of a weight of Conv1D."""
    return [name for name, info in tensors.items() if may_be_conv1d(name) and is_quantized(name, info.shape)]


def conv1d_note(names: Iterable[str], turned: bool) -> str:
    """Return the sentence on how such matrices are taken."""
    found = list(names)
    if turned:
        return (
            f"{len(found)} matrices of Conv1D are stored as (in, out) and are turned, as quantizers do: {named(found)}."
        )
    return (
        f"{len(found)} matrices have names of Conv1D, and nothing says which axis is the inputs: blocks lie along the last "
        f"axis as stored: {named(found)}."
    )
