"""A pair brought under one set of names and shapes, as far as that can be known; the rest `pairing.pair` refuses by name.

In turn: names that differ by wrappers; experts fused on one side alone; buffers that any model computes anew, where one file
alone holds them or they differ; RoPE factors and layers of multi-token prediction of one file alone; a head that one side
ties to its embedding; vocabularies that differ by rows; fused experts, one by one; matrices of Conv1D, turned.

    before, after = comparable(open_source("target"), open_source("unlearned"))
    for note in notes_of(before, after): print(note)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import tensors_equal
from unforgotten.audit.sources.matching.conv1d import conv1d_note, conv1d_weights, has_conv1d
from unforgotten.audit.sources.matching.experts import expert_notes, expert_parts, fused_experts, inputs_first
from unforgotten.audit.sources.matching.kinds import (
    VOCABULARIES,
    are_rope_factors,
    embeddings_of_head,
    is_recomputed,
    is_router,
)
from unforgotten.audit.sources.matching.mtp import mtp_note, mtp_of_one
from unforgotten.audit.sources.matching.prefixes import core, rename_notes, renames
from unforgotten.audit.sources.matching.unfused import unfused
from unforgotten.audit.sources.matching.view import Part, View, plain_parts
from unforgotten.audit.sources.model_config import model_config_of, model_type_of, says_untied
from unforgotten.audit.sources.notes import named

SIDES = ("target", "unlearned")


class Pair(NamedTuple):
    """Target and unlearned checkpoint."""

    target: Checkpoint
    unlearned: Checkpoint


class OneSided(NamedTuple):
    """Tensors of one checkpoint alone that no weight is compared with.

    Attributes:
        names: names, to be left out.
        notes: sentences on why.
    """

    names: frozenset[str]
    notes: tuple[str, ...]


def comparable(target: Checkpoint, unlearned: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Return the pair under the target's names, with what is in one alone matched or left out where that is sure.

    Raises:
        CheckpointError: a fused tensor holds too many experts, or an expert has the name of another tensor.
    """
    found = Pair(target, unlearned)
    for step in STEPS:
        found = step(found)
    return found


def _aligned(pair: Pair) -> Pair:
    other = renames(pair.target.tensors, pair.unlearned.tensors)
    if not other:
        return pair
    parts = {other.get(name, name): part for name, part in plain_parts(pair.unlearned).items()}
    return pair._replace(unlearned=View(pair.unlearned, dict(sorted(parts.items())), tuple(rename_notes(other))))


def _unfused(pair: Pair) -> Pair:
    target = unfused(SIDES[0], pair.target, pair.unlearned)
    return Pair(target, unfused(SIDES[1], pair.unlearned, target))


def one_sided(target: Checkpoint, unlearned: Checkpoint) -> OneSided:
    """Return the buffers, RoPE factors, tied heads and layers of multi-token prediction that one checkpoint alone stores."""
    names: set[str] = set()
    notes: list[str] = []
    for side, own, other in ((SIDES[0], target, unlearned), (SIDES[1], unlearned, target)):
        alone = [name for name in own.tensors if name not in other.tensors]
        buffers = [name for name in alone if is_recomputed(name, own.tensors[name])]
        heads = [name for name in alone if embeddings_of_head(name) and equals_embedding(own, name)]
        factors = [name for name in alone if are_rope_factors(name)]
        drafts = mtp_of_one(own.tensors, other.tensors)
        names |= {*buffers, *heads, *factors, *drafts}
        if drafts:
            notes.append(mtp_note(side, drafts, own.tensors))
        if buffers:
            notes.append(
                f"Only the {side} stores {len(buffers)} buffers that a model computes anew from its configuration; they are "
                f"not compared: {named(buffers)}."
            )
        notes += [_factors_note(side, own, name) for name in factors]
        notes += [
            f"Only the {side} stores {head}, equal to its embedding (tied); it is not compared." for head in heads
        ]
    return OneSided(frozenset(names), tuple(notes))


