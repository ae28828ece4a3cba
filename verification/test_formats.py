from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from scipy.special import ndtri

from unforgotten.theory.formats.codebooks import FP4_ORDER, FP4_TWELFTHS, NF4_LEVELS, small_float
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES
from unforgotten.verification.oracles import U32, float32, midpoints

ALL_NAMES = tuple(
    dict.fromkeys(
        [
            *ALL_FORMAT_NAMES,
            *(
                f"int{b}-{block}{rule}"
                for b in range(2, 9)
                for block in ("tensor", "row", "g128")
                for rule in ("", "-asym", "-paper", "-ct", "-ct-asym", "-ao", "-ao-asym")
            ),
            *(f"hqq{b}-g64{rule}" for b in range(2, 9) for rule in ("", "-opt")),
            "q3_k",
            "q4_k",
            "q5_k",
            "q6_k",
            "nf4-b64",
            "fp4-b64",
            "nf4-b64-dq",
            "fp4-b64-dq",
            "fp8-b128x128",
        ]
    )
)
SYMMETRIC = [
    n
    for n in ALL_NAMES
    if n.startswith(("int", "fp", "mxfp4", "nvfp4", "llm", "q8_0"))
    and not n.endswith(("asym", "paper"))
    and not (n.startswith("int") and n.endswith(("ct", "ao")))
]
NOT_FORMATS = (
    "",
    "int4",
    "int1-row",
    "int9-row",
    "int4-g0",
    "int4-g-1",
    "int4-row-rtn",
    "nf4",
    "nf4-b0",
    "fp4-g64",
    "fp8",
    "fp8-b16",
    "mxfp4",
    "mxfp4-g32",
    "nvfp4-b16",
    "hqq4",
    "hqq4-row",
    "q4_2",
    "Q4_0",
    "q4_0-b32",
    "int4-g8-ao-ct",
    "llmint8",
    "llmint8-tensor",
    "int4-row ",
    "INT4-row",
    "int4-g064",
    "int4-row\n",
)


@pytest.fixture(params=ALL_NAMES)
def fmt(request: pytest.FixtureRequest) -> Format:
    return format_named(request.param)


def test_format_named__keeps_the_name_and_repeats(fmt: Format) -> None:
    assert format_named(fmt.name) == fmt


@pytest.mark.parametrize("name", NOT_FORMATS)
def test_format_named__refuses_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="format must be one of"):
        format_named(name)


def test_of_tensor__is_said_of_formats_whose_rows_hang_on_each_other(fmt: Format) -> None:
    """A row of ones beside rows of larger weights has the codes and values that it has alone, or the format says so."""
    w = np.ones((3, 256), np.float32)
    w[1:] = 37.5 * np.linspace(-1, 1, 512).reshape(2, 256)
    alone = round_trip(w[:1], fmt)
    if not np.array_equal(round_trip(w, fmt)[:1], alone):
        assert fmt.of_tensor or fmt.statistic == "hqq-proximal" or fmt.block == "flat"


@pytest.mark.parametrize("name", ["nf4-b64-dq", "fp8-b128x128", "int8-tensor", "nvfp4"])
def test_of_tensor__is_needed(name: str) -> None:
    w = np.ones((3, 256), np.float32)
    w[1:] = 37.5 * np.linspace(-1, 1, 512).reshape(2, 256)
    assert format_named(name).of_tensor
    assert not np.array_equal(round_trip(w, format_named(name))[:1], round_trip(w[:1], format_named(name)))


def test_levels__ascend_and_fit_their_bits(fmt: Format) -> None:
    steps = np.diff(fmt.levels)
    assert (steps >= 0).all()
    assert (steps == 0).sum() == (1 if fmt.name.startswith("fp4") else 0)  # +0 and -0
    unused = 3 if fmt.name.startswith("fp8") else 1  # a second zero; of FP8, the two nan
    assert 2**fmt.bits - unused <= len(fmt.levels) <= 2**fmt.bits


def test_levels__are_float32_numbers(fmt: Format) -> None:
    assert [float(np.float32(x)) for x in fmt.levels] == list(fmt.levels)


def test_labels__are_distinct_and_fit_their_bits(fmt: Format) -> None:
    assert len(set(fmt.labels)) == len(fmt.labels) == len(fmt.levels)
    assert max(fmt.labels) - min(fmt.labels) < 2**fmt.bits


@pytest.mark.parametrize("name", SYMMETRIC)
def test_levels__mirror_in_symmetric_formats(name: str) -> None:
    levels = format_named(name).levels
    assert levels == tuple(-x for x in reversed(levels))


