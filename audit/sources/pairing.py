"""Which tensors of two checkpoints are compared, and which of them a quantizer touches.

In go two checkpoints, out come the names that are quantized, kept, or in one of them alone:

    is_quantized("model.layers.0.self_attn.q_proj.weight", (16, 16))  # True
    is_quantized("model.embed_tokens.weight", (8, 16))  # False
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unforgotten.audit.sources.checkpoint import Checkpoint, chunks
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import tensors_equal as tensors_equal  # noqa: PLC0414
from unforgotten.audit.sources.matching.comparable import equals_embedding
from unforgotten.audit.sources.matching.kinds import embeddings_of_head
from unforgotten.audit.sources.matching.kinds import is_quantized as is_quantized  # noqa: PLC0414
from unforgotten.audit.sources.safetensors_header import FLOATS


@dataclass(frozen=True)
class Pairing:
    """The tensor names of a pair, each list in sorted order.

    Attributes:
        quantized: names of the tensors that quantizers touch, see `is_quantized`.
        kept: names of those left in their own precision: embeddings, head, norms, biases, buffers.
    """

    quantized: tuple[str, ...]
    kept: tuple[str, ...]


def pair(target: Checkpoint, unlearned: Checkpoint) -> Pairing:
    """Match the tensors of two checkpoints by name.

    A tied head that only one of the two stores is dropped, if it equals that checkpoint's embedding.

    Raises:
        CheckpointError: a tensor is missing in one of the two, the shapes differ, a tensor to quantize is not
            floating, or there is none.
    """
    names = sorted({*target.tensors, *unlearned.tensors} - _tied_heads(target, unlearned))
    for name in names:
        _check_both(target, unlearned, name)
    quantized = tuple(n for n in names if is_quantized(n, target.tensors[n].shape))
    for name in quantized:
        _check_floating(target, name)
        _check_floating(unlearned, name)
    if not quantized:
        rule = "must hold a two-dimensional *.weight that is no embedding, head or norm"
        raise CheckpointError(target.source, rule, f"{len(names)} other tensors")
    touched = set(quantized)
    return Pairing(quantized, tuple(n for n in names if n not in touched))


def _tied_heads(target: Checkpoint, unlearned: Checkpoint) -> set[str]:
    alone = [
        (own, name)
        for own, other in ((target, unlearned), (unlearned, target))
        for name in own.tensors
        if name not in other.tensors
    ]
    return {name for own, name in alone if embeddings_of_head(name) and equals_embedding(own, name)}


def _check_both(target: Checkpoint, unlearned: Checkpoint, name: str) -> None:
    for owner, other in ((target, unlearned), (unlearned, target)):
        if name not in owner.tensors:
            rule = f"must be in both checkpoints, as it is in {other.source}"
            raise CheckpointError(owner.source, rule, "no such tensor", tensor=name)
    shapes = target.tensors[name].shape, unlearned.tensors[name].shape
    if shapes[0] != shapes[1]:
        rule = f"must have the target's shape {list(shapes[0])}"
        raise CheckpointError(unlearned.source, rule, list(shapes[1]), tensor=name)


def _check_floating(checkpoint: Checkpoint, name: str) -> None:
    info = checkpoint.tensors[name]
    if info.dtype not in FLOATS.values():
        rule = f"must be {', '.join(FLOATS)} (not quantized already)"
        raise CheckpointError(info.path, rule, info.dtype.name, tensor=name)


def check_finite(checkpoint: Checkpoint, name: str) -> None:
    """Pass over one tensor.

    Raises:
        CheckpointError: it holds nan or inf; says the first, where it is, and how many there are.
    """
    info = checkpoint.tensors[name]
    if info.dtype not in FLOATS.values():
        return
    first, count, passed = "", 0, 0
    for part in chunks(checkpoint, name):
        with np.errstate(invalid="ignore"):  # a signalling nan warns before it is found
            bad = np.flatnonzero(~np.isfinite(part))
        if bad.size and not count:
            first = f"{float(part[bad[0]])} at flat index {passed + int(bad[0])}"
        count, passed = count + bad.size, passed + part.size
    if count:
        got = f"{first} ({count} of {passed} weights)"
        raise CheckpointError(info.path, "must be finite", got, tensor=name)
