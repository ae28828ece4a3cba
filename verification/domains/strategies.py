"""Domains: formats, tensors that are hard to quantize, and updates of them.

Takes the names of formats and kinds, keyword-only; gives a Hypothesis strategy, which says what it shrinks to.

>>> formats(names=["int4-g64"]).validate()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.geometry.cells import cells
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.sampled_updates import sampled_update
from unforgotten.verification.domains.sampled_weights import (
    LARGEST,
    Weights,
    around_thresholds,
    largest,
    on_own_grid,
    sampled,
)

FORMAT_NAMES: tuple[str, ...] = (
    "int4-g8",
    "int2-g8",
    "int3-row",
    "int5-tensor",
    "int6-g8",
    "int7-row",
    "int8-row",
    "int8-tensor",
    "int2-g8-asym",
    "int3-g8-asym",
    "int4-g8-asym",
    "int5-row-asym",
    "int8-tensor-asym",
    "int2-g8-paper",
    "int4-g8-paper",
    "int4-row-paper",
    "int8-tensor-paper",
    "nf4-b8",
    "fp4-b8",
    "nf4-b5",
    "fp4-b16",
    "llmint8-row",
)
LIBRARY_FORMAT_NAMES: tuple[str, ...] = (
    "int4-g8-ct",
    "int2-row-ct",
    "int8-tensor-ct",
    "int4-g8-ct-asym",
    "int3-row-ct-asym",
    "int4-g8-ao",
    "int8-row-ao",
    "int4-g8-ao-asym",
    "int2-row-ao-asym",
    "hqq4-g8",
    "hqq2-g8",
    "hqq8-g16",
    "fp8-row",
    "fp8-tensor",
    "fp8-g8",
    "fp8-b2x4",
    "fp8-cast",
    "mxfp4-b8",
    "mxfp4-b32",
    "mxfp4-b8-ct",
    "nvfp4",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
)
ALL_FORMAT_NAMES = (*FORMAT_NAMES, *LIBRARY_FORMAT_NAMES)
TILED_NAMES = tuple(n for n in ALL_FORMAT_NAMES if cells(format_named(n)).width.min() > 0)
"""Without those whose lowest level only a tie reaches: its cell has no width, and no place in it."""
KINDS: tuple[str, ...] = (
    "plain",
    "bfloat16",
    "float16",
    "subnormal",
    "huge range",
    "ties",
    "all equal",
    "outlier",
    "zero block",
)
SAMPLED_KINDS: tuple[str, ...] = ("normal", "heavy-tailed", "already quantized")
ALL_KINDS = (*KINDS, *SAMPLED_KINDS)
# Where neither a scale nor its reciprocal is subnormal, and no product underflows.
NORMAL_KINDS = ("plain", "bfloat16", "float16", "ties", "all equal", "outlier", "zero block")
SEEDS = st.integers(0, 2**32 - 1)


def formats(*, names: Sequence[str] = ALL_FORMAT_NAMES) -> st.SearchStrategy[Format]:
    """Draw a format, with small blocks. Shrinks to the first name."""
    return st.sampled_from(names).map(format_named)


def bfloat16_values(*, largest_exponent: int = 114) -> st.SearchStrategy[float]:
    """Draw numbers of the bfloat16 lattice, subnormals too. Shrinks to 0."""
    bits = st.integers(0, (largest_exponent + 127) << 7)
    return st.tuples(bits, st.booleans()).map(lambda x: _from_bits(x[0] << 16, negative=x[1]))


def float16_values() -> st.SearchStrategy[float]:
    """Draw numbers of the float16 lattice, subnormals too. Shrinks to 0."""
    return st.floats(-65504, 65504, width=16)


def subnormal_values() -> st.SearchStrategy[float]:
    """Draw float32 subnormals and the first normals. Shrinks to 0."""
    return st.integers(-(2**24), 2**24).map(lambda n: math.ldexp(n, -149))


def plain_values(*, largest: float = 8.0) -> st.SearchStrategy[float]:
    """Draw float32 numbers in [-largest, largest]. Shrinks to 0."""
    return st.floats(-largest, largest, width=32)


def threshold_values(fmt: Format) -> st.SearchStrategy[float]:
    """Draw code units on a threshold, one ulp to either side, or on a level. Shrinks to the lowest threshold."""
    return st.sampled_from(around_thresholds(fmt))


def tensor_shapes(fmt: Format) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw (rows, columns) with whole and partial blocks. Shrinks to one weight."""
    size = fmt.block_size or 6
    columns = st.integers(1, 2).map(lambda n: n * size)
    return st.tuples(st.integers(1, 3), columns if fmt.whole_blocks else st.integers(1, 2 * size + 1))