def _factors_note(side: str, own: Checkpoint, name: str) -> str:
    found = own.read(name)
    if np.array_equal(found, np.ones_like(found)):
        return f"Only the {side} stores {name}, whose factors are all 1, so it changes nothing; it is not compared."
    low, high = (float(end) for end in (found.min(), found.max()))
    return (
        f"Only the {side} stores {name}, factors of {low:.4g} to {high:.4g} by which llama.cpp divides the frequencies of "
        "RoPE: the other file runs without them, so the two models differ by more than the weights compared here."
    )


def _buffers_differ(pair: Pair) -> Pair:
    """Leave out buffers of both files that differ and that a model computes anew: they are no part of an update."""
    alike = [
        name
        for name, info in pair.target.tensors.items()
        if name in pair.unlearned.tensors
        and is_recomputed(name, info)
        and pair.unlearned.tensors[name].shape == info.shape
        and not tensors_equal(pair.target, name, pair.unlearned, name)
    ]
    if not alike:
        return pair
    rounded = [name for name in alike if _is_rounded(pair, name)]
    how = "by rounding to the narrower dtype alone" if len(rounded) == len(alike) else "by more than rounding"
    note = (
        f"{len(alike)} buffers that a model computes anew from its configuration differ {how}; they are not compared: "
        f"{named(alike if len(rounded) == len(alike) else [name for name in alike if name not in rounded])}."
    )
    return Pair(*(_without(checkpoint, OneSided(frozenset(alike), (note,))) for checkpoint in pair))


def _is_rounded(pair: Pair, name: str) -> bool:
    """Return whether one side holds the other one's numbers in a narrower dtype of floats."""
    one, two = (checkpoint.read(name) for checkpoint in pair)
    if any(side.dtype.kind in "biu" for side in (one, two)):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return any(np.array_equal(a.astype(b.dtype), b) for a, b in ((one, two), (two, one)))


def _without_one_sided(pair: Pair) -> Pair:
    found = one_sided(*pair)
    if not found.names:
        return pair
    return Pair(*(_without(checkpoint, found) for checkpoint in pair))


def _without(checkpoint: Checkpoint, found: OneSided) -> View:
    parts = {name: part for name, part in plain_parts(checkpoint).items() if name not in found.names}
    return View(checkpoint, parts, found.notes)


def _untied(pair: Pair) -> Pair:
    """Show the embedding in place of a head that one side does not store."""
    for head in sorted(pair.target.tensors.keys() ^ pair.unlearned.tensors.keys()):
        if embeddings_of_head(head):
            side = [head in checkpoint.tensors for checkpoint in pair].index(False)
            embedding = embedding_of(pair[side], head)
            if embedding is not None and not says_untied(pair[side]):
                pair = pair._replace(**{SIDES[side]: _with_head(pair[side], head, embedding, side)})
    return pair


def embedding_of(checkpoint: Checkpoint, head: str) -> str | None:
    """Return the one embedding of a checkpoint that a head may be tied to; of several, the one of its own model."""
    endings = embeddings_of_head(head)
    found = [name for name in checkpoint.tensors if name.endswith(endings)]
    if len(found) > 1:
        start = head.removesuffix("lm_head.weight")
        found = [name for name in found if name.startswith(start) and core(name.removeprefix(start)) in endings]
    return found[0] if len(found) == 1 else None


def _with_head(checkpoint: Checkpoint, head: str, embedding: str, side: int) -> View:
    parts = plain_parts(checkpoint)
    parts[head] = parts[embedding]
    note = (
        f"The {SIDES[1 - side]} checkpoint has an untied {head}; the {SIDES[side]} stores none, so its embedding "
        f"{embedding!a} is compared in its place (tied)."
    )
    return View(checkpoint, dict(sorted(parts.items())), (note,))


def equals_embedding(checkpoint: Checkpoint, head: str) -> bool:
    """Return whether a head equals an embedding of its own checkpoint, bit for bit and in one dtype."""
    info = checkpoint.tensors[head]
    return any(
        tensors_equal(checkpoint, head, checkpoint, name)
        for name, other in checkpoint.tensors.items()
        if name.endswith(embeddings_of_head(head)) and (other.shape, other.dtype) == (info.shape, info.dtype)
    )


