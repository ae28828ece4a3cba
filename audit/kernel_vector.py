"""Formats of at most sixteen levels and no zero point, sixteen weights at a time; what `kernel.measure` gives.

A quotient of float32 numbers is a product by the reciprocal, corrected once with fused multiply-adds: that is the
correctly rounded float64 quotient (Markstein 1990), as with 24-bit operands a quotient is at least 2^-79 of itself
away from any midpoint of float64, and the corrected one is within 2^-104 of it before it is rounded. Rounded again to
float32 it is the correctly rounded float32 quotient, since 53 >= 2 * 24 + 2 (Figueroa 1995).
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from unforgotten.audit.kernel_lanes import (
    F32X,
    F64,
    F64X,
    I16X,
    I32,
    I32X,
    I64,
    I64X,
    LANES,
    Lanes,
)  # fmt: skip
from unforgotten.theory import dead_zone

THRESHOLDS, LEVELS, ORIGIN, INVERSE, CODES, LIMITS, BELOW = 0, 1, 2, 3, 4, 6, 8  # rows of `narrow`
ROWS = 9
UPWARD, DOWNWARD, LOWER64, WIDTH64 = range(4)  # rows of `wide`
UNIT, EDGE, AROUND, REACH, STEPS, FIRST, LAST = range(7)  # of `constants`
BY_HALVING, BY_BUCKET, BY_ROUNDING = WAYS = range(3)  # ways to a code
FLIPS, CHANGES, PINNED = range(3)  # of `counts`
EXPECTED, SQUARES, SURVIVING, DOT, DELTA = range(5)  # of `sums`
FRACTION = 12  # bits of the fraction of a bin
AHEAD = 2048  # weights between what is measured and what is asked for from memory
BINS, ENDMOST, STAYED = 256, 256, 257  # bins; weights in an end cell, and weights that do not move
OWN_BINS = (
    STAYED + LANES
)  # of those each lane has its own: counts of one slot would wait for each other
END_PLACE = float((ENDMOST << FRACTION) + (1 << (FRACTION - 1)))  # far from the end of any bin
BIN_BITS = 9
EXPONENT = 7  # the lowest bit of the exponent of a bfloat16
# of the binades that are counted: the biased exponent of the first, and how many there are
LOWEST, BINADES = 127 + dead_zone.BINADES[0], len(dead_zone.BINADES)
WHOLE = ("begin", "groups", "size", "count")
NAMES = (
    "x", "y", "begin", "groups", "size", "narrow", "wide", "constants", "factor", "scale", "reciprocal", "before",
    "after", "setter", "blocks", "count", "sums", "counts", "bins",
)  # fmt: skip


class _Part:
    """The instructions for one part of one block; `same` says that the block keeps its grid."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, key: Any) -> None:
        self.b, self.e = builder, Lanes(builder)
        self.arg: dict[str, Any] = dict(zip(NAMES, args, strict=True))
        self.divide, self.same, self.way = key
        self.integers = self.way == BY_ROUNDING
        self.kinds: dict[str, Any] = dict(zip(NAMES, signature.args, strict=True))
        self.pointers = {
            name: context.make_array(kind)(context, builder, value=self.arg[name]).data
            for name, kind in self.kinds.items()
            if isinstance(kind, types.Array)
        }
        self.grids = 1 if self.same else 2
        self._load_format()
        self._load_sums()

    def at(self, k: int) -> Any:
        return ir.Constant(I64, k)

    def number(self, array: str, index: Any) -> Any:
        return self.b.load(self.b.gep(self.pointers[array], [index]))

    def _load_format(self) -> None:
        b, e = self.b, self.e
        self.rows = [e.load(self.pointers["narrow"], F32X, self.at(LANES * k)) for k in range(ROWS)]
        tables = [
            [e.load(self.pointers["wide"], F64X, self.at(LANES * k + h)) for h in (0, 8)]
            for k in range(4)
        ]
        self.steps, self.cells = tables[:LOWER64], tables[LOWER64:]
        constants = [self.number("constants", self.at(k)) for k in range(7)]
        self.edge, self.around = (
            e.spread(b.fptosi(constants[k], I32), I32X) for k in (EDGE, AROUND)
        )
        self.unit, self.reach, self.per_step, self.first, self.last = (
            e.spread(constants[k], F32X) for k in (UNIT, REACH, STEPS, FIRST, LAST)
        )
        self.end_slopes = [
            e.spread(self.number("wide", self.at(k)), F64X)
            for k in range(2 if self.integers else 0)
        ]

    def load_block(self, block: Any) -> None:
        """The parameters of a block, in every lane."""
        b, e = self.b, self.e
        entries = [
            b.zext(self.number(name, block), I64) for name in ("before", "after")[: self.grids]
        ]
        factors = [self.number("factor", entry) for entry in entries]
        self.factor = [e.spread(f, F32X) for f in factors]
        self.wide_factor = [e.spread(b.fpext(f, F64), F64X) for f in factors]
        self.reciprocal = [
            e.spread(self.number("reciprocal", entry), F64X)
            for entry in (entries if self.divide else ())
        ]
        scales = [e.spread(self.number("scale", entry), F32X) for entry in entries]
        self.scales = scales
        self.values = [self._value(self.rows[LEVELS], s) for s in range(self.grids)]
        self.setter = e.spread(self.number("setter", block), F32X)
        self.slopes = self.steps
        if (
            self.same and not self.divide and not self.integers
        ):  # a code unit is the same for both weights, so flips are counted by delta
            self.slopes = [
                [b.fmul(half, self.wide_factor[0]) for half in step] for step in self.steps
            ]

    def _load_sums(self) -> None:
        b, e = self.b, self.e
        self.sums = [
            [
                cgutils.alloca_once_value(
                    b, e.load(self.pointers["sums"], F64X, self.at((s * 5 + k) * 8))
                )
                for k in range(5)
            ]
            for s in range(self.grids)
        ]
        self.counts = [
            [
                cgutils.alloca_once_value(b, self.number("counts", self.at(s * 3 + k)))
                for k in range(3)
            ]
            for s in range(self.grids)
        ]

    def store_sums(self) -> None:
        b, e = self.b, self.e
        for s in range(self.grids):
            for k in range(5):
                e.store(b.load(self.sums[s][k]), self.pointers["sums"], self.at((s * 5 + k) * 8))
            for k in range(3):
                at = b.gep(self.pointers["counts"], [self.at(s * 3 + k)])
                b.store(b.load(self.counts[s][k]), at)

    def _add(self, s: int, k: int, x: Any, y: Any = None) -> None:
        old = self.b.load(self.sums[s][k])
        self.b.store(self.b.fadd(old, x) if y is None else self.e.fma(x, y, old), self.sums[s][k])

    def _count(self, s: int, k: int, mask: Any) -> None:
        slot = self.counts[s][k]
        self.b.store(self.b.add(self.b.load(slot), self.e.count(mask)), slot)

    def _read(self, name: str, index: Any) -> tuple[Any, Any]:
        """Weights, and where they are bfloat16 their bits."""
        if self.kinds[name].dtype != types.uint16:
            return self.e.load(self.pointers[name], F32X, index), None
        raw = self.e.load(self.pointers[name], I16X, index)
        bits = self.b.zext(raw, I32X)
        return self.b.bitcast(self.b.shl(bits, self.e.every(I32X, 16)), F32X), raw

    def _binades(self, raw: Any) -> Any:
        """The number of the binade of bfloat16 weights, the ends open, above the bits of a bin; 0 for any others."""
        b, e = self.b, self.e
        if raw is None:
            return e.every(I16X, 0)
        exponent = b.and_(raw, e.every(I16X, 255 << EXPONENT))
        lowest, most = e.every(I16X, LOWEST << EXPONENT), e.every(I16X, (BINADES - 1) << EXPONENT)
        above = e.call("llvm.usub.sat.v16i16", I16X, exponent, lowest)
        above = b.select(b.icmp_unsigned("<", above, most), above, most)
        return b.shl(above, e.every(I16X, BIN_BITS - EXPONENT))

    def _ratio(self, w: Any, halves: list[Any], s: int) -> tuple[Any, list[Any]]:
        """Ratios in float32 and in float64."""
        b, e = self.b, self.e
        if not self.divide:
            return b.fmul(w, self.factor[s]), [b.fmul(h, self.wide_factor[s]) for h in halves]
        found = []
        for h in halves:
            guess = b.fmul(h, self.reciprocal[s])
            rest = e.fma(b.fneg(guess), self.wide_factor[s], h)
            found.append(e.fma(rest, self.reciprocal[s], guess))
        return e.narrow(found), found

    def _value(self, level: Any, s: int) -> Any:
        """The value of levels: in the order of operations of `theory.quantize.decode`."""
        return self.b.fmul(self.b.fmul(level, self.scales[s]), self.unit)

    def _search(self, ratio: Any) -> Any:
        """Codes, int32; of integers their levels, float32."""
        e = self.e
        if self.integers:
            whole = e.call("llvm.rint.v16f32", F32X, ratio)
            return e.smaller(e.larger(whole, self.first), self.last)
        if self.way == BY_HALVING:
            return e.search(ratio, self.rows[THRESHOLDS])
        codes = [self.b.bitcast(row, I32X) for row in self.rows[CODES : CODES + 2]]
        limits = self.rows[LIMITS : LIMITS + 2]
        return e.bucket_search(ratio, self.reach, self.per_step, codes, limits)

    def _decoded(self, code: Any, s: int) -> Any:
        return self._value(code, s) if self.integers else self.e.table(self.values[s], code)

    def _differ(self, code: Any, code_new: Any) -> Any:
        if self.integers:
            return self.b.fcmp_ordered("!=", code, code_new)
        return self.b.icmp_signed("!=", code, code_new)

    def _slopes_of(self, code: Any) -> list[list[Any]]:
        """Flips a code unit upward and, negative, downward, of both halves; 0 outward from an end cell."""
        b, e = self.b, self.e
        if not self.integers:
            code64 = [b.zext(h, I64X) for h in e.halves(code)]
            return [[e.wide_table(steps, c) for c in code64] for steps in self.slopes]
        ends = [e.halves(b.fcmp_ordered("==", code, end)) for end in (self.first, self.last)]
        one, zero = e.every(F64X, 1.0), e.every(F64X, 0.0)
        up = [
            b.select(last, zero, b.select(first, self.end_slopes[0], one))
            for first, last in zip(*ends, strict=True)
        ]
        down = [
            b.fneg(b.select(first, zero, b.select(last, self.end_slopes[1], one)))
            for first, last in zip(*ends, strict=True)
        ]
        return [up, down]

    def _stays(self, ratio: Any, code: Any) -> Any:
        """Whether a code is that of a ratio too: above the thresholds below the code, not above its own."""
        b, e = self.b, self.e
        lowest, highest = e.table(self.rows[BELOW], code), e.table(self.rows[THRESHOLDS], code)
        return b.and_(b.fcmp_ordered(">", ratio, lowest), b.fcmp_ordered("<=", ratio, highest))

    def group(self, index: Any, bins_at: Any) -> None:
        """Sixteen weights from `index` on; their bins and binades go to `bins_at`."""
        b, e = self.b, self.e
        for name in ("x", "y"):
            e.prefetch(self.pointers[name], b.add(index, self.at(AHEAD)))
        (x, raw), (y, _) = (self._read(name, index) for name in ("x", "y"))
        x64, y64 = e.wide(x), e.wide(y)
        delta = [b.fsub(after, before) for before, after in zip(x64, y64, strict=True)]
        for d in delta:
            self._add(0, DELTA, d, d)
        ratio, v = self._ratio(x, x64, 0)
        code = self._search(ratio)
        free = b.fcmp_unordered("!=", e.size(x), self.setter)
        slopes = self._slopes_of(code)
        for s in range(self.grids):
            ratio_new, v_new = self._ratio(y, y64, s)
            if self.same and not self.divide:
                shift = [b.fmul(d, self.wide_factor[0]) for d in delta] if self.integers else delta
            else:
                shift = [b.fsub(new, old) for new, old in zip(v_new, v, strict=True)]
            self._expect(s, shift, slopes, free)
            if self.same and not self.integers:
                stays = self._stays(ratio_new, code)
                with b.if_then(b.not_(e.all(stays))):
                    flipped = b.not_(stays)
                    self._survive(s, code, self._search(ratio_new), flipped, free, delta)
            else:
                code_new = self._search(ratio_new)
                flipped = self._differ(code, code_new)
                self._survive(s, code, code_new, flipped, free, delta)
        moved = b.fcmp_unordered("!=", x, y)
        bins = self._bins(ratio, v, code, moved)
        e.store(b.or_(bins, self._binades(raw)), self.pointers["bins"], bins_at)

    def _expect(self, s: int, shift: list[Any], slopes: list[list[Any]], free: Any) -> None:
        """Probabilities of T6: the shift over the width, 0 outward from an end cell, at most 1."""
        b, e = self.b, self.e
        for d, up, down, own in zip(shift, *slopes, e.halves(free), strict=True):
            p = e.smaller(e.larger(b.fmul(d, up), b.fmul(d, down)), e.every(F64X, 1.0))
            p = b.select(own, p, e.every(F64X, 0.0))
            self._add(s, EXPECTED, p)
            self._add(s, SQUARES, p, p)

    def _survive(
        self, s: int, code: Any, code_new: Any, flipped: Any, free: Any, delta: list[Any]
    ) -> None:
        """Flips, changes and the sums of D. Where the grid is kept, none of it is anything without a flip."""
        b, e = self.b, self.e
        value, value_new = self._decoded(code, 0), self._decoded(code_new, s)
        self._count(s, FLIPS, flipped)
        self._count(s, CHANGES, b.fcmp_unordered("!=", value, value_new))
        self._count(s, PINNED, b.and_(flipped, b.not_(free)))
        for old, new, d in zip(e.wide(value), e.wide(value_new), delta, strict=True):
            surviving = b.fsub(new, old)
            self._add(s, SURVIVING, surviving, surviving)
            self._add(s, DOT, surviving, d)

    def _bins(self, ratio: Any, v: list[Any], code: Any, moved: Any) -> Any:
        """The bin of each weight, int16. Where float32 may be off by one, float64 says it for all lanes."""
        b, e = self.b, self.e
        if self.integers:
            above = b.fsub(ratio, b.fsub(code, e.every(F32X, 0.5)))
            scaled = b.fmul(above, e.every(F32X, float(BINS << FRACTION)))
            ends = (b.fcmp_ordered("==", code, end) for end in (self.first, self.last))
            scaled = b.select(b.or_(*ends), e.every(F32X, END_PLACE), scaled)
        else:
            inverse, origin = (e.table(self.rows[k], code) for k in (INVERSE, ORIGIN))
            scaled = e.call("llvm.fma.v16f32", F32X, ratio, inverse, origin)
        fine = b.fptosi(scaled, I32X)
        off = b.and_(b.add(fine, self.edge), self.around)
        near = b.and_(moved, b.icmp_signed("==", off, e.every(I32X, 0)))
        found = cgutils.alloca_once_value(b, b.lshr(fine, e.every(I32X, FRACTION)))
        with b.if_then(e.some(near), likely=False):
            exact = self._exact_bins(v, code)
            b.store(b.select(near, exact, b.load(found)), found)
        stayed = ir.Constant(I32X, [STAYED + lane for lane in range(LANES)])
        return b.trunc(b.select(moved, b.load(found), stayed), I16X)

    def _exact_bins(self, v: list[Any], code: Any) -> Any:
        """The bins by the operations of `kernel._positions`."""
        b, e = self.b, self.e
        if self.integers:  # of width 1
            places = [
                b.fsub(one, b.fsub(level, e.every(F64X, 0.5)))
                for one, level in zip(v, e.wide(code), strict=True)
            ]
        else:
            places = []
            for one, half in zip(v, e.halves(code), strict=True):
                lower, width, inverse = (
                    e.wide_table(table, b.zext(half, I64X))
                    for table in (*self.cells, self.steps[UPWARD])
                )
                places.append(self._quotient(b.fsub(one, lower), width, inverse))
        whole = []
        for place in places:
            scaled = e.larger(b.fmul(place, e.every(F64X, float(BINS))), e.every(F64X, 0.0))
            last = e.smaller(scaled, e.every(F64X, BINS - 1.0))
            whole.append(b.fptosi(last, ir.VectorType(I32, 8)))
        return b.shuffle_vector(*whole, ir.Constant(ir.VectorType(I32, 16), list(range(16))))

    def _quotient(self, x: Any, y: Any, inverse: Any) -> Any:
        """The float64 quotient: corrected once it is one of the two floats beside it, twice the nearest one."""
        found = self.b.fmul(x, inverse)
        for _ in range(2):
            rest = self.e.fma(self.b.fneg(found), y, x)
            found = self.e.fma(rest, inverse, found)
        return found


