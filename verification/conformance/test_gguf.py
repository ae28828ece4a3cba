"""Codes, stored parameters and values of gguf 0.19.0, bit for bit, where its kernels are defined.

Not where `1 / scale` overflows float32 (a block of subnormals): there the library casts nan and inf to uint8, which C
leaves undefined, and `theory` gives every weight the code of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors

quants = pytest.importorskip("gguf.quants", reason="the library that Q4_0 … Q8_0 come from")
constants = pytest.importorskip("gguf", reason="as above")

NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
HEADER = {"q4_0": 2, "q5_0": 2, "q4_1": 4, "q5_1": 4, "q8_0": 2}  # bytes of scale and minimum
SMALLEST_SCALE = 2.0**-127  # below it the reciprocal of a scale may overflow


def packed(w: NDArray[Any], name: str) -> NDArray[Any]:
    """Bytes of every block, (n_blocks, bytes)."""
    kind = constants.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        data = quants.quantize(w, kind)
    return np.asarray(data).reshape(w.size // 32, -1)


def library_values(w: NDArray[Any], name: str) -> NDArray[Any]:
    kind = constants.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(quants.quantize(w, kind), kind))


def library_labels(w: NDArray[Any], name: str) -> NDArray[Any]:
    """Codes read from the bytes: low nibbles, high nibbles, and a word of fifth bits before them; or int8."""
    body = packed(w, name)[:, HEADER[name] :]
    if name == "q8_0":
        return body.view(np.int8).astype(int)
    nibbles = body[:, -16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(int)
    if name.startswith("q5"):
        codes |= np.unpackbits(body[:, :4].copy(), axis=1, bitorder="little").astype(int) << 4
    return codes


def assert_same(w: NDArray[Any], name: str) -> None:
    fmt = format_named(name)
    codes, grid = quantize(w, fmt)
    stored = [grid.scale] if grid.low is None else [grid.scale, grid.low]
    header = np.concatenate([x.astype(np.float16) for x in stored], axis=1).view(np.uint8)
    assert np.array_equal(packed(w, name)[:, : HEADER[name]], header)
    assert np.array_equal(library_labels(w, name), np.asarray(fmt.labels)[codes.reshape(-1, 32)])
    assert np.array_equal(library_values(w, name).view(np.uint32), round_trip(w, fmt).view(np.uint32))


@pytest.mark.parametrize("size", [1e-6, 0.02, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_quantize__is_gguf_on_weights_outliers_and_zero_blocks(name: str, size: float) -> None:
    rng = rng_for(name, size)
    w = (size * rng.normal(size=(12, 256))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=256).astype(np.float32)
    w[2] = 0
    w[3, :32] = 0
    w[4] = np.abs(w[4])
    w[5] = -np.abs(w[5]) - size
    w[6] = size
    w[7, ::32] = 40 * size
    assert_same(w, name)


def ties(name: str) -> Iterator[NDArray[Any]]:
    """Blocks of step 1 whose weights are half-integers, and one and two ulps to either side."""
    rng = rng_for(name, "ties")
    fmt = format_named(name)
    span = len(fmt.levels) - 1
    for _ in range(200):
        top = int(abs(fmt.divisor))
        low = -int(rng.integers(0, span + 1)) if fmt.statistic == "min-max" else -top
        ends = low, low + span if fmt.statistic == "min-max" else top
        w = rng.integers(2 * ends[0], 2 * ends[1] + 1, 32).astype(np.float32) / 2
        for _ in range(2):
            towards = rng.choice([-np.inf, 0, np.inf], 32).astype(np.float32)
            w = np.where(towards == 0, w, np.nextafter(w, towards)).astype(np.float32)
        w = np.clip(w, np.float32(ends[0]), np.float32(ends[1]))
        order = rng.permutation(2)
        w[0], w[1] = np.array(ends, np.float32)[order]
        yield w * np.float32(2.0 ** int(rng.integers(-12, 9)))


@pytest.mark.parametrize("name", NAMES)
def test_quantize__is_gguf_at_ties(name: str) -> None:
    assert_same(np.stack(list(ties(name))), name)


@pytest.mark.parametrize("name", NAMES)
def test_quantize__is_gguf_on_exhaustive_halves(name: str) -> None:
    """Every float16 number in [-1, 1], in blocks that also hold both ends."""
    halves = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    inner = np.concatenate([halves, -halves])
    inner = np.pad(inner, (0, -len(inner) % 30)).reshape(-1, 30)
    ends = np.tile(np.array([[-1, 1]], np.float32), (len(inner), 1))
    assert_same(np.concatenate([ends, inner], axis=1), name)


@given(st.data(), st.sampled_from(NAMES))
def test_quantize__is_gguf_on_hard_blocks(data: st.DataObject, name: str) -> None:
    """Subnormals too, as long as the reciprocal of the scale is finite or the scale is 0."""
    fmt = format_named(name)
    w = data.draw(tensors(fmt))
    grid = quantize(w, fmt)[1].encoder
    assert grid is not None
    scale = np.abs(grid.scale)
    assume(((scale == 0) | (scale > SMALLEST_SCALE)).all())
    assert_same(w, name)


@pytest.mark.parametrize("name", NAMES)
def test_quantize__is_gguf_where_the_stored_scale_is_subnormal_or_0(name: str) -> None:
    rng = rng_for(name, "small")
    exponents = np.arange(-40, -13, dtype=np.float32)[:, None]
    w = rng.normal(size=(len(exponents), 32)).astype(np.float32) * np.float32(2) ** exponents
    assert_same(w, name)


def test_q4_0__gives_the_second_of_two_largest_magnitudes_the_clipped_code() -> None:
    """The scale's sign is that of the first: -8 has the code 0, +8 would need 16 and gets 15."""
    w = np.zeros(32, np.float32)
    w[3], w[9] = -8, 8
    assert quantize(w, format_named("q4_0"))[0][[3, 9]].tolist() == [0, 15]
    assert_same(w[None, :], "q4_0")
    assert quantize(-w, format_named("q4_0"))[0][[3, 9]].tolist() == [0, 15]
    assert_same(-w[None, :], "q4_0")


@pytest.mark.parametrize("name", NAMES)
def test_quantize__refuses_what_gguf_refuses(name: str) -> None:
    w = np.ones((2, 48), np.float32)
    with pytest.raises(ValueError, match="whole blocks of 32"):
        quantize(w, format_named(name))
    with pytest.raises(quants.QuantError):
        packed(w, name)


@pytest.mark.parametrize("name", NAMES)
def test_quantize__refuses_scales_that_gguf_stores_as_inf(name: str) -> None:
    w = np.full((1, 32), 3e38, np.float32)
    w[0, 5] = 0
    assert not np.isfinite(library_values(w, name)).all()
    with pytest.raises(ValueError, match="finite float16"):
        quantize(w, format_named(name))


def test_mxfp4__differs_from_ggml_only_at_ties() -> None:
    """ggml takes the first nearest level, so the smaller magnitude of a tie; the OCP rule takes the even label."""
    fmt = format_named("mxfp4-b32")
    rng = rng_for("mxfp4")
    w = (0.02 * rng.normal(size=(64, 256))).astype(np.float32)
    tied = rng.integers(-24, 25, (64, 256)).astype(np.float32) / 4
    tied[:, ::32] = 6
    assert np.array_equal(library_values(w, "mxfp4"), round_trip(w, fmt))
    differ = library_values(tied, "mxfp4") != round_trip(tied, fmt)
    assert set(np.abs(tied[differ])) == {0.75, 1.75, 3.5}
