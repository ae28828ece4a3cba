"""Names that differ by what wraps a model: `model.`, `model.language_model.`, `language_model.model.`, `_orig_mod.`.

>>> core("model.language_model.layers.0.mlp.up_proj.weight"), core("language_model.model.layers.0.mlp.up_proj.weight")
('layers.0.mlp.up_proj.weight', 'layers.0.mlp.up_proj.weight')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from unforgotten.audit.sources.notes import named

LEADING = frozenset({"model", "language_model", "text_model", "transformer", "gpt_neox", "module", "base_model"})
"""Wrappers that stand before the name of a tensor."""
ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Wrappers of torch.compile, FSDP and activation checkpointing, which may stand inside a name, too."""


ALIASES: Mapping[str, str] = {"block_sparse_moe": "mlp"}
"""Modules that transformers 5 saves under another name than 4 did."""


def core(name: str) -> str:
    """Return a name without the wrappers around it, in the newer of two spellings; the last segment is never a wrapper."""
    segments = [ALIASES.get(s, s) for s in name.split(".") if s not in ANYWHERE] or [name]
    while len(segments) > 1 and segments[0] in LEADING:
        del segments[0]
    return ".".join(segments)


def renames(target: Collection[str], unlearned: Collection[str]) -> Mapping[str, str]:
    """Return the unlearned checkpoint's name -> the target's, for names that differ by wrappers alone.

    Empty unless the mapping is one to one: no two tensors of a side may have one core.
    """
    ours, theirs = set(target), set(unlearned)
    counts = [Counter(core(name) for name in side) for side in (ours, theirs)]
    by_core = {core(name): name for name in ours - theirs}
    found: dict[str, str] = {}
    for name in sorted(theirs - ours):
        inner = core(name)
        if inner in by_core and counts[0][inner] == counts[1][inner] == 1:
            found[name] = by_core[inner]
    return found


def rename_notes(found: Mapping[str, str]) -> list[str]:
    """Return the sentence on names that were taken for one another."""
    if not found:
        return []
    pairs = {_apart(own, other) for own, other in found.items()}
    shown = named([f"{own or 'no prefix'} for {other or 'no prefix'}" for own, other in sorted(pairs)])
    return [f"{len(found)} tensors of the unlearned checkpoint are matched by name, with another prefix: {shown}."]


def _apart(own: str, other: str) -> tuple[str, str]:
    """Return what stands before the first segment from which on two names are equal."""
    ours, theirs = own.split("."), other.split(".")
    same = 0
    while same < min(len(ours), len(theirs)) and ours[-1 - same] == theirs[-1 - same]:
        same += 1
    found = [".".join(s[: len(s) - same]) for s in (ours, theirs)]
    return found[0] and found[0] + ".", found[1] and found[1] + "."
