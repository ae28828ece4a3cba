"""Codes, scales and values of torchao 0.18.0's intx and float8 on the CPU, bit for bit.

Not installed by default: `make conformance` runs it, in an environment of its own (`requirements-conformance.txt`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.dither import dithers
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="torchao runs on torch")
library = pytest.importorskip("torchao.quantization.quant_primitives", reason="defines these formats")

NAMES = [f"int{bits}-{block}-ao{rule}" for bits in (2, 3, 4, 8) for block in ("g32", "row") for rule in ("", "-asym")]
FLOAT8 = ["fp8-g32", "fp8-row"]


def assert_same(w: NDArray[Any], name: str) -> None:
    fmt = format_named(name)
    ends = int(fmt.levels[0]), int(fmt.levels[-1])
    block = (1, fmt.block_size or w.shape[1])
    kind = library.MappingType.ASYMMETRIC if fmt.zero_point else library.MappingType.SYMMETRIC
    x = torch.from_numpy(w.copy())
    scale, zero = library.choose_qparams_affine(x, kind, block, torch.int8, *ends, zero_point_dtype=torch.int8)
    labels = library.quantize_affine(x, block, scale, zero, torch.int8, *ends)
    values = library.dequantize_affine(labels, block, scale, zero, torch.int8, *ends)
    codes, grid = quantize(w, fmt)
    assert np.array_equal(scale.numpy().ravel(), grid.scale.ravel())
    assert np.array_equal(zero.numpy().ravel(), grid.zero.ravel())
    assert np.array_equal(labels.numpy(), np.asarray(fmt.labels)[codes])
    assert np.array_equal(values.numpy(), round_trip(w, fmt))


def weights(name: str, size: float) -> NDArray[Any]:
    rng = rng_for(name, size)
    w = (size * rng.normal(size=(24, 128))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=128).astype(np.float32)
    w[2] = 0
    w[4] = np.abs(w[4])
    w[5] = -np.abs(w[5]) - np.float32(size)
    return w


@pytest.mark.parametrize("size", [1e-38, 1e-5, 0.02, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_quantize__is_torchao_on_weights_and_zero_blocks(name: str, size: float) -> None:
    assert_same(weights(name, size), name)


@given(st.data(), st.sampled_from([n for n in NAMES if "g32" in n]))
def test_quantize__is_torchao_on_hard_blocks(data: st.DataObject, name: str) -> None:
    """In groups: torchao fails on rows of one weight."""
    assert_same(data.draw(tensors(format_named(name), whole_blocks=True)), name)


@pytest.mark.parametrize("size", [1e-5, 0.02, 30.0])
@pytest.mark.parametrize("name", FLOAT8)
def test_round_trip__is_the_float8_of_torchao(name: str, size: float) -> None:
    """Not on zero blocks: torchao divides by a scale of 0 there."""
    w, fmt = weights(name, size), format_named(name)
    w[2] = np.float32(size)
    x, block = torch.from_numpy(w.copy()), (1, fmt.block_size or w.shape[1])
    scale = library._choose_scale_float8(x, block)
    labels = library._quantize_affine_float8(x, scale)
    values = library._dequantize_affine_float8(labels, scale).numpy()
    assert np.array_equal(values, round_trip(w, fmt))


@pytest.mark.parametrize("name", ["int4-g32-ao", "int4-g32-ao-asym"])
def test_torchao__refuses_partial_groups(name: str) -> None:
    """There is nothing to conform to: the reference pads them with zeros, which change no parameter."""
    w = weights(name, 0.02)[:, :40]
    with pytest.raises(AssertionError, match="divisible by block_size"):
        assert_same(w, name)
    fmt = format_named(name)
    padded = np.pad(w, ((0, 0), (0, 24)))
    assert np.array_equal(round_trip(w, fmt), round_trip(padded, fmt)[:, :40])


training = pytest.importorskip("torchao.prototype.quantized_training.int8", reason="rounds weights at random")


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("size", [1e-5, 0.02, 30.0])
def test_quantize__is_torchao_where_both_are_dithered(size: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's rows of int8 with our dither in place of `torch.rand_like`, and its reciprocal of the scale.

    It drops the fraction of ratio + u, a sum rounded to float32: where that rounds up to a whole number, torchao's code
    is one higher than the exact rule's. All others are equal.
    """
    w = weights("dithered", size)
    name = f"int8-row-dither{seed or ''}"
    fmt = replace(format_named(name), arithmetic="reciprocal")
    u = dithers(w.shape, fmt.seed)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.from_numpy(u))
    labels, scale = training.quantize_int8_rowwise(torch.from_numpy(w.copy()), stochastic_rounding=True)
    codes, grid = quantize(w, fmt)
    ours = np.asarray(fmt.labels)[codes]
    assert np.array_equal(scale.numpy().ravel(), grid.scale.ravel())
    ratio = w * (np.float32(1) / np.maximum(grid.scale, np.float32(1e-12)))
    rounded = (ratio + u).astype(np.float64) != ratio.astype(np.float64) + u
    assert np.array_equal(labels.numpy()[~rounded], ours[~rounded])
    apart = labels.numpy().astype(int) - ours
    assert set(apart.ravel().tolist()) <= {0, 1}
    assert (apart != 0).mean() < 0.01
