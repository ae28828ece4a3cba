"""What is left of an update after quantization: flips, value changes, gain and cosine of one tensor or of many.

Takes a tensor before and after, a format and the mode of its grid; gives `Survival`, whose sums of two tensors add up.

>>> from unforgotten.theory.formats.names import format_named
>>> w = np.array([[0.7, -0.2, 0.05, 0.0]], np.float32)
>>> found = survival(w, w + np.float32([[0, 0, 0.06, 0]]), format_named("int4-row"), "fixed")
>>> found.code_flips, round(found.gain, 2)
(1, 1.67)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.grids import SETTERS, Grid
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import code_units, decode, encode, fit_grid, to_blocks
from unforgotten.theory.geometry.cells import position
from unforgotten.theory.laws.flips import flip_probability

GridMode = Literal["adaptive", "fixed"]
GRID_MODES: tuple[GridMode, ...] = ("adaptive", "fixed")
POSITION_BINS = 256
CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Survival:
    """Sums over weights. Sums of two tensors add up; ratios are properties.

    Attributes:
        weights: number of weights.
        unchanged: weights that the update left bit-identical.
        code_flips: codes that differ.
        value_changes: values that differ; more than code flips where a scale moved.
        expected_flips: sum of the flip probabilities of T6; the entries that set a scale count what they did.
        flips_variance: sum of p (1 - p).
        delta_sq, surviving_sq: squared lengths of delta and of D.
        dot: inner product <D, delta>.
        positions: counts of the position of w in its cell, over interior cells and moved weights, (POSITION_BINS,).
    """

    weights: int
    unchanged: int
    code_flips: int
    value_changes: int
    expected_flips: float
    flips_variance: float
    delta_sq: float
    surviving_sq: float
    dot: float
    positions: tuple[int, ...]

    @property
    def gain(self) -> float:
        """G = <D, delta> / <delta, delta>; nan without an update."""
        return self.dot / self.delta_sq if self.delta_sq else math.nan

    @property
    def cosine(self) -> float:
        """<D, delta> / (|D| |delta|); nan where one of the two is 0."""
        norm = math.sqrt(self.delta_sq) * math.sqrt(self.surviving_sq)
        return self.dot / norm if norm else math.nan

    @property
    def unchanged_fraction(self) -> float:
        """Share of weights that the update left bit-identical."""
        return self.unchanged / self.weights

    @property
    def position_distance(self) -> float:
        """Kolmogorov-Smirnov distance of the positions from uniform, at the bin edges; nan without positions."""
        total = sum(self.positions)
        if not total:
            return math.nan
        edges = np.arange(1, POSITION_BINS + 1) / POSITION_BINS
        return float(np.abs(np.cumsum(self.positions) / total - edges).max())


def add(parts: Iterable[Survival]) -> Survival:
    """Return the sums of several tensors or chunks; exact for counts, correctly rounded for sums, in any order.

    Raises:
        ValueError: there is nothing to add.
    """
    rows = list(parts)
    if not rows:
        raise ValueError("there must be at least one tensor to measure, got none")
    return Survival(
        weights=sum(r.weights for r in rows),
        unchanged=sum(r.unchanged for r in rows),
        code_flips=sum(r.code_flips for r in rows),
        value_changes=sum(r.value_changes for r in rows),
        expected_flips=math.fsum(r.expected_flips for r in rows),
        flips_variance=math.fsum(r.flips_variance for r in rows),
        delta_sq=math.fsum(r.delta_sq for r in rows),
        surviving_sq=math.fsum(r.surviving_sq for r in rows),
        dot=math.fsum(r.dot for r in rows),
        positions=tuple(int(n) for n in np.sum([r.positions for r in rows], axis=0)),
    )


def survival(w: NDArray[Any], w_new: NDArray[Any], fmt: Format, mode: GridMode) -> Survival:
    """Measure D = Q(w') - Q(w) against delta = w' - w.

    Args:
        w: the weights before, any shape and float dtype.
        w_new: the weights after, same shape.
        fmt: the format.
        mode: "adaptive" fits a grid to each; "fixed" encodes both on the grid of `w`.

    Raises:
        ValueError: the mode is unknown, the format is dithered, the shapes differ, the tensor is empty, or a weight or a value is not finite.
    """
    if mode not in GRID_MODES:
        raise ValueError(f"mode must be one of {', '.join(GRID_MODES)}, got mode={mode!r}")
    if fmt.dithered:
        raise ValueError(f"format must round to nearest here, got the dithered format={fmt.name!r}")
    if w.shape != w_new.shape:
        raise ValueError(f"both tensors must have one shape, got {w.shape} and {w_new.shape}")
    before, after = to_blocks(w, fmt), to_blocks(w_new, fmt)
    if not np.isfinite(after).all():
        raise ValueError("weights after the update must be finite, got nan or inf")
    real = to_blocks(np.ones(w.shape, np.float32), fmt) > 0  # False on padding
    count = w.size if fmt.block == "flat" else None
    grid = fit_grid(before, fmt, count=count)
    grid_new = fit_grid(after, fmt, count=count) if mode == "adaptive" else grid
    step = max(1, CHUNK_WEIGHTS // before.shape[1])
    starts = range(0, len(before), step)
    return add(
        _block_survival(
            (before[i : i + step], after[i : i + step], real[i : i + step]),
            (grid.rows(i, i + step), grid_new.rows(i, i + step)),
            fmt,
            count if i + step >= len(before) else None,
        )
        for i in starts
    )


def _pinned(blocks: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Return the entries that set their block's scale: their place in the cell is known, so no law is needed for them.

    They would otherwise count as uniform in the end cell, at whose far end they sit: 1 weight in 64 of an int4-g64
    tensor, enough to make an honest pair look washed.
    """
    return SETTERS[fmt.statistic](blocks)


def _block_survival(
    blocks: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], grids: tuple[Grid, Grid], fmt: Format, count: int | None
) -> Survival:
    before, after, real = blocks
    codes, codes_new = (encode(b, g, fmt, count=count)[real] for b, g in zip((before, after), grids, strict=True))
    values, values_new = (
        decode(encode(b, g, fmt, count=count), g, fmt)[real].astype(np.float64)
        for b, g in zip((before, after), grids, strict=True)
    )
    if not (np.isfinite(values).all() and np.isfinite(values_new).all()):
        raise ValueError(f"the values of {fmt.name} must be finite, got an overflow of float32")
    v, v_new = (
        code_units(b.astype(np.float64), g, fmt, count=count)[real] for b, g in zip((before, after), grids, strict=True)
    )
    delta = after[real].astype(np.float64) - before[real].astype(np.float64)
    surviving = values_new - values
    flipped = codes != codes_new
    probability = flip_probability(v_new - v, codes, fmt)
    probability = np.where(_pinned(before, fmt)[real], flipped, probability)
    inner = (codes > 0) & (codes < len(fmt.levels) - 1) & (delta != 0)
    places = np.clip(position(v[inner], codes[inner], fmt), 0.0, 1.0)
    counts, _ = np.histogram(places, bins=POSITION_BINS, range=(0.0, 1.0))
    return Survival(
        weights=int(real.sum()),
        unchanged=int((delta == 0).sum()),
        code_flips=int(flipped.sum()),
        value_changes=int((values != values_new).sum()),
        expected_flips=float(probability.sum()),
        flips_variance=float((probability * (1 - probability)).sum()),
        delta_sq=float(np.square(delta).sum()),
        surviving_sq=float(np.square(surviving).sum()),
        dot=float((surviving * delta).sum()),
        positions=tuple(int(n) for n in counts),
    )
