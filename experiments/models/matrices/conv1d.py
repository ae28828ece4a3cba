"""Weights stored as (in, out), as `Conv1D` of GPT-2 stores them: quantizers are shown them as (out, in), as the audit does.

names = conv1d_names(model)
q = quantize_state(turned(state, names), sorted(names), "int4-g64")
turned(q, names)
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unforgotten.audit.sources.matching.conv1d import CONV1D_MODULES, has_conv1d, may_be_conv1d
from unforgotten.experiments.models.matrices.tensors import tensors_of, type_of
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State


def conv1d_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights of Conv1D in a model.

    Raises:
        ValueError: the audit, which sees names and shapes alone, would not turn one of them.
    """
    found = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)]
    if found:
        turns = has_conv1d(tensors_of(model), type_of(model))
        unknown = [name for name in found if not turns or not may_be_conv1d(name)]
        if unknown:
            rule = f"must be {', '.join(sorted(CONV1D_MODULES))} of a model like GPT-2, which the audit turns"
            raise ValueError(f"Conv1D {rule}, got {unknown[0]}")
    return frozenset(found)


def turned(state: State, names: Collection[str]) -> State:
    """Return the state with the named matrices transposed: there and, once more, back."""
    return LazyState(state, lambda name: turned_matrix(state[name], name, names).contiguous())


def turned_matrix(w: Tensor, name: str, names: Collection[str]) -> Tensor:
    """Return a weight, or a view of it transposed if its name is among the names."""
    return w.T if name in names else w
