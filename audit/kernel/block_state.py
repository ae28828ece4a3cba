"""The parameters of formats and blocks in registers, and the ratios, codes and values that follow from them.

A quotient of float32 numbers is a product by the float64 reciprocal, within 2^-52 of itself. With operands of 24 bits a
quotient is 2^-49 of itself or more away from any midpoint of float32, so rounded to float32 the product is the correctly
rounded float32 quotient (below the normal numbers, where ties are, no format has a threshold). Corrected once with fused
multiply-adds it is the correctly rounded float64 quotient (Markstein 1990), as that is at least 2^-79 of itself away from
any midpoint of float64, and the corrected one within 2^-104 of it before it is rounded.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from unforgotten.audit.kernel.lanes import F32X, F64, F64X, I16X, I32, I32X, I64, LANES, MAGIC, Lanes
from unforgotten.audit.kernel.lookups import LOOKUPS
from unforgotten.audit.kernel.slots import (
    ALL_COUNTS,
    ALL_SUMS,
    AROUND,
    CODES,
    EDGE,
    FIRST,
    INVERSE64,
    LAST,
    LEVELS,
    LIMITS,
    LOWER64,
    REACH,
    REGISTER_COUNTS,
    REGISTER_SUMS,
    ROWS,
    STEPS,
    SURE,
    SURELY_FROM,
    SURELY_TO,
    THRESHOLDS,
    UNIT,
    WIDTH64,
)


class Blocks:
    """What a part of the blocks of a tile is measured with: those that keep their grid, or those that do not."""

    def __init__(self, builder: Any, arg: Any, kinds: Any, pointers: Any, *, simd: str, same: bool) -> None:
        self.find = LOOKUPS[simd](builder)
        self.b, self.e = builder, Lanes(builder, self.find.lanes, has_masks=self.find.has_masks)
        self.arg, self.pointers, self.same = arg, pointers, same
        self.stored = kinds["x"].dtype
        self.divide, self.integers = "reciprocal" in pointers, "narrow" not in pointers
        self.grids = 1 if self.same else 2
        # On the grid before, a code unit is the same for both weights, so the shift is delta, scaled. Quotients that are
        # each rounded to 2^-53 differ from that by 2^-44 where bfloat16 weights differ at all, by more where float32 do.
        self.by_delta = self.stored == types.uint16 or not self.divide
        # With masks a table costs little: slopes are scaled once a block, not shifts weight by weight.
        plain = self.same and not self.divide and not self.integers
        self.scaled = plain and self.find.has_masks
        self._load_format()
        self._load_sums()

    def at(self, k: int) -> Any:
        """Return a constant index, int64."""
        return ir.Constant(I64, k)

    def number(self, array: str, index: Any) -> Any:
        """Load one element of an array argument."""
        return self.b.load(self.b.gep(self.pointers[array], [index]))

    def _load_format(self) -> None:
        b, e = self.b, self.e
        vectors = 0 if self.integers else ROWS
        self.rows = [e.load(self.pointers["narrow"], F32X, self.at(LANES * k)) for k in range(vectors)]
        self.inverse, self.lower, self.width = (
            [e.load(self.pointers["wide"], F64X, self.at(LANES * k + h)) for h in (0, 8)] if vectors else []
            for k in (INVERSE64, LOWER64, WIDTH64)
        )
        thresholds = [self.number("two", self.at(k)) for k in range(2 if "two" in self.pointers else 0)]
        self.two = [e.spread(t, F32X) for t in thresholds]
        constants = [self.number("constants", self.at(k)) for k in range(SURE + 1)]
        self.edge, self.around = (e.spread(b.fptosi(constants[k], I32), I32X) for k in (EDGE, AROUND))
        self.unit, self.reach, self.per_step, self.sure = (
            e.spread(constants[k], F32X) for k in (UNIT, REACH, STEPS, SURE)
        )
        self.first, self.last = (
            e.spread(constants[k], F32X) if self.integers else e.spread(b.fptosi(constants[k], I32), I32X)
            for k in (FIRST, LAST)
        )
        self.end_slopes = [e.spread(self.number("wide", self.at(k)), F64X) for k in range(2 if self.integers else 0)]

    def load_block(self, k: Any) -> None:
        """Load the parameters of a block of the tile into every lane."""
        b, e = self.b, self.e
        block = b.zext(self.number("blocks", k), I64)
        start, begin = b.mul(block, self.arg["size"]), self.arg["begin"]
        self.start = b.select(b.icmp_signed("<", start, begin), begin, start)
        near = self.number("nears", k)
        wide = self.number("wides", k) if self.divide else b.fpext(near, F64)
        self.gain, self.wide_gain = [e.spread(near, F32X)], [e.spread(wide, F64X)]
        entries = [b.zext(self.number(name, block), I64) for name in ("before", "after")[: self.grids]]
        for entry in entries[1:]:
            gain = self.number("gain", entry)
            wide = self.number("reciprocal", entry) if self.divide else b.fpext(gain, F64)
            self.gain.append(e.spread(gain, F32X))
            self.wide_gain.append(e.spread(wide, F64X))
        factors = [self.number("factor", entry) for entry in entries]
        self.wide_factor = [e.spread(b.fpext(f, F64), F64X) for f in factors]
        self.scales = [e.spread(self.number("scale", entry), F32X) for entry in entries]
        self.setter = e.spread(self.number("setter", block), F32X)
        self.slopes = self.inverse
        if self.scaled:
            size = e.call("llvm.fabs.v8f64", F64X, self.wide_gain[0])  # a scale may be negative
            self.slopes = [b.fmul(half, size) for half in self.inverse]

    def _load_sums(self) -> None:
        b, e = self.b, self.e
        self.places = ("kept", "kept_counts") if self.same else ("moved", "moved_counts")
        sums = self.pointers[self.places[0]]
        self.sums = [
            {
                k: cgutils.alloca_once_value(b, e.load(sums, F64X, self.at((s * ALL_SUMS + k) * 8)))
                for k in REGISTER_SUMS
            }
            for s in range(self.grids)
        ]
        self.counts = [
            {k: cgutils.alloca_once_value(b, self._no_count) for k in REGISTER_COUNTS} for _ in range(self.grids)
        ]

    def store_sums(self) -> None:
        """Put back what was added to."""
        b, e = self.b, self.e
        sums, counts = (self.pointers[name] for name in self.places)
        for s in range(self.grids):
            for k in REGISTER_SUMS:
                e.store(b.load(self.sums[s][k]), sums, self.at((s * ALL_SUMS + k) * 8))
            for k in REGISTER_COUNTS:
                slot = b.gep(counts, [self.at(s * ALL_COUNTS + k)])
                b.store(b.add(b.load(slot), self._counted(b.load(self.counts[s][k]))), slot)

    def _add(self, s: int, k: int, x: Any, y: Any = None) -> None:
        old = self.b.load(self.sums[s][k])
        self.b.store(self.b.fadd(old, x) if y is None else self.e.fma(x, y, old), self.sums[s][k])

    @property
    def _no_count(self) -> Any:
        return self.at(0) if self.find.has_masks else self.e.every(I32X, 0)

    def _count(self, s: int, k: int, mask: Any) -> None:
        """Count the lanes of a mask: their number, or -1 each in its own lane where masks are vectors."""
        slot = self.counts[s][k]
        more = self.e.count(mask) if self.find.has_masks else self.b.sext(mask, I32X)
        self.b.store(self.b.add(self.b.load(slot), more), slot)

    def _counted(self, count: Any) -> Any:
        return count if self.find.has_masks else self.b.sub(self.at(0), self.e.total(count))

    def _read(self, name: str, index: Any) -> tuple[Any, Any]:
        """Load sixteen weights as float32, and where they are bfloat16 their bits, else None."""
        if self.stored != types.uint16:
            return self.e.load(self.pointers[name], F32X, index), None
        raw = self.e.load(self.pointers[name], I16X, index)
        bits = self.b.zext(raw, I32X)
        return self.b.bitcast(self.b.shl(bits, self.e.every(I32X, 16)), F32X), raw

    def _near(self, w: Any, s: int) -> Any:
        """Return ratios of weights in float32: exact where they are products, quotients within 2^-22 of themselves."""
        return self.b.fmul(w, self.gain[s])

    def _ratio(self, w: Any, s: int) -> Any:
        """Return ratios of weights in float32."""
        if not self.divide:
            return self._near(w, s)
        return self.e.narrow([self.b.fmul(h, self.wide_gain[s]) for h in self.e.wide(w)])

    def _wide_ratio(self, w: Any, s: int) -> list[Any]:
        """Return ratios of weights in float64, in two halves."""
        b, e = self.b, self.e
        found = [b.fmul(h, self.wide_gain[s]) for h in e.wide(w)]
        if not self.divide:
            return found
        rests = [e.fma(b.fneg(guess), self.wide_factor[s], h) for guess, h in zip(found, e.wide(w), strict=True)]
        return [e.fma(rest, self.wide_gain[s], guess) for rest, guess in zip(rests, found, strict=True)]

    def _value(self, level: Any, s: int) -> Any:
        """Return the value of levels: in the order of operations of `theory.formats.reference.decode`."""
        return self.b.fmul(self.b.fmul(level, self.scales[s]), self.unit)

    def _search(self, ratio: Any) -> Any:
        """Return the codes of ratios, int32; where codes are integers their levels, float32."""
        return self._search_surely(ratio)[0]

    def _search_surely(self, near: Any) -> tuple[Any, Any]:
        """Return the codes of near ratios, and flags where whatever those ratios are near to has that code too."""
        b, e = self.b, self.e
        if self.integers:
            whole = e.call("llvm.rint.v16f32", F32X, near)
            return self._cut(whole), e.below(e.size(b.fsub(near, whole)), self.sure)
        if not self.find.has_masks:
            code = self._halving_search(near)
            return code, self._surely(near, code)
        codes = [b.bitcast(row, I32X) for row in self.rows[CODES : CODES + 2]]
        code, limit = self._bucket_search(near, codes, self.rows[LIMITS : LIMITS + 2])
        for threshold in self.two:
            code = e.one_more(code, b.fcmp_ordered(">", near, threshold))
        return code, e.below(self.sure, e.size(b.fsub(near, limit)))

    def _bucket_search(self, ratio: Any, codes: Any, limits: Any) -> tuple[Any, Any]:
        """Count the thresholds below a ratio by one comparison; return the threshold of its bucket, too.

        See `vector_rules.vector_rule`.
        """
        b, e = self.b, self.e
        inside = e.larger(e.smaller(ratio, self.reach), b.fneg(self.reach))
        shifted = e.call("llvm.fma.v16f32", F32X, inside, self.per_step, e.every(F32X, MAGIC))
        bucket = b.bitcast(shifted, I32X)
        below, limit = (self.find.long_table(entries, bucket) for entries in (codes, limits))
        return e.one_more(below, b.fcmp_ordered(">", ratio, limit)), limit

    def _halving_search(self, ratio: Any) -> Any:
        """Count the thresholds, of fifteen, below a ratio by four comparisons, each with one of twice as many."""
        b, e, f, row = self.b, self.e, self.find, self.rows[THRESHOLDS]
        one = e.every(I32X, 1)
        above = b.fcmp_ordered(">", ratio, f.pick(row, row, [7] * LANES))
        code = b.zext(above, I32X)
        limits = [f.pick(row, row, [k] * LANES) for k in (11, 3)]
        tables = [f.pick(row, row, lanes) for lanes in ([1, 5, 9, 13] * 2, list(range(0, 16, 2)))]
        for step in range(3):
            limit = b.select(above, *limits) if step == 0 else f.short_table(tables[step - 1], code)
            above = b.fcmp_ordered(">", ratio, limit)
            code = e.one_more(b.shl(code, one), above)
        return code

    def _decoded(self, code: Any, s: int) -> Any:
        return self._value(code if self.integers else self.find.table(self.rows[LEVELS], code), s)

    def _smaller(self, x: Any) -> Any:
        """Return int32, below 0 where a weight is smaller than the one that sets the scale, the largest one."""
        return self.b.sub(*(self.b.bitcast(self.e.size(w), I32X) for w in (x, self.setter)))

    def _differ(self, code: Any, code_new: Any) -> Any:
        if self.integers:
            return self.b.fcmp_ordered("!=", code, code_new)
        return self.b.icmp_signed("!=", code, code_new)

    def _ends(self, code: Any) -> list[Any]:
        """Flag where codes are the first one, and where they are the last one."""
        if self.integers:
            return [self.b.fcmp_ordered("==", code, end) for end in (self.first, self.last)]
        return [self.b.icmp_signed("==", code, end) for end in (self.first, self.last)]

    def _end_signs(self, code: Any) -> list[Any]:
        """Return the sign bit set where codes are the first one, and where they are the last one, int32."""
        b = self.b
        if self.integers:
            inner = b.fsub(self.first, code), b.fsub(code, self.last)  # below 0, or 0
            return [b.not_(b.bitcast(rest, I32X)) for rest in inner]
        one = self.e.every(I32X, 1)
        return [b.sub(code, one), b.sub(b.sub(self.last, one), code)]

    def _slopes(self, code: Any, inward: Any) -> list[Any]:
        """Return the flips of a code unit, of both halves; 0 where the mask `inward` is not set."""
        b, e = self.b, self.e
        if not self.integers:
            return self.find.wide_table(self.slopes, code, inward)
        first, last, own = (e.halves(mask) for mask in (*self._ends(code), inward))
        low, high = self.end_slopes
        one, none = e.every(F64X, 1.0), e.every(F64X, 0.0)
        return [
            b.select(keep, b.select(at_first, low, b.select(at_last, high, one)), none)
            for at_first, at_last, keep in zip(first, last, own, strict=True)
        ]

    def _surely(self, near: Any, code: Any) -> Any:
        """Flag where a ratio near this one has this code for sure; where ratios are products, it has it.

        A ratio that is no finite number may have none, which costs time alone.
        """
        b, e = self.b, self.e
        if self.integers:
            whole, clear = self._search_surely(near)
            return b.and_(clear, e.flags(b.fcmp_ordered("==", whole, code)))
        lowest, highest = (self.find.table(self.rows[row], code) for row in (SURELY_FROM, SURELY_TO))
        return b.and_(e.below(lowest, near), b.not_(e.below(highest, near)))

    def _cut(self, whole: Any) -> Any:
        return self.e.smaller(self.e.larger(whole, self.first), self.last)
