"""Codes, parameters and values of hqq 0.2.8.post1 on the CPU: bit for bit without its solver, close with it.

Not installed by default: `make conformance` runs it, in an environment of its own (`requirements-conformance.txt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors
from unforgotten.verification.oracles import U32

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="hqq runs on torch")
library = pytest.importorskip("hqq.core.quantize", reason="the library that defines the format")

BITS = (2, 3, 4, 8)
SIZE = 64


class Library(NamedTuple):
    codes: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any]
    values: NDArray[Any]


def library_result(w: NDArray[Any], bits: int, size: int, *, optimize: bool) -> Library:
    codes, meta = library.Quantizer.quantize(
        torch.from_numpy(w.copy()),
        nbits=bits,
        group_size=size,
        optimize=optimize,
        axis=1,
        device="cpu",
        bitpack=False,
        compute_dtype=torch.float32,
    )
    meta["compute_dtype"] = torch.float32
    values = library.Quantizer.dequantize(codes, meta)
    parts = (codes, meta["scale"], meta["zero"], values)
    return Library(*(np.asarray(x.numpy()) for x in parts))


def assert_same(w: NDArray[Any], bits: int, size: int) -> None:
    fmt = format_named(f"hqq{bits}-g{size}")
    codes, grid = quantize(w, fmt)
    theirs = library_result(w, bits, size, optimize=False)
    assert np.array_equal(grid.scale, theirs.scale)
    assert np.array_equal(grid.zero, theirs.zero)
    assert np.array_equal(codes.reshape(theirs.codes.shape), theirs.codes)
    assert np.array_equal(round_trip(w, fmt), theirs.values)


def weights(size: float, *parameters: object) -> NDArray[Any]:
    rng = rng_for(size, *parameters)
    w = (size * rng.normal(size=(16, 4 * SIZE))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=4 * SIZE).astype(np.float32)
    w[2] = 0
    w[3] = np.abs(w[3]) + np.float32(size)
    return w


@pytest.mark.parametrize("size", [1e-6, 0.02, 1.0, 1e4])
@pytest.mark.parametrize("bits", BITS)
def test_quantize__is_hqq_without_its_solver(bits: int, size: float) -> None:
    assert_same(weights(size, bits), bits, SIZE)


@given(st.data(), st.sampled_from(BITS))
def test_quantize__is_hqq_on_hard_blocks(data: st.DataObject, bits: int) -> None:
    assert_same(data.draw(tensors(format_named(f"hqq{bits}-g8"))), bits, 8)


@pytest.mark.parametrize("bits", BITS)
def test_proximal_affine__is_hqq_but_for_the_order_of_its_sums(bits: int) -> None:
    """|w - Q(w)| < 0.17, so no outlier is shrunk: a zero point is a mean of `code - w s`, summed by torch in float32.

    Its SIZE terms are at most top + |zero|, so the sum is off by at most (SIZE - 1) u times their total, and the
    quotient and our own mean by one rounding each. Where codes agree nothing is carried from step to step.
    """
    w, fmt = weights(0.02, bits), format_named(f"hqq{bits}-g{SIZE}-opt")
    codes, grid = quantize(w, fmt)
    theirs = library_result(w, bits, SIZE, optimize=True)
    assert np.array_equal(grid.scale, theirs.scale)
    assert np.array_equal(codes.reshape(theirs.codes.shape), theirs.codes)
    slack = (SIZE + 1) * U32 * (2 * fmt.levels[-1] + np.abs(theirs.zero))
    assert (np.abs(grid.zero - theirs.zero) <= slack).all()


@pytest.mark.parametrize("bits", BITS)
def test_proximal_affine__moves_zero_points_further_than_its_sums_err(bits: int) -> None:
    """The comparison above has power: the plain zero points fail it."""
    w, fmt = weights(0.02, bits), format_named(f"hqq{bits}-g{SIZE}")
    _, grid = quantize(w, fmt)
    theirs = library_result(w, bits, SIZE, optimize=True)
    slack = (SIZE + 1) * U32 * (2 * fmt.levels[-1] + np.abs(theirs.zero))
    assert (np.abs(grid.zero - theirs.zero) > slack).mean() > 0.5


@pytest.mark.parametrize("bits", BITS)
def test_hqq__groups_across_rows(bits: int) -> None:
    """Groups are of the flattened tensor, so rows of no whole groups share them; the reference wants them as rows."""
    w, fmt = weights(0.02, "across", bits)[:, :40], format_named(f"hqq{bits}-g32")
    theirs = library_result(w, bits, 32, optimize=False)
    assert np.array_equal(round_trip(w.reshape(-1, 32), fmt), theirs.values.reshape(-1, 32))
    with pytest.raises(ValueError, match=r"^rows must be whole blocks of 32"):
        round_trip(w, fmt)
