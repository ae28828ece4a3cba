"""The gain of a run before it is made: the gradients of a short float32 pilot, replayed in another storage.

In bfloat16 most steps of a run are lost, so it is slower than in float32, and so its gradients turn later. A step of the replay is
given the gradient that the pilot had when it had gone as far, to first order, by the loss of its last gradients. The replay ends
where the pilot ended, or after the number of steps that a recipe sets. What is left of its update in a format is the forecast.
Takes a sample of blocks of weights.

    path = replayed(pilot, "bf16")
    forecast(pilot, path, "int4-g64").gain
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.geometry.replay import Adam, Storage, replay

Array = NDArray[Any]
LIMIT = 64
"""Steps of a replay at most, over those of its pilot, where the recipe sets no number."""
LAST = 0.1
"""Share of the steps, the last, whose mean gradient stands for the loss at the end."""
DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Pilot:
    """Recorded steps of a sample of weights.

    Attributes:
        weights: weights before, float32 (blocks, n): each block n neighbours of one row of a matrix.
        row_absmax: largest magnitude in the row of each block, (blocks,).
        gradients: gradients of each step as the optimizer was given them, (steps, blocks, n).
        lr: learning rate of each step, (steps,).
        adam: other settings of the optimizer.
    """

    weights: Array
    row_absmax: Array
    gradients: Array
    lr: Array
    adam: Adam

    @property
    def slope(self) -> Array:
        """Mean of the last gradients, float64 (blocks, n)."""
        count = max(1, round(LAST * len(self.gradients)))
        return np.asarray(self.gradients[-count:].mean(0, dtype=np.float64))

    @property
    def steps(self) -> Iterable[tuple[Array, float]]:
        """Gradient and learning rate of each step."""
        return zip(self.gradients, self.lr.tolist(), strict=True)


@dataclass(frozen=True)
class Replayed:
    """Where the sample goes in one storage.

    Attributes:
        storage: storage of parameters and moments.
        weights: weights at the end, float32 (blocks, n).
        steps: steps that were made.
        slower: the same over the pilot's.
        progress: first-order progress over the pilot's; below 1 where LIMIT did not suffice, of any size where the number of
            steps was given.
    """

    storage: Storage
    weights: Array
    steps: int
    slower: float
    progress: float


@dataclass(frozen=True)
class Forecast:
    """What a format leaves of the update.

    Attributes:
        format, storage: names.
        gain: G = <D, delta> / <delta, delta>; nan where nothing moves.
        gain_range: interval of LEVEL for the choice of blocks alone.
        functional_gain: Gamma = g·D / g·delta, with g the mean of the last gradients.
        functional_range: the same for it.
    """

    format: str
    storage: Storage
    gain: float
    gain_range: tuple[float, float]
    functional_gain: float
    functional_range: tuple[float, float]

    @property
    def returned(self) -> float:
        """1 - Gamma: share of what training did to its loss that gating takes back, to first order."""
        return 1.0 - self.functional_gain


def replayed(pilot: Pilot, storage: Storage, *, steps: int | None = None, seed: int = 0) -> Replayed:
    """Replay the pilot in a storage until it has gone as far as in float32, or for a number of steps.

    A gradient is the pilot's at equal progress; the learning rate is the pilot's at the same step, or, with a number of steps, at
    the same share of them.

    Args:
        pilot: recorded steps.
        storage: storage of parameters and moments.
        steps: number of steps of the run, >= 1, where its recipe sets one; None where it ends at a depth of forgetting.
        seed: seed of stochastic rounding.

    Raises:
        ValueError: the storage is unknown, the number is below 1, or the pilot's update does not lower the loss of its last
            gradients.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got steps={steps}")
    slope, start, own = pilot.slope, np.asarray(pilot.weights, np.float64), len(pilot.gradients)
    gone = [float((slope * (w - start)).sum()) for w in replay(pilot.weights, pilot.steps, pilot.adam, "fp32")]
    goal = gone[-1]
    if not goal < 0:
        rule = "gradients must be of steps that lower their loss: the sum of last gradient times update must be below 0"
        raise ValueError(f"{rule}, got {goal:.3g}")
    farthest = np.maximum.accumulate([0.0, *(part / goal for part in gone[:-1])])
    most, now = LIMIT * own if steps is None else steps, 0.0

    def paced() -> Iterator[tuple[Array, float]]:
        for step in range(most):
            rate = min(step, own - 1) if steps is None else step * own // steps
            yield pilot.gradients[np.searchsorted(farthest, now, side="right") - 1], float(pilot.lr[rate])

    found = Replayed(storage, pilot.weights, 0, 0.0, 0.0)
    for made, w in enumerate(replay(pilot.weights, paced(), pilot.adam, storage, seed=seed), 1):
        found = Replayed(storage, w, made, made / own, float((slope * (w - start)).sum()) / goal + 0.0)  # no minus zero
        if steps is None and found.progress >= 1.0:
            break
        now = max(found.progress, 0.0)
    return found


def forecast(pilot: Pilot, path: Replayed, format_name: str, *, seed: int = 0) -> Forecast:
    """Return what a format leaves of the update of a path.

    Args:
        pilot: recorded steps.
        path: path that `replayed` found.
        format_name: name of a format whose scale is of at most n neighbours, or of a row by its absmax.
        seed: seed of the bootstrap over blocks.

    Raises:
        ValueError: the format is unknown, or more is needed for its scale than a sample of blocks has.
    """
    fmt = format_named(format_name)
    w, new = (_with_row(x, pilot.row_absmax, fmt) for x in (pilot.weights, path.weights))
    kept = (round_trip(new, fmt).astype(np.float64) - round_trip(w, fmt))[:, : pilot.weights.shape[1]]
    delta = np.asarray(path.weights, np.float64) - pilot.weights
    slope = pilot.slope
    gain, gain_range = _ratio((kept * delta).sum(1), (delta * delta).sum(1), seed)
    functional, functional_range = _ratio((slope * kept).sum(1), (slope * delta).sum(1), seed)
    return Forecast(format_name, path.storage, gain, gain_range, functional, functional_range)


def _with_row(w: Array, row_absmax: Array, fmt: Format) -> Array:
    """Return blocks on which a format fits the scale that it fits to their rows: the largest weight of the row stands beside."""
    size = w.shape[1]
    if fmt.block == "row" and fmt.statistic == "absmax":
        return np.concatenate([w, np.asarray(row_absmax, np.float32)[:, None]], axis=1)
    whole = fmt.block in ("group", "flat") and fmt.block_size is not None and size % fmt.block_size == 0
    if not whole or fmt.of_tensor:
        rule = f"must share a scale among {size} neighbours, a part of them, or a row by its absmax"
        raise ValueError(f"format {rule}, got format={fmt.name!r}")
    return w


def _ratio(over: Array, under: Array, seed: int) -> tuple[float, tuple[float, float]]:
    """Return sum(over) / sum(under), and its interval by a bootstrap over blocks; nan where nothing moves."""
    if not under.any():
        return math.nan, (math.nan, math.nan)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(over), np.full(len(over), 1 / len(over)), size=DRAWS)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (counts @ over) / (counts @ under)
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(over.sum() / under.sum()), (float(low), float(high))
