"""Checkpoints that are quantized already: their codes as they are stored, and how many of them differ in a pair.

No weight is quantized here. A flip is a stored code that differs; a value change is a decoded float32 that differs,
which a moved scale or zero point does too.

    leg = compare_codes(open_checkpoint(target), open_checkpoint(unlearned))
    leg.total.code_flips / leg.total.weights
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unforgotten.audit.codes.fused_experts import fused_layers
from unforgotten.audit.codes.layer import Layer
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.codes.zero_points import check_one_convention, zero_notes
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import tensors_equal
from unforgotten.audit.sources.matching.experts import expert_notes
from unforgotten.audit.sources.matching.kinds import is_expert_part
from unforgotten.audit.sources.matching.view import inner_of
from unforgotten.audit.sources.model_config import CONFIG, Configured, read_config
from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.quantization import Scheme, read_scheme

CHUNK_WEIGHTS = 1 << 20
MODELOPT = "hf_quant_config.json"  # of ModelOpt, where config.json says nothing
WEIGHT = ".weight"  # ending of a layer that is stored as it was


class CodeCounts(NamedTuple):
    """Of one layer or of many.

    Attributes:
        weights: number of weights.
        code_flips: stored codes that differ.
        value_changes: decoded values that differ.
    """

    weights: int
    code_flips: int
    value_changes: int


@dataclass(frozen=True)
class ArtefactLeg:
    """What differs between two quantized checkpoints of one scheme.

    Attributes:
        method: method of quantization, one of `quantization.SCHEMES` or gguf.
        layers: counts by the name of the layer, in order.
        kept: tensors that are stored unquantized -> whether they differ.
        shapes: shapes of the weights of each layer, as the layout orders them.
        formats: name of the format that each layer is stored in, as gptq:int4-g128.
        notes: sentences on how the codes were read.
    """

    method: str
    layers: Mapping[str, CodeCounts]
    kept: Mapping[str, bool]
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> CodeCounts:
        """The sums over layers."""
        return add_counts(self.layers.values())

    @property
    def by_format(self) -> Mapping[str, CodeCounts]:
        """The sums over the layers of each format, in the order of the formats' first layers."""
        names = dict.fromkeys(self.formats.values())
        return {
            name: add_counts(c for layer, c in self.layers.items() if self.formats[layer] == name) for name in names
        }


def add_counts(parts: Iterable[CodeCounts]) -> CodeCounts:
    """Return the sums of at least one part."""
    return CodeCounts(*(sum(column) for column in zip(*parts, strict=True)))


