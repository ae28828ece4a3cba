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
    F32, F32X, F64, F64X, I16, I16X, I32, I32X, I64, I64X, LANES, Lanes,
)  # fmt: skip

THRESHOLDS, LEVELS, LOWER, INVERSE, CODES, LIMITS = 0, 1, 2, 3, 4, 6  # rows of `narrow`
UPWARD, DOWNWARD = 0, 1  # rows of `wide`
INNER, UNIT, EDGE, AROUND, REACH, STEPS = range(6)  # of `constants`
FLIPS, CHANGES, PINNED = range(3)  # of `counts`
EXPECTED, SQUARES, SURVIVING, DOT, DELTA = range(5)  # of `sums`
FRACTION = 12  # bits of the fraction of a bin
TRASH = 256  # the bin of weights that have no place
FACTORS, SCALES = ("factor", "factor_new"), ("scale", "scale_new")
RECIPROCALS = ("reciprocal", "reciprocal_new")
WHOLE = ("start", "groups", "block", "bins_at")
NAMES = (
    "x", "y", "start", "groups", "narrow", "wide", "constants", *FACTORS, *SCALES, *RECIPROCALS, "setter", "block",
    "sums", "counts", "bins", "near", "bins_at",
)  # fmt: skip


class _Part:
    """The instructions for one part of one block; `same` says that the block keeps its grid."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, key: Any) -> None:
        self.b, self.e, self.arg = builder, Lanes(builder), dict(zip(NAMES, args, strict=True))
        self.divide, self.same, self.bucketed = key
        self.kinds = dict(zip(NAMES, signature.args, strict=True))
        self.pointers = {
            name: context.make_array(kind)(context, builder, value=self.arg[name]).data
            for name, kind in self.kinds.items()
            if isinstance(kind, types.Array)
        }
        self.grids = 1 if self.same else 2
        self._load_format()
        self._load_block()
        self._load_sums()

    def at(self, k: int) -> Any:
        return ir.Constant(I64, k)

    def number(self, array: str, index: Any) -> Any:
        return self.b.load(self.b.gep(self.pointers[array], [index]))

    def _load_format(self) -> None:
        b, e = self.b, self.e
        self.rows = [e.load(self.pointers["narrow"], F32X, self.at(LANES * k)) for k in range(8)]
        self.steps = [
            [e.load(self.pointers["wide"], F64X, self.at(LANES * k + h)) for h in (0, 8)]
            for k in (UPWARD, DOWNWARD)
        ]
        constants = [self.number("constants", self.at(k)) for k in range(6)]
        self.inner, self.edge, self.around = (
            e.spread(b.fptosi(constants[k], I32), I32X) for k in (INNER, EDGE, AROUND)
        )
        self.unit, self.reach, self.per_step = (
            e.spread(constants[k], F32X) for k in (UNIT, REACH, STEPS)
        )

    def _load_block(self) -> None:
        b, e = self.b, self.e
        factors = [self.number(name, self.arg["block"]) for name in FACTORS[: self.grids]]
        self.factor = [e.spread(f, F32X) for f in factors]
        self.wide_factor = [e.spread(b.fpext(f, F64), F64X) for f in factors]
        self.reciprocal = [
            e.spread(self.number(name, self.arg["block"]), F64X)
            for name in (RECIPROCALS[: self.grids] if self.divide else ())
        ]
        scales = [
            e.spread(self.number(name, self.arg["block"]), F32X) for name in SCALES[: self.grids]
        ]
        self.values = [b.fmul(b.fmul(self.rows[LEVELS], scale), self.unit) for scale in scales]
        self.setter = e.spread(self.number("setter", self.arg["block"]), F32X)
        if (
            self.same and not self.divide
        ):  # a code unit is the same for both weights, so flips are counted by delta
            self.steps = [
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

    def _read(self, name: str, index: Any) -> Any:
        if self.kinds[name].dtype != types.uint16:
            return self.e.load(self.pointers[name], F32X, index)
        bits = self.b.zext(self.e.load(self.pointers[name], I16X, index), I32X)
        return self.b.bitcast(self.b.shl(bits, self.e.every(I32X, 16)), F32X)

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

    def _search(self, ratio: Any) -> Any:
        if not self.bucketed:
            return self.e.search(ratio, self.rows[THRESHOLDS])
        codes = [self.b.bitcast(row, I32X) for row in self.rows[CODES : CODES + 2]]
        limits = self.rows[LIMITS : LIMITS + 2]
        return self.e.bucket_search(ratio, self.reach, self.per_step, codes, limits)

    def group(self, index: Any, bins_at: Any) -> None:
        """Sixteen weights from `index` on; their bins go to `bins_at`."""
        b, e = self.b, self.e
        x, y = self._read("x", index), self._read("y", index)
        x64, y64 = e.wide(x), e.wide(y)
        delta = [b.fsub(after, before) for before, after in zip(x64, y64, strict=True)]
        for d in delta:
            self._add(0, DELTA, d, d)
        ratio, v = self._ratio(x, x64, 0)
        code = self._search(ratio)
        pinned = b.fcmp_ordered("==", e.size(x), self.setter)
        code64 = [b.zext(h, I64X) for h in e.halves(code)]
        slopes = [[e.wide_table(steps, c) for c in code64] for steps in self.steps]
        for s in range(self.grids):
            ratio_new, v_new = self._ratio(y, y64, s)
            code_new = self._search(ratio_new)
            if self.same and not self.divide:
                shift = delta
            else:
                shift = [b.fsub(new, old) for new, old in zip(v_new, v, strict=True)]
            self._expect(s, shift, slopes, pinned)
            flipped = b.icmp_signed("!=", code, code_new)
            if self.same:
                with b.if_then(e.some(flipped)):
                    self._survive(s, code, code_new, flipped, pinned, delta)
            else:
                self._survive(s, code, code_new, flipped, pinned, delta)
        moved = b.fcmp_unordered("!=", x, y)
        self._place(ratio, code, moved, bins_at)

    def _expect(self, s: int, shift: list[Any], slopes: list[list[Any]], pinned: Any) -> None:
        """Probabilities of T6: the shift over the width, 0 outward from an end cell, at most 1."""
        b, e = self.b, self.e
        for d, up, down, fixed in zip(shift, *slopes, e.halves(pinned), strict=True):
            p = e.smaller(e.larger(b.fmul(d, up), b.fmul(d, down)), e.every(F64X, 1.0))
            p = b.select(fixed, e.every(F64X, 0.0), p)
            self._add(s, EXPECTED, p)
            self._add(s, SQUARES, p, p)

    def _survive(
        self, s: int, code: Any, code_new: Any, flipped: Any, pinned: Any, delta: list[Any]
    ) -> None:
        """Flips, changes and the sums of D. Where the grid is kept, none of it is anything without a flip."""
        b, e = self.b, self.e
        value, value_new = e.table(self.values[0], code), e.table(self.values[s], code_new)
        self._count(s, FLIPS, flipped)
        self._count(s, CHANGES, b.fcmp_unordered("!=", value, value_new))
        self._count(s, PINNED, b.and_(flipped, pinned))
        for old, new, d in zip(e.wide(value), e.wide(value_new), delta, strict=True):
            surviving = b.fsub(new, old)
            self._add(s, SURVIVING, surviving, surviving)
            self._add(s, DOT, surviving, d)

    def _place(self, ratio: Any, code: Any, moved: Any, bins_at: Any) -> None:
        """The bin of each weight's place, TRASH for none; where it may be off by one, `near` has a bit set."""
        b, e = self.b, self.e
        above = b.fsub(ratio, e.table(self.rows[LOWER], code))
        fine = b.fptosi(b.fmul(above, e.table(self.rows[INVERSE], code)), I32X)
        inner = b.icmp_unsigned("<", b.sub(code, e.every(I32X, 1)), self.inner)
        inner = b.and_(inner, moved)
        off = b.and_(b.add(fine, self.edge), self.around)
        near = b.and_(inner, b.icmp_signed("==", off, e.every(I32X, 0)))
        whole = b.lshr(fine, e.every(I32X, FRACTION))
        bins = b.trunc(b.select(inner, whole, e.every(I32X, TRASH)), I16X)
        e.store(bins, self.pointers["bins"], bins_at)
        group = b.sdiv(bins_at, self.at(LANES))
        b.store(b.bitcast(near, I16), b.gep(self.pointers["near"], [group]))


