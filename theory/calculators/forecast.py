"""The gain of a run before it is made: the gradients of a short float32 pilot, replayed in another storage.

In bfloat16 a run needs more steps than in float32 to go as far, for most of its steps are lost, and its gradients turn later.
So each gradient of the pilot is given to the optimizer several times, until the loss of the last gradients has gone as far, to
first order, as the pilot went; a recipe that ends after a number of steps is replayed for as many. What is left of that update
in a format is the forecast. Takes a sample of blocks of weights.

    path = replayed(pilot, "bf16")
    forecast(pilot, path, "int4-g64").gain
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.geometry.replay import Adam, Storage, replay

Array = NDArray[Any]
SLOWER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""How many times each gradient is given, the least that goes as far as the pilot."""
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

    def steps(self, count: int) -> Iterator[tuple[Array, float]]:
        """Yield gradient and learning rate of `count` steps, which go from the first of the pilot to its last evenly."""
        own = len(self.gradients)
        for step in range(count):
            at = step * own // count
            yield self.gradients[at], float(self.lr[at])


@dataclass(frozen=True)
class Replayed:
    """Where the sample goes in one storage.

    Attributes:
        storage: storage of parameters and moments.
        weights: weights at the end, float32 (blocks, n).
        slower: how many times each gradient was given; a fraction where the number of steps was.
        steps: steps that were made.
        progress: first-order progress over the pilot's; below 1 where SLOWER did not suffice, of any size, or nan, where the
            number of steps was given.
    """

    storage: Storage
    weights: Array
    slower: float
    steps: int
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

    Args:
        pilot: recorded steps.
        storage: storage of parameters and moments.
        steps: number of steps of the run, >= 1, where its recipe sets one; None where it ends at a depth of forgetting.
        seed: seed of stochastic rounding.

    Raises:
        ValueError: the storage is unknown, the number is below 1, or, without one, the pilot's update does not lower the loss of
            its last gradients.
    """
    slope, start, own = pilot.slope, np.asarray(pilot.weights, np.float64), len(pilot.gradients)
    *_, end = replay(pilot.weights, pilot.steps(own), pilot.adam, "fp32")
    goal = float((slope * (end - start)).sum())

    def progress(w: Array) -> float:
        return float((slope * (w - start)).sum()) / goal + 0.0  # no minus zero

    if steps is not None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got steps={steps}")
        *_, w = replay(pilot.weights, pilot.steps(steps), pilot.adam, storage, seed=seed)
        return Replayed(storage, w, steps / own, steps, progress(w) if goal < 0 else math.nan)
    if not goal < 0:
        rule = "gradients must be of steps that lower their loss: the sum of last gradient times update must be below 0"
        raise ValueError(f"{rule}, got {goal:.3g}")
    found = Replayed(storage, pilot.weights, 0, 0, 0.0)
    for slower in SLOWER:
        for step, w in enumerate(replay(pilot.weights, pilot.steps(slower * own), pilot.adam, storage, seed=seed), 1):
            found = Replayed(storage, w, slower, step, progress(w))
            if found.progress >= 1.0:
                return found
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
    if not whole or fmt.tensor_range:
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
