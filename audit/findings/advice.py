"""The finding that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from unforgotten.audit.findings.prediction import WANTED_GAIN, PredictionRow
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.findings.sentences import Judged
from unforgotten.audit.weights.leg import WeightsLeg


def advice(
    leg: WeightsLeg, judged: Sequence[Judged], prediction: Sequence[PredictionRow], recipe: Recipe | None
) -> list[FindingRow]:
    """Say in one sentence what to do where a format loses part of the update; `effect` is the least learning rate.

    What to change in the training is said where a recipe tells how it was; a format that passes can always be named.
    """
    lost = [j for j in judged if j.finding in ("swallowed", "partly swallowed")]
    if not lost:
        return []
    steps = []
    if recipe is not None and recipe["trained_in"] in ("bf16", "fp16"):
        steps.append("keep the weights in float32 while unlearning, and round once at the end")
    lr = needed_lr(leg, [j.format for j in lost], prediction)
    if lr is not None:
        steps.append(f"use a learning rate above {lr:.1e}{_reason(leg, lr)}")
    if passing := [j.format for j in judged if j.finding == "passes"]:
        steps.append(f"deploy in a format that passes it: {', '.join(passing)}")
    if not steps:
        return []
    names = ", ".join(j.format for j in lost)
    sentence = f"What to do about {names}: {'; or '.join(steps)}."
    row = finding("advice", "note", sentence, measure="smallest learning rate", effect=lr)
    return [row]


def needed_lr(leg: WeightsLeg, lost: Sequence[str], prediction: Sequence[PredictionRow]) -> float | None:
    """Return the end of the dead zone's range, or what theory asks for a gain of WANTED_GAIN if that is more.

    None without a dead zone or a recipe. Where the theory asks for less than the range that was found, it is the measurement that counts.
    """
    if not leg.dead_zone.detected or all(row["inputs"] is None for row in prediction):
        return None
    asked = [row["smallest_lr"] for row in prediction if row["format"] in lost and row["smallest_lr"] is not None]
    return max([leg.dead_zone.lr_estimate[1], *asked])


def _reason(leg: WeightsLeg, lr: float) -> str:
    if lr > leg.dead_zone.lr_estimate[1]:
        return f" (theory: a gain of {WANTED_GAIN} from weights of this size in {leg.precision})"
    return ", and well above, so that weights beyond the zero cell move"
