"""How near a small model is to the one that it stands in for, in what decides whether bfloat16 swallows its update.

What matters are the magnitudes of weights and blocks against two lines: the edge 2^e of T4, beyond which bfloat16 moves no
weight by steps of `lr`, and the first threshold of a format's grid. Where a block's absmax is so large that its first threshold
lies beyond the edge, no code in it can flip (T11b).

    stand_in_rows(weights, lr=1e-5, formats=["int4-g64"], layers=4, tied=0.2)["int4-g64"]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, erfinv

from unforgotten.experiments.quantizers.registry import ours_of
from unforgotten.records.store import Measurement
from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import to_blocks
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.laws.regimes import swallowing_absmax

MODEL = "none"
"""What the rows of the model itself have as their format."""
ASSUMED_STD, ASSUMED_LAYERS, ASSUMED_ROW = 0.02, 32, 4096
"""Llama-2-7B, as issue and paper take it: weights like N(0, 0.02^2), 32 layers, 4,096 inputs in a row, head not tied."""


@dataclass(frozen=True)
class Sums:
    """What is summed over weights."""

    weights: int
    total: float
    squares: float
    below: int


def stand_in_rows(
    weights: Callable[[], Iterable[NDArray[Any]]], *, lr: float, formats: Sequence[str], layers: int, tied: float
) -> Mapping[str, list[Measurement]]:
    """Return what tells a model from another, by format, and under MODEL what no format changes.

    weight_std; bf16_edge, 2^e for steps of `lr`; below_edge, the share of weights that such a step can move; layers; tied_share.
    Of a format whose scale is proportional to the block's absmax: block_absmax, that of the median block;
    edge_over_threshold, the edge over the first threshold of that block; and swallowing_blocks, the share of blocks whose first
    threshold lies beyond the edge.

    Args:
        weights: function that yields the matrices that quantizers touch, one after the other, each time it is called.
        lr: learning rate of the bfloat16 arm.
        formats: names of formats; one of another kind has no rows.
        layers: number of layers of the model.
        tied: share of its weights that stand in an embedding which is the output head, too.
    """
    edge = math.ldexp(1.0, frozen_exponent(lr, "bfloat16"))
    s = _sums(weights(), edge)
    mean = s.total / s.weights
    rows = {
        MODEL: [
            Measurement("weight_std", math.sqrt(max(0.0, s.squares / s.weights - mean * mean)), None, s.weights),
            Measurement("bf16_edge", edge, None, None),
            Measurement("below_edge", s.below / s.weights, None, s.weights),
            Measurement("layers", float(layers), None, None),
            Measurement("tied_share", tied, None, None),
        ]
    }
    for name in formats:
        fmt = _absmax_format(name)
        if fmt is not None:
            needed = swallowing_absmax(fmt, edge)
            absmax = np.concatenate([np.abs(to_blocks(w, fmt)).max(-1).ravel() for w in weights()]).astype(np.float64)
            rows[name] = _of_blocks(absmax[absmax > 0], needed)
    return rows


def assumed_rows(*, lr: float, formats: Sequence[str]) -> Mapping[str, list[Measurement]]:
    """Return the same of Llama-2-7B, as it is assumed to be: weights N(0, ASSUMED_STD^2); the median block by its exact law.

    Shares of blocks are exact too: P[absmax >= a] = 1 - erf(a / (s sqrt 2))^B for a block of B weights.
    """
    edge = math.ldexp(1.0, frozen_exponent(lr, "bfloat16"))
    unit = ASSUMED_STD * math.sqrt(2.0)
    rows = {
        MODEL: [
            Measurement("weight_std", ASSUMED_STD, None, None),
            Measurement("bf16_edge", edge, None, None),
            Measurement("below_edge", float(erf(edge / unit)), None, None),
            Measurement("layers", float(ASSUMED_LAYERS), None, None),
            Measurement("tied_share", 0.0, None, None),
        ]
    }
    for name in formats:
        fmt = _absmax_format(name)
        if fmt is None or fmt.block == "tensor":
            continue
        size, needed = fmt.block_size or ASSUMED_ROW, swallowing_absmax(fmt, edge)
        median = unit * float(erfinv(0.5 ** (1 / size)))
        beyond = 0.0 - math.expm1(size * math.log(float(erf(needed / unit))))
        rows[name] = [
            Measurement("block_absmax", median, None, None),
            Measurement("edge_over_threshold", needed / median, None, None),
            Measurement("swallowing_blocks", beyond, None, None),
        ]
    return rows


def _sums(weights: Iterable[NDArray[Any]], edge: float) -> Sums:
    count, total, squares, below = 0, 0.0, 0.0, 0
    for matrix in weights:
        w = np.asarray(matrix, np.float64)
        count += w.size
        total += float(w.sum())
        squares += float((w * w).sum())
        below += int((np.abs(w) < edge).sum())
    return Sums(count, total, squares, below)


def _absmax_format(name: str) -> Format | None:
    """Return our format of a name, if its scale is proportional to the block's absmax."""
    own = ours_of(name)
    if own is None:
        return None
    fmt = format_named(own)
    try:
        swallowing_absmax(fmt, 1.0)
    except ValueError:
        return None
    return fmt


def _of_blocks(absmax: NDArray[Any], needed: float) -> list[Measurement]:
    if not absmax.size:
        return []
    median = float(np.median(absmax))
    return [
        Measurement("block_absmax", median, None, int(absmax.size)),
        Measurement("edge_over_threshold", needed / median, None, int(absmax.size)),
        Measurement("swallowing_blocks", float((absmax >= needed).mean()), None, int(absmax.size)),
    ]