def _common_rows(pair: Pair) -> Pair:
    """Show the first rows of matrices with one row a token, as many as both have."""
    cut = dict(_different_rows(pair))
    if not cut:
        return pair
    shown = ", ".join(f"{name!a} ({a:,} against {b:,})" for name, (a, b) in cut.items())
    notes = (
        f"The vocabularies differ by rows: the first {min(next(iter(cut.values()))):,} of both are compared: {shown}.",
    )
    return Pair(*(View(checkpoint, _cut(checkpoint, cut), notes) for checkpoint in pair))


def _different_rows(pair: Pair) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in pair.target.tensors.keys() & pair.unlearned.tensors.keys():
        shapes = [checkpoint.tensors[name].shape for checkpoint in pair]
        rows = [shape[0] if len(shape) == 2 else 0 for shape in shapes]
        if name.endswith(VOCABULARIES) and min(rows) and rows[0] != rows[1] and shapes[0][1:] == shapes[1][1:]:
            yield name, (rows[0], rows[1])


def _cut(checkpoint: Checkpoint, cut: dict[str, tuple[int, int]]) -> dict[str, Part]:
    parts = plain_parts(checkpoint)
    for name, rows in cut.items():
        parts[name] = parts[name]._replace(shape=(min(rows), *parts[name].shape[1:]))
    return parts


def _each_expert(pair: Pair) -> Pair:
    shared = [name for name in pair.target.tensors if name in pair.unlearned.tensors]
    kind = model_type_of(model_config_of(pair.target))
    orders = {name: inputs_first(name, pair.target.tensors, kind) for name in fused_experts(pair, shared)}
    if not orders:
        return pair
    return Pair(*(_split(checkpoint, orders) for checkpoint in pair))


def _split(checkpoint: Checkpoint, orders: dict[str, bool | None]) -> View:
    parts: dict[str, Part] = {}
    for name, info in checkpoint.tensors.items():
        new = expert_parts(name, info, bool(orders[name])) if name in orders else {name: Part(name, info.shape)}
        if twice := sorted(parts.keys() & new.keys()) or sorted(new.keys() & checkpoint.tensors.keys() - {name}):
            rule = "must not have the name of one expert of a fused tensor"
            raise CheckpointError(info.path, rule, "both", tensor=twice[0])
        parts |= new
    return View(checkpoint, dict(sorted(parts.items())), tuple(expert_notes(orders)))


def _conv1d_turned(pair: Pair) -> Pair:
    names = [n for n in conv1d_weights(pair.target.tensors) if n in pair.unlearned.tensors]
    names = [n for n in names if pair.target.tensors[n].shape == pair.unlearned.tensors[n].shape]
    found = has_conv1d(pair.target.tensors, model_type_of(model_config_of(pair.target)))
    if not names or found is False:
        return pair
    said = (conv1d_note(names, turned=found is True),)
    return Pair(*(View(checkpoint, _turned(checkpoint, names if found else []), said) for checkpoint in pair))


def _turned(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Part]:
    parts = plain_parts(checkpoint)
    for name in names:
        parts[name] = parts[name]._replace(shape=parts[name].shape[::-1], turned=True)
    return parts


def _routers_named(pair: Pair) -> Pair:
    routers = [name for name, info in pair.target.tensors.items() if len(info.shape) == 2 and is_router(name)]
    if not routers:
        return pair
    note = f"{len(routers)} routers of experts stay in 16 bit, as quantizers keep them: {named(routers)}."
    return pair._replace(target=View(pair.target, plain_parts(pair.target), (note,)))


STEPS: tuple[Callable[[Pair], Pair], ...] = (
    _aligned,
    _unfused,
    _without_one_sided,
    _buffers_differ,
    _untied,
    _common_rows,
    _each_expert,
    _conv1d_turned,
    _routers_named,
)
"""What is done to a pair, in this order."""
