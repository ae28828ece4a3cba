"""Double quantization of bitsandbytes 0.50.2 on the CPU, bit for bit; its offset, a float32 sum, where the sum is exact.

Elsewhere the offset is compared within the error of a sum, and the rest bit for bit given the library's offset. So is
its table, which it computes anew with `torch.linspace`: where the processor fuses a product and a sum, or torch is
compiled for one that does, it is ours, and else an ulp away in places. Files hold the table that was used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats import dynamic
from unforgotten.theory.formats.double_quant import double_quantize
from unforgotten.theory.formats.dynamic import (
    BINS,
    NESTED_BLOCK,
    WORST,
    bin_codes,
    dequantize_dynamic,
    dynamic_map,
    exact_mean,
    quantize_dynamic,
)
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors
from unforgotten.verification.oracles import ETA32, U32

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="bitsandbytes runs on torch")
functional = pytest.importorskip("bitsandbytes.functional", reason="the library that double quantization is from")

Array = NDArray[Any]
KINDS = ("nf4", "fp4")
DTYPES = ("float32", "float16", "bfloat16")
BLOCK_SIZES = (32, 64, 128, 1024)
SCALES = (1e-45, 1e-42, 1e-40, 2e-39, 1e-37, 1e-20, 0.02, 1.0, 3e30)
FUSED = ("AVX2", "AVX512")  # for which torch's own kernels are compiled with fused products and sums
TREE = 64  # additions on the longest way of torch's sum of up to 65536 numbers, in lanes and cascades; and the quotient
PARTS_ROUNDINGS = 6  # of numbers below 1: ours once, torch's two of a product and a sum, twice in a vector


def library_parts(parts: int) -> Array:
    return np.asarray(torch.linspace(0.1, 1, parts + 1, dtype=torch.float32).numpy())


@pytest.fixture(autouse=True, scope="module")
def table() -> Iterator[Array]:
    """The library's table on this machine, in place of ours for all that is read from it."""
    theirs = np.asarray(functional.create_dynamic_map().numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "dynamic_map", lambda: theirs)
        bin_codes.cache_clear()
        yield theirs
    bin_codes.cache_clear()


class Library(NamedTuple):
    """What bitsandbytes stores of a tensor, and float32 values read from it."""

    labels: Array
    offset: np.float32
    nested_codes: Array
    nested_absmax: Array
    values: Array


