"""Weights of a piece as the kernels read them, in memory that a thread uses again and again."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel import bits as kernel_bits
from unforgotten.audit.kernel import scalar
from unforgotten.audit.kernel.rules import Extremes

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LEAST_BUFFER = 1 << 23  # from 4 MiB on numpy asks for huge pages
_OWN = threading.local()


def own_memory(key: Hashable, nbytes: int, least: int = LEAST_BUFFER) -> NDArray[np.uint8]:
    """Return memory of this thread for a use, zeros at first; later calls get the same memory if it is large enough."""
    kept: dict[Hashable, NDArray[np.uint8]] = _OWN.__dict__.setdefault("buffers", {})
    if key not in kept or kept[key].size < nbytes:
        kept[key] = np.zeros(max(nbytes, least), np.uint8)
    return kept[key]


class Weights:
    """Weights as the kernels read them: bfloat16 as its bits, in uint16, everything else as float32."""

    def __init__(self, raw: Array, *, bits: bool = True) -> None:
        as_bits = bits and raw.dtype.name == "bfloat16"
        self.stored: Array = raw.view(np.uint16) if as_bits else as_float32(raw)

    @cached_property
    def float32(self) -> Array:
        """The weights as float32 numbers."""
        return as_float32(self.stored.view(BFLOAT16)) if self.stored.itemsize == 2 else self.stored

    @property
    def largest(self) -> np.float32:
        """The largest magnitude of the weights; nan or inf if a weight is."""
        return np.float32(kernel_bits.magnitudes_of(self.stored, np.array([self.stored.size]))[0])


def as_float32(raw: Array) -> Array:
    """Return any stored float as float32; bfloat16 by a shift of its bits."""
    if raw.dtype.name == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling nan warns before it is found
        return np.ascontiguousarray(raw, np.float32)


def extremes(weights: Weights, at: slice, ends: Array, statistics: AbstractSet[str]) -> Extremes:
    """Return the extremes of each block: magnitudes for absmax formats, signed extremes otherwise.

    Where the statistics see magnitudes only, the extremes are those of the magnitudes; which comes first is found only
    for signed ones.

    Args:
        weights: weights of a piece.
        at: slice of the weights to look at.
        ends: ends of the blocks, counted from the start of the slice.
        statistics: statistics of the formats.
    """
    low_first = np.zeros(len(ends), bool)
    if statistics <= {"absmax", "none"}:
        high = kernel_bits.magnitudes_of(weights.stored[at], ends)
        return Extremes(-high, high, low_first)
    low, high = kernel_bits.extremes_of(weights.stored[at], ends)
    if "signed-absmax" in statistics:
        scalar.find_first(weights.float32[at], ends, low, high, low_first)
    return Extremes(low, high, low_first)
