"""Passes over the bits of stored weights, written as vectors: extremes of blocks, and the census of a bfloat16 pair.

The bits of a float are a sign and a magnitude, so `bits ^ (bits >> all but the sign and the sign cleared)` is an
integer in the order of the numbers; it costs no conversion, and nan is just another integer.

In: weights as they are stored, bfloat16 as uint16 or float32, flat, and where their blocks end. Out: the smallest and
the largest weight of each block, or its largest magnitude; counts of weights and of moved weights by binade.

>>> extremes_of(np.array([1, -3, 2, 0], np.float32), np.array([2, 4]))
(array([-3.,  0.], dtype=float32), array([1., 2.], dtype=float32))
"""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from unforgotten.audit.kernel.compiled import compiled
from unforgotten.audit.kernel.lanes import F32, F32X, I16, I16X, I32, I32X, I64, LANES, Lanes
from unforgotten.audit.kernel.slots import TILE

Array = NDArray[Any]
WINDOW = 32  # binades with a place of their own; the lowest of them holds all below
PAIR, SHIFT, SHIFT2, SHIFT3 = np.uint64(4095), np.uint64(16), np.uint64(32), np.uint64(48)
PAIRS = 1 << 12  # of two weights, each with its binade and whether it moved


def _bytes(kind: Any) -> int:
    return int(kind.dtype.bitwidth) // 8


@intrinsic
def _extremes(typing: Any, order: Any, start: Any, groups: Any) -> Any:
    """Return the smallest and the largest of 64 bytes times `groups`, in the order of the numbers, as two int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        e, kind = Lanes(b), signature.args[0]
        bits = 8 * _bytes(kind)
        lane = ir.IntType(bits)
        vector = ir.VectorType(lane, 512 // bits)
        pointer = context.make_array(kind)(context, b, value=args[0]).data
        rest = 2 ** (bits - 1) - 1
        small = cgutils.alloca_once_value(b, e.every(vector, rest))
        large = cgutils.alloca_once_value(b, e.every(vector, -rest - 1))
        with cgutils.for_range(b, args[2], intp=I64) as loop:
            at = b.add(args[1], b.mul(loop.index, ir.Constant(I64, vector.count)))
            raw = e.load(pointer, vector, at)
            sign = b.and_(b.ashr(raw, e.every(vector, bits - 1)), e.every(vector, rest))
            placed = b.xor(raw, sign)
            for slot, symbol in ((small, "<"), (large, ">")):
                old = b.load(slot)
                b.store(b.select(b.icmp_signed(symbol, placed, old), placed, old), slot)
        ends = [
            b.sext(e.call(f"llvm.vector.reduce.{name}.v{vector.count}i{bits}", lane, b.load(slot)), I64)
            for name, slot in (("smin", small), ("smax", large))
        ]
        return context.make_tuple(b, signature.return_type, ends)

    return types.UniTuple(types.int64, 2)(order, types.int64, types.int64), codegen


@compiled()
def find_extremes(order, ends, low, high):
    """Find the smallest and largest weight of each block, as places in the order of the numbers.

    Args:
        order: bits of bfloat16 or float32 weights, int16 or int32, blocks one after another.
        ends: ends of the blocks, int64.
        low: place of the smallest weight of each block, int64, filled in.
        high: place of the largest weight of each block, int64, filled in.
    """
    lanes = 64 // order.itemsize
    sign = np.int64(8 * order.itemsize - 1)
    rest = (np.int64(1) << sign) - 1
    start = 0
    for k in range(len(ends)):
        groups = (ends[k] - start) // lanes
        small, large = _extremes(order, start, groups)
        for i in range(start + groups * lanes, ends[k]):
            bits = np.int64(order[i])
            bits ^= (bits >> sign) & rest
            small, large = min(small, bits), max(large, bits)
        low[k], high[k] = small, large
        start = ends[k]


@intrinsic
def _pairs(typing: Any, x: Any, y: Any, start: Any, groups: Any, lowest: Any, out: Any) -> Any:
    """Write for each two neighbours both `k | moved << 5`, k in 0 … WINDOW - 1, in twelve bits; return if a k is 0."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        e = Lanes(b)
        vector, half = ir.VectorType(I16, 32), ir.VectorType(I32, 16)
        px, py, po = (context.make_array(signature.args[k])(context, b, value=args[k]).data for k in (0, 1, 5))
        low = e.spread(b.trunc(args[4], I16), vector)
        below = cgutils.alloca_once_value(b, e.every(ir.VectorType(ir.IntType(1), 32), 0))
        with cgutils.for_range(b, args[3], intp=I64) as loop:
            at = b.add(args[2], b.mul(loop.index, ir.Constant(I64, 32)))
            old, new = e.load(px, vector, at), e.load(py, vector, at)
            exponent = b.and_(b.lshr(old, e.every(vector, 7)), e.every(vector, 255))
            k = b.sub(exponent, low)
            none = b.icmp_signed("<=", k, e.every(vector, 0))
            k = b.select(none, e.every(vector, 0), k)
            b.store(b.or_(b.load(below), none), below)
            magnitudes = b.and_(b.or_(old, new), e.every(vector, 0x7FFF))
            moved = b.and_(b.icmp_signed("!=", old, new), b.icmp_signed("!=", magnitudes, e.every(vector, 0)))
            k = b.or_(k, b.select(moved, e.every(vector, WINDOW), e.every(vector, 0)))
            both = b.bitcast(k, half)
            both = b.and_(b.or_(both, b.lshr(both, e.every(half, 10))), e.every(half, PAIRS - 1))
            e.store(b.trunc(both, ir.VectorType(I16, 16)), po, b.mul(loop.index, ir.Constant(I64, 16)))
        bits = b.bitcast(b.load(below), I32)
        return b.zext(b.icmp_unsigned("!=", bits, ir.Constant(I32, 0)), I64)

    return types.int64(x, y, types.int64, types.int64, types.int64, out), codegen


