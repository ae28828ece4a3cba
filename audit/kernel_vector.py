"""Formats of at most sixteen levels and no zero point, sixteen weights at a time; what `kernel.measure` gives.

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

from unforgotten.audit.kernel_lanes import (
    F32,
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
from unforgotten.audit.kernel_rows import (
    AROUND,
    BIN_BITS,
    BINADES,
    BINS,
    CHANGES,
    CODES,
    DELTA,
    DOT,
    EDGE,
    END_PLACE,
    EXPECTED,
    FIRST,
    FIRST_BIN,
    FLIPS,
    FRACTION,
    INVERSE,
    LAST,
    LEVELS,
    LIMITS,
    LOWER64,
    LOWEST,
    ORIGIN,
    PINNED,
    REACH,
    ROWS,
    SQUARES,
    STAYED,
    STEPS,
    SURE,
    SURELY_FROM,
    SURELY_TO,
    SURVIVING,
    TILE,
    UNIT,
    UPWARD,
)  # fmt: skip

AHEAD = TILE  # weights between what is measured and what is asked for from memory
EXPONENT = 7  # the lowest bit of the exponent of a bfloat16


class Part:
    """The instructions for the blocks of a tile that keep their grid, or for those that do not."""

    def __init__(self, builder: Any, arg: Any, kinds: Any, pointers: Any, *, same: bool) -> None:
        self.b, self.e = builder, Lanes(builder)
        self.arg, self.pointers, self.same = arg, pointers, same
        self.stored = kinds["x"].dtype
        self.divide, self.integers = "reciprocal" in pointers, "narrow" not in pointers
        self.grids = 1 if self.same else 2
        # On the grid before, a code unit is the same for both weights, so the shift is delta, scaled. Quotients that are
        # each rounded to 2^-53 differ from that by 2^-44 where bfloat16 weights differ at all, by more where float32 do.
        self.by_delta = self.stored == types.uint16 or not self.divide
        self._load_format()
        self._load_sums()

    def at(self, k: int) -> Any:
        """An index."""
        return ir.Constant(I64, k)

    def number(self, array: str, index: Any) -> Any:
        """An element of an argument."""
        return self.b.load(self.b.gep(self.pointers[array], [index]))

    def _load_format(self) -> None:
        b, e = self.b, self.e
        vectors = 0 if self.integers else ROWS
        self.rows = [
            e.load(self.pointers["narrow"], F32X, self.at(LANES * k)) for k in range(vectors)
        ]
        tables = [
            [e.load(self.pointers["wide"], F64X, self.at(LANES * k + h)) for h in (0, 8)]
            for k in range(0 if self.integers else 4)
        ]
        self.steps, self.cells = tables[:LOWER64], tables[LOWER64:]
        thresholds = [
            self.number("two", self.at(k)) for k in range(2 if "two" in self.pointers else 0)
        ]
        self.two = [e.spread(t, F32X) for t in thresholds]
        constants = [self.number("constants", self.at(k)) for k in range(SURE + 1)]
        self.edge, self.around = (
            e.spread(b.fptosi(constants[k], I32), I32X) for k in (EDGE, AROUND)
        )
        self.unit, self.reach, self.per_step, self.first, self.last, self.sure = (
            e.spread(constants[k], F32X) for k in (UNIT, REACH, STEPS, FIRST, LAST, SURE)
        )
        self.end_slopes = [
            e.spread(self.number("wide", self.at(k)), F64X)
            for k in range(2 if self.integers else 0)
        ]

    def load_block(self, k: Any) -> None:
        """The parameters of a block of the tile, in every lane."""
        b, e = self.b, self.e
        block = b.zext(self.number("blocks", k), I64)
        start, begin = b.mul(block, self.arg["size"]), self.arg["begin"]
        self.start = b.select(b.icmp_signed("<", start, begin), begin, start)
        near = self.number("nears", k)
        wide = self.number("wides", k) if self.divide else b.fpext(near, F64)
        self.gain, self.wide_gain = [e.spread(near, F32X)], [e.spread(wide, F64X)]
        entries = [
            b.zext(self.number(name, block), I64) for name in ("before", "after")[: self.grids]
        ]
        for entry in entries[1:]:
            gain = self.number("gain", entry)
            wide = self.number("reciprocal", entry) if self.divide else b.fpext(gain, F64)
            self.gain.append(e.spread(gain, F32X))
            self.wide_gain.append(e.spread(wide, F64X))
        factors = [self.number("factor", entry) for entry in entries]
        self.wide_factor = [e.spread(b.fpext(f, F64), F64X) for f in factors]
        self.scales = [e.spread(self.number("scale", entry), F32X) for entry in entries]
        self.setter = e.spread(self.number("setter", block), F32X)
        self.slopes = self.steps
        if self.same and not self.divide and not self.integers:
            self.slopes = [
                [b.fmul(half, self.wide_gain[0]) for half in step] for step in self.steps
            ]

    def _load_sums(self) -> None:
        b, e = self.b, self.e
        self.places = ("kept", "kept_counts") if self.same else ("moved", "moved_counts")
        sums, counts = (self.pointers[name] for name in self.places)
        self.sums = [
            [
                cgutils.alloca_once_value(b, e.load(sums, F64X, self.at((s * 5 + k) * 8)))
                for k in range(5)
            ]
            for s in range(self.grids)
        ]
        self.counts = [
            [
                cgutils.alloca_once_value(b, b.load(b.gep(counts, [self.at(s * 3 + k)])))
                for k in range(3)
            ]
            for s in range(self.grids)
        ]

    def store_sums(self) -> None:
        """Put back what was added to."""
        b, e = self.b, self.e
        sums, counts = (self.pointers[name] for name in self.places)
        for s in range(self.grids):
            for k in range(5):
                e.store(b.load(self.sums[s][k]), sums, self.at((s * 5 + k) * 8))
            for k in range(3):
                b.store(b.load(self.counts[s][k]), b.gep(counts, [self.at(s * 3 + k)]))

    def _add(self, s: int, k: int, x: Any, y: Any = None) -> None:
        old = self.b.load(self.sums[s][k])
        self.b.store(self.b.fadd(old, x) if y is None else self.e.fma(x, y, old), self.sums[s][k])

    def _count(self, s: int, k: int, mask: Any) -> None:
        slot = self.counts[s][k]
        self.b.store(self.b.add(self.b.load(slot), self.e.count(mask)), slot)

    def _read(self, name: str, index: Any) -> tuple[Any, Any]:
        """Weights, and where they are bfloat16 their bits."""
        if self.stored != types.uint16:
            return self.e.load(self.pointers[name], F32X, index), None
        raw = self.e.load(self.pointers[name], I16X, index)
        bits = self.b.zext(raw, I32X)
        return self.b.bitcast(self.b.shl(bits, self.e.every(I32X, 16)), F32X), raw

    def _binades(self, raw: Any) -> Any:
        """The number of the binade of bfloat16 weights, the ends open, above the bits of a bin."""
        b, e = self.b, self.e
        exponent = b.and_(raw, e.every(I16X, 255 << EXPONENT))
        lowest, most = e.every(I16X, LOWEST << EXPONENT), e.every(I16X, (BINADES - 1) << EXPONENT)
        above = e.call("llvm.usub.sat.v16i16", I16X, exponent, lowest)
        above = b.select(b.icmp_unsigned("<", above, most), above, most)
        return b.shl(above, e.every(I16X, BIN_BITS - EXPONENT))

    def _near(self, w: Any, s: int) -> Any:
        """Ratios in float32: exact where they are products, quotients within 2^-22 of themselves."""
        return self.b.fmul(w, self.gain[s])

    def _ratio(self, w: Any, s: int) -> Any:
        """Ratios in float32."""
        if not self.divide:
            return self._near(w, s)
        return self.e.narrow([self.b.fmul(h, self.wide_gain[s]) for h in self.e.wide(w)])

    def _wide_ratio(self, w: Any, s: int) -> list[Any]:
        """Ratios in float64."""
        b, e = self.b, self.e
        found = [b.fmul(h, self.wide_gain[s]) for h in e.wide(w)]
        if not self.divide:
            return found
        rests = [
            e.fma(b.fneg(guess), self.wide_factor[s], h)
            for guess, h in zip(found, e.wide(w), strict=True)
        ]
        return [
            e.fma(rest, self.wide_gain[s], guess) for rest, guess in zip(rests, found, strict=True)
        ]

    def _value(self, level: Any, s: int) -> Any:
        """The value of levels: in the order of operations of `theory.quantize.decode`."""
        return self.b.fmul(self.b.fmul(level, self.scales[s]), self.unit)

    def _search(self, ratio: Any) -> Any:
        """Codes, int32; of integers their levels, float32."""
        return self._search_surely(ratio)[0]

    def _search_surely(self, near: Any) -> tuple[Any, Any]:
        """Codes, and whether whatever these ratios are near to has the same."""
        b, e = self.b, self.e
        if self.integers:
            whole = e.call("llvm.rint.v16f32", F32X, near)
            return self._cut(whole), b.fcmp_ordered("<", e.size(b.fsub(near, whole)), self.sure)
        codes = [b.bitcast(row, I32X) for row in self.rows[CODES : CODES + 2]]
        code, limit = e.bucket_search(
            near, self.reach, self.per_step, codes, self.rows[LIMITS : LIMITS + 2]
        )
        for threshold in self.two:
            code = e.one_more(code, b.fcmp_ordered(">", near, threshold))
        return code, b.fcmp_ordered(">", e.size(b.fsub(near, limit)), self.sure)

    def _decoded(self, code: Any, s: int) -> Any:
        return self._value(code if self.integers else self.e.table(self.rows[LEVELS], code), s)

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

    def _surely(self, near: Any, code: Any) -> Any:
        """Whether a ratio near this one has this code for sure; where ratios are products, whether it has it."""
        b, e = self.b, self.e
        if self.integers:
            whole, clear = self._search_surely(near)
            return b.and_(clear, b.fcmp_ordered("==", whole, code))
        lowest, highest = (e.table(self.rows[row], code) for row in (SURELY_FROM, SURELY_TO))
        return b.and_(b.fcmp_ordered(">", near, lowest), b.fcmp_ordered("<=", near, highest))

    def _cut(self, whole: Any) -> Any:
        return self.e.smaller(self.e.larger(whole, self.first), self.last)

    def encode(self, index: Any, at: Any) -> None:
        """The codes of sixteen weights before, from `index` on, into `codes` from `at` on."""
        b, e = self.b, self.e
        for name in ("x", "y"):
            e.prefetch(self.pointers[name], b.add(index, self.at(AHEAD)))
        x, _ = self._read("x", index)
        code, surely = self._search_surely(self._near(x, 0))
        e.store(code, self._codes, at)
        if self.divide:
            with b.if_then(b.not_(e.all(surely)), likely=False):
                e.store(self._search(self._ratio(x, 0)), self._codes, at)

    @property
    def _codes(self) -> Any:
        kind = F32 if self.integers else I32
        return self.b.bitcast(self.pointers["codes"], kind.as_pointer())

    def _code(self, at: Any) -> Any:
        return self.e.load(self._codes, F32X if self.integers else I32X, at)

    def expect(self, index: Any, at: Any) -> None:
        """What T6 expects of sixteen weights, and the squares of delta."""
        b, e = self.b, self.e
        (x, _), (y, _) = (self._read(name, index) for name in ("x", "y"))
        x64, y64 = e.wide(x), e.wide(y)
        delta = [b.fsub(after, before) for before, after in zip(x64, y64, strict=True)]
        for d in delta if self.arg["census"] is not None else ():
            self._add(0, DELTA, d, d)
        slopes = self._slopes_of(self._code(at))
        free = b.fcmp_unordered("!=", e.size(x), self.setter)
        for s in range(self.grids):
            if s == 0 and self.by_delta:
                shift = delta
                if self.slopes is self.steps:
                    shift = [b.fmul(d, self.wide_gain[0]) for d in delta]
            else:
                v, v_new = self._wide_ratio(x, 0), self._wide_ratio(y, s)
                shift = [b.fsub(new, old) for new, old in zip(v_new, v, strict=True)]
            self._expect(s, shift, slopes, free)

    def place(self, index: Any, at: Any) -> tuple[Any, ...]:
        """Put the bins and binades of sixteen weights into `bins` from `at` on.

        Returns:
            Which bins may be off by one, that is left to `correct`; and on a grid that is kept which weights may flip,
            which are few, and as without a flip nothing survives, all else is left to `survive`.
        """
        b, e = self.b, self.e
        (x, raw), (y, _) = (self._read(name, index) for name in ("x", "y"))
        code = self._code(at)
        bins, close = self._bins(self._near(x, 0), code, b.fcmp_unordered("!=", x, y))
        if raw is not None and self.arg["census"] is not None:
            bins = b.or_(bins, self._binades(raw))
        e.store(bins, self.pointers["bins"], at)
        return (close, b.not_(self._surely(self._near(y, 0), code))) if self.same else (close,)

    def correct(self, index: Any, at: Any) -> None:
        """Put the bins that float64 says in the place of those that `place` found."""
        b, e = self.b, self.e
        x, _ = self._read("x", index)
        code = self._code(at)
        exact = b.trunc(self._exact_bins(self._wide_ratio(x, 0), code), I16X)
        old = e.load(self.pointers["bins"], I16X, at)
        own = b.and_(old, e.every(I16X, (1 << BIN_BITS) - 1))
        inner = b.and_(b.icmp_unsigned("<", own, e.every(I16X, STAYED)), b.not_(self._ends(code)))
        new = b.or_(b.and_(old, e.every(I16X, -1 << BIN_BITS)), exact)
        e.store(b.select(inner, new, old), self.pointers["bins"], at)

    def _ends(self, code: Any) -> Any:
        """Whether a code is that of an end cell."""
        b, e = self.b, self.e
        if self.integers:
            return b.or_(*(b.fcmp_ordered("==", code, end) for end in (self.first, self.last)))
        inverse = e.table(self.rows[INVERSE], code)
        return b.fcmp_ordered("==", inverse, e.every(F32X, 0.0))

    def survive(self, index: Any, at: Any) -> None:
        """Flips, changes and the sums of D, of sixteen weights."""
        b, e = self.b, self.e
        (x, _), (y, _) = (self._read(name, index) for name in ("x", "y"))
        delta = [b.fsub(new, old) for old, new in zip(e.wide(x), e.wide(y), strict=True)]
        code = self._code(at)
        value = self._decoded(code, 0)
        wide = e.wide(value)
        fixed = b.fcmp_unordered("==", e.size(x), self.setter)
        for s in range(self.grids):
            code_new = self._search(self._ratio(y, s))
            value_new, flipped = self._decoded(code_new, s), self._differ(code, code_new)
            self._count(s, FLIPS, flipped)
            self._count(s, CHANGES, b.fcmp_unordered("!=", value, value_new))
            self._count(s, PINNED, b.and_(flipped, fixed))
            for old, new, d in zip(wide, e.wide(value_new), delta, strict=True):
                surviving = b.fsub(new, old)
                self._add(s, SURVIVING, surviving, surviving)
                self._add(s, DOT, surviving, d)

    def tally(self, at: Any) -> None:
        """Count sixteen bins of the last tile, which costs nothing beside the vectors of this one."""
        b = self.b
        for lane in range(LANES):
            place = self.number("last_bins", b.add(at, self.at(lane)))
            slot = b.gep(self.pointers["tallies"], [b.zext(place, I64)])
            b.store(b.add(b.load(slot), ir.Constant(I32, 1)), slot)

    def _expect(self, s: int, shift: list[Any], slopes: list[list[Any]], free: Any) -> None:
        """Probabilities of T6: the shift over the width, 0 outward from an end cell, at most 1."""
        b, e = self.b, self.e
        for d, up, down, own in zip(shift, *slopes, e.halves(free), strict=True):
            p = e.smaller(e.larger(b.fmul(d, up), b.fmul(d, down)), e.every(F64X, 1.0))
            p = b.select(own, p, e.every(F64X, 0.0))
            self._add(s, EXPECTED, p)
            self._add(s, SQUARES, p, p)

    def _bins(self, ratio: Any, code: Any, moved: Any) -> tuple[Any, Any]:
        """The bin of each weight, int16, and where it may be off by one."""
        b, e = self.b, self.e
        if self.integers:
            above = b.fsub(ratio, b.fsub(code, e.every(F32X, 0.5 + FIRST_BIN / BINS)))
            scaled = b.fmul(above, e.every(F32X, float(BINS << FRACTION)))
            scaled = b.select(self._ends(code), e.every(F32X, END_PLACE), scaled)
        else:
            inverse, origin = (e.table(self.rows[k], code) for k in (INVERSE, ORIGIN))
            scaled = e.call("llvm.fma.v16f32", F32X, ratio, inverse, origin)
        fine = e.least(b.fptosi(scaled, I32X), e.every(I32X, (STAYED << FRACTION) - 1))
        off = b.and_(b.add(fine, self.edge), self.around)
        close = b.and_(moved, b.icmp_signed("==", off, e.every(I32X, 0)))
        if "dense" in self.pointers:
            dense = e.spread(self.number("dense", self.at(0)), F32X)
            close = b.and_(close, b.fcmp_ordered("<", e.size(ratio), dense))
        stayed = ir.Constant(I16X, [STAYED + lane for lane in range(LANES)])
        bins = b.trunc(b.lshr(fine, e.every(I32X, FRACTION)), I16X)
        return b.select(moved, bins, stayed), close

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
        bins = b.shuffle_vector(*whole, ir.Constant(ir.VectorType(I32, 16), list(range(16))))
        return b.add(bins, e.every(I32X, FIRST_BIN))

    def _quotient(self, x: Any, y: Any, inverse: Any) -> Any:
        """The float64 quotient: corrected once it is one of the two floats beside it, twice the nearest one."""
        found = self.b.fmul(x, inverse)
        for _ in range(2):
            rest = self.e.fma(self.b.fneg(found), y, x)
            found = self.e.fma(rest, inverse, found)
        return found
