"""One audit in one format: what it kept of forgetting, what of the retain split, and the score of the two.

row_of(compared, "int4-g64")["score"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from unforgotten.audit.comparison.read import Compared
from unforgotten.audit.deployed.told import deployed_label, deployed_word
from unforgotten.audit.findings.retain import retain_findings
from unforgotten.audit.findings.row import STANDARD_DEVIATIONS
from unforgotten.audit.outputs.answer import word_of
from unforgotten.audit.verdict.gate import format_word
from unforgotten.audit.verdict.legs import BehaviourLeg, Mean, RecoveryRow, retained_of
from unforgotten.audit.verdict.rule import DECIDES_OUTPUT, behaviour_rule

POINTS = 100.0
"""Points in the target's M4."""
CODES_ONLY = "codes only"
NO_LOSS = "M4 did not fall, so there is no point to divide by"


class Range(TypedDict):
    """An estimate with its interval; an end is None where it is unbounded."""

    value: float
    low: float | None
    high: float | None


class ComparedRow(TypedDict):
    """One audit in one format; None where something was not measured or has no value.

    `metric`: metric of the largest recovered share, of those that decide; `forgotten`: share of the target's that
    unlearning took; `recovered`: rho, what quantization gives back of it; `kept`: 1 - rho. `retained`: metric of the retain
    split that keeps least, M4 of an audit; `retained_unlearned`, `retained_quantized`: shares of the target's;
    `lost`: points that the quantized unlearned model lost. `score`: see `score_of`; `why`: why there is none.
    """

    audit: str
    format: str
    word: str
    gain: float | None
    gain_stderr: float | None
    metric: str | None
    forgotten: float | None
    recovered: Range | None
    kept: Range | None
    retained: str | None
    retained_unlearned: float | None
    retained_quantized: float | None
    lost: Range | None
    broken: bool
    score: Range | None
    why: str | None


class Retained(NamedTuple):
    """A metric of the retain split: its name, the shares of the target's that are kept, and the points that are lost."""

    name: str
    unlearned: float
    quantized: float
    lost: Range


def row_of(compared: Compared, name: str) -> ComparedRow:
    """Return the row of one audit in one format."""
    weights = next((row for row in compared.weights if row["format"] == name), None)
    said = None if weights is None else format_word(weights)
    word = word_of(name, said, compared.output, compared.behaviour, overall=compared.overall)
    real = compared.deployed if compared.deployed is not None and name == deployed_label(compared.deployed) else None
    if real is not None:
        word = deployed_word(real)
    gains = weights if real is None else real
    worst, doubt = _worst(compared, name)
    kept = None if worst is None else _kept(worst)
    retained = _retained(compared.behaviour, name)
    broken = any(row["format"] in (None, name) for row in retain_findings(compared.behaviour))
    score, why = score_of(kept, None if retained is None else retained.lost, broken=broken, doubt=doubt)
    return ComparedRow(
        audit=compared.name,
        format=name,
        word=word or CODES_ONLY,
        gain=None if gains is None else gains["gain"],
        gain_stderr=None if gains is None else gains["gain_stderr"],
        metric=None if worst is None else worst["metric"],
        forgotten=None if worst is None else _forgotten(worst),
        recovered=None if worst is None else Range(value=worst["rho"] or 0.0, low=worst["low"], high=worst["high"]),
        kept=kept,
        retained=None if retained is None else retained.name,
        retained_unlearned=None if retained is None else retained.unlearned,
        retained_quantized=None if retained is None else retained.quantized,
        lost=None if retained is None else retained.lost,
        broken=broken,
        score=score,
        why=why,
    )


