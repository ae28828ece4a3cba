"""Findings about where the update is: few tensors or rows (T9), and the layers that carry what survives.

In goes the weights leg, with samples of its weights; out come rows of findings. `participation` measures the spread:

    participation([1.0, 0.0, 0.0, 0.0], [64, 64, 64, 64])  # 0.25: all of the update in a quarter of the weights
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from unforgotten.audit.findings.probe import Sample
from unforgotten.audit.findings.row import STANDARD_DEVIATIONS, FindingRow, finding, ratio_of_sums
from unforgotten.audit.findings.sentences import Judged, share
from unforgotten.audit.weights.leg import GAUSSIAN_SPREAD, WeightsLeg
from unforgotten.audit.weights.sums import Setting
from unforgotten.theory.laws.update import Survival

CONCENTRATED = 0.5  # participation below it
CARRIED = 0.9  # of the squared update, for the count of tensors that carry it
HALF = 0.5  # of the surviving update, for the list of layers that carry it
MAX_LAYERS = 4  # named in a sentence
LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def spread_findings(leg: WeightsLeg, judged: Sequence[Judged], samples: Sequence[Sample]) -> list[FindingRow]:
    """Report concentration by tensor and by row, and the layers of the surviving update by format."""
    if all(j.finding == "no update" for j in judged):
        return []
    return [*_tensors(leg), *_rows(samples), *(row for j in judged for row in _layers(leg, j))]


def participation(squares: Sequence[float], weights: Sequence[int]) -> float:
    """Return rho = (sum e)^2 / (N sum e^2 / n) in (0, 1]: the share of weights of an even update of this spread.

    Args:
        squares: squared length of the update, e, one a part.
        weights: number of weights of each part, n > 0.
    """
    whole = math.fsum(squares)
    return whole**2 / (sum(weights) * math.fsum(e * e / n for e, n in zip(squares, weights, strict=True)))


def _tensors(leg: WeightsLeg) -> list[FindingRow]:
    parts = [next(iter(t.survival.values())) for t in leg.tensors]
    if len(parts) < 2:
        return []
    value = participation([p.delta_sq for p in parts], [p.weights for p in parts])
    if value >= CONCENTRATED:
        return []
    order = sorted(range(len(parts)), key=lambda i: -parts[i].delta_sq)
    whole, carried, count = math.fsum(p.delta_sq for p in parts), 0.0, 0
    while carried < CARRIED * whole:
        carried += parts[order[count]].delta_sq
        count += 1
    weights = sum(parts[i].weights for i in order[:count]) / sum(p.weights for p in parts)
    sentence = (
        f"The update is concentrated: {count} of {len(parts)} tensors ({share(weights)} of the weights) carry "
        f"{share(carried / whole)} of its square. {_bought(value)}"
    )
    row = finding(
        "concentration",
        "note",
        sentence,
        measure="share of weights of an even update, by tensor",
        effect=value,
        tensor=leg.tensors[order[0]].name,
    )
    return [row]


def _bought(value: float) -> str:
    times = value**-0.25
    return f"At equal length its cosine after quantization is {times:.1f} times that of an even one (T9)."


def _rows(samples: Sequence[Sample]) -> list[FindingRow]:
    """Return the spread over rows within tensors: sum_t (sum e)^2 / n over sum_t sum e^2 of the rows seen."""
    top, bottom, rows = [], [], 0
    for sample in samples:
        squares = np.concatenate([np.square(r.w_new.astype(np.float64) - r.w).sum(axis=1) for r in sample.runs])
        if len(squares) > 1 and squares.any():
            top.append(float(squares.sum() ** 2 / len(squares)))
            bottom.append(float(np.square(squares).sum()))
            rows += len(squares)
    if not bottom:
        return []
    scale = [1 / b for b in bottom]  # every tensor counts once, whatever the size of its update
    found = ratio_of_sums([t * s for t, s in zip(top, scale, strict=True)], [1.0] * len(bottom))
    if found.value >= CONCENTRATED:
        return []
    sentence = (
        f"Inside its tensors the update is on few rows: as uneven as one that is even on {share(found.value)} of them "
        f"(sample of {rows:,} rows). {_bought(found.value)}"
    )
    interval = (max(0.0, found.low), min(1.0, found.high))
    row = finding(
        "concentration",
        "note",
        sentence,
        measure="share of rows of an even update, inside tensors",
        effect=found.value,
        interval=interval,
    )
    return [row]


def layer_of(name: str) -> str:
    """Return the number of the layer in a tensor's name, or the name itself."""
    found = LAYER.search(name)
    return found[1] if found else name


def _layers(leg: WeightsLeg, j: Judged) -> list[FindingRow]:
    groups: dict[str, list[Survival]] = {}
    for t in leg.tensors:
        groups.setdefault(layer_of(t.name), []).append(t.survival[Setting(j.format, "adaptive")])
    dots = {layer: math.fsum(p.dot for p in parts) for layer, parts in groups.items()}
    whole = math.fsum(dots.values())
    if len(groups) < 2 or whole <= 0:
        return []
    order = sorted(dots, key=lambda layer: -dots[layer])
    named, carried = [], 0.0
    for layer in order:
        if carried >= HALF * whole:
            break
        named.append(layer)
        carried += dots[layer]
    part = dots[order[0]] / whole
    own, rest = (_variance(groups[order[0]]), [p for k in order[1:] for p in groups[k]])
    margin = STANDARD_DEVIATIONS * math.sqrt((1 - part) ** 2 * own + part**2 * _variance(rest))
    shown = ", ".join(ascii(n).strip("'") for n in named[:MAX_LAYERS])
    more = f" and {len(named) - MAX_LAYERS} more" if len(named) > MAX_LAYERS else ""
    sentence = (
        f"{j.format}: {len(named)} of {len(order)} layers ({shown}{more}) carry {share(carried / whole)} of the update "
        f"that survives along itself; the first of them {share(part)}."
    )
    row = finding(
        "layers",
        "note",
        sentence,
        measure="share of the surviving update in its largest layer",
        effect=part,
        interval=(part - margin / whole, part + margin / whole),
        format=j.format,
    )
    return [row]


def _variance(parts: Sequence[Survival]) -> float:
    """Return the variance of sum <D, delta>, as in `gain_stderr`."""
    return math.fsum(
        GAUSSIAN_SPREAD * p.surviving_sq * p.delta_sq / (p.weights - p.unchanged)
        for p in parts
        if p.weights > p.unchanged
    )
