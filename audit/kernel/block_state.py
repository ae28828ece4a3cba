"""The parameters of formats and blocks in registers, and the ratios, codes and values that follow from them.

A quotient of float32 numbers is a product by the float64 reciprocal, within 2^-52 of itself. With operands of 24 bits a
quotient is 2^-49 of itself or more away from any midpoint of float32, so rounded to float32 the product is the correctly
rounded float32 quotient (below the normal numbers, where ties are, no format has a threshold). Corrected once with fused
multiply-adds it is the correctly rounded float64 quotient (Markstein 1990), as that is at least 2^-79 of itself away from
any midpoint of float64, and the corrected one within 2^-104 of it before it is rounded.

In: a builder of LLVM's instructions, the `structures.Given` of a tile, and what is `structures.Known` at compile time.
Out: instructions behind those of the builder. The codes before of sixteen weights `w` of the first block of a tile:

    state = BlockState(builder, given, known, same_grid=True)
    state.load_block(state.at(0))
    codes = state._search(state._ratio(w, 0))
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
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
    STEPS,
    SURE,
    SURELY_FROM,
    SURELY_TO,
    TABLE_ROWS,
    THRESHOLDS,
    TILE,
    UNIT,
    WIDTH64,
)
from unforgotten.audit.kernel.structures import Given, Known


class BlockState:
    """The parameters of the format, and of one block after another, in registers.

    One is made for the blocks of a tile that have the same grid before and after, another for the others.
    """

    def __init__(self, builder: Any, given: Given, known: Known, *, same_grid: bool) -> None:
        self.find = LOOKUPS[known.simd](builder)
        self.b, self.e = builder, Lanes(builder, self.find.lanes, has_masks=self.find.has_masks)
        self.given, self.known, self.same_grid = given, known, same_grid
        self.divide, self.integers = given.entries.table.reciprocal is not None, given.rule.tables is None
        self.grids = 1 if same_grid else 2
        # On the grid before, a code unit is the same for both weights, so the shift is delta, scaled. Quotients that are
        # each rounded to 2^-53 differ from that by 2^-44 where bfloat16 weights differ at all, by more where float32 do.
        self.by_delta = known.is_bfloat16 or not self.divide
        # With masks a table costs little: slopes are scaled once a block, not shifts weight by weight.
        plain = same_grid and not self.divide and not self.integers
        self.scaled = plain and self.find.has_masks
        turn = given.tile.turn
        self.places, self.last_places = (
            builder.gep(given.scratch.places, [builder.mul(row, self.at(TILE))])
            for row in (turn, builder.sub(self.at(1), turn))
        )
        self._load_format()
        self._load_sums()

    def at(self, k: int) -> Any:
        """Return a constant index, int64."""
        return ir.Constant(I64, k)

    def number(self, array: Any, index: Any) -> Any:
        """Return an element of an array."""
        return self.b.load(self.b.gep(array, [index]))

    def _load_format(self) -> None:
        b, e, rule = self.b, self.e, self.given.rule
        tables = 0 if self.integers else TABLE_ROWS
        self.tables = [e.load(rule.tables, F32X, self.at(LANES * k)) for k in range(tables)]
        self.inverse, self.lower, self.width = (
            [e.load(rule.cells, F64X, self.at(LANES * k + h)) for h in (0, 8)] if tables else []
            for k in (INVERSE64, LOWER64, WIDTH64)
        )
        extra = [
            self.number(rule.extra_thresholds, self.at(k)) for k in range(0 if rule.extra_thresholds is None else 2)
        ]
        self.extra_thresholds = [e.spread(threshold, F32X) for threshold in extra]
        constants = [self.number(rule.constants, self.at(k)) for k in range(SURE + 1)]
        self.edge, self.around = (e.spread(b.fptosi(constants[k], I32), I32X) for k in (EDGE, AROUND))
        self.unit, self.reach, self.per_step, self.sure = (
            e.spread(constants[k], F32X) for k in (UNIT, REACH, STEPS, SURE)
        )
        self.first, self.last = (
            e.spread(constants[k], F32X) if self.integers else e.spread(b.fptosi(constants[k], I32), I32X)
            for k in (FIRST, LAST)
        )
        self.end_slopes = [
            e.spread(self.number(rule.cells, self.at(k)), F64X) for k in range(2 if self.integers else 0)
        ]

    def load_block(self, k: Any) -> None:
        """Load the parameters of a block of the tile into every lane."""
        b, e, given = self.b, self.e, self.given
        entries, table, begin = given.entries, given.entries.table, given.tile.begin
        block = b.zext(self.number(given.scratch.numbers, k), I64)
        start = b.mul(block, given.tile.size)
        self.start = b.select(b.icmp_signed("<", start, begin), begin, start)
        gain = self.number(given.scratch.gains, k)
        gain64 = self.number(given.scratch.reciprocals, k) if self.divide else b.fpext(gain, F64)
        self.gain, self.gain64 = [e.spread(gain, F32X)], [e.spread(gain64, F64X)]
        own = [b.zext(self.number(column, block), I64) for column in (entries.before, entries.after)[: self.grids]]
        for entry in own[1:]:
            gain = self.number(table.gain, entry)
            gain64 = self.number(table.reciprocal, entry) if self.divide else b.fpext(gain, F64)
            self.gain.append(e.spread(gain, F32X))
            self.gain64.append(e.spread(gain64, F64X))
        factors = [self.number(table.factor, entry) for entry in own]
        self.factor64 = [e.spread(b.fpext(f, F64), F64X) for f in factors]
        self.scales = [e.spread(self.number(table.scale, entry), F32X) for entry in own]
        self.absmax = e.spread(self.number(entries.absmax, block), F32X)
        self.slopes = self.inverse
        if self.scaled:
            magnitude = e.call("llvm.fabs.v8f64", F64X, self.gain64[0])  # a scale may be negative
            self.slopes = [b.fmul(half, magnitude) for half in self.inverse]

    def _load_sums(self) -> None:
        b, e = self.b, self.e
        own = self.given.sums
        self.slots = (own.same_grid, own.same_grid_counts) if self.same_grid else (own.new_grid, own.new_grid_counts)
        sums, _ = self.slots
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
        """Store sums and counts where the next tile, and Python, find them."""
        b, e = self.b, self.e
        sums, counts = self.slots
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

    def _read(self, weights: Any, index: Any) -> tuple[Any, Any]:
        """Load sixteen weights as float32, and where they are bfloat16 their bits, else None."""
        if not self.known.is_bfloat16:
            return self.e.load(weights, F32X, index), None
        raw = self.e.load(weights, I16X, index)
        bits = self.b.zext(raw, I32X)
        return self.b.bitcast(self.b.shl(bits, self.e.every(I32X, 16)), F32X), raw

    def _rough_ratio(self, w: Any, s: int) -> Any:
        """Return ratios of weights in float32: exact where they are products, quotients within 2^-22 of themselves."""
        return self.b.fmul(w, self.gain[s])

    def _ratio(self, w: Any, s: int) -> Any:
        """Return ratios of weights in float32."""
        if not self.divide:
            return self._rough_ratio(w, s)
        return self.e.float32s([self.b.fmul(h, self.gain64[s]) for h in self.e.float64s(w)])

    def _ratio64(self, w: Any, s: int) -> list[Any]:
        """Return ratios of weights in float64, in two halves."""
        b, e = self.b, self.e
        found = [b.fmul(h, self.gain64[s]) for h in e.float64s(w)]
        if not self.divide:
            return found
        rests = [e.fma(b.fneg(guess), self.factor64[s], h) for guess, h in zip(found, e.float64s(w), strict=True)]
        return [e.fma(rest, self.gain64[s], guess) for rest, guess in zip(rests, found, strict=True)]

    def _value(self, level: Any, s: int) -> Any:
        """Return the value of levels: in the order of operations of `theory.formats.reference.decode`."""
        return self.b.fmul(self.b.fmul(level, self.scales[s]), self.unit)

    def _search(self, ratio: Any) -> Any:
        """Return the codes of ratios, int32; where codes are integers their levels, float32."""
        return self._search_surely(ratio)[0]

    def _search_surely(self, rough: Any) -> tuple[Any, Any]:
        """Return the codes of rough ratios, and flags where all ratios within the error of those have that code too."""
        b, e = self.b, self.e
        if self.integers:
            whole = e.call("llvm.rint.v16f32", F32X, rough)
            return self._clamped(whole), e.below(e.magnitude(b.fsub(rough, whole)), self.sure)
        if not self.find.has_masks:
            code = self._halving_search(rough)
            return code, self._surely_has(rough, code)
        codes = [b.bitcast(row, I32X) for row in self.tables[CODES : CODES + 2]]
        code, limit = self._bucket_search(rough, codes, self.tables[LIMITS : LIMITS + 2])
        for threshold in self.extra_thresholds:
            code = e.one_more(code, b.fcmp_ordered(">", rough, threshold))
        return code, e.below(self.sure, e.magnitude(b.fsub(rough, limit)))

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
        b, e, f, row = self.b, self.e, self.find, self.tables[THRESHOLDS]
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
        return self._value(code if self.integers else self.find.table(self.tables[LEVELS], code), s)

    def _smaller(self, x: Any) -> Any:
        """Return int32, below 0 where a weight is smaller than the one that sets the scale, the largest one."""
        return self.b.sub(*(self.b.bitcast(self.e.magnitude(w), I32X) for w in (x, self.absmax)))

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
            return self.find.table64(self.slopes, code, inward)
        first, last, own = (e.halves(mask) for mask in (*self._ends(code), inward))
        low, high = self.end_slopes
        one, none = e.every(F64X, 1.0), e.every(F64X, 0.0)
        return [
            b.select(may_leave, b.select(at_first, low, b.select(at_last, high, one)), none)
            for at_first, at_last, may_leave in zip(first, last, own, strict=True)
        ]

    def _surely_has(self, rough: Any, code: Any) -> Any:
        """Flag where a ratio near this one has this code for sure; where ratios are products, it has it.

        A ratio that is no finite number may have none, which costs time alone.
        """
        b, e = self.b, self.e
        if self.integers:
            whole, clear = self._search_surely(rough)
            return b.and_(clear, e.flags(b.fcmp_ordered("==", whole, code)))
        lowest, highest = (self.find.table(self.tables[row], code) for row in (SURELY_FROM, SURELY_TO))
        return b.and_(e.below(lowest, rough), b.not_(e.below(highest, rough)))

    def _clamped(self, whole: Any) -> Any:
        return self.e.smaller(self.e.larger(whole, self.first), self.last)