def _make(key: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b, part = builder, _Part(context, builder, signature, args, key)
        with cgutils.for_range(b, part.arg["count"], intp=I64) as each:
            block = b.zext(part.number("blocks", each.index), I64)
            part.load_block(block)
            at, begin = b.mul(block, part.arg["size"]), part.arg["begin"]
            at = b.select(b.icmp_signed("<", at, begin), begin, at)
            with cgutils.for_range(b, part.arg["groups"], intp=I64) as loop:
                index = b.add(at, b.mul(loop.index, part.at(LANES)))
                part.group(index, b.sub(index, begin))
        part.store_sums()
        return context.get_dummy_value()

    @intrinsic
    def part(
        typing: Any, x: Any, y: Any, begin: Any, groups: Any, size: Any, narrow: Any, wide: Any, constants: Any,
        factor: Any, scale: Any, reciprocal: Any, before: Any, after: Any, setter: Any, blocks: Any, count: Any, sums: Any, counts: Any, bins: Any,
    ) -> Any:  # fmt: skip
        kinds = (
            x, y, begin, groups, size, narrow, wide, constants, factor, scale, reciprocal, before, after, setter,
            blocks, count, sums, counts, bins,
        )  # fmt: skip
        whole = [
            types.int64 if name in WHOLE else kind for name, kind in zip(NAMES, kinds, strict=True)
        ]
        return types.void(*whole), codegen

    return part


PARTS = {key: _make(key) for key in itertools.product((False, True), (False, True), WAYS)}
"""By whether weights are divided by their scale, keep their grid, and the way to a code. Of a part:

x, y: uint16 (bfloat16) or float32; size: of a block; blocks, count: which blocks, uint32.
begin, groups: of each block `groups` times sixteen weights are measured, from its start on, or from `begin` if later.
narrow, wide, constants: of the format, see `kernel_tables.vector_rule`.
factor, scale, reciprocal (float64, where they divide): by entry; before, after: the entries of all blocks, uint32.
setter: absmax of all blocks before.
sums (grids, 5, 8), counts (grids, 3): fixed grid first, added to.
bins: uint16, where to write `binade << BIN_BITS | bin` of each weight, from `begin` on.
"""