def score_of(
    kept: Range | None, lost: Range | None, *, broken: bool, doubt: str | None
) -> tuple[Range | None, str | None]:
    """Return forgetting kept / points of M4 lost in a format, or why there is no score.

    Forgetting kept is 1 - rho, counted within [0, 1]: a format that forgets more than unlearning did, or gives back more
    than it took, scores as one that keeps all or none. A point is one hundredth of the target's M4, so that shares and
    percentages score alike. The interval takes each end of the one over the other end of the other; the models of M4 are
    taken as independent, which is too wide where they are asked the same items. Its upper end is None, unbounded, where
    the loss may be 0.

    There is no score where the model is broken, whatever it forgot; where too little was forgotten, or rho is undefined,
    for then nothing is known to be kept; where M4 was not measured; and where M4 did not fall, for then there is no point to
    divide by. The last is no fault: `ranking` names no winner over it. Of two that keep all, the score is 1 / lost, so it
    rewards a small loss more than a large share kept.

    Args:
        kept: 1 - rho of the metric that comes back most.
        lost: points of M4 that the quantized unlearned model lost.
        broken: whether the model lost what it should keep.
        doubt: why `kept` says nothing, if so.
    """
    if broken:
        return None, "the model lost what it should keep"
    if kept is None or doubt is not None:
        return None, doubt or "no recovered share was measured"
    if lost is None:
        return None, "M4 was not measured, or is 0 on the target"
    if lost["value"] <= 0:
        return None, NO_LOSS
    least, most = lost["low"], lost["high"]
    return Range(
        value=_share(kept["value"]) / lost["value"],
        low=0.0 if most is None or kept["low"] is None else _share(kept["low"]) / most,
        high=None if least is None or least <= 0 else _share(1.0 if kept["high"] is None else kept["high"]) / least,
    ), None


def is_free(row: ComparedRow) -> bool:
    """Tell whether a row kept some forgetting and lost no M4, so that it has no score though nothing is wrong with it."""
    return row["why"] == NO_LOSS and row["kept"] is not None and row["kept"]["value"] > 0


def _share(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def _kept(row: RecoveryRow) -> Range:
    rho, low, high = row["rho"] or 0.0, row["low"], row["high"]
    return Range(value=1 - rho, low=None if high is None else 1 - high, high=None if low is None else 1 - low)


def _forgotten(row: RecoveryRow) -> float | None:
    return (row["target"] - row["unlearned"]) / row["target"] if row["target"] > 0 else None


def _worst(compared: Compared, name: str) -> tuple[RecoveryRow | None, str | None]:
    """Return the row that comes back most, and why nothing is to be concluded from it, if so."""
    leg = compared.behaviour
    rows = [] if leg is None else _recoveries(leg, name)
    if leg is None or not rows:
        output = [] if compared.output is None else _recoveries(compared.output, name)
        return _most([row for row in output if row["metric"] in DECIDES_OUTPUT]), "no benchmark was measured in it"
    rule = behaviour_rule(leg)
    deciding = [row for row in rows if rule.decides(row)]
    undefined = [row["metric"] for row in deciding if row["rho"] is None]
    if not deciding:
        names = " and ".join(rule.deciding)
        return _most([row for row in rows if row["metric"] in rule.deciding]), f"too little of {names} was forgotten"
    doubt = f"the recovered share of {' and '.join(undefined)} is undefined" if undefined else None
    return _most(deciding), doubt


def _recoveries(leg: Any, name: str) -> list[RecoveryRow]:
    return [row for found in leg["formats"] if found["format"] == name for row in found["recoveries"]]


def _most(rows: Sequence[RecoveryRow]) -> RecoveryRow | None:
    known = [row for row in rows if row["rho"] is not None]
    return max(known, key=lambda row: row["rho"] or 0.0, default=None)


def _retained(leg: BehaviourLeg | None, name: str) -> Retained | None:
    """Return the metric of the retain split that the format keeps least of; None where none was measured."""
    if leg is None:
        return None
    quantized = next((f["metrics"].get("Q(unlearned)", {}) for f in leg["formats"] if f["format"] == name), {})
    sides = (leg["metrics"].get("target", {}), leg["metrics"].get("unlearned", {}), quantized)
    found = [_kept_of(metric, sides) for metric in retained_of(leg) if all(metric in side for side in sides)]
    return min((one for one in found if one is not None), key=lambda one: one.quantized, default=None)


def _kept_of(name: str, sides: tuple[Mapping[str, Mean], ...]) -> Retained | None:
    target, unlearned, quantized = (side[name] for side in sides)
    whole = target["value"]
    if not whole > 0:
        return None
    ratio = quantized["value"] / whole
    lost = POINTS * (1 - ratio)
    if target["stderr"] is None or quantized["stderr"] is None:
        return Retained(name, unlearned["value"] / whole, ratio, Range(value=lost, low=None, high=None))
    stderr = math.hypot(quantized["stderr"], ratio * target["stderr"]) / whole  # of a ratio, to first order
    margin = STANDARD_DEVIATIONS * POINTS * stderr
    return Retained(name, unlearned["value"] / whole, ratio, Range(value=lost, low=lost - margin, high=lost + margin))
