"""Fused experts of one checkpoint beside single experts of the other: the fused ones are shown one by one.

    NAME.experts.gate_up_proj (experts, 2 n, hidden), down_proj (experts, hidden, n)
    NAME.experts.3.gate_proj.weight (n, hidden), up_proj, down_proj; w1, w3 and w2 in Mixtral

The shapes of the single experts say whether the fused ones are stored as (experts, out, in) or (experts, in, out); where
both fit, the model's type does, or the pair is refused. The gate comes first and up after it, but in gpt-oss, whose
columns alternate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.matching.experts import DOWN, FUSED, MAX_EXPERTS, inputs_first
from unforgotten.audit.sources.matching.kinds import are_fused_experts
from unforgotten.audit.sources.matching.prefixes import core
from unforgotten.audit.sources.matching.view import Part, View, plain_parts
from unforgotten.audit.sources.model_config import model_config_of, model_type_of
from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.safetensors_header import TensorInfo

SINGLE = re.compile(r"^(.*(?:^|\.)experts)\.(0|[1-9]\d{0,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
KINDS: Mapping[str, str] = {
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "down_proj": "down",
    "w2": "down",
}
PARTS: Mapping[str, tuple[str, ...]] = {FUSED: ("gate", "up"), DOWN: ("down",)}
"""A fused tensor -> the matrices of one expert that stand in it, in order."""
ALTERNATING = frozenset({"gpt_oss"})
"""Model types whose gate and up alternate."""


class Fused(NamedTuple):
    """A fused tensor and the single experts that stand for it.

    Attributes:
        name: name of the tensor.
        info: dtype and shape of the tensor.
        singles: names of the single matrices, one tuple an expert.
        shape: shape of each of them.
    """

    name: str
    info: TensorInfo
    singles: list[tuple[str, ...]]
    shape: tuple[int, ...]


def unfused(side: str, own: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return one checkpoint with its fused experts under the names of the other one's single experts, where it has them.

    Raises:
        CheckpointError: the shapes or the number of the experts do not fit, or fit two ways and nothing decides.
    """
    found = _fused_beside_singles(own, other)
    if not found:
        return own
    kind = model_type_of(model_config_of(own))
    parts = plain_parts(own)
    for fused in found:
        del parts[fused.name]
    for fused in found:
        parts |= _parts(fused, own, kind)
    names = [fused.name for fused in found]
    note = (
        f"{len(names)} tensors of fused experts of the {side} checkpoint are compared with single experts, the rows of the "
        f"gate before those of up: {named(names)}."
    )
    if any(_alternates(fused, own, kind) for fused in found):
        note = note.replace("the rows of the gate before those of up", "gate and up row by row in turn")
    return View(own, dict(sorted(parts.items())), (note,))


def _fused_beside_singles(own: Checkpoint, other: Checkpoint) -> list[Fused]:
    """Return the fused tensors of which the other checkpoint holds single experts alone."""
    singles = _singles(other)
    found = []
    for name, info in own.tensors.items():
        module, _, last = name.rpartition(".")
        beside = singles.get(core(module), {}) if last in PARTS and name not in other.tensors else {}
        names = {kind: beside.get(kind, {}) for kind in PARTS.get(last, ())}
        if not are_fused_experts(name, info) or not any(names.values()):
            continue
        if any(single in own.tensors for of_kind in names.values() for single in of_kind.values()):
            continue
        found.append(_checked(name, info, other, names))
    return found


def _singles(checkpoint: Checkpoint) -> dict[str, dict[str, dict[int, str]]]:
    """Return module of experts, without wrappers -> kind of matrix -> expert -> name."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for name in checkpoint.tensors:
        if match := SINGLE.match(name):
            found.setdefault(core(match[1]), {}).setdefault(KINDS[match[3]], {})[int(match[2])] = name
    return found


def _checked(name: str, info: TensorInfo, other: Checkpoint, names: Mapping[str, Mapping[int, str]]) -> Fused:
    count = info.shape[0]
    if count > MAX_EXPERTS:
        raise CheckpointError(info.path, f"must hold at most {MAX_EXPERTS} experts", count, tensor=name)
    for kind, of_kind in names.items():
        if set(of_kind) != set(range(count)):
            rule = f"must hold the {kind} matrices of experts 0 … {count - 1}, as {name!r} of the other side"
            raise CheckpointError(other.source, rule, f"{len(of_kind)} of them")
    singles = [tuple(names[kind][e] for kind in names) for e in range(count)]
    shapes = {other.tensors[single].shape for expert in singles for single in expert}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        rule = f"must have experts of one shape, as {name!r} of the other side"
        raise CheckpointError(other.source, rule, sorted(shapes))
    return Fused(name, info, singles, shapes.pop())


def _parts(fused: Fused, own: Checkpoint, kind: str | None) -> dict[str, Part]:
    """Return the single matrices of a fused tensor as parts of it, under their names."""
    many = len(fused.singles[0])
    rows, columns = fused.shape
    turned = _is_turned(fused, own, kind)
    step = many if _alternates(fused, own, kind) else 1
    if step > 1 and not turned:
        rule = "must be stored as (experts, in, out) where gate and up alternate"
        raise CheckpointError(fused.info.path, rule, list(fused.info.shape), tensor=fused.name)
    found: dict[str, Part] = {}
    for e, expert in enumerate(fused.singles):
        start = e * many * rows * columns
        for at, single in enumerate(expert):
            if turned:
                cut = (many * rows, at if step > 1 else at * rows, step)
                found[single] = Part(fused.name, fused.shape, start, turned=True, rows=cut)
            else:
                found[single] = Part(fused.name, fused.shape, start + at * rows * columns)
    return found


def _is_turned(fused: Fused, own: Checkpoint, kind: str | None) -> bool:
    """Return whether a fused tensor is stored as (experts, in, out), by the shape of the single experts."""
    (rows, columns), (_, *stored) = fused.shape, fused.info.shape
    rows *= len(fused.singles[0])
    fits = [first for first, shape in ((False, [rows, columns]), (True, [columns, rows])) if shape == stored]
    if not fits:
        count = fused.info.shape[0]
        rule = f"must have the shape [{count}, {rows}, {columns}] or [{count}, {columns}, {rows}] of its single experts"
        raise CheckpointError(fused.info.path, rule, list(fused.info.shape), tensor=fused.name)
    known = fits[0] if len(fits) == 1 else inputs_first(fused.name, own.tensors, kind)
    if known is None:
        rule = (
            "must be known as (experts, out, in) or (experts, in, out) where its matrices are square: neither a tensor "
            "beside it nor the model_type of a config.json says it"
        )
        raise CheckpointError(fused.info.path, rule, f"model_type {kind!r}", tensor=fused.name)
    return known


def _alternates(fused: Fused, own: Checkpoint, kind: str | None) -> bool:
    """Return whether gate and up alternate, as in gpt-oss, whose experts alone have biases of this name."""
    several = len(fused.singles[0]) > 1
    return several and (kind in ALTERNATING or fused.name + "_bias" in own.tensors)