def scheme_of(source: Path) -> Scheme | None:
    """Return the scheme in which `config.json` says that a local checkpoint is quantized; None if it does not.

    Raises:
        CheckpointError: it names a method or an option whose layout is not known here.
    """
    stated = _stated(read_config(source) or {})
    if stated is not None:
        return read_scheme(source / CONFIG, stated)
    beside = read_config(source, MODELOPT)
    if beside is None:
        return None
    inner = beside.get("quantization")
    return read_scheme(source / MODELOPT, {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else inner)


def scheme_of_checkpoint(checkpoint: Checkpoint) -> Scheme | None:
    """Return the scheme in which a checkpoint is quantized, wherever it is; see `scheme_of`.

    Raises:
        CheckpointError: see `scheme_of`.
    """
    inner = inner_of(checkpoint)
    if not isinstance(inner, Configured):
        return scheme_of(Path(inner.source))
    stated = _stated(inner.model_config)
    return None if stated is None else read_scheme(Path(inner.source) / CONFIG, stated)


def _stated(config: Mapping[str, object]) -> object:
    return config.get("quantization_config", config.get("compression_config"))


def compare_codes(target: Checkpoint, unlearned: Checkpoint) -> ArtefactLeg:
    """Count the codes that differ, layer by layer and in pieces of bounded memory.

    Args:
        target: directory of the checkpoint before unlearning.
        unlearned: directory of the checkpoint after unlearning, quantized by the scheme of the target.

    Two GPTQ checkpoints may follow different conventions of zero points. A layer that one of them alone quantizes, as
    a list of skipped layers says, counts as a tensor that differs.

    Raises:
        CheckpointError: one is not quantized, the schemes differ, a layer is in one alone, lacks a part, or a part
            has the wrong dtype or shape; or the zero points of GPTQ show that a label is wrong.
    """
    before, after = (_needed_scheme(checkpoint) for checkpoint in (target, unlearned))
    if before.recipe != after.recipe:
        rule = f"must be quantized as the target is, {before.name} (quantize both by one recipe)"
        raise CheckpointError(unlearned.source, rule, after.name)
    found = layers_of(before, target), layers_of(after, unlearned)
    check_one_convention((target.source, unlearned.source), (before, after), *found)
    alone = layers_in_one((target, unlearned), found)
    counts = {name: compare_layers(found[0][name], found[1][name]) for name in sorted(found[0]) if name not in alone}
    if not counts:
        raise CheckpointError(unlearned.source, "must quantize a layer that the target quantizes too", "none")
    parts = {part for layers in found for layer in layers.values() for part in layer.parts}
    parts |= {unquantized_name(name) for name in alone}
    return ArtefactLeg(
        before.method,
        counts,
        kept_tensors(target, unlearned, parts) | dict.fromkeys(sorted(alone), True),
        {name: found[0][name].shape for name in counts},
        {name: found[0][name].format or before.name for name in counts},
        (
            *zero_notes("target", before, found[0]),
            *zero_notes("unlearned", after, found[1]),
            *_fused_notes(counts),
            *_skip_notes(alone),
            *_scaling_notes(before, counts),
        ),
    )


def layers_in_one(
    pair: tuple[Checkpoint, Checkpoint], found: tuple[Mapping[str, Layer], Mapping[str, Layer]]
) -> list[str]:
    """Return the layers that one checkpoint quantizes and the other one stores as it was.

    Raises:
        CheckpointError: the other one does not have it at all.
    """
    names = sorted(set(found[0]) ^ set(found[1]))
    for name in names:
        other = pair[1] if name in found[0] else pair[0]
        if unquantized_name(name) not in other.tensors:
            rule = f"must be quantized in both checkpoints, or be there as {unquantized_name(name)!r}"
            raise CheckpointError(other.source, rule, "no such layer", tensor=name)
    return names


def unquantized_name(layer: str) -> str:
    """Return the name that the weights of a layer have where they are stored as they were."""
    return layer.rpartition("[")[0] if is_expert_part(layer) else layer + WEIGHT


def _fused_notes(layers: Iterable[str]) -> list[str]:
    names = dict.fromkeys(unquantized_name(name) for name in layers if is_expert_part(name))
    return expert_notes(dict.fromkeys(names, False))


def _skip_notes(alone: Sequence[str]) -> list[str]:
    if not alone:
        return []
    what = f"{len(alone)} layers are quantized in one checkpoint alone and count as differing: {named(list(alone))}."
    return [f"The lists of skipped layers differ: {what}"]


def _scaling_notes(scheme: Scheme, counts: Mapping[str, CodeCounts]) -> list[str]:
    """Return the sentence on scales between layers, of a method that chooses them by activations."""
    if scheme.method != "awq" or not add_counts(counts.values()).value_changes:
        return []
    note = (
        "AWQ multiplies channels by scales that it chooses by calibration data, and divides the layer before (a norm, or a "
        "matrix) by them: codes and decoded values of two runs differ by that alone, so how many differ says nothing of how "
        "large an update was."
    )
    return [note]


def _needed_scheme(checkpoint: Checkpoint) -> Scheme:
    scheme = scheme_of_checkpoint(checkpoint)
    if scheme is None:
        rule = f"must state its quantization_config in {CONFIG}"
        raise CheckpointError(checkpoint.source, rule, "none")
    return scheme


def layers_of(scheme: Scheme, checkpoint: Checkpoint) -> dict[str, Layer]:
    """Return the quantized layers of a checkpoint, by name.

    Raises:
        CheckpointError: there is none, or a part of one has the wrong dtype or shape.
    """
    layout = LAYOUTS[scheme.layout]
    names = [n.removesuffix(mark) for n in checkpoint.tensors for mark in layout.marks if n.endswith(mark)]
    layers = {name: layout.open(scheme, checkpoint, name) for name in names} | fused_layers(scheme, checkpoint)
    if not layers:
        rule = f"must hold a layer quantized by {scheme.method} (a tensor *{' or *'.join(layout.marks)})"
        raise CheckpointError(checkpoint.source, rule, "none")
    return layers


def compare_layers(before: Layer, after: Layer) -> CodeCounts:
    """Count what differs between two layers, in pieces of bounded memory.

    Raises:
        CheckpointError: the shapes or formats differ, or a decoded value is not finite.
    """
    if before.format != after.format:
        rule = f"must be stored as the target's {before.format}"
        raise CheckpointError(after.path, rule, after.format, tensor=after.name)
    if before.shape != after.shape:
        rule = f"must have the target's shape {list(before.shape)}"
        raise CheckpointError(after.path, rule, list(after.shape), tensor=after.name)
    weights = flips = changes = 0
    for start, stop in _pieces(before):
        with np.errstate(all="ignore"):  # a value that is not finite is refused by name
            (codes, values), (codes_new, values_new) = (layer.decode(start, stop) for layer in (before, after))
        if not (np.isfinite(values).all() and np.isfinite(values_new).all()):
            layer = after if np.isfinite(values).all() else before
            raise CheckpointError(layer.path, "must be finite", "nan or inf", tensor=layer.name)
        weights += codes.size
        flips += int(np.count_nonzero(codes != codes_new))
        changes += int(np.count_nonzero(values != values_new))
    return CodeCounts(weights, flips, changes)


def _pieces(layer: Layer) -> Iterator[tuple[int, int]]:
    """Yield ranges of the layer's own unit, of about CHUNK_WEIGHTS weights each."""
    step = max(1, CHUNK_WEIGHTS // max(1, layer.unit_weights))
    for start in range(0, layer.units, step):
        yield start, min(start + step, layer.units)


def kept_tensors(target: Checkpoint, unlearned: Checkpoint, parts: set[str]) -> dict[str, bool]:
    """Return the tensors that are no part of a layer -> whether they differ.

    Raises:
        CheckpointError: one is in one checkpoint alone.
    """
    kept: dict[str, bool] = {}
    for name in sorted({*target.tensors, *unlearned.tensors} - parts):
        for owner in (target, unlearned):
            if name not in owner.tensors:
                rule = "must be in both checkpoints"
                raise CheckpointError(owner.source, rule, "no such tensor", tensor=name)
            info = owner.tensors[name]
            if name.endswith(".weight") and len(info.shape) > 1 and info.dtype.itemsize == 1:
                rule = "must have the scale of a layer beside it, or be stored unquantized"
                raise CheckpointError(info.path, rule, f"{info.dtype.name} without one", tensor=name)
        kept[name] = not tensors_equal(target, name, unlearned, name)
    return kept
