"""Four quantizers that are subtly wrong, each in one line: what the contracts must catch, and the README's example.

All claim to be integers in groups of eight, `int4-g8` or `int4-g8-asym`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.verification.contracts.described import Quantizer, claims_of

Array = NDArray[Any]
SIZE = 8


def _groups(w: Array) -> list[Array]:
    """Return the groups of every row, the last of a row shorter; views, so that a value can be written back."""
    return [row[i : i + SIZE] for row in w for i in range(0, len(row), SIZE)]


def _scale(group: Array) -> np.float32:
    return np.float32(np.abs(group).max() / np.float32(7))


def _ratio(group: Array, scale: np.float32) -> Array:
    return group / scale if scale > 0 else np.zeros_like(group)


def _by_group(values: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def quantize(w: Array) -> Array:
        out = w.copy()
        for group in _groups(out):
            group[:] = values(group)
        return out

    return quantize


def _half_up(group: Array) -> Array:
    scale = _scale(group)
    return np.clip(np.floor(_ratio(group, scale) + np.float32(0.5)), -7, 7) * scale  # np.rint is right


def _clipped(group: Array) -> Array:
    scale = _scale(group)
    return np.clip(np.rint(_ratio(group, scale)), -7, 6) * scale  # 7 is right: 15 levels, not 14


def _zero_code(group: Array) -> Array:
    """Err as a reader of GPTQ checkpoints that takes the stored zero point for the zero point, which is one more."""
    low, high = min(group.min(), np.float32(0)), max(group.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(15))
    zero = min(np.rint(-low / scale), np.float32(15)) if scale > 0 else np.float32(0)
    code = np.clip(np.rint(_ratio(group, scale)) + zero, 0, 15)
    return (code - (zero - 1)) * scale  # code - zero is right


def _stale_scale(w: Array) -> Array:
    out = w.copy()
    scale = None
    for group in _groups(out):
        used = _scale(group) if scale is None else scale
        scale = _scale(group)  # too late: the scale of the group before was used
        group[:] = np.clip(np.rint(_ratio(group, used)), -7, 7) * used
    return out


def _claiming(fmt: str, name: str, quantize: Callable[[Array], Array]) -> Quantizer:
    """Return a quantizer with the claims of a format, but not that it is ours: contracts must say what is wrong."""
    claims: dict[str, Any] = {**claims_of(format_named(fmt)), "format": None}
    return Quantizer(quantize, name, **claims)


half_up = _claiming("int4-g8", "half_up", _by_group(_half_up))
clipped_end_cell = _claiming("int4-g8", "clipped_end_cell", _by_group(_clipped))
wrong_zero_code = _claiming("int4-g8-asym", "wrong_zero_code", _by_group(_zero_code))
stale_scale = _claiming("int4-g8", "stale_scale", _stale_scale)
