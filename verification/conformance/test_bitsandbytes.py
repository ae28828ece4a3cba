"""Codes, absmax and values of bitsandbytes 0.50.2 on the CPU, bit for bit.

Values are read from whole blocks, `reshape(-1, block)`: with other shapes `dequantize_4bit` uses the wrong absmax
(columns % block != 0 on AVX-512), and its first forward pass repacks a weight in place. Neither is reached here.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import quantize, round_trip, to_blocks
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="bitsandbytes runs on torch")
pytest.importorskip("bitsandbytes", reason="the library that NF4, FP4 and LLM.int8 are named after")
functional = pytest.importorskip("bitsandbytes.functional", reason="as above")

DTYPES = ("float32", "float16", "bfloat16")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # all that quantize_4bit accepts
KINDS = ("nf4", "fp4")
FLOAT32_TINY = float(np.finfo(np.float32).tiny)
NO_RECIPROCAL = np.float32(127) / np.finfo(np.float32).max  # below it 127 / absmax is inf in float32


@pytest.fixture(autouse=True, scope="module")
def _without_compiler() -> Iterator[None]:
    """Blocks of 2048 and more would be dequantized by `torch.compile`; the same sums, after a wait for a compiler."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


class Library(NamedTuple):
    """What bitsandbytes makes of a tensor: labels and float32 values in its shape, absmax per block."""

    labels: NDArray[Any]
    absmax: NDArray[Any]
    values: NDArray[Any]


def tensor_of(w: NDArray[Any], dtype: str) -> torch.Tensor:
    """The weights in the dtype, where half precision may overflow: those are clipped to its largest number."""
    kind = getattr(torch, dtype)
    largest = torch.finfo(kind).max
    return torch.from_numpy(np.ascontiguousarray(w)).clamp(-largest, largest).to(kind)