def test_zero_point__is_that_of_asymmetric_integers(fmt: Format) -> None:
    assert fmt.zero_point == fmt.name.endswith("asym")


def test_thresholds__are_the_rounded_midpoints(fmt: Format) -> None:
    assert [Fraction(float(t)) for t in fmt.thresholds] == midpoints(fmt)
    assert fmt.thresholds.dtype == np.float32


def test_thresholds__separate_the_levels(fmt: Format) -> None:
    levels = np.asarray(fmt.levels, np.float32)
    assert (levels[:-1] <= fmt.thresholds).all()
    assert (fmt.thresholds <= levels[1:]).all()
    assert (np.diff(fmt.thresholds) > 0).all()


def test_reach__holds_every_level_but_an_unused_one(fmt: Format) -> None:
    """The half-step grids put absmax at 7.5 of -8 … 7: their lowest level is reached by a tie alone."""
    low, high = fmt.reach
    assert low <= fmt.levels[0] or fmt.thresholds[0] == low
    assert fmt.levels[-1] <= high


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers__have_the_stated_ends(bits: int) -> None:
    top = 2 ** (bits - 1)
    ends = {"": (1 - top, top - 1), "-asym": (0, 2 * top - 1), "-paper": (-top, top - 1)}
    for rule, (low, high) in ends.items():
        fmt = format_named(f"int{bits}-row{rule}")
        assert fmt.levels == tuple(range(low, high + 1)) == fmt.labels


def test_fp4__is_a_table_of_twelfths() -> None:
    fmt = format_named("fp4-b64")
    table = [*FP4_TWELFTHS, *(-x for x in FP4_TWELFTHS)]
    assert [Fraction(x) for x in fmt.levels] == [float32(Fraction(table[code]) / 12) for code in FP4_ORDER]
    assert sorted(FP4_ORDER) == list(range(16))


def test_nf4__is_the_quantiles_of_qlora() -> None:
    """arXiv 2305.14314 §3: quantiles of a normal, 8 + 7 of them and 0, divided by the largest."""
    offset = 0.9677083
    upper, lower = np.linspace(offset, 0.5, 9)[:-1], np.linspace(offset, 0.5, 8)[:-1]
    levels = np.sort(np.concatenate([ndtri(upper), [0.0], -ndtri(lower)]))
    # The published table was made in float32: a quantile (2 u), the quotient (u) and the probability (u) whose error
    # the slope of ndtri / ndtri(offset) magnifies: at most sqrt(2 pi) exp(x^2 / 2) / x_max per unit, x <= x_max.
    largest = float(ndtri(offset))
    slope = np.sqrt(2 * np.pi) * np.exp(largest**2 / 2) / largest
    slack = U32 * (3 + slope)
    assert np.abs(levels / largest - np.array(NF4_LEVELS)).max() <= slack


SMALL_FLOATS = {"mxfp4-b32": ("float4_e2m1fn", 8), "fp8-row": ("float8_e4m3fn", 128)}


@pytest.mark.parametrize("name", SMALL_FLOATS)
def test_small_floats__are_those_of_ml_dtypes(name: str) -> None:
    """Labels are the bits. The negative zero is left out, and of E4M3 the two nan."""
    dtype, sign_bit = SMALL_FLOATS[name]
    bits = np.array([k for k in range(2 * sign_bit) if k != sign_bit], np.uint8)
    values = bits.view(getattr(ml_dtypes, dtype)).astype(np.float64)
    table = dict(zip(bits.tolist(), values.tolist(), strict=True))
    fmt = format_named(name)
    expected = {k: v for k, v in table.items() if np.isfinite(v)}
    assert dict(zip(fmt.labels, fmt.levels, strict=True)) == expected


def test_small_float__counts_subnormals_and_normals() -> None:
    assert small_float(2, 1, 1, 6.0) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize("name", ["mxfp4-b32", "nvfp4", "fp8-row"])
def test_floats_with_a_sign_bit__count_both_zeros_as_one_code(name: str) -> None:
    """Stored, a small negative weight is minus zero: its sign is no part of the code. FP4 of bitsandbytes counts two."""
    fmt = format_named(name)
    w = np.full((1, 32), 1.0, np.float32)
    w[0, 1:3] = 1e-6, -1e-6
    codes, _ = quantize(w, fmt)
    assert codes[0, 1] == codes[0, 2]
    assert np.signbit(w[0, 1]) != np.signbit(w[0, 2])
    assert fmt.levels.count(0.0) == 1
    assert format_named("fp4-b64").levels.count(0.0) == 2
