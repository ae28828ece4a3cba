"""Findings about what an audit does not measure: tensors of an unknown kind, and updates of routers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.findings.sentences import share
from unforgotten.audit.mixes.tools import BITSANDBYTES
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.matching.kinds import EXPERTS, is_measured_or_kept, is_router
from unforgotten.audit.sources.notes import named


def coverage_findings(target: Checkpoint, kept: Mapping[str, bool], *, moved: bool) -> list[FindingRow]:
    """Return what keeps an audit from speaking of the whole model; a reader must see it before anything else.

    Args:
        target: target, for the sizes of the tensors.
        kept: tensors that are not quantized -> whether they differ.
        moved: whether a weight that is quantized differs.
    """
    return [*_not_measured(target, kept), *([] if moved else _routers_alone(kept))]


def unmeasured(target: Checkpoint, kept: Iterable[str]) -> list[str]:
    """Return the tensors of which nobody here knows how, or whether, a quantizer takes them."""
    return [n for n in kept if n in target.tensors and not is_measured_or_kept(n, target.tensors[n])]


def _not_measured(target: Checkpoint, kept: Mapping[str, bool]) -> list[FindingRow]:
    names = unmeasured(target, kept)
    if not names:
        return []
    sizes = {name: math.prod(info.shape) for name, info in target.tensors.items()}
    part = sum(sizes[name] for name in names) / max(1, sum(sizes.values()))
    changed = [name for name in names if kept[name]]
    moved = f"{len(changed)} of these {len(names)} changed" if changed else f"none of these {len(names)} changed"
    sentence = f"{share(part)} of the weights stand in tensors that this audit does not measure; {moved}: {named(changed or names)}."
    measure = "share of the weights in tensors that are not measured"
    row = finding("not-measured", "warning", sentence, measure=measure, effect=part, tensor=(changed or names)[0])
    return [row]


def _routers_alone(kept: Mapping[str, bool]) -> list[FindingRow]:
    changed = [name for name, differs in kept.items() if differs]
    if not changed or not all(is_router(name) for name in changed):
        return []
    sentence = (
        f"Only routers changed ({named(changed)}): quantizers keep them in 16 bit, so this update of the router alone is kept "
        "whole in every format, and no gain speaks of it."
    )
    return [finding("router-only", "warning", sentence, tensor=changed[0])]


def experts_notes(target: Checkpoint, names: Sequence[str], formats: Iterable[str]) -> list[str]:
    """Return the sentence on experts that bitsandbytes leaves in 16 bits and our formats of its names do not.

    In transformers 5 the experts of a layer are one parameter, and no linear layer, which bitsandbytes alone replaces.

    Args:
        target: target, for the sizes of the tensors.
        names: matrices that quantizers touch.
        formats: formats that were asked for.
    """
    own = [name for name in formats if BITSANDBYTES.fullmatch(name)]
    experts = [name for name in names if EXPERTS.search(name.lower())]
    if not own or not experts:
        return []
    sizes = {name: math.prod(target.tensors[name].shape) for name in names}
    part = share(sum(sizes[name] for name in experts) / sum(sizes.values()))
    sentence = (
        f"{', '.join(own)}: {part} of the weights measured stand in experts, which bitsandbytes leaves in 16 bits in transformers 5: "
        f"there such a model keeps the update whole, and only the other tensors are quantized as here: {named(experts)}."
    )
    return [sentence]
