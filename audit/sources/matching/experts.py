"""Fused experts: one tensor (experts, rows, columns), shown as one matrix an expert, `NAME[0]`, and so on.

Most files store (experts, out, in), as `torch.nn.Linear` would; Llama 4 and gpt-oss store (experts, in, out). Blocks of a
format lie along the inputs, so the latter are turned. Which it is follows from the shapes of `gate_up_proj` and
`down_proj`, or from the model's type; else experts are taken as they are stored, and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.matching.kinds import are_fused_experts
from unforgotten.audit.sources.matching.view import Part
from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.safetensors_header import TensorInfo

INPUTS_FIRST = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Model types that store (experts, in, out)."""
EITHER_ORDER = frozenset({"qwen3_vl_moe", "qwen3_vl_moe_text"})
"""Model types whose files are of either order, by the release that saved them."""
FUSED, DOWN = "gate_up_proj", "down_proj"
MAX_EXPERTS = 1 << 16


def fused_experts(pair: tuple[Checkpoint, Checkpoint], shared: Iterable[str]) -> list[str]:
    """Return the tensors of fused experts that both checkpoints hold in one shape.

    Raises:
        CheckpointError: a tensor holds more than MAX_EXPERTS experts.
    """
    found = []
    for name in shared:
        infos = [checkpoint.tensors[name] for checkpoint in pair]
        if not all(are_fused_experts(name, info) for info in infos) or infos[0].shape != infos[1].shape:
            continue
        if infos[0].shape[0] > MAX_EXPERTS:
            rule = f"must hold at most {MAX_EXPERTS} experts"
            raise CheckpointError(infos[0].path, rule, infos[0].shape[0], tensor=name)
        found.append(name)
    return found


def expert_parts(name: str, info: TensorInfo, turned: bool) -> dict[str, Part]:
    """Return the experts of a fused tensor, each a matrix under its own name."""
    count, *stored = info.shape
    shape = tuple(reversed(stored)) if turned else tuple(stored)
    return {f"{name}[{e}]": Part(name, shape, e * math.prod(shape), turned) for e in range(count)}


def inputs_first(name: str, tensors: Mapping[str, TensorInfo], model_type: str | None) -> bool | None:
    """Return whether a fused tensor is stored as (experts, in, out); None where nothing says."""
    if name.startswith("blk.") and "_exps" in name:
        return False  # ggml's order
    by_shape = _by_shape(name, tensors)
    if by_shape is not None or model_type is None or model_type in EITHER_ORDER:
        return by_shape
    return model_type in INPUTS_FIRST


def _by_shape(name: str, tensors: Mapping[str, TensorInfo]) -> bool | None:
    """Return what gate_up_proj of 2 n and down_proj of n hidden units show; only one order fits them both."""
    up, down = (tensors.get(name.replace(DOWN, FUSED)), tensors.get(name.replace(FUSED, DOWN)))
    if up is None or down is None or up is down or len(up.shape) != 3 or len(down.shape) != 3:
        return None
    (_, a, b), (_, c, d) = up.shape, down.shape
    if (a, b) == (2 * d, c):
        return False
    return True if (b, a) == (2 * c, d) else None


def expert_notes(orders: Mapping[str, bool | None]) -> list[str]:
    """Return the sentences on fused experts, by the order in which each tensor is stored."""
    if not orders:
        return []
    found = [
        f"{len(orders)} tensors of fused experts are measured expert by expert, as NAME[0]: {named(list(orders))}."
    ]
    turned = [name for name, first in orders.items() if first]
    unknown = [name for name, first in orders.items() if first is None]
    if turned:
        found.append(
            f"{len(turned)} of them are stored as (experts, in, out) and are turned, for blocks lie along the inputs."
        )
    if unknown:
        found.append(
            f"{len(unknown)} of them do not say which axis is the inputs: blocks lie along the last axis as stored "
            f"({named(unknown)})."
        )
    return found
