"""The block types of GGUF, decoded: bytes of blocks in, codes and float32 values out.

Written from the layouts of ggml's `block_*` structures; values are float32, one rounding an operation, as ggml's.
Types that are not here are decoded by the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.integer[Any]]


class Decoded(NamedTuple):
    """Blocks: value = step * (code - offset) + low.

    Attributes:
        codes: codes, uint8 or int8 (n, block).
        step: step of each sub-block, float32 (n, sub-blocks).
        low: summand of each sub-block, float32 (n, sub-blocks), or None where it is 0.
        offset: code of the level 0.
    """

    codes: NDArray[Any]
    step: NDArray[Any]
    low: NDArray[Any] | None
    offset: int

    @property
    def values(self) -> NDArray[Any]:
        """float32 (n, block)."""
        n, size = self.codes.shape
        level = self.codes.reshape(n, self.step.shape[1], -1).astype(np.float32)
        value = self.step[:, :, None] * (level - np.float32(self.offset))
        if self.low is not None:
            value = value + self.low[:, :, None]
        return value.reshape(n, size)


class BlockType(NamedTuple):
    """A quantized type: weights and bytes of one block, and its decoder of uint8 (n, nbytes)."""

    weights: int
    nbytes: int
    decode: Callable[[Bytes], Decoded]


def _half(blocks: Bytes, start: int) -> NDArray[Any]:
    """Return the float16 at a byte, as float32 (n, 1)."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Return the low nibbles of all bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """Return the 32 bits from a byte on, lowest first, as 0 or 16."""
    packed = blocks[:, start : start + 4].astype(np.uint8)
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    return np.left_shift(bits, 4, dtype=np.uint8)


def _q4_0(blocks: Bytes) -> Decoded:
    return Decoded(_nibbles(blocks[:, 2:]), _half(blocks, 0), None, 8)


def _q4_1(blocks: Bytes) -> Decoded:
    return Decoded(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2), 0)


def _q5_0(blocks: Bytes) -> Decoded:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return Decoded(codes, _half(blocks, 0), None, 16)


def _q5_1(blocks: Bytes) -> Decoded:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return Decoded(codes, _half(blocks, 0), _half(blocks, 2), 0)


def _q8_0(blocks: Bytes) -> Decoded:
    return Decoded(blocks[:, 2:].view(np.int8), _half(blocks, 0), None, 0)


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack 8 scales and 8 minima of 6 bits from 12 bytes: whole ones first, then four more from low and high bits."""
    scale, low, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([scale & 63, (rest & 15) | (scale >> 6) << 4], axis=1)
    mins = np.concatenate([low & 63, (rest >> 4) | (low >> 6) << 4], axis=1)
    return scales, mins


def _k_affine(blocks: Bytes, codes: Bytes) -> Decoded:
    scales, mins = _six_bit_pairs(blocks[:, 4:16])
    step = _half(blocks, 0) * scales.astype(np.float32)
    return Decoded(codes, step, -(_half(blocks, 2) * mins.astype(np.float32)), 0)


def _k_nibbles(packed: Bytes) -> Bytes:
    """Return the 256 nibbles of 128 bytes: of every 32 bytes the low ones, then the high ones."""
    parts = packed.reshape(len(packed), 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(len(packed), 256)


def _q4_k(blocks: Bytes) -> Decoded:
    return _k_affine(blocks, _k_nibbles(blocks[:, 16:144]))


def _q5_k(blocks: Bytes) -> Decoded:
    """Decode Q5_K blocks, in which bit s of the 32 high bytes is the fifth bit of sub-block s."""
    high = blocks[:, 16:48]
    fifth = np.stack([(high >> s & 1) << 4 for s in range(8)], axis=1).reshape(len(blocks), 256)
    return _k_affine(blocks, _k_nibbles(blocks[:, 48:176]) | fifth)


def _q6_k(blocks: Bytes) -> Decoded:
    """Decode Q6_K blocks, in halves of 128: four runs of 32, with nibbles from 64 bytes and pairs of bits from 32."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2)
    pairs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
    codes = (nibbles | pairs << 4).reshape(-1, 256)
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    return Decoded(codes, _half(blocks, 208) * scales, None, 32)


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
}
