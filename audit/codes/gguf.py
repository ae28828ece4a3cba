"""Two GGUF files that are quantized already: the codes of their blocks as they are stored."""

from __future__ import annotations

import math

import numpy as np

from unforgotten.audit.codes.compare import ArtefactLeg, compare_layers, kept_tensors
from unforgotten.audit.codes.layer import CodedWeights, Layer
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.gguf import GgufCheckpoint
from unforgotten.audit.sources.gguf_decode import BLOCK_TYPES
from unforgotten.audit.sources.matching.comparable import one_sided
from unforgotten.audit.sources.matching.kinds import VOCABULARIES

HINT = "name --formats to compare decoded values instead"


def is_quantized_gguf(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is a GGUF file with a tensor of a quantized type."""
    return isinstance(checkpoint, GgufCheckpoint) and any(info.stored for info in checkpoint.tensors.values())


def compare_gguf_codes(target: GgufCheckpoint, unlearned: GgufCheckpoint) -> ArtefactLeg:
    """Count the codes that differ, tensor by tensor; each quantized type is a format, as gguf:q4_0.

    A sign, scale or minimum is no part of a code: what they do is seen in the value changes.

    Raises:
        CheckpointError: a tensor is in one file alone, is stored by another type or shape, or by a type whose codes
            are not read here; or a value is not finite.
    """
    alone = one_sided(target, unlearned)
    names = [
        name
        for name in sorted({*target.tensors, *unlearned.tensors} - alone.names)
        if any(name in c.tensors and c.tensors[name].stored for c in (target, unlearned))
    ]
    for name in names:
        _check_types(target, unlearned, name)
    layers = {name: [_layer(c, name) for c in (target, unlearned)] for name in names}
    return ArtefactLeg(
        "gguf",
        {name: compare_layers(*pair) for name, pair in layers.items()},
        kept_tensors(target, unlearned, {*names, *alone.names}),
        {name: target.tensors[name].shape for name in names},
        {name: f"gguf:{target.tensors[name].stored.lower()}" for name in names},
        alone.notes,
    )


def _check_types(target: GgufCheckpoint, unlearned: GgufCheckpoint, name: str) -> None:
    for owner in (target, unlearned):
        if name not in owner.tensors:
            raise CheckpointError(owner.source, f"must be in both files ({HINT})", "no such tensor", tensor=name)
    stored = [c.tensors[name].stored or c.tensors[name].dtype.name for c in (target, unlearned)]
    if stored[0] != stored[1]:
        rule = f"must be stored as the target's, {stored[0]} ({HINT})"
        raise CheckpointError(unlearned.source, rule, stored[1], tensor=name)
    shapes = [c.tensors[name].shape for c in (target, unlearned)]
    if shapes[0] != shapes[1]:
        rows = name.endswith(VOCABULARIES) and shapes[0][1:] == shapes[1][1:]
        rule = f"must have the target's shape {list(shapes[0])}" + (f" ({HINT}, of the common rows)" if rows else "")
        raise CheckpointError(unlearned.source, rule, list(shapes[1]), tensor=name)
    if stored[0] not in BLOCK_TYPES:
        rule = f"must be stored as {', '.join(BLOCK_TYPES)} to count codes ({HINT})"
        raise CheckpointError(target.source, rule, stored[0], tensor=name)


def _layer(checkpoint: GgufCheckpoint, name: str) -> Layer:
    info = checkpoint.tensors[name]
    kind = BLOCK_TYPES[info.stored]
    blocks = math.prod(info.shape) // kind.weights

    def decode(start: int, stop: int) -> CodedWeights:
        with np.errstate(all="ignore"):  # a value that is not finite is refused by name
            found = kind.decode(checkpoint.read_blocks(name, start, stop))
            return CodedWeights(found.codes, found.values)

    return Layer(name, info.path, info.shape, frozenset({name}), blocks, kind.weights, decode)
