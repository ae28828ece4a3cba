"""T2: a changed block moves its own grid. How far, when no code can change for it, and what then is left of the update.

Takes sizes of updates, or a tensor before and after, and a format; gives bounds of how far a scale moves, and which
codes are certain to stay.

>>> from unforgotten.theory.formats.names import format_named
>>> w = np.array([[7, -2, 0.4, 0]], np.float32)
>>> certified_codes(w, w + np.float32(0.01), format_named("int4-row")).tolist()
[[True, True, True, True]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import fit_grid, to_blocks

U32, ETA32, U64 = 2.0**-24, 2.0**-149, 2.0**-53
RATIO_ROUNDINGS = 4  # float32, of w / scale: 1 where a kernel divides, 3 where it multiplies; one to spare
VALUE_ROUNDINGS = 4  # float32, of a value: the scale, the product, and `unit` on LLM.int8; one to spare
NORMAL_SCALE = (2.0**-115, 2.0**115)  # no scale, reciprocal or product of these leaves the normal range


def drift_factor(fmt: Format) -> int:
    """Return how many ends of its block a format's statistic has: 1 for absmax, 2 for a range.

    Raises:
        ValueError: the scale is not the statistic / c in float32: a power of two, a stored float16 or a search jumps.
    """
    factors = {"absmax": 1, "range": 2}
    linear = fmt.scale_rule == "quotient" and fmt.storage == "float32"
    if fmt.statistic not in factors or not linear:
        raise ValueError(f"format must scale by absmax or range / c, got format={fmt.name!r}")
    return factors[fmt.statistic]


@claim("T2", kind="exact", source="| max|w'| - max|w| | <= max|delta|")
def scale_drift_upper_bound(delta_max: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """|s' - s| <= max|delta| / c for s = max|w| / c, and 2 max|delta| / c for s = (max(w, 0) - min(w, 0)) / c.

    In real arithmetic; the stored float32 scales add u (s + s'), u = 2^-24, where a kernel divides. Attained by moving
    the largest weight outward; for a range, both ends.

    Args:
        delta_max: max|delta| of each block, >= 0, any shape.
        fmt: the format; c is its divisor, or 1 where it stores the statistic itself ("multiply").

    Returns:
        Bounds, same shape, rounded up.

    Raises:
        ValueError: a size is negative or nan, or the format is as `drift_factor` refuses it.
    """
    size = _sizes(delta_max)
    divisor = 1.0 if fmt.arithmetic == "multiply" else fmt.divisor
    return np.asarray(np.nextafter(drift_factor(fmt) * size / divisor, np.inf))


@claim("T2", kind="exact", source="v' - v = (delta + (w / s)(s - s')) / s'")
def keeps_code(
    w: NDArray[Any],
    delta: NDArray[Any],
    scales: tuple[NDArray[Any], NDArray[Any]],
    thresholds: NDArray[Any],
    *,
    relative_error: float = 0.0,
) -> NDArray[Any]:
    """Code i cannot change while |delta_i| + |w_i / s| |s' - s| < s' dist(w_i / s, thresholds): True there.

    Fixed grid: s' = s, and it is the distance to the nearest threshold. The zero point, if any, stays the same.
    Clipped weights are covered: the end cells have one threshold. In a kernel that computes w / s with a relative
    error, that error times |w / s| and of w' / s' is added on the left.

    Args:
        w: weights, float64, (n_blocks, block).
        delta: updates, exact, same shape.
        scales: s and s' > 0 in the units of the thresholds, (n_blocks, 1) each.
        thresholds: thresholds of the format, ascending, in units of w / s, (K - 1,), K >= 2.
        relative_error: relative error of the kernel's w / s, >= 0.

    Returns:
        bool, the shape of w; rounded to the safe side.

    Raises:
        ValueError: a scale is not positive, or there is no threshold.
    """
    s, s_new = (np.asarray(x, np.float64) for x in scales)
    if not ((s > 0).all() and (s_new > 0).all()):
        raise ValueError("scales must be positive, got one that is not")
    t = np.asarray(thresholds, np.float64)
    if t.size == 0:
        raise ValueError(f"thresholds must hold at least one, got shape={t.shape}")
    v = np.asarray(w, np.float64) / s
    after = np.clip(np.searchsorted(t, v), 1, t.size - 1) if t.size > 1 else np.zeros(v.shape, int)
    distance = np.minimum(np.abs(v - t[after]), np.abs(v - t[np.maximum(after - 1, 0)]))
    moved = (np.abs(delta) + np.abs(v) * np.abs(s_new - s)) / s_new
    # 6 roundings of `moved`, one each of v and of the distance; none is larger than these sizes
    slack = (relative_error + 8 * U64) * (np.abs(v) + moved + distance) + ETA32
    return np.asarray(moved + slack < distance)


def certified_codes(w: NDArray[Any], w_new: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Mark the codes of a real, re-quantized tensor that T2 certifies: True means equal codes, in the kernel's float32.

    Both grids are fitted as `quantize` does. A block is left uncertified where its zero point changes, or where a
    scale is 0 or so extreme that float32 loses precision.

    Args:
        w: the weights before, any shape and float dtype; rounded to float32 first, as the kernels do.
        w_new: the weights after, same shape.
        fmt: the format.

    Returns:
        bool (n_blocks, block), as `to_blocks` lays the weights out.

    Raises:
        ValueError: the shapes differ, a weight cannot be quantized, or w / scale is not what the format rounds.
    """
    shifted = fmt.zero in ("float", "minimum") or (fmt.zero_point and fmt.zero_first)
    if shifted or fmt.storage != "float32":
        raise ValueError(f"format must round w / scale in float32, got format={fmt.name!r}")
    if w.shape != w_new.shape:
        raise ValueError(f"both tensors must have one shape, got {w.shape} and {w_new.shape}")
    before, after = to_blocks(w, fmt), to_blocks(w_new, fmt)
    count = w.size if fmt.block == "flat" else None
    grids = [fit_grid(x, fmt, count=count) for x in (before, after)]
    steps = [_step(g.scale, fmt) for g in grids]
    low, high = NORMAL_SCALE
    sane = (grids[0].zero == grids[1].zero) & np.logical_and.reduce([(low <= s) & (s <= high) for s in steps])
    exact = before.astype(np.float64)
    kept = keeps_code(
        exact,
        after.astype(np.float64) - exact,
        (np.where(sane, steps[0], 1.0), np.where(sane, steps[1], 1.0)),
        # the ratio is rounded before the zero point is added: thresholds of the ratio, half-integers then
        fmt.thresholds.astype(np.float64) if not fmt.zero_point else _ratio_thresholds(fmt),
        relative_error=RATIO_ROUNDINGS * U32,
    )
    return np.asarray(kept & sane)


@claim("T2", kind="exact", source="D = (l - z)(s' - s) for an equal code and an equal zero point")
def unflipped_update_upper_bound(delta_max: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """|D_i| <= k max|delta| if code i and the zero point are equal before and after; k = 1 for absmax, 2 for a range.

    D_i = (l_i - z)(s' - s) and |l_i - z| <= c; levels that pass c raise k (16/15 for compressed-tensors' int4). A
    block without a flip loses most of an update but is not still: an
    adaptive scale moves all its levels, the end ones by as much as max|delta|. The one factor for all formats is
    false for ranges, and for a zero point that changes even the block's codes being equal says nothing: with
    w = (-1, 1) they are 0 and 15 whatever the zero point, and a value jumps by a whole step. On a fixed grid D_i = 0.

    Args:
        delta_max: max|delta| of each block, >= 0, any shape.
        fmt: the format.

    Returns:
        Bounds in real arithmetic, same shape, rounded up; for values in float32 add `value_rounding_upper_bound`.

    Raises:
        ValueError: a size is negative or nan, or the format is as `drift_factor` refuses it.
    """
    size = _sizes(delta_max)
    bound = drift_factor(fmt) * (_largest_level(fmt) / fmt.divisor) * size
    return np.asarray(np.nextafter(bound * (1 + 4 * U64), np.inf))


def value_rounding_upper_bound(largest_value: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Return float32's part of |Q(w') - Q(w)|: 4 u (|Q(w)| + |Q(w')|), and (4 + max|l - z|) smallest subnormals.

    A subnormal scale is off by half a spacing, before and after, and the level multiplies that.

    Args:
        largest_value: |Q(w)| + |Q(w')|, or a bound of it, any shape.
        fmt: the format.
    """
    size = U32 * np.asarray(largest_value, np.float64)
    return np.asarray(VALUE_ROUNDINGS * (size + ETA32) + _largest_level(fmt) * ETA32)


def _largest_level(fmt: Format) -> float:
    """Return max|l - z| in code units, over the zero points too."""
    low, high = fmt.levels[0], fmt.levels[-1]
    return high - low if fmt.zero_point else max(-low, high)


def _step(scale: NDArray[Any], fmt: Format) -> NDArray[Any]:
    wide = scale.astype(np.float64)
    if fmt.arithmetic != "multiply":
        return wide
    return np.maximum(wide, np.float64(np.float32(fmt.floor))) / fmt.divisor


def _ratio_thresholds(fmt: Format) -> NDArray[Any]:
    """Return the half-integers between all codes that any zero point can put at the ends."""
    span = fmt.levels[-1] - fmt.levels[0]
    return np.arange(-span, span, dtype=np.float64) + 0.5


def _sizes(delta_max: NDArray[Any]) -> NDArray[Any]:
    size = np.asarray(delta_max, np.float64)
    if not (size >= 0).all():
        raise ValueError(f"delta_max must be non-negative, got delta_max={delta_max!r}")
    return size
