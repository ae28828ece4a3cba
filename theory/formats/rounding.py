"""From a ratio `(w - low) / scale` to a code: the rounding rules of the formats, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.dither import dithers

Array = NDArray[Any]


def _index(number: Array, fmt: Format) -> Array:
    """Return the index of an integer level, clipped to the ends."""
    return (np.clip(number, fmt.levels[0], fmt.levels[-1]) - fmt.levels[0]).astype(np.int16)


def half_even(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to integer levels: a tie goes to the even integer, with or without the zero point in it."""
    return _index(np.rint(ratio + zero) if fmt.zero_first else np.rint(ratio) + zero, fmt)


def half_up(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to integer levels: drop the fraction of `ratio + (1/2 - lowest level)`, a sum rounded to float32."""
    shift = np.float32(0.5 - fmt.levels[0])
    return _index(np.trunc(ratio + zero + shift) + np.float32(fmt.levels[0]), fmt)


def half_away(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to integer levels: a tie goes away from 0."""
    size = np.abs(ratio)
    whole = np.floor(size)
    up = size - whole >= 0.5  # exact: the fraction of a float is a float
    return _index(np.copysign(whole + up, ratio) + zero, fmt)


def half_lower(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to the levels of a table: a tie goes to the lower one."""
    return np.searchsorted(fmt.thresholds, ratio + zero, side="left").astype(np.int16)


def half_even_label(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to the levels of a table: a tie goes to the one whose label is even."""
    lower, upper = (np.searchsorted(fmt.thresholds, ratio + zero, side=s) for s in ("left", "right"))
    return np.where(fmt.even_labels[lower], lower, upper).astype(np.int16)


def dither(ratio: Array, zero: Array, fmt: Format) -> Array:
    """Round to integer levels at random: up where fraction + u >= 1, by an exact comparison; a whole ratio stays.

    `ratio` holds all blocks of a tensor, as the dither of a weight is that of its place among them.
    """
    below = np.floor(ratio)
    up = ratio - below >= 1 - dithers(ratio.shape, fmt.seed)
    return _index(below + up + zero, fmt)


ROUNDINGS: Mapping[str, Callable[[Array, Array, Format], Array]] = {
    "half-even": half_even,
    "half-up": half_up,
    "half-away": half_away,
    "half-lower": half_lower,
    "half-even-label": half_even_label,
    "dither": dither,
}
