"""Checkpoints that are quantized already: their codes as they are stored, and how many of them differ in a pair.

No weight is quantized here. A flip is a stored code that differs; a value change is a decoded float32 that differs,
which a moved scale or zero point does too.

    leg = compare_codes(open_checkpoint(target), open_checkpoint(unlearned))
    leg.total.code_flips / leg.total.weights
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unforgotten.audit.codes.layer import Layer
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import open_file, read_all
from unforgotten.audit.sources.hostile_json import parse_json_object
from unforgotten.audit.sources.pairing import tensors_equal
from unforgotten.audit.sources.quantization import Scheme, read_scheme

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 24
CHUNK_WEIGHTS = 1 << 20


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
        method: method of quantization: gptq, awq, bitsandbytes, compressed-tensors or gguf.
        layers: counts by the name of the layer, in order.
        kept: tensors that are stored unquantized -> whether they differ.
        shapes: shapes of the weights of each layer, as the layout orders them.
        formats: name of the format that each layer is stored in, as gptq:int4-g128.
    """

    method: str
    layers: Mapping[str, CodeCounts]
    kept: Mapping[str, bool]
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, str]

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
    path = source / CONFIG
    if not path.exists():
        return None
    config = parse_json_object(path, read_all(open_file(path, source), MAX_CONFIG_BYTES))
    stated = config.get("quantization_config", config.get("compression_config"))
    return None if stated is None else read_scheme(path, stated)


def compare_codes(target: Checkpoint, unlearned: Checkpoint) -> ArtefactLeg:
    """Count the codes that differ, layer by layer and in pieces of bounded memory.

    Args:
        target: directory of the checkpoint before unlearning.
        unlearned: directory of the checkpoint after unlearning, quantized by the scheme of the target.

    Raises:
        CheckpointError: one is not quantized, the schemes differ, a layer is in one alone, lacks a part, or a part
            has the wrong dtype or shape.
    """
    schemes = [_needed_scheme(checkpoint) for checkpoint in (target, unlearned)]
    if schemes[0] != schemes[1]:
        rule = f"must be quantized as the target is, {schemes[0]}"
        raise CheckpointError(unlearned.source, rule, schemes[1])
    found = [_layers(schemes[0], checkpoint) for checkpoint in (target, unlearned)]
    for name in sorted(set(found[0]) ^ set(found[1])):
        owner = unlearned if name in found[0] else target
        rule = "must be quantized in both checkpoints"
        raise CheckpointError(owner.source, rule, "no such layer", tensor=name)
    counts = {name: compare_layers(found[0][name], found[1][name]) for name in sorted(found[0])}
    parts = {part for layers in found for layer in layers.values() for part in layer.parts}
    return ArtefactLeg(
        schemes[0].method,
        counts,
        kept_tensors(target, unlearned, parts),
        {name: found[0][name].shape for name in counts},
        dict.fromkeys(counts, schemes[0].name),
    )


def _needed_scheme(checkpoint: Checkpoint) -> Scheme:
    scheme = scheme_of(Path(checkpoint.source))
    if scheme is None:
        rule = f"must state its quantization_config in {CONFIG}"
        raise CheckpointError(checkpoint.source, rule, "none")
    return scheme


def _layers(scheme: Scheme, checkpoint: Checkpoint) -> dict[str, Layer]:
    layout = LAYOUTS[scheme.layout]
    names = [n.removesuffix(layout.mark) for n in checkpoint.tensors if n.endswith(layout.mark)]
    layers = {name: layout.open(scheme, checkpoint, name) for name in names}
    if not layers:
        rule = f"must hold a layer quantized by {scheme.method} (a tensor *{layout.mark})"
        raise CheckpointError(checkpoint.source, rule, "none")
    return layers


def compare_layers(before: Layer, after: Layer) -> CodeCounts:
    """Count what differs between two layers, in pieces of bounded memory.

    Raises:
        CheckpointError: the shapes differ, or a decoded value is not finite.
    """
    if before.shape != after.shape:
        rule = f"must have the target's shape {list(before.shape)}"
        raise CheckpointError(after.path, rule, list(after.shape), tensor=after.name)
    weights = flips = changes = 0
    for start, stop in _pieces(before):
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
        kept[name] = not tensors_equal(target, name, unlearned, name)
    return kept