@st.composite
def tensors(draw: st.DrawFn, fmt: Format, *, kinds: Sequence[str] = ALL_KINDS, whole_blocks: bool = False) -> Weights:
    """Draw a float32 tensor (rows, columns) of one of `kinds`; magnitudes up to `largest`. Shrinks to one 0.

    "ties" lie on and around the thresholds of `fmt` at a step of a power of two; "outlier" has one weight that
    dwarfs the others; "zero block" has rows of zeros. SAMPLED_KINDS are those of `sampled_weights`, by a drawn seed.
    """
    rows, columns = draw(tensor_shapes(fmt))
    if whole_blocks and fmt.block_size:
        columns = -(-columns // fmt.block_size) * fmt.block_size
    kind = draw(st.sampled_from(kinds))
    if kind in SAMPLED_KINDS:
        return sampled(kind, rng_for(kind, fmt.name, draw(SEEDS)), fmt, (rows, columns))
    w = draw(hnp.arrays(np.float32, (rows, columns), elements=_elements(fmt, kind)))
    if kind == "ties":
        exponent = 7 if fmt.storage == "float16" else 60
        return on_own_grid(w, fmt, fmt.block_size or columns) * np.float32(
            2.0 ** draw(st.integers(-exponent, exponent))
        )
    if kind == "all equal":
        w[...] = w[0, 0]
    if kind == "outlier":
        w[0, draw(st.integers(0, columns - 1))] = draw(st.sampled_from([1e4, -1e4, 1e30, -1e30]))
    if kind == "zero block":
        w[draw(st.integers(0, rows - 1))] = 0
    return np.clip(w, -np.float32(largest(fmt)), np.float32(largest(fmt)))


def _elements(fmt: Format, kind: str) -> st.SearchStrategy[float]:
    by_kind = {
        "bfloat16": bfloat16_values(),
        "float16": float16_values(),
        "subnormal": subnormal_values(),
        "huge range": plain_values(largest=LARGEST),
        "ties": threshold_values(fmt),
    }
    return by_kind.get(kind, plain_values())


UPDATES: tuple[str, ...] = ("none", "one size", "relative", "an ulp", "plain", "to zero", "lattice")
SAMPLED_UPDATES: tuple[str, ...] = ("gaussian", "sign", "sparse", "low rank", "dead zone", "washed", "aimed", "setter")
ALL_UPDATES = (*UPDATES, *SAMPLED_UPDATES)


@st.composite
def updated(draw: st.DrawFn, w: Weights, fmt: Format, *, updates: Sequence[str] = ALL_UPDATES) -> Weights:
    """Draw w' for a w: unchanged, moved by one size, relatively, by an ulp, anywhere, to zero, or rounded to bfloat16.

    Or as `sampled_updates` moves it, by a drawn seed. Shrinks to w itself.
    """
    top = largest(fmt)
    kind = draw(st.sampled_from(updates))
    if kind in SAMPLED_UPDATES:
        return sampled_update(kind, rng_for(kind, fmt.name, draw(SEEDS)), fmt, w)
    signs = draw(hnp.arrays(np.float32, w.shape, elements=st.sampled_from([0.0, 1.0, -1.0])))
    size = np.float32(draw(st.floats(2.0**-20, 1, width=32)))
    moved = {
        "none": w,
        "one size": w + signs * size,
        "relative": w * (1 + signs * size),
        "an ulp": np.nextafter(w, w + signs * np.float32(LARGEST)),
        "to zero": np.where(signs != 0, np.float32(0), w),
        "lattice": (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    }
    if kind == "plain":
        moved["plain"] = draw(hnp.arrays(np.float32, w.shape, elements=plain_values()))
    return np.asarray(np.clip(moved[kind], -top, top), np.float32)


class Pair(NamedTuple):
    """A format, weights, and the weights after an update."""

    fmt: Format
    w: Weights
    w_new: Weights


@st.composite
def pairs(draw: st.DrawFn, *, names: Sequence[str] = ALL_FORMAT_NAMES, kinds: Sequence[str] = ALL_KINDS) -> Pair:
    """Draw a format with weights and updated weights. Shrinks to one 0, not updated."""
    fmt = draw(formats(names=names))
    w = draw(tensors(fmt, kinds=kinds))
    return Pair(fmt, w, draw(updated(w, fmt)))


class Sample(NamedTuple):
    """A format and weights."""

    fmt: Format
    w: Weights


def in_normal_range(s: Sample) -> bool:
    """Tell whether all magnitudes are 0 or in [2^-60, 2^125]: no parameter, ratio or value of a format is subnormal."""
    size = np.abs(s.w[s.w != 0])
    return bool((size >= 2.0**-60).all() and (size <= 2.0**125).all())


@st.composite
def samples(
    draw: st.DrawFn,
    *,
    names: Sequence[str] = ALL_FORMAT_NAMES,
    kinds: Sequence[str] = ALL_KINDS,
    whole_blocks: bool = False,
) -> Sample:
    """Draw a format with weights. Shrinks to one 0."""
    fmt = draw(formats(names=names))
    return Sample(fmt, draw(tensors(fmt, kinds=kinds, whole_blocks=whole_blocks)))


def _from_bits(bits: int, *, negative: bool) -> float:
    value = float(np.uint32(bits).view(np.float32))
    return -value if negative else value
