"""Updates of weights by the kind of training that they imitate, drawn in batches: every row has a size of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import Grid, code_units, encode, fit_grid
from unforgotten.verification.domains.sampled_weights import Weights, largest, to_bfloat16

Update = Callable[[np.random.Generator, Format, Weights], NDArray[Any]]
JUST_ACROSS = 2.0**-8  # of the distance to a threshold


def sampled_update(kind: str, rng: np.random.Generator, fmt: Format, w: Weights) -> Weights:
    """Draw w' = w + delta, float32, for a delta of one of `UPDATES`; magnitudes up to `largest`."""
    top = np.float32(largest(fmt))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = UPDATES[kind](rng, fmt, w)
    return np.asarray(np.clip(np.where(np.isfinite(moved), moved, w), -top, top), np.float32)


def size_of(rng: np.random.Generator, w: Weights) -> NDArray[Any]:
    """Draw a size for each row, (rows, 1): from 2^-16 to 2 times its largest weight, or times 1 for a row of zeros."""
    absmax = np.abs(w).max(axis=1, keepdims=True).astype(np.float64)
    return np.asarray(np.where(absmax > 0, absmax, 1) * 2.0 ** rng.uniform(-16, 1, absmax.shape))


def gaussian(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw independent Gaussian changes."""
    return w + size_of(rng, w) * rng.standard_normal(w.shape)


def sign(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw one size with random signs: a step of Adam from rest, or of a sign method."""
    return w + size_of(rng, w) * rng.choice([-1.0, 1.0], w.shape)


def sparse(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw Gaussian changes of one weight in eight: what a saliency mask leaves."""
    return np.where(rng.random(w.shape) < 0.125, gaussian(rng, fmt, w), w)


def low_rank(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw B A of rank 2 over all rows, as LoRA's."""
    b = size_of(rng, w) * rng.standard_normal((len(w), 2))
    return w + b @ rng.standard_normal((2, w.shape[1]))


def dead_zone(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw signs of one size, but only as far as storage in bfloat16 lets them: large weights stay."""
    stored = to_bfloat16(w)
    moved = to_bfloat16((stored + size_of(rng, w) * rng.choice([-1.0, 1.0], w.shape)).astype(np.float32))
    return w + (moved.astype(np.float64) - stored)


def washed(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Draw Gaussian changes of those weights that keep their code on the fixed grid: the others stay."""
    grid = fit_grid(w, fmt)
    moved = _bounded(gaussian(rng, fmt, w), fmt)
    return np.where(encode(moved, grid, fmt) == encode(w, grid, fmt), moved, w)


def aimed(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Move weights just across the nearest threshold of the fixed grid."""
    grid = fit_grid(w, fmt)
    v = code_units(w, grid, fmt).astype(np.float64)
    t = fmt.thresholds.astype(np.float64)
    after = np.clip(np.searchsorted(t, v), 0, len(t) - 1)
    before = np.maximum(after - 1, 0)
    target = np.where(np.abs(t[before] - v) < np.abs(t[after] - v), t[before], t[after])
    return w + (target - v) * (1 + JUST_ACROSS) * weight_of_unit(grid, fmt)


def weight_of_unit(grid: Grid, fmt: Format) -> NDArray[Any]:
    """Return the change of a weight that moves it by one code unit, (n_blocks, 1)."""
    scale = (grid.encoder or grid).scale.astype(np.float64)
    if fmt.arithmetic == "inverse":
        return np.asarray(1 / scale)
    return np.asarray(scale / fmt.divisor if fmt.arithmetic == "multiply" else scale)


def setter(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Move the largest weight of each row alone, by up to half of it: the grid moves under the others."""
    at = np.arange(len(w)), np.abs(w).argmax(axis=1)
    moved = w.astype(np.float64)
    moved[at] *= 1 + rng.uniform(-0.5, 0.5, len(w))
    return moved


def an_ulp(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Move weights to a neighbour in float32, or not at all."""
    direction = rng.choice(np.array([-1, 0, 1], np.float32), w.shape) * np.float32(np.inf)
    return np.where(np.isnan(direction), w, np.nextafter(w, np.nan_to_num(direction, nan=0)))


def to_zero(rng: np.random.Generator, fmt: Format, w: Weights) -> NDArray[Any]:
    """Prune: half of the weights become 0."""
    return np.where(rng.random(w.shape) < 0.5, np.float32(0), w)


UPDATES: Mapping[str, Update] = {
    "gaussian": gaussian,
    "sign": sign,
    "sparse": sparse,
    "low rank": low_rank,
    "dead zone": dead_zone,
    "washed": washed,
    "aimed": aimed,
    "setter": setter,
    "an ulp": an_ulp,
    "to zero": to_zero,
}


def _bounded(w: NDArray[Any], fmt: Format) -> Weights:
    return np.asarray(np.clip(w, -largest(fmt), largest(fmt)), np.float32)


def mixed_updates(rng: np.random.Generator, fmt: Format, w: Weights) -> Weights:
    """Move each row by a kind of its own."""
    kind = rng.integers(0, len(UPDATES), len(w))
    moved = w.copy()
    for i, name in enumerate(UPDATES):
        chosen = kind == i
        if chosen.any():
            moved[chosen] = sampled_update(name, rng, fmt, w[chosen])
    return moved
