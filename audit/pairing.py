"""Which tensors of two checkpoints are compared, and which of them a quantizer touches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.headers import FLOATS, CheckpointError

HEAD = "lm_head.weight"
KEPT_WORDS = ("embed", "lm_head", "wte", "wpe", "norm")
CHECK_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Pairing:
    """The tensor names of a pair, each list in sorted order.

    Attributes:
        quantized: what quantizers touch, see `is_quantized`.
        kept: what they leave in its own precision: embeddings, head, norms, biases, buffers.
    """

    quantized: tuple[str, ...]
    kept: tuple[str, ...]


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """The matrices named `*.weight`, unless the name holds "embed", "lm_head", "wte", "wpe" or "norm".

    This is what bitsandbytes, GPTQ and AWQ replace in a transformers model: the linear layers without the head.
    Experts that are stored as one three-dimensional tensor are not among them.
    """
    lower = name.lower()
    return len(shape) == 2 and lower.endswith(".weight") and not any(w in lower for w in KEPT_WORDS)


def pair(target: Checkpoint, unlearned: Checkpoint) -> Pairing:
    """Match the tensors of two checkpoints by name.

    A tied head that only one of the two stores is dropped, if it equals that checkpoint's embedding.

    Raises:
        CheckpointError: a tensor is missing in one of the two, the shapes differ, a tensor to quantize is not
            floating, or there is none.
    """
    names = sorted({*target.tensors, *unlearned.tensors} - _tied_head(target, unlearned))
    for name in names:
        _check_both(target, unlearned, name)
    quantized = tuple(n for n in names if is_quantized(n, target.tensors[n].shape))
    for name in quantized:
        _check_floating(target, name)
        _check_floating(unlearned, name)
    if not quantized:
        rule = "must hold a two-dimensional *.weight that is no embedding, head or norm"
        raise CheckpointError(target.source, rule, f"{len(names)} other tensors")
    return Pairing(quantized, tuple(n for n in names if n not in set(quantized)))


def _tied_head(target: Checkpoint, unlearned: Checkpoint) -> set[str]:
    owners = [c for c in (target, unlearned) if HEAD in c.tensors]
    if len(owners) != 1 or not _equals_embedding(owners[0]):
        return set()
    return {HEAD}


def _equals_embedding(checkpoint: Checkpoint) -> bool:
    head = checkpoint.tensors[HEAD]
    embeddings = (
        name
        for name, info in checkpoint.tensors.items()
        if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))
        and (info.shape, info.dtype) == (head.shape, head.dtype)
    )
    return any(np.array_equal(checkpoint.read(HEAD), checkpoint.read(name)) for name in embeddings)


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
        CheckpointError: it holds nan or inf.
    """
    info = checkpoint.tensors[name]
    if info.dtype not in FLOATS.values():
        return
    flat = checkpoint.read(name).reshape(-1)
    for start in range(0, flat.size, CHECK_WEIGHTS):
        part = flat[start : start + CHECK_WEIGHTS]
        with np.errstate(invalid="ignore"):  # a signalling nan warns before it is found
            bad = np.flatnonzero(~np.isfinite(part))
        if bad.size:
            got = f"{float(part[bad[0]])} at flat index {start + int(bad[0])}"
            raise CheckpointError(info.path, "must be finite", got, tensor=name)
