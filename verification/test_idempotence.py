"""Idempotence: exact where a requantized block finds its own grid again, with every exception stated."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import decode, encode, fit_grid, quantize, round_trip, to_blocks
from unforgotten.verification.domains.strategies import FORMAT_NAMES, NORMAL_KINDS, Sample, in_normal_range, samples
from unforgotten.verification.oracles import U32

CODEBOOKS = ("nf4-b8", "nf4-b5", "fp4-b8", "fp4-b16")
SYMMETRIC_INTS = tuple(n for n in FORMAT_NAMES if n.startswith("int") and not n.endswith(("asym", "paper")))


@given(samples(names=CODEBOOKS, kinds=NORMAL_KINDS))
def test_round_trip__is_idempotent_for_codebooks(s: Sample) -> None:
    """absmax keeps its code, whose level is +-1: the grid is found again, and a level lies inside its own cell."""
    if in_normal_range(s):
        once = round_trip(s.w, s.fmt)
        assert np.array_equal(round_trip(once, s.fmt), once)


@given(samples(names=("q4_0", "q5_0", "q8_0", "mxfp4-b8"), kinds=NORMAL_KINDS))
def test_round_trip__is_idempotent_where_the_scale_is_a_short_float(s: Sample) -> None:
    """absmax is a small integer times a scale of 11 bits or a power of two, so the same scale is stored again.

    Where float16 holds the scale as a normal number.
    """
    blocks = np.abs(to_blocks(s.w, s.fmt)).max(axis=1)
    if in_normal_range(s) and ((blocks == 0) | (blocks > 127 * 2.0**-13)).all():
        once = round_trip(s.w, s.fmt)
        assert np.array_equal(round_trip(once, s.fmt), once)


def test_fp4__has_codes_that_are_not_idempotent() -> None:
    """The exception: a small positive weight has the zero above 0; its value has the zero below."""
    fmt = format_named("fp4-b8")
    w = np.array([1.0, 2.0**-10], np.float32)
    codes, _ = quantize(w, fmt)
    again, _ = quantize(round_trip(w, fmt), fmt)
    assert [fmt.labels[c] for c in codes] == [3, 8]
    assert [fmt.labels[c] for c in again] == [3, 0]


@given(samples(names=(*SYMMETRIC_INTS, "llmint8-row"), kinds=NORMAL_KINDS))
def test_quantize__has_idempotent_codes_for_symmetric_integers(s: Sample) -> None:
    """absmax has the code +-top, so the scale comes back within 4 roundings: top * 4 u < 1/2 keeps every code."""
    if in_normal_range(s):
        codes, _ = quantize(s.w, s.fmt)
        once = round_trip(s.w, s.fmt)
        again, _ = quantize(once, s.fmt)
        assert np.array_equal(again, codes)
        # the scale's 4 roundings and the value's 3, and one more for their products
        slack = 8 * U32 * np.abs(once.astype(np.float64))
        assert (np.abs(round_trip(once, s.fmt).astype(np.float64) - once) <= slack).all()


def test_paper_rule__shrinks_again_and_again() -> None:
    """The exception: top = 2^(b-1) is clipped, so a block whose largest weight is positive loses a step each time."""
    fmt = format_named("int4-row-paper")
    w = np.array([8.0, 1.0], np.float32)
    once = round_trip(w, fmt)
    assert once.tolist() == [7.0, 1.0]
    assert round_trip(once, fmt).tolist() == [7 * 0.875, 0.875]


def test_asymmetric__is_not_idempotent_where_the_zero_point_ties() -> None:
    """The exception: zero = 2.5 rounds to 2 and 12.5 to 12, so the top code 15 is never used: the range shrinks."""
    fmt = format_named("int4-g8-asym")
    w = np.array([-2.5, 12.5, 0, 1, 3, 7, -1, 4], np.float32)
    codes, _ = quantize(w, fmt)
    assert codes.max() == 14
    once = round_trip(w, fmt)
    assert not np.array_equal(round_trip(once, fmt), once)


@given(samples(names=("int4-g8-asym", "int2-g8-asym", "int8-tensor-asym"), kinds=NORMAL_KINDS))
def test_quantize__has_idempotent_codes_where_both_end_codes_are_used(s: Sample) -> None:
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt)
    codes = encode(blocks, grid, s.fmt)
    used = (codes.min(axis=1) == 0) & (codes.max(axis=1) == len(s.fmt.levels) - 1)
    if in_normal_range(s) and used.any():
        once = decode(codes, grid, s.fmt)[used]
        assert np.array_equal(encode(once, fit_grid(once, s.fmt), s.fmt), codes[used])