def _make(key: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = _Part(context, builder, signature, args, key)
        with cgutils.for_range(builder, part.arg["groups"], intp=I64) as loop:
            offset = builder.mul(loop.index, part.at(LANES))
            part.group(
                builder.add(part.arg["start"], offset), builder.add(part.arg["bins_at"], offset)
            )
        part.store_sums()
        return context.get_dummy_value()

    @intrinsic
    def part(
        typing: Any, x: Any, y: Any, start: Any, groups: Any, narrow: Any, wide: Any, constants: Any, factor: Any,
        factor_new: Any, scale: Any, scale_new: Any, reciprocal: Any, reciprocal_new: Any, setter: Any, block: Any,
        sums: Any, counts: Any, bins: Any, near: Any, bins_at: Any,
    ) -> Any:  # fmt: skip
        kinds = (
            x, y, start, groups, narrow, wide, constants, factor, factor_new, scale, scale_new, reciprocal,
            reciprocal_new, setter, block, sums, counts, bins, near, bins_at,
        )  # fmt: skip
        whole = [
            types.int64 if name in WHOLE else kind for name, kind in zip(NAMES, kinds, strict=True)
        ]
        return types.void(*whole), codegen

    return part


PARTS = {key: _make(key) for key in itertools.product((False, True), repeat=3)}
"""By whether weights are divided by their scale, keep their grid, and have bucketed thresholds. Of a part:

x, y: uint16 (bfloat16) or float32; start: of the part; groups: of sixteen weights.
narrow, wide, constants: of the format, see `kernel_tables.vector_rule`.
factor, scale, reciprocal (float64, where they divide), setter (absmax): of all blocks, of both grids; block: which.
sums (grids, 5, 8), counts (grids, 3): fixed grid first, added to.
bins, near: where to write from bins_at on.
"""