def library_4bit(x: torch.Tensor, kind: str, size: int) -> Library:
    packed, state = functional.quantize_4bit(x, blocksize=size, quant_type=kind)
    pairs = packed.reshape(-1).numpy()
    labels = np.stack([pairs >> 4, pairs & 15], axis=1).ravel()[: x.numel()]
    padded = np.pad(labels, (0, -x.numel() % size))
    whole = torch.from_numpy(padded[::2] << 4 | padded[1::2]).reshape(-1, 1)
    state.shape, state.dtype = torch.Size((len(padded) // size, size)), torch.float32
    values = functional.dequantize_4bit(whole, state).reshape(-1)[: x.numel()]
    shape = tuple(x.shape)
    return Library(labels.reshape(shape), state.absmax.numpy(), values.numpy().reshape(shape))


def library_int8(x: torch.Tensor) -> Library:
    labels, absmax, _ = functional.int8_vectorwise_quant(x)
    values = functional.int8_vectorwise_dequant(labels, absmax)
    return Library(labels.numpy(), absmax.numpy(), values.numpy())


def reference(x: torch.Tensor, fmt: Format) -> Library:
    w = x.float().numpy()
    codes, grid = quantize(w, fmt)
    return Library(np.asarray(fmt.labels)[codes], grid.scale.ravel(), round_trip(w, fmt))


def assert_same(got: Library, expected: Library) -> None:
    """Bit for bit; the two zeros of a value count as one (their labels are compared)."""
    assert np.array_equal(got.labels, expected.labels)
    assert np.array_equal(got.absmax, expected.absmax)
    assert np.array_equal(got.values, expected.values)


def assert_4bit(w: NDArray[Any], kind: str, size: int, dtype: str) -> None:
    x = tensor_of(w, dtype)
    assert_same(library_4bit(x, kind, size), reference(x, format_named(f"{kind}-b{size}")))


def assert_int8(w: NDArray[Any], dtype: str) -> None:
    x = tensor_of(w, dtype)
    assert_same(library_int8(x), reference(x, format_named("llmint8-row")))


def threshold_neighbours(fmt: Format, *, exponent: int) -> NDArray[Any]:
    """Every threshold, two ulps to each side, and every level, times a power of two, after the absmax."""
    points = [np.asarray(fmt.levels, np.float32)]
    for towards in (-np.inf, np.inf):
        v = fmt.thresholds
        for _ in range(3):
            points.append(v)
            v = np.nextafter(v, np.float32(towards))
    return np.concatenate(points) * np.float32(2.0**exponent)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize__is_bitsandbytes_on_weights_and_outliers(kind: str, size: int, dtype: str) -> None:
    rng = rng_for(kind, size, dtype)
    w = (0.02 * rng.normal(size=(6, 2 * size))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=2 * size).astype(np.float32)
    w[2] *= np.float32(2.0**-130)
    w[3] = 0
    w[4, 5] = 3e4
    assert_4bit(w, kind, size, dtype)


@pytest.mark.parametrize("exponent", [-100, -20, 0, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_quantize__is_bitsandbytes_at_every_tie(kind: str, exponent: int) -> None:
    """At 2^n the reciprocal and the product are exact, so these are ties of the kernel."""
    fmt = format_named(f"{kind}-b256")
    w = np.zeros(256, np.float32)
    points = threshold_neighbours(fmt, exponent=exponent)
    w[0], w[1 : 1 + len(points)] = 2.0**exponent, points
    assert_4bit(w, kind, 256, "float32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_quantize__is_bitsandbytes_on_every_half_in_the_unit_interval(kind: str, dtype: str) -> None:
    """Exhaustive: all numbers of the dtype in [-1, 1], in blocks that also hold a 1."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(getattr(torch, dtype)).float().numpy()
    inside = every[np.abs(every) <= 1]
    blocks = np.pad(inside, (0, -len(inside) % 63)).reshape(-1, 63)
    w = np.concatenate([np.ones((len(blocks), 1), np.float32), blocks], axis=1)
    assert_4bit(w, kind, 64, dtype)


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 127, 64 * 3 + 10, 64 * 3 + 7])
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1e-38, 1.0, 3e38])
@pytest.mark.parametrize("kind", KINDS)
def test_quantize__is_bitsandbytes_on_a_partial_last_block(kind: str, largest: float, count: int) -> None:
    """It divides where full blocks multiply, and its absmax is stored as 1e-38 at least."""
    rng = rng_for(kind, largest, count)
    w = (largest * rng.uniform(-1, 1, count)).astype(np.float32)
    assert_4bit(w, kind, 64, "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_quantize__divides_in_a_partial_last_block_as_bitsandbytes_does(kind: str) -> None:
    """Weights within two ulps of absmax times a threshold: there a quotient and a product have other codes."""
    fmt = format_named(f"{kind}-b64")
    differ = 0
    for absmax in rng_for(kind).uniform(1, 2, 30).astype(np.float32):
        w = np.concatenate([[absmax], absmax * threshold_neighbours(fmt, exponent=0)])
        for part in np.array_split(w.astype(np.float32), 3):
            with_absmax = np.concatenate([[absmax], part]).astype(np.float32)
            assert_4bit(with_absmax, kind, 64, "float32")
            full = np.pad(with_absmax, (0, 64 - len(with_absmax)))
            codes = (quantize(x, fmt)[0][: len(with_absmax)] for x in (with_absmax, full))
            differ += int((next(codes) != next(codes)).sum())
    assert differ > 0


@given(st.data(), st.sampled_from(KINDS), st.sampled_from(DTYPES))
def test_quantize__is_bitsandbytes_on_hard_blocks(data: st.DataObject, kind: str, dtype: str) -> None:
    assert_4bit(data.draw(tensors(format_named(f"{kind}-b32"))), kind, 32, dtype)


@given(st.data(), st.sampled_from(DTYPES))
def test_quantize__is_llm_int8_on_hard_rows(data: st.DataObject, dtype: str) -> None:
    """Rows whose reciprocal is finite. See the next tests for the others."""
    w = data.draw(tensors(format_named("llmint8-row")))
    x = tensor_of(w, dtype).float().numpy()
    assume((np.abs(x).max(axis=1) >= NO_RECIPROCAL).all())
    assert_int8(w, dtype)


@pytest.mark.parametrize("columns", [1, 3, 16, 17, 64, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize__is_llm_int8_on_weights(columns: int, dtype: str) -> None:
    rng = rng_for(columns, dtype)
    w = (0.02 * rng.normal(size=(9, columns))).astype(np.float32)
    w[1, 0] = 3e4
    w[2] *= np.float32(2.0**-10)
    assert_int8(w, dtype)


@pytest.mark.parametrize("exponent", [-100, -7, 0, 7, 100])
def test_quantize__is_llm_int8_at_every_tie(exponent: int) -> None:
    """absmax = 127 * 2^n: fl(fl(1/127) * 127) = 1, so half-integers are ties of the kernel, to even."""
    fmt = format_named("llmint8-row")
    points = threshold_neighbours(fmt, exponent=exponent)
    assert np.abs(points).max() == np.float32(127 * 2.0**exponent)
    assert_int8(points[None, :], "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize__takes_the_reciprocal_of_llm_int8_in_two_roundings(dtype: str) -> None:
    """`127.0 / absmax` is `reciprocal(absmax) * 127` in torch: near a tie a single quotient has other codes.

    Exhaustive over absmax in [1, 2) of bfloat16, with every weight of bfloat16 in [0, absmax]. Found by bfloat16
    weights, whose ratio to absmax ties often; float32 weights tie too rarely for a random test.
    """
    weights = np.arange(0x3B00, 0x4000, dtype=np.uint32) << 16
    w = np.tile(weights.view(np.float32), (128, 1))
    absmax = (np.arange(0x3F80, 0x4000, dtype=np.uint32) << 16).view(np.float32)[:, None]
    assert_int8(np.minimum(w, absmax), dtype)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="what C leaves undefined, as x86-64 does it")
@pytest.mark.parametrize("columns", [1, 7, 16, 33, 64, 257])
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1e-38, 3e-37])
def test_quantize__is_llm_int8_where_the_cast_is_undefined_but_observed(largest: float, columns: int) -> None:
    """127 / absmax = inf: 0 * inf = nan and w * inf = inf become int8, which C leaves undefined.

    torch gives 0 for both on x86-64 (through the int32 minimum, whose low byte is 0), scalar and vector code alike;
    `theory` gives 0 by rule. On other processors the library may differ, and a zero row would no longer be zero.
    """
    rng = rng_for(largest, columns)
    w = (largest * rng.uniform(-1, 1, (3, columns))).astype(np.float32)
    w[0] = 0
    assert not (np.abs(w) > NO_RECIPROCAL).any()
    assert_int8(w, "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_formats__have_the_table_of_bitsandbytes(kind: str) -> None:
    fmt = format_named(f"{kind}-b64")
    table = functional.get_4bit_type(kind, device="cpu").numpy()
    assert np.array_equal(table[list(fmt.labels)], np.asarray(fmt.levels, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_quantize__differs_from_bitsandbytes_one_ulp_off_a_threshold(kind: str) -> None:
    """The comparison has power: the code of the next float32 is another one, in the library too."""
    fmt = format_named(f"{kind}-b64")
    w = np.ones((2, 64), np.float32)
    w[0, 1:16] = fmt.thresholds
    w[1, 1:16] = np.nextafter(fmt.thresholds, np.float32(1))
    labels = library_4bit(torch.from_numpy(w), kind, 64).labels
    assert (labels[0, 1:16] != labels[1, 1:16]).all()
    assert to_blocks(w, fmt).shape == w.shape
