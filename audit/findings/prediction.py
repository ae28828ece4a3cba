"""Prediction against fact: the gain that theory alone expects of a format, beside the one that was measured.

In go a training (`training_estimate`), or why it is not known, the probe's rows and the measured gains; out comes one row a
format, and a finding where the two disagree:

    rows = predict_gains(estimate_training(leg, samples, recipe), samples, [("int4-g64", 0.97, 0.01)])
    disagreements(rows)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from unforgotten.audit.findings.motion_prediction import Motion, motion_gain, observe
from unforgotten.audit.findings.probe import Sample
from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.findings.sentences import STDERRS
from unforgotten.audit.findings.training_estimate import TrainingEstimate, WeightGroup
from unforgotten.audit.mixes.mix import is_mix
from unforgotten.theory.calculators.bound import Answer, Question, bound

WANTED_GAIN = 0.9
DISAGREES = 0.25  # of a gain: the theory takes every step to be lr, and a real one is now and then a quarter off


class PredictionInputs(TypedDict):
    """All that the prediction knows: no code and no weight of the pair but these."""

    std: float
    density: str
    dtype: str
    optimizer: str
    lr: float
    lr_low: float
    lr_high: float
    steps: int
    lr_source: str
    groups: int


class PredictionRow(TypedDict):
    """One format; `predicted_low` … `predicted_high` over the range of lr. `note` says why there is none.

    `motion_gain`: what theory expects of the motion as it was seen, see `motion_prediction`.
    `smallest_lr`: the smallest lr at which the theory expects a gain of WANTED_GAIN from weights of this std, dtype and
    number of steps; None where all of them move anyway, or none is found.
    """

    format: str
    inputs: PredictionInputs | None
    predicted_gain: float | None
    predicted_low: float | None
    predicted_high: float | None
    motion_gain: float | None
    measured_gain: float | None
    measured_stderr: float | None
    smallest_lr: float | None
    note: str | None


def predict_gains(
    estimate: TrainingEstimate | str,
    samples: Sequence[Sample],
    measured: Sequence[tuple[str, float | None, float | None]],
) -> list[PredictionRow]:
    """Predict the gain of every format, one row a format.

    Args:
        estimate: estimate of the training, or why there is none.
        samples: samples of the probe.
        measured: triples (format, gain, its standard error) on adaptive grids.
    """
    with np.errstate(all="ignore"):  # weights near the ends of float32: what is not finite becomes None
        motions = observe(samples)
        return [_row(estimate, motions, *row) for row in measured]


def _row(
    estimate: TrainingEstimate | str, motions: Sequence[Motion], name: str, gain: float | None, stderr: float | None
) -> PredictionRow:
    row = PredictionRow(
        format=name,
        inputs=None,
        predicted_gain=None,
        predicted_low=None,
        predicted_high=None,
        motion_gain=None,
        measured_gain=gain,
        measured_stderr=stderr,
        smallest_lr=None,
        note=None,
    )
    if is_mix(name):
        row["note"] = "the theory has no law for a mix of formats: ask for its formats one by one"
        return row
    if isinstance(estimate, str):
        row["motion_gain"], row["note"] = _seen(motions, name), estimate
        return row
    try:
        found = [_gain(estimate, name, lr) for lr in (estimate.lr, *estimate.lr_range)]
        row["motion_gain"] = motion_gain(motions, name)
        row["smallest_lr"] = _smallest_lr(estimate, name)
    except (ValueError, ArithmeticError) as error:
        row["note"] = str(error)
        return row
    known = [x for x in found if x is not None]
    row["inputs"] = _inputs(estimate)
    row["predicted_gain"] = found[0]
    if known:
        row["predicted_low"], row["predicted_high"] = min(known), max(known)
    return row


def _seen(motions: Sequence[Motion], name: str) -> float | None:
    """Return the gain of the motion as it was seen, which needs no recipe; None where the theory has no law."""
    try:
        return motion_gain(motions, name)
    except (ValueError, ArithmeticError):
        return None


def disagreements(rows: Sequence[PredictionRow]) -> list[FindingRow]:
    """Report formats whose predicted gain lies further than DISAGREES from the measured one, and beyond its error."""
    found = []
    for row in rows:
        low, high, gain = row["predicted_low"], row["predicted_high"], row["measured_gain"]
        if low is None or high is None or gain is None:
            continue
        margin = STDERRS * (row["measured_stderr"] or 0.0)
        if max(low - gain, gain - high) > DISAGREES + margin:
            found.append(_disagrees(row, gain, margin))
    return found


def _disagrees(row: PredictionRow, gain: float, margin: float) -> FindingRow:
    sentence = (
        f"{row['format']}: theory expects a gain of {row['predicted_gain']:.2f} from the given recipe and {gain:.2f} was "
        "measured: the recipe is another one, or its steps did not keep their sign; the measurement counts."
    )
    return finding(
        "theory-disagrees",
        "warning",
        sentence,
        measure="measured gain",
        effect=gain,
        interval=(gain - margin, gain + margin),
        format=row["format"],
    )


def _smallest_lr(estimate: TrainingEstimate, name: str) -> float | None:
    if estimate.dtype == "fp32":
        return None
    first = estimate.groups[0]
    whole = WeightGroup(estimate.std, first.rows, first.columns, first.weights)
    return bound(_question(estimate, name, whole, estimate.lr), gain=WANTED_GAIN).smallest_lr


def _gain(estimate: TrainingEstimate, name: str, lr: float) -> float | None:
    """Return sum N g E[delta^2] / sum N E[delta^2], a gain over groups of tensors; None where nothing moves."""
    answers = [(g.weights, bound(_question(estimate, name, g, lr))) for g in estimate.groups]
    parts = [(n * a.rms_update**2, a) for n, a in answers]
    whole = math.fsum(size for size, _ in parts)
    gain = math.fsum(size * _known(a) for size, a in parts) / whole if whole else math.nan
    return gain if math.isfinite(gain) else None


def _known(answer: Answer) -> float:
    return 0.0 if answer.gain is None else answer.gain


def _question(estimate: TrainingEstimate, name: str, group: WeightGroup, lr: float) -> Question:
    return Question(
        format=name,
        std=group.std,
        lr=lr,
        steps=estimate.steps,
        dtype=estimate.dtype,
        optimizer=estimate.optimizer,
        columns=max(2, group.columns),
        rows=max(2, group.rows),
    )


def _inputs(estimate: TrainingEstimate) -> PredictionInputs:
    return PredictionInputs(
        std=estimate.std,
        density="gaussian",
        dtype=estimate.dtype,
        optimizer=estimate.optimizer,
        lr=estimate.lr,
        lr_low=estimate.lr_range[0],
        lr_high=estimate.lr_range[1],
        steps=estimate.steps,
        lr_source=estimate.source,
        groups=len(estimate.groups),
    )
