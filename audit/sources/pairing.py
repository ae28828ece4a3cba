"""Which tensors of two checkpoints are compared, and which of them a quantizer touches.

In go two checkpoints, out come the names that are quantized, kept, or in one of them alone:

    is_quantized("model.layers.0.self_attn.q_proj.weight", (16, 16))  # True
    is_quantized("model.embed_tokens.weight", (8, 16))  # False
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint, chunks
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import pieces
from unforgotten.audit.sources.safetensors_header import FLOATS, TensorInfo

HEADS: Mapping[str, tuple[str, ...]] = {
    "lm_head.weight": ("embed_tokens.weight", "wte.weight", "embed_in.weight"),
    "output.weight": ("token_embd.weight",),  # of GGUF
}
"""A head -> endings of the embedding that it may be tied to."""
KEPT_WORDS = ("embed", "lm_head", "wte", "wpe", "norm", "token_embd")
PREFIX = "model."  # of a language model saved with its head, missing where it is saved without


@dataclass(frozen=True)
class Pairing:
    """The tensor names of a pair, each list in sorted order.

    Attributes:
        quantized: names of the tensors that quantizers touch, see `is_quantized`.
        kept: names of those left in their own precision: embeddings, head, norms, biases, buffers.
    """

    quantized: tuple[str, ...]
    kept: tuple[str, ...]


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Return the matrices named `*.weight`, unless they are a head or the name holds a word of KEPT_WORDS.

    This is what bitsandbytes, GPTQ and AWQ replace in a transformers model: the linear layers without the head.
    Experts that are stored as one three-dimensional tensor are not among them.
    """
    lower = name.lower()
    matrix = len(shape) == 2 and lower.endswith(".weight") and name not in HEADS
    return matrix and not any(word in lower for word in KEPT_WORDS)


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


def align(target: Checkpoint, unlearned: Checkpoint) -> Checkpoint:
    """Return the unlearned checkpoint with the target's names, where the two differ by the prefix `model.` alone.

    A tensor is renamed only if the target lacks its own name and has the other, and if nothing else takes that one.
    """
    names: dict[str, str] = {}
    for own in unlearned.tensors:
        other = own.removeprefix(PREFIX) if own.startswith(PREFIX) else PREFIX + own
        free = other in target.tensors and other not in unlearned.tensors
        names[other if own not in target.tensors and free else own] = own
    if all(new == own for new, own in names.items()):
        return unlearned
    return Renamed(unlearned, {new: names[new] for new in sorted(names)})


@dataclass(frozen=True)
class Renamed:
    """A checkpoint under other names.

    Attributes:
        inner: the checkpoint.
        names: map from new name to own name, for every tensor.
    """

    inner: Checkpoint
    names: Mapping[str, str]

    @property
    def source(self) -> Path | str:
        """See `Checkpoint.source`."""
        return self.inner.source

    @property
    def revision(self) -> str | None:
        """See `Checkpoint.revision`."""
        return self.inner.revision

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Checkpoint.tensors`."""
        return {new: self.inner.tensors[own] for new, own in self.names.items()}

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        return self.inner.read(self.names[name])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        return self.inner.read_rows(self.names[name], start, stop)

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        return self.inner.read_flat(self.names[name], start, stop, buffer)

    def check(self, name: str) -> None:
        """See `Checkpoint.check`."""
        self.inner.check(self.names[name])

    def sha256(self) -> str:
        """See `Checkpoint.sha256`."""
        return self.inner.sha256()


def _tied_heads(target: Checkpoint, unlearned: Checkpoint) -> set[str]:
    tied = set()
    for head in HEADS:
        owners = [c for c in (target, unlearned) if head in c.tensors]
        if len(owners) == 1 and _equals_embedding(owners[0], head):
            tied.add(head)
    return tied


def _equals_embedding(checkpoint: Checkpoint, head: str) -> bool:
    info = checkpoint.tensors[head]
    return any(
        tensors_equal(checkpoint, head, checkpoint, name)
        for name, other in checkpoint.tensors.items()
        if name.endswith(HEADS[head]) and (other.shape, other.dtype) == (info.shape, info.dtype)
    )


def tensors_equal(one: Checkpoint, name: str, two: Checkpoint, other: str) -> bool:
    """Return whether two tensors of one shape hold equal values, whatever their dtypes; in bounded memory."""
    shape = one.tensors[name].shape
    if not shape:
        return bool(np.array_equal(one.read(name), two.read(other)))
    return all(np.array_equal(one.read_flat(name, *p), two.read_flat(other, *p)) for p in pieces(shape))


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
