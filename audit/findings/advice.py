"""The finding that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from unforgotten.audit.findings.prediction import WANTED_GAIN, PredictionRow
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.findings.sentences import Judged
from unforgotten.audit.weights.leg import WeightsLeg


def advice(
    leg: WeightsLeg,
    judged: Sequence[Judged],
    prediction: Sequence[PredictionRow],
    recipe: Recipe | None,
    on_grid: Collection[str] = (),
) -> list[FindingRow]:
    """Say in a sentence what to do where a format loses part of the update; `effect` is the least learning rate.

    What to change in the training is said where a recipe tells how it was; a format that passes can always be named. A target that
    lies on a format's grid is a case of its own, since there nothing about the training helps (T11a, study `requantize`).

    Args:
        leg: measured weights.
        judged: formats, with what was found of each.
        prediction: what theory says of them.
        recipe: how the unlearned model was trained.
        on_grid: formats on whose grid the target lies.
    """
    lost = [j.format for j in judged if j.finding in ("swallowed", "partly swallowed")]
    passing = [j.format for j in judged if j.finding == "passes"]
    deploy = [f"deploy in a format that passes it: {', '.join(passing)}"] if passing else []
    free, held = ([name for name in lost if (name in on_grid) is there] for there in (False, True))
    steps = []
    if recipe is not None and recipe["trained_in"] in ("bf16", "fp16"):
        steps.append(
            "keep the weights in float32 while unlearning and round once at the end, as a merged LoRA does, or round every step at random"
        )
    lr = needed_lr(leg, free, prediction)
    if lr is not None:
        steps.append(f"use a learning rate above {lr:.1e}{_reason(leg, lr)}")
    found = []
    if free and (steps or deploy):
        found.append(_row(f"What to do about {', '.join(free)}: {'; or '.join([*steps, *deploy])}.", lr))
    if held:
        other = ["unlearn the target as it was before it was quantized", *deploy]
        found.append(
            _row(
                f"What to do about {', '.join(held)}, on whose grid the target lies: {'; or '.join(other)}. Neither a master copy in "
                "float32 nor a larger learning rate helps there.",
                None,
            )
        )
    return found


def _row(sentence: str, lr: float | None) -> FindingRow:
    return finding("advice", "note", sentence, measure="smallest learning rate", effect=lr)


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
