"""Findings about tensors that differ by another layout or convention, not by an update.

In go the rows that the probe read, and both checkpoints. Out comes a warning for a matrix that is further from what it
was than a matrix of zeros would be, while most others moved little; and one for norms stored as 1 + w on one side.

    relation_findings(target, unlearned, look(target, unlearned, names, formats), leg.kept)

Two unrelated matrices of one length are sqrt(2) of that length apart, since their inner product is near 0. An update that
is as long as the weights themselves is therefore near to no relation at all; fine-tuning stays far below it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.findings.probe import Sample
from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.notes import named

FAR = 1.0
"""Length of the change over the longer of both: from here on a matrix of zeros would be nearer, and the cosine is at
most 1/2."""
LITTLE = 0.1
"""The same for the median tensor, where others moved little."""
ALIKE = 0.9
"""Cosine from which two rows are one row with an update: of unrelated rows of n weights it is about 1 / sqrt(n)."""
LOOKED_AT = 16  # rows that are looked for elsewhere, in a tensor
SEARCHED = 8  # tensors in which they are looked for
TILE = 1024  # rows read at once
EXPLAINED = 0.9  # share of the squared change that a rescaling must take away to be named


class Distance(NamedTuple):
    """Relation of both sides of one tensor over the rows that were read.

    Attributes:
        name: name of the tensor.
        ratio: |w' - w| / max(|w|, |w'|); 0 where both are 0.
        cosine: <w, w'> / (|w| |w'|); nan where one is 0.
    """

    name: str
    ratio: float
    cosine: float


def distance(sample: Sample) -> Distance:
    """Return the distance of the sampled rows, summed in float64."""
    rows = [(r.w.astype(np.float64), r.w_new.astype(np.float64)) for r in sample.runs]
    old, new, dot, moved = (
        math.fsum(float(part) for part in parts)
        for parts in zip(
            *(((a * a).sum(), (b * b).sum(), (a * b).sum(), ((b - a) ** 2).sum()) for a, b in rows), strict=True
        )
    )
    longer, norms = max(old, new), math.sqrt(old) * math.sqrt(new)
    return Distance(sample.tensor, math.sqrt(moved / longer) if longer else 0.0, dot / norms if norms else math.nan)


def relation_findings(
    target: Checkpoint, unlearned: Checkpoint, samples: Sequence[Sample], kept: Mapping[str, bool]
) -> list[FindingRow]:
    """Return what looks like another layout or convention of the same numbers; such a pair says little of an update.

    Args:
        target: checkpoint before unlearning.
        unlearned: checkpoint after unlearning, under the target's names.
        samples: rows of the quantized tensors.
        kept: tensors that are not quantized -> whether they differ.
    """
    return [
        *_far(target, unlearned, samples),
        *norm_findings(target, unlearned, kept),
        *_rescaled(target, unlearned, samples, kept),
    ]


def _far(target: Checkpoint, unlearned: Checkpoint, samples: Sequence[Sample]) -> Iterator[FindingRow]:
    found = [distance(sample) for sample in samples]
    far = [one for one in found if one.ratio >= FAR]
    if not far:
        return
    orders = {one.name: _order(target, unlearned, one.name) for one in far[:SEARCHED]}
    known = [one for one in far if orders.get(one.name)]
    median = statistics.median(one.ratio for one in found)
    alone = bool(known) or median <= LITTLE
    worst = max(known or far, key=lambda one: one.ratio)
    names = [one.name for one in known or far]
    if known:
        what = f"{orders[worst.name]}, and that is no update"
    elif not alone:
        what = "so far apart are weights that were trained anew, or models that have nothing to do with each other"
    else:
        what = (
            "probably another order or orientation of rows, or weights that were replaced, not an update; the files "
            "cannot tell which"
        )
    sentence = (
        f"{len(names)} of {len(found)} matrices changed by as much as they are long, {named(names)}: the change of "
        f"{worst.name!a} is {worst.ratio:.2f} of its length, with a cosine of {worst.cosine:.2f} between both sides "
        f"(unrelated weights: {math.sqrt(2):.2f} and 0), where the median matrix moved by {median:.2g}: {what}."
    )
    yield finding(
        "other-layout",
        "warning" if alone else "note",
        sentence,
        measure="length of the change over that of the weights, in the rows that were read",
        effect=worst.ratio,
        tensor=worst.name,
    )


def _order(target: Checkpoint, unlearned: Checkpoint, name: str) -> str | None:
    """Return how rows of the target stand in the other tensor: in another order, as columns, or None for neither.

    The largest cosine of a row with m unrelated rows of n weights is about sqrt(2 ln m / n); where that is more than half
    of ALIKE, rows are too short to be known again.
    """
    rows, columns = target.tensors[name].shape
    if 2 * math.log(max(2, rows)) / columns > (ALIKE / 2) ** 2:
        return None
    at = np.unique(np.linspace(0, rows - 1, min(rows, LOOKED_AT)).astype(int))
    asked = np.concatenate([_rows(target, name, int(i), int(i) + 1) for i in at])
    best = np.full(len(at), -1.0)
    turned = []
    for start in range(0, rows, TILE):
        tile = _rows(unlearned, name, start, min(start + TILE, rows))
        best = np.maximum(best, (_unit(asked) @ _unit(tile).T).max(axis=1))
        if rows == columns:
            turned.append(tile[:, at])
    if float(np.median(best)) >= ALIKE:
        return "the rows are the same in another order"
    if turned:
        as_rows = np.concatenate(turned).T
        if float(np.median((_unit(asked) * _unit(as_rows)).sum(axis=1))) >= ALIKE:
            return "the matrix is the same, transposed"
    return None


def _rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> NDArray[np.float64]:
    return np.asarray(checkpoint.read_rows(name, start, stop), np.float64)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return rows / np.where(lengths > 0, lengths, 1.0)


def _norms(target: Checkpoint, unlearned: Checkpoint, kept: Mapping[str, bool]) -> dict[str, tuple[Any, Any]]:
    """Return the weights of norms that differ, in float64."""
    names = [n for n, differs in kept.items() if differs and "norm" in n.lower() and n.endswith("weight")]
    names = [n for n in names if n in target.tensors and len(target.tensors[n].shape) == 1]
    return {n: (target.read(n).astype(np.float64), unlearned.read(n).astype(np.float64)) for n in names}


def norm_findings(target: Checkpoint, unlearned: Checkpoint, kept: Mapping[str, bool]) -> Iterator[FindingRow]:
    """Report norms of which each entry differs by about 1: nearer to 1 than to 0 or 2.

    Args:
        target: checkpoint before unlearning.
        unlearned: checkpoint after unlearning, under the target's names.
        kept: tensors that are not quantized -> whether they differ.
    """
    steps = {name: new - old for name, (old, new) in _norms(target, unlearned, kept).items()}
    for sign, side in ((1.0, "unlearned"), (-1.0, "target")):
        names = [n for n, step in steps.items() if step.size and (np.abs(sign * step - 1.0) < 0.5).all()]
        if names:
            low, high = min(steps[n].min() for n in names), max(steps[n].max() for n in names)
            sentence = (
                f"Every entry of {len(names)} norms differs by about {sign:+.0f} ({low:+.3g} to {high:+.3g}), {named(names)}: "
                f"as where the {side} stores 1 + w and the other one w. That is no update but another convention, and a "
                "runtime reads one of the two wrongly."
            )
            yield finding(
                "other-layout",
                "warning",
                sentence,
                measure="least change of a norm's entry",
                effect=float(low if sign > 0 else high),
                tensor=names[0],
            )


def _rescaled(
    target: Checkpoint, unlearned: Checkpoint, samples: Sequence[Sample], kept: Mapping[str, bool]
) -> Iterator[FindingRow]:
    """Report matrices whose columns were divided by what a norm of their layer was multiplied with."""
    found: dict[str, float] = {}
    pairs = _norms(target, unlearned, kept)
    for sample in samples:
        layer = _layer(sample.tensor)
        for name, (old, new) in pairs.items():
            if _layer(name) == layer and old.shape == (sample.shape[1],) and (old * new > 0).all():
                explained = _explained(sample, new / old)
                if explained >= EXPLAINED:
                    found[sample.tensor] = max(explained, found.get(sample.tensor, 0.0))
    if not found:
        return
    least = min(found.values())
    sentence = (
        f"The columns of {len(found)} matrices, {named(list(found))}, are scaled by the reciprocal of a norm of their layer: "
        f"undoing it takes {100 * least:.0f} % or more of the squared change away. Such a rescaling, as AWQ and SmoothQuant "
        "fold it in, changes weights and codes and not what the model computes: it counts as update here, and is none."
    )
    yield finding(
        "other-layout",
        "warning",
        sentence,
        measure="least share of the squared change that undoing the rescaling takes away",
        effect=least,
        tensor=next(iter(found)),
    )


def _layer(name: str) -> str:
    """Return the part of a name up to the number of its layer: `model.layers.3`; all of it where there is none."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _explained(sample: Sample, scale: NDArray[np.float64]) -> float:
    """Return 1 - |w' s - w|^2 / |w' - w|^2 over the rows that were read; 0 without a change."""
    moved = math.fsum(float(((r.w_new.astype(np.float64) - r.w) ** 2).sum()) for r in sample.runs)
    left = math.fsum(float(((r.w_new.astype(np.float64) * scale - r.w) ** 2).sum()) for r in sample.runs)
    return 1.0 - left / moved if moved else 0.0
