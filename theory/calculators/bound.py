"""The theory as a calculator: one description of a training run in, what a format leaves of its update out.

Takes a `Question`: format, spread of the weights, learning rate, steps, storage; gives an `Answer`: where weights
stand still, the gain, the cosine and the flips expected, and the smallest learning rate with a wanted gain.

>>> answer = bound(Question("int4-row", std=0.02, lr=1e-5, steps=500), gain=0.9)
>>> round(answer.gain, 3), round(answer.moved, 3)
(0.0, 0.155)
>>> answer.smallest_lr > 1e-5
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import scipy

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.geometry.dead_zone import SHORT_NAMES
from unforgotten.theory.geometry.motion import StepLaw, check_training, step_law
from unforgotten.theory.geometry.optimizers import frozen_magnitude
from unforgotten.theory.laws.absmax import AbsmaxLaw, absmax_law
from unforgotten.theory.laws.densities import Density, density_named
from unforgotten.theory.laws.predict import Prediction, predict

DTYPES: Mapping[str, str] = {short: name for name, short in SHORT_NAMES.items()}
STEP_BOUNDS: Mapping[str, str] = {"adamw": "adamw", "sign": "sign-sgd"}
QUADRATURE_SPACING = 1 / 16  # of the absmax law: the gain jumps where the edge meets a threshold, and 1 errs by 0.3
LEAST_SHARE = 1e-7  # of the blocks: rarer absmax values are left out, below the quadrature's own error
LR_RANGE = (2.0**-22, 2.0**6)  # in standard deviations: where a wanted survival is looked for, octave by octave


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        format: name of an absmax format.
        std: standard deviation of the weights, > 0.
        lr: learning rate > 0, in the units of the weights.
        steps: number of steps, >= 1.
        density: a key of `DENSITIES`.
        dtype: storage of the parameters that the optimizer updates, a key of `DTYPES`.
        optimizer: "adamw" or "sign".
        snr: spread of the gradients' signal-to-noise ratios, > 0; inf: every step is lr, always with the same sign.
        columns: weights in a row, the block of a "row" format.
        rows: rows of the tensor, for a "tensor" format.
    """

    format: str
    std: float
    lr: float
    steps: int
    density: str = "gaussian"
    dtype: str = "bf16"
    optimizer: str = "adamw"
    snr: float = math.inf
    columns: int = 4096
    rows: int = 4096


@dataclass(frozen=True)
class Answer:
    """What the theory expects.

    Attributes:
        question: the question that was asked.
        dead_zone: weights above this magnitude do not move in the mean, nor those at it, but toward 0; None where all move.
        certain_dead_zone: no gradients move a weight above it (T5's largest step), with states in the dtype of the
            parameters (float32 for fp16) that do not underflow, rounding to nearest and no weight decay.
        moved: share of the weights that move by at least half a spacing.
        rms_update: sqrt(E[delta^2]) over all weights, in the units of the weights.
        gain, cosine: gain and cosine of the surviving update; None where nothing moves, or nothing survives.
        flips: share of the codes that change.
        smallest_lr: smallest lr with the wanted gain and cosine in `steps` steps; None if not asked or if none has; the lower end
            of LR_RANGE where that has them too, and smaller ones were not looked at.
    """

    question: Question
    dead_zone: float | None
    certain_dead_zone: float
    moved: float
    rms_update: float
    gain: float | None
    cosine: float | None
    flips: float
    smallest_lr: float | None


def bound(question: Question, *, gain: float | None = None, cosine: float | None = None) -> Answer:
    """Answer a question; with a wanted gain or cosine, find the smallest lr too.

    Raises:
        ValueError: something asked for does not exist or is out of its range.
    """
    setup = _Setup(question)
    check_training(question.lr, question.steps, setup.dtype)
    p = setup.predict(question.lr)
    certain = frozen_magnitude(STEP_BOUNDS[question.optimizer], question.lr, question.steps, setup.dtype)
    wanted = gain is not None or cosine is not None
    return Answer(
        question=question,
        dead_zone=p.edge if math.isfinite(p.edge) else None,
        certain_dead_zone=certain,
        moved=p.moved,
        rms_update=math.sqrt(p.expected.delta_sq),
        gain=_known(p.expected.gain),
        cosine=_known(p.expected.cosine),
        flips=p.expected.flips,
        smallest_lr=_smallest_lr(setup, gain, cosine) if wanted else None,
    )


def as_object(answer: Answer) -> dict[str, Any]:
    """Return the answer for JSON: infinities become None."""
    result = asdict(answer)
    result["question"]["snr"] = _known(answer.question.snr)
    return result


class _Setup:
    """What stays the same while lr is varied."""

    def __init__(self, question: Question) -> None:
        if question.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got dtype={question.dtype!r}")
        for name in ("columns", "rows"):
            if getattr(question, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {name}={getattr(question, name)}")
        if question.steps < 1:
            raise ValueError(f"steps must be at least 1, got steps={question.steps}")
        self.steps = question.steps
        self.dtype = DTYPES[question.dtype]
        self.fmt: Format = format_named(question.format)
        self.density: Density = density_named(question.density, question.std)
        self.law: StepLaw = step_law(question.optimizer, question.snr)
        law = absmax_law(self.density, block_size(self.fmt, question), spacing=QUADRATURE_SPACING)
        kept = law.weights > LEAST_SHARE
        self.absmax = AbsmaxLaw(law.values[kept], law.weights[kept] / law.weights[kept].sum(), law.size)

    def predict(self, lr: float) -> Prediction:
        return predict(self.fmt, self.density, self.absmax, self.law, lr=lr, steps=self.steps, dtype=self.dtype)


def block_size(fmt: Format, question: Question) -> int:
    """Return how many weights share a scale."""
    if fmt.block_size:
        return fmt.block_size
    return question.columns * (question.rows if fmt.block == "tensor" else 1)


def _smallest_lr(setup: _Setup, gain: float | None, cosine: float | None) -> float | None:
    """Return the first power of two that meets both wishes, then the crossing below it; None if none in LR_RANGE does.

    A gain that rises, falls and rises again within one octave can hide a smaller one.
    """
    for name, value in (("gain", gain), ("cosine", cosine)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1) to be wanted, got {name}={value!r}")

    def excess(lr: float) -> float:
        e = setup.predict(lr).expected
        gaps = [have - want for have, want in ((e.gain, gain), (e.cosine, cosine)) if want is not None]
        return min(gap if math.isfinite(gap) else -1.0 for gap in gaps)

    lr, highest = (end * setup.density.scale for end in LR_RANGE)
    if excess(lr) >= 0:
        return lr
    while lr < highest:
        if excess(2 * lr) >= 0:
            optimize = scipy.optimize
            return float(optimize.brentq(excess, lr, 2 * lr, rtol=1e-3))  # pyright: ignore[reportArgumentType]
        lr *= 2
    return None


def _known(x: float) -> float | None:
    return x if math.isfinite(x) else None
