"""Experts that one tensor holds, (experts, out, in): quantizers take each for the matrix that it is in the files.

fused = {"mlp.experts.down_proj": 8}
q = quantize_state(by_expert(state, fused), expert_names(names, fused), "int4-g64")
joined(q, state, fused)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from unforgotten.audit.sources.matching.experts import inputs_first
from unforgotten.audit.sources.matching.kinds import are_fused_experts
from unforgotten.experiments.models.matrices.tensors import tensors_of, type_of
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State


def fused_experts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors of a model that hold several experts, as the audit knows them by name and shape.

    Raises:
        ValueError: they are (experts, in, out), whose rows are no rows of a matrix that a quantizer sees.
    """
    tensors, kind = tensors_of(model), type_of(model)
    found = tuple(name for name, info in tensors.items() if are_fused_experts(name, info))
    for name in found:
        module = model.get_submodule(name.rpartition(".")[0])
        if getattr(module, "is_transposed", False) or inputs_first(name, tensors, kind):
            raise ValueError(f"{name}: experts must be kept as (experts, out, in), got (experts, in, out)")
    return found


def expert_names(names: Iterable[str], fused: Mapping[str, int]) -> list[str]:
    """Return the names with those of single experts, "NAME.3", in place of the names of tensors that hold several."""
    return [part for name in names for part in _parts(name, fused)]


def by_expert(state: State, fused: Mapping[str, int]) -> State:
    """Return the state with a matrix for each expert.

    Args:
        state: weights by name.
        fused: number of experts in each tensor that holds several.
    """
    place = {part: (name, i) for name in fused for i, part in enumerate(_parts(name, fused))}

    def weight(name: str) -> Tensor:
        if name not in place:
            return state[name]
        whole, i = place[name]
        return state[whole][i]

    return LazyState(expert_names(state, fused), weight)


def joined(split: State, like: State, fused: Mapping[str, int]) -> State:
    """Return the state with the names of `like`: what `by_expert` took apart, put together again."""

    def weight(name: str) -> Tensor:
        return torch.stack([split[part] for part in _parts(name, fused)]) if name in fused else split[name]

    return LazyState(like, weight)


def _parts(name: str, fused: Mapping[str, int]) -> list[str]:
    return [f"{name}.{i}" for i in range(fused[name])] if name in fused else [name]
