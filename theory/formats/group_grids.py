"""The affine grids that GPTQ and AWQ round to: three libraries' rules for scale, zero point and rounding.

A value is `scale * (code - zero)`, code in 0 … 2^bits - 1. All rules round half to even. They differ in what a symmetric
range is, in whether the range contains 0, and in whether the zero point is added before or after rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST_RANGE = 1e-5  # AutoAWQ's floor


class GroupGrid(NamedTuple):
    """Scale > 0 and integer zero point of each row, in the dtype of the weights, (rows, 1)."""

    scale: NDArray[Any]
    zero: NDArray[Any]


class GridRule(NamedTuple):
    """How a library fits a group's grid and rounds to it.

    Attributes:
        fit: function (weights (rows, group), bits, symmetric) -> GroupGrid.
        zero_first: code = round(w / scale + zero); else round(w / scale) + zero. They differ at ties.
    """

    fit: Callable[[NDArray[Any], int, bool], GroupGrid]
    zero_first: bool


def fit_gptq(w: NDArray[Any], bits: int, symmetric: bool) -> GroupGrid:
    """Fit scale = (max(w, 0) - min(w, 0)) / (2^b - 1); symmetric: 2 max|w| / (2^b - 1), zero = 2^(b-1).

    A symmetric group without a negative weight keeps `min = 0`, so its scale is max / (2^b - 1) and every weight above
    `(2^(b-1) - 1) / (2^b - 1)` of the maximum, nearly half of it, is clipped. An all-zero group has the range [-1, 1].
    """
    top = 2**bits - 1
    low, high = _range_with_zero(w)
    if symmetric:
        high = np.maximum(-low, high)
        low = np.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, -1, low).astype(w.dtype), np.where(empty, 1, high).astype(w.dtype)
    scale = (high - low) / w.dtype.type(top)
    zero = np.full_like(scale, (top + 1) / 2) if symmetric else np.rint(-low / scale)
    return GroupGrid(scale, zero)


def fit_compressed_tensors(w: NDArray[Any], bits: int, symmetric: bool) -> GroupGrid:
    """Fit scale = max|w| / ((2^b - 1) / 2), zero = 2^(b-1); asymmetric: range with 0 over 2^b - 1.

    A scale of 0 becomes the eps of the dtype, its zero point 2^(b-1).
    """
    top, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = _range_with_zero(w)
    eps = np.finfo(w.dtype).eps
    if symmetric:
        scale = np.maximum(-low, high) / w.dtype.type(top / 2)
        scale = np.where(scale == 0, eps, scale).astype(w.dtype)
        return GroupGrid(scale, np.full_like(scale, half))
    scale = (high - low) / w.dtype.type(top)
    empty = scale == 0
    scale = np.where(empty, eps, scale).astype(w.dtype)
    zero = np.rint(np.clip(-half - low / scale, -half, half - 1)) + half
    return GroupGrid(scale, np.where(empty, half, zero).astype(w.dtype))


def fit_autoawq(w: NDArray[Any], bits: int, symmetric: bool) -> GroupGrid:
    """Fit scale = max(max w - min w, 1e-5) / (2^b - 1), zero = -round(min / scale) clipped to the codes.

    The range need not contain 0: a group far from 0 has its zero point clipped and then saturates.
    Symmetric: scale = max(max|w|, 1e-5) / (2^(b-1) - 1), zero = 2^(b-1).
    """
    top, half = 2**bits - 1, 2 ** (bits - 1)
    floor = w.dtype.type(SMALLEST_RANGE)
    if symmetric:
        absmax = np.maximum(np.abs(w).max(axis=1, keepdims=True), floor)
        scale = absmax / w.dtype.type(half - 1)
        return GroupGrid(scale, np.full_like(scale, half))
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    scale = np.maximum(high - low, floor) / w.dtype.type(top)
    with np.errstate(over="ignore"):  # a narrow group far from 0 has its zero point clipped anyway
        return GroupGrid(scale, np.clip(-np.rint(low / scale), 0, top))


def encode_group(w: NDArray[Any], grid: GroupGrid, bits: int, *, zero_first: bool = False) -> NDArray[Any]:
    """Return codes in 0 … 2^bits - 1, in the dtype of the weights and the shape of `w`.

    Args:
        w: weights, (rows, columns), or any shape that broadcasts with the grid.
        grid: scale and zero point.
        bits: bits of a code.
        zero_first: order of the sum and the rounding, as in `GridRule`.
    """
    with np.errstate(over="ignore"):
        ratio = w / grid.scale
    if zero_first:
        return np.rint(np.clip(ratio + grid.zero, 0, 2**bits - 1))
    return np.clip(np.rint(ratio) + grid.zero, 0, 2**bits - 1)


def decode_group(codes: NDArray[Any], grid: GroupGrid) -> NDArray[Any]:
    """Return `scale * (code - zero)`, in the dtype of the grid."""
    return grid.scale * (codes - grid.zero)


def _range_with_zero(w: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    zero = w.dtype.type(0)
    low = np.minimum(w.min(axis=1, keepdims=True), zero)
    return low, np.maximum(w.max(axis=1, keepdims=True), zero)


GRID_RULES: Mapping[str, GridRule] = {
    "gptq": GridRule(fit_gptq, zero_first=False),
    "compressed-tensors": GridRule(fit_compressed_tensors, zero_first=True),
    "autoawq": GridRule(fit_autoawq, zero_first=False),
}