def library(x: torch.Tensor, kind: str, size: int) -> Library:
    """Values are read from whole blocks, `(-1, size)`: other shapes meet the trap of the AVX-512 kernel."""
    packed, state = functional.quantize_4bit(x, blocksize=size, quant_type=kind, compress_statistics=True)
    pairs = packed.reshape(-1).numpy()
    labels = np.stack([pairs >> 4, pairs & 15], axis=1).ravel()[: x.numel()]
    padded = np.pad(labels, (0, -x.numel() % size))
    whole = torch.from_numpy(padded[::2] << 4 | padded[1::2]).reshape(-1, 1)
    state.shape, state.dtype = torch.Size((len(padded) // size, size)), torch.float32
    values = functional.dequantize_4bit(whole, state).reshape(-1)[: x.numel()]
    return Library(
        labels.reshape(tuple(x.shape)),
        np.float32(state.offset.item()),
        state.absmax.numpy(),
        state.state2.absmax.numpy(),
        values.numpy().reshape(tuple(x.shape)),
    )


def library_dynamic(x: Array) -> tuple[Array, Array, Array]:
    codes, state = functional.quantize_blockwise(torch.from_numpy(x), blocksize=NESTED_BLOCK)
    values = functional.dequantize_blockwise(codes, state)
    return codes.numpy(), state.absmax.numpy(), values.numpy()


def assert_same(w: Array, kind: str, size: int, dtype: str, *, exact_sum: bool = False) -> None:
    """Bit for bit. With `exact_sum` the offset too, else it is the library's, and close to ours."""
    fmt = format_named(f"{kind}-b{size}")
    x = torch.from_numpy(np.ascontiguousarray(w)).to(getattr(torch, dtype))
    theirs = library(x, kind, size)
    w = x.float().numpy()
    ours = double_quantize(w, fmt, offset=None if exact_sum else theirs.offset)
    absmax = quantize(w, fmt)[1].scale
    mean = absmax.mean(dtype=np.float64)
    # sums of n numbers >= 0, one rounding each; subnormal sums are exact, their quotient is rounded by half of ETA32
    assert abs(float(theirs.offset) - mean) <= len(absmax) * U32 * mean + ETA32 / 2
    assert ours.offset == theirs.offset
    assert np.array_equal(np.asarray(fmt.labels)[ours.codes], theirs.labels)
    assert np.array_equal(ours.nested_codes, theirs.nested_codes)
    assert np.array_equal(ours.nested_absmax, theirs.nested_absmax)
    assert np.array_equal(ours.values, theirs.values)


def test_dynamic_map__is_bitsandbytes_given_the_parts(table: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "_equal_parts", library_parts)
    assert np.array_equal(dynamic_map.__wrapped__(), table)


@pytest.mark.parametrize("parts", [2**i for i in range(7)])
def test_dynamic_map__has_the_parts_of_torch(parts: int) -> None:
    ours, theirs = dynamic._equal_parts(parts), library_parts(parts)
    assert (np.abs(ours.astype(float) - theirs) <= PARTS_ROUNDINGS * U32).all()
    if torch.backends.cpu.get_cpu_capability() in FUSED:
        assert np.array_equal(ours, theirs)


def test_quantize_dynamic__is_bitsandbytes_in_every_bin() -> None:
    """At the centre of every bin and at both sides of every edge between two, in blocks of absmax 1.

    Bins are 3e-5 wide, so codes of the smallest numbers are never used on the CPU.
    """
    edges = ((np.arange(1, BINS + 1) - 0.5) / BINS * 2 - 1).astype(np.float32)
    points: list[Array] = [2 * np.arange(BINS + 1) / BINS - 1, edges]
    for towards in (-2, 2):
        v = edges
        for _ in range(3):
            v = np.nextafter(v, np.float32(towards))
            points.append(v)
    inner = np.concatenate(points).astype(np.float32)
    inner = np.pad(inner, (0, -len(inner) % 255)).reshape(-1, 255)
    x = np.concatenate([np.ones((len(inner), 1), np.float32), inner], axis=1).ravel()
    codes, absmax, values = library_dynamic(x)
    ours = quantize_dynamic(x)
    assert np.array_equal(ours[0], codes)
    assert np.array_equal(ours[1], absmax)
    assert np.array_equal(dequantize_dynamic(*ours), values)
    assert set(codes) == set(bin_codes())


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 256 * 6 + 100])
@pytest.mark.parametrize("scale", [0.0, *SCALES])
def test_quantize_dynamic__is_bitsandbytes_on_subnormal_and_partial_blocks(scale: float, count: int) -> None:
    x = (scale * rng_for(scale, count).uniform(-1, 1, count)).astype(np.float32)
    x[::3] = 0
    codes, absmax, values = library_dynamic(x)
    ours = quantize_dynamic(x)
    assert np.array_equal(ours[0], codes)
    assert np.array_equal(ours[1], absmax)
    assert np.array_equal(dequantize_dynamic(*ours), values)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_double_quantize__is_bitsandbytes_on_weights_and_outliers(kind: str, size: int, dtype: str) -> None:
    """More than 256 blocks: two of the second level, the last one partial."""
    rng = rng_for("double", kind, size, dtype)
    w = (0.02 * rng.normal(size=(300, size))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=size).astype(np.float32)
    w[2] *= np.float32(2.0**-13)
    w[3] = 0
    w[4, 5] = 300
    assert_same(w, kind, size, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (7, 65), (5, 64), (300, 96), (3, 5, 70)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_double_quantize__is_bitsandbytes_on_partial_and_subnormal_blocks(
    kind: str, scale: float, shape: tuple[int, ...]
) -> None:
    w = (scale * rng_for("partial", kind, scale, shape).uniform(-1, 1, shape)).astype(np.float32)
    assert_same(w, kind, 64, "float32")


@given(st.data(), st.sampled_from(KINDS), st.sampled_from(DTYPES))
def test_double_quantize__is_bitsandbytes_on_hard_blocks(data: st.DataObject, kind: str, dtype: str) -> None:
    w = data.draw(tensors(format_named(f"{kind}-b32")))
    largest = torch.finfo(getattr(torch, dtype)).max / 2**17  # a sum of all absmaxes is finite
    assert_same(np.clip(w, -largest, largest), kind, 32, dtype)


@pytest.mark.parametrize("blocks", [1, 3, 256, 257, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_double_quantize__has_the_bits_of_bitsandbytes_and_its_offset(kind: str, blocks: int) -> None:
    """Absmaxes of 8 bits in one binade: their sum is exact in float32 whatever its order, so the mean has one value."""
    rng = rng_for("exact", kind, blocks)
    w = rng.uniform(-1, 1, (blocks, 64)).astype(np.float32)
    w[:, 0] = rng.integers(256, 512, blocks) / 256
    assert_same(w, kind, 64, "float32", exact_sum=True)


@pytest.mark.parametrize("kind", KINDS)
def test_double_quantize__has_no_second_level_where_all_blocks_are_alike(kind: str) -> None:
    """absmax - offset = 0: the second level has scale 0, and the offset alone is read."""
    w = rng_for("alike", kind).uniform(-1, 1, (300, 64)).astype(np.float32)
    w[:, 0] = 1
    assert_same(w, kind, 64, "float32", exact_sum=True)
    assert_same(0 * w, kind, 64, "float32", exact_sum=True)
    result = double_quantize(w, format_named(f"{kind}-b64"))
    assert (result.absmax == 1).all()
    assert not result.nested_absmax.any()


def test_double_quantize__turns_the_signs_of_a_small_block_among_large_ones() -> None:
    """As bitsandbytes does: the absmax that is read back is negative."""
    fmt, size = format_named("nf4-b64"), 64
    w = np.full((256, size), 0.25, np.float32)
    w[0], w[1] = 64, 2.0**-9
    assert_same(w, "nf4", size, "float32", exact_sum=True)
    result = double_quantize(w, fmt)
    assert result.absmax[1] < 0
    assert (result.values[1] < 0).all()
    assert (w[1] > 0).all()


def test_quantize_dynamic__is_not_always_the_nearest_number(table: Array) -> None:
    """The comparison has power: of exact nearest codes, about 1 in 700 is another one (CUDA's are nearest)."""
    x = rng_for("nearest").normal(size=256 * 1000).astype(np.float32)
    codes, absmax, _ = library_dynamic(x)
    numbers = table.astype(np.float64)
    unit = x.astype(np.float64) / np.repeat(absmax, NESTED_BLOCK)
    nearest = np.searchsorted((numbers[:-1] + numbers[1:]) / 2, unit)
    assert 0 < (nearest != codes).mean() < 0.01
    assert np.array_equal(quantize_dynamic(x)[0], codes)


@pytest.mark.parametrize("blocks", [257, 4096, 65536])
@pytest.mark.parametrize("kind", KINDS)
def test_format__is_near_the_values_of_bitsandbytes_whatever_its_mean(kind: str, blocks: int) -> None:
    """The codes are the same; of the absmaxes a few have another number of 8 bits, all are as near as `nested` says."""
    w = rng_for("mean", kind, blocks).normal(0, 0.02, (blocks, 64)).astype(np.float32)
    plain, fmt = format_named(f"{kind}-b64"), format_named(f"{kind}-b64-dq")
    theirs, own = library(torch.from_numpy(w), kind, 64), quantize(w, plain)[1].scale[:, 0]
    codes, grid = quantize(w, fmt)
    assert np.array_equal(np.asarray(fmt.labels)[codes], theirs.labels)
    mean = float(exact_mean(own))
    assert abs(float(theirs.offset) - mean) <= TREE * U32 * mean
    given = double_quantize(w, plain, offset=theirs.offset)
    ours = double_quantize(w, plain)
    assert np.array_equal(round_trip(w, fmt), ours.values)
    assert np.array_equal(grid.scale[:, 0], ours.absmax)
    apart = np.abs(ours.absmax.astype(np.float64) - given.absmax)
    both = np.repeat(ours.nested_absmax.astype(np.float64) + given.nested_absmax, NESTED_BLOCK)[:blocks]
    assert (apart <= WORST * both + 8 * U32 * (own + both)).all()
    assert np.array_equal(given.values, theirs.values)
    assert (ours.nested_codes != given.nested_codes).mean() < 0.001


def test_double_quantize__refuses_formats_without_an_absmax() -> None:
    with pytest.raises(ValueError, match=r"^double quantization must be of nf4-bN or fp4-bN, got"):
        double_quantize(np.ones((2, 64), np.float32), format_named("int4-g64"))