@compiled()
def count_bfloat16(x, y, top, lowest, highest, weights, moved):
    """Add to the counts of weights, and of moved ones, by the binade of the weight before.

    Args:
        x: bits of the weights before, uint16.
        y: bits of the weights after, uint16.
        top: the largest biased exponent of `x`.
        lowest: lowest binade, unbiased; zeros and subnormal weights count in it.
        highest: highest binade, unbiased.
        weights: counts of weights, int64, added to.
        moved: counts of moved weights, int64, added to.
    """
    tallies = np.zeros((2, PAIRS), np.uint32)
    out = np.empty(TILE // 2, np.uint16)
    words = out.view(np.uint64)
    base = top - WINDOW + 1
    by_exponent = np.zeros((256 + WINDOW, 2), np.int64)
    begin = 0
    while begin < len(x):
        groups = min(TILE, len(x) - begin) // 32
        below = _pairs(x, y, begin, groups, base, out)
        for i in range(groups * 4):
            word = words[i]
            tallies[0, word & PAIR] += np.uint32(1)
            tallies[1, (word >> SHIFT) & PAIR] += np.uint32(1)
            tallies[0, (word >> SHIFT2) & PAIR] += np.uint32(1)
            tallies[1, word >> SHIFT3] += np.uint32(1)
        scalar = begin + groups * 32
        end = min(begin + TILE, len(x))
        for i in range(begin if below else scalar, end):
            exponent = (x[i] >> 7) & 255
            if i >= scalar or exponent <= base:
                differs = x[i] != y[i] and ((x[i] | y[i]) & 0x7FFF) != 0
                by_exponent[exponent, np.int64(differs)] += 1
        begin = end
    for pair in range(PAIRS):
        n = np.int64(tallies[0, pair]) + np.int64(tallies[1, pair])
        for one in (pair & 63, pair >> 6):
            if one & 31:
                by_exponent[base + (one & 31), one >> 5] += n
    for exponent in range(256):
        k = min(max(exponent - 127, lowest), highest) - lowest
        weights[k] += by_exponent[exponent, 0] + by_exponent[exponent, 1]
        moved[k] += by_exponent[exponent, 1]


@intrinsic
def block_magnitudes(
    typing: Any, x: Any, y: Any, first: Any, last: Any, groups: Any, add: Any, before: Any, after: Any, absmax: Any
) -> Any:
    """Find the largest magnitudes of blocks first … last - 1, which have `groups` times sixteen weights, uint16 bits.

    Their bits go to `before`, and those of `y`, plus `add`, to `after`, both uint32, and the magnitudes before to
    `absmax`, float32. Returns the largest bits of both.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        e = Lanes(b)
        _, _, start, stop, count, more, *_ = args
        px, py, before, after, absmax = (
            context.make_array(signature.args[k])(context, b, value=args[k]).data for k in (0, 1, 6, 7, 8)
        )
        totals = [cgutils.alloca_once_value(b, e.every(I16X, 0)) for _ in range(2)]
        size = b.mul(count, ir.Constant(I64, LANES))

        def largest(pointer: Any, block: Any, many: int) -> list[Any]:
            """Return for each of `many` blocks sixteen magnitudes, the largest of the block among them."""
            slots = [cgutils.alloca_once_value(b, e.every(I16X, 0)) for _ in range(many)]
            for slot in slots:
                b.store(e.every(I16X, 0), slot)
            with cgutils.for_range(b, count, intp=I64) as loop:
                at = b.add(b.mul(block, size), b.mul(loop.index, ir.Constant(I64, LANES)))
                for k, slot in enumerate(slots):
                    raw = e.load(pointer, I16X, b.add(at, b.mul(size, ir.Constant(I64, k))))
                    b.store(e.most(b.and_(raw, e.every(I16X, 0x7FFF)), b.load(slot)), slot)
            return [b.load(slot) for slot in slots]

        batches = b.udiv(b.sub(stop, start), ir.Constant(I64, LANES))
        with cgutils.for_range(b, batches, intp=I64) as each:
            block = b.add(start, b.mul(each.index, ir.Constant(I64, LANES)))
            for pointer, total, entries in ((px, totals[0], before), (py, totals[1], after)):
                own = e.across(largest(pointer, block, LANES), e.most)
                b.store(e.most(own, b.load(total)), total)
                bits = b.zext(own, I32X)
                if entries is before:
                    e.store(b.bitcast(b.shl(bits, e.every(I32X, 16)), F32X), absmax, block)
                else:
                    bits = b.add(bits, e.spread(b.trunc(more, I32), I32X))
                e.store(bits, entries, block)
        begin = b.add(start, b.mul(batches, ir.Constant(I64, LANES)))
        with cgutils.for_range(b, b.sub(stop, begin), intp=I64) as each:
            block = b.add(begin, each.index)
            for pointer, total, entries in ((px, totals[0], before), (py, totals[1], after)):
                (own,) = largest(pointer, block, 1)
                b.store(e.most(own, b.load(total)), total)
                bits = b.zext(e.call("llvm.vector.reduce.umax.v16i16", I16, own), I32)
                if entries is before:
                    magnitude = b.bitcast(b.shl(bits, ir.Constant(I32, 16)), F32)
                    b.store(magnitude, b.gep(absmax, [block]))
                else:
                    bits = b.add(bits, b.trunc(more, I32))
                b.store(bits, b.gep(entries, [block]))
        ends = [e.call("llvm.vector.reduce.umax.v16i16", I16, b.load(total)) for total in totals]
        return context.make_tuple(b, signature.return_type, [b.zext(end, I64) for end in ends])

    kinds = (x, y, *[types.int64] * 4, before, after, absmax)
    return types.UniTuple(types.int64, 2)(*kinds), codegen


@intrinsic
def _largest(typing: Any, x: Any, start: Any, groups: Any) -> Any:
    """Return the largest magnitude of 64 bytes times `groups` from `start` on, as bits."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        e, bits = Lanes(b), 8 * _bytes(signature.args[0])
        lane = ir.IntType(bits)
        vector = ir.VectorType(lane, 512 // bits)
        pointer = context.make_array(signature.args[0])(context, b, value=args[0]).data
        large = cgutils.alloca_once_value(b, e.every(vector, 0))
        with cgutils.for_range(b, args[2], intp=I64) as loop:
            at = b.add(args[1], b.mul(loop.index, ir.Constant(I64, vector.count)))
            magnitude = b.and_(e.load(pointer, vector, at), e.every(vector, 2 ** (bits - 1) - 1))
            old = b.load(large)
            b.store(b.select(b.icmp_signed(">", magnitude, old), magnitude, old), large)
        return b.zext(e.call(f"llvm.vector.reduce.smax.v{vector.count}i{bits}", lane, b.load(large)), I64)

    return types.int64(x, types.int64, types.int64), codegen


@compiled()
def find_largest(order, ends, shift, magnitudes):
    """Return the bits, as of a float32, of the largest magnitude of each block.

    Args:
        order: bits of bfloat16 or float32 weights, int16 or int32, blocks one after another.
        ends: ends of the blocks, int64.
        shift: number of bits that a float32 has more: 16 for bfloat16, 0 for float32.
        magnitudes: bits of the largest magnitude, int32, filled in, one entry a block.
    """
    lanes = 64 // order.itemsize
    rest = (np.int64(1) << np.int64(8 * order.itemsize - 1)) - 1
    start = 0
    for k in range(len(ends)):
        groups = (ends[k] - start) // lanes
        large = _largest(order, start, groups)
        for i in range(start + groups * lanes, ends[k]):
            large = max(large, np.int64(order[i]) & rest)
        magnitudes[k] = large << shift
        start = ends[k]


def numbers_at(places: Array, bits: int) -> Array:
    """Return the float32 numbers at places in the order of bfloat16 (16 bits) or float32 (32 bits)."""
    raw = places ^ ((places >> (bits - 1)) & (2 ** (bits - 1) - 1))
    return (raw.astype(np.uint32) << (32 - bits)).astype(np.uint32).view(np.float32)


def extremes_of(stored: Array, ends: Array) -> tuple[Array, Array]:
    """Return the smallest and the largest weight of each block of `stored` (bfloat16 as uint16, or float32)."""
    bits = 8 * stored.itemsize
    low, high = np.empty(len(ends), np.int64), np.empty(len(ends), np.int64)
    find_extremes(stored.view(np.int16 if bits == 16 else np.int32), ends, low, high)
    return numbers_at(low, bits), numbers_at(high, bits)


def magnitudes_of(stored: Array, ends: Array) -> Array:
    """Return the largest magnitude of each block of `stored`, uint16 (bfloat16) or float32, as float32."""
    bits = 8 * stored.itemsize
    magnitudes = np.empty(len(ends), np.int32)
    find_largest(stored.view(np.int16 if bits == 16 else np.int32), ends, 32 - bits, magnitudes)
    return magnitudes.view(np.float32)
