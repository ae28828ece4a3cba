"""What the theory starts from: the size of the weights, which the pair tells, and the steps, which only a recipe does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unforgotten.audit.findings.probe import Sample
from unforgotten.audit.findings.recipe import Recipe, missing_parts
from unforgotten.audit.weights.leg import WeightsLeg
from unforgotten.theory.geometry.dead_zone import BINADES, MIN_WEIGHTS, SIGNIFICANT_BITS

MOSTLY = 0.5  # of a binade's weights
STD_STEPS = 4  # of a group of tensors: standard deviations within a factor 2^(1/4)


@dataclass(frozen=True)
class WeightGroup:
    """Tensors of about one standard deviation and of one shape.

    Attributes:
        std: root mean square of the weights.
        rows, columns: shape of each tensor.
        weights: number of weights in all tensors of the group.
    """

    std: float
    rows: int
    columns: int
    weights: int


@dataclass(frozen=True)
class TrainingEstimate:
    """The training between the two sides, if its steps are lr each and keep their sign.

    Attributes:
        groups: groups of the quantized weights, the largest first.
        std: root mean square of all quantized weights.
        moved_rms: root mean square of the change of the weights that moved.
        dtype: dtype that the optimizer updates: bf16, fp16 or fp32.
        lr: learning rate of one step.
        lr_range: range that `lr` lies in.
        steps: number of steps.
        optimizer: optimizer that took them.
        source: source of lr and steps.
    """

    groups: tuple[WeightGroup, ...]
    std: float
    moved_rms: float
    dtype: str
    lr: float
    lr_range: tuple[float, float]
    steps: int
    optimizer: Literal["adamw", "sign"]
    source: Literal["recipe"]


def estimate_training(leg: WeightsLeg, samples: Sequence[Sample], recipe: Recipe | None) -> TrainingEstimate | str:
    """Return the training behind an update, or a sentence that says what is missing.

    Nothing but a recipe tells it: a file of bfloat16 weights shows the same edge whether they were trained in bfloat16 or
    rounded once at the end, and the size of an update is lr times any number of steps.
    """
    total = leg.quantized
    moved = total.weights - total.unchanged
    groups = _groups(samples)
    square = math.fsum(g.weights * g.std**2 for g in groups)
    if not (moved and total.delta_sq and square):
        return "nothing was updated"
    if recipe is not None and recipe["optimizer"] == "sgd":
        return "the theory has no law for sgd: its steps are lr times a gradient that no file holds"
    if recipe is None or missing_parts(recipe):
        return f"needs {' and '.join(missing_parts(recipe))}: what a training did is not in its weights"
    lr, steps = recipe["lr"], recipe["steps"]
    dtype, optimizer = recipe["trained_in"], recipe["optimizer"]
    assert lr is not None, "checked above"
    assert steps is not None, "checked above"
    assert dtype is not None, "checked above"
    assert optimizer is not None, "checked above"
    assert optimizer != "sgd", "checked above"
    std = math.sqrt(square / sum(g.weights for g in groups))
    moved_rms = math.sqrt(total.delta_sq / moved)
    return TrainingEstimate(groups, std, moved_rms, dtype, lr, (lr, lr), steps, optimizer, "recipe")


def typical_steps(leg: WeightsLeg) -> tuple[float, float] | None:
    """Return sizes of step that move most weights below the edge and few beyond: half an ulp below and above it.

    The edge is the first binade from which on less than MOSTLY of the weights moved, at least MIN_WEIGHTS in each. The
    dead zone itself ends where almost none did; between the two lie the weights that only the largest steps moved.
    None without a dead zone.
    """
    if not leg.dead_zone.detected:
        return None
    edge = round(math.log2(leg.dead_zone.threshold))
    for e, n, moved in zip(reversed(BINADES), leg.binades.weights[::-1], leg.binades.moved[::-1], strict=True):
        if e < edge and n >= MIN_WEIGHTS and moved < MOSTLY * n:
            edge = e
        elif n >= MIN_WEIGHTS and moved >= MOSTLY * n:
            break
    half_ulp = math.ldexp(1.0, edge - SIGNIFICANT_BITS[leg.precision])
    return half_ulp / 2, half_ulp


def _groups(samples: Sequence[Sample]) -> tuple[WeightGroup, ...]:
    squares: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
    for sample in samples:
        count = sum(run.w.size for run in sample.runs)
        square = math.fsum(float(np.square(run.w, dtype=np.float64).sum()) for run in sample.runs)
        if not (count and square):
            continue
        mean = square / count
        key = (round(STD_STEPS * math.log2(mean) / 2), *sample.shape)
        squares.setdefault(key, []).append((math.prod(sample.shape), mean))
    groups = [
        WeightGroup(
            std=math.sqrt(math.fsum(n * mean for n, mean in found) / sum(n for n, _ in found)),
            rows=rows,
            columns=columns,
            weights=sum(n for n, _ in found),
        )
        for (_, rows, columns), found in squares.items()
    ]
    return tuple(sorted(groups, key=lambda g: (-g.weights, g.std, g.rows, g.columns)))
