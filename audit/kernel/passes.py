"""The passes over a tile as instructions for sixteen weights: in formats that `is_in_registers`, what `scalar.measure` gives.

In: a builder of LLVM's instructions, the `structures.Given` of a tile, and what is `structures.Known` at compile time.
Out: instructions that fill its `Scratch` and add to its `Sums`. `tile` calls each pass for each group of sixteen; the
first two passes over the first group of a block:

    passes = Passes(builder, given, known, same_grid=True)
    passes.load_block(passes.at(0))
    passes.encode(passes.start, passes.at(0))
    passes.expect(passes.start, passes.at(0))
    passes.store_sums()
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from unforgotten.audit.kernel.block_state import BlockState
from unforgotten.audit.kernel.lanes import F32, F32X, F64X, I16X, I32, I32X, I64, LANES
from unforgotten.audit.kernel.slots import (
    BIN_BITS,
    BINADES,
    BINS,
    CHANGES,
    DELTA,
    DOT,
    END_PLACE,
    EXPECTED,
    FIRST_BIN,
    FLIPS,
    FRACTION,
    INVERSE,
    LOWEST,
    ORIGIN,
    PINNED,
    SQUARES,
    STAYED,
    SURVIVING,
    TILE,
)

AHEAD = TILE  # weights between what is measured and what is asked for from memory
EXPONENT = 7  # the lowest bit of the exponent of a bfloat16


class Passes(BlockState):
    """The instructions for sixteen weights of a block: each pass over a tile is one of these methods."""

    def _binades(self, raw: Any) -> Any:
        """Return the number of the binade of bfloat16 weights, the ends open, above the bits of a bin."""
        b, e = self.b, self.e
        exponent = b.and_(raw, e.every(I16X, 255 << EXPONENT))
        lowest, most = e.every(I16X, LOWEST << EXPONENT), e.every(I16X, (BINADES - 1) << EXPONENT)
        above = e.call("llvm.usub.sat.v16i16", I16X, exponent, lowest)
        above = b.select(b.icmp_unsigned("<", above, most), above, most)
        return b.shl(above, e.every(I16X, BIN_BITS - EXPONENT))

    def encode(self, index: Any, at: Any) -> None:
        """Put the codes before of sixteen weights, from `index` on, into `codes` from `at` on."""
        b, e = self.b, self.e
        for weights in self.given.pair:
            e.prefetch(weights, b.add(index, self.at(AHEAD)))
        x, _ = self._read(self.given.pair.before, index)
        code, surely = self._search_surely(self._rough_ratio(x, 0))
        e.store(code, self._codes, at)
        if self.divide:
            with b.if_then(e.some(b.not_(surely)), likely=False):
                e.store(self._search(self._ratio(x, 0)), self._codes, at)

    @property
    def _codes(self) -> Any:
        kind = F32 if self.integers else I32
        return self.b.bitcast(self.given.scratch.codes, kind.as_pointer())

    def _code(self, at: Any) -> Any:
        return self.e.load(self._codes, F32X if self.integers else I32X, at)

    def expect(self, index: Any, at: Any) -> None:
        """Add up what T6 expects of sixteen weights, and the squares of delta."""
        b, e = self.b, self.e
        (x, _), (y, _) = (self._read(weights, index) for weights in self.given.pair)
        x64, y64 = e.float64s(x), e.float64s(y)
        delta = [b.fsub(after, before) for before, after in zip(x64, y64, strict=True)]
        for d in delta if self.known.takes_census else ():
            self._add(0, DELTA, d, d)
        code = self._code(at)
        for s in range(self.grids):
            if s == 0 and self.by_delta:
                shift = delta if self.scaled else [b.fmul(d, self.gain64[0]) for d in delta]
                # the scale may be negative
                signs = b.xor(*(b.bitcast(w, I32X) for w in (b.fsub(y, x), self.gain[0])))
            else:
                v, v_new = self._ratio64(x, 0), self._ratio64(y, s)
                shift = [b.fsub(new, old) for new, old in zip(v_new, v, strict=True)]
                signs = self._upper_words(shift)
            self._expect(s, shift, self._slopes(code, self._inward(x, code, signs)))

    def _inward(self, x: Any, code: Any, signs: Any) -> Any:
        """Flag where a weight can leave its cell: it does not set the scale, nor move outward from an end cell.

        A shift of 0 counts as upward, and expects nothing. Without registers of masks it is found by sign bits: masks of
        vectors of different widths would be packed and unpacked.

        Args:
            x: the weights before.
            code: codes of those weights.
            signs: signs of the shifts, int32, the sign bit set where weights move down.
        """
        b, none = self.b, self.e.every(I32X, 0)
        if self.find.has_masks:
            down = b.icmp_signed("<", signs, none)
            first, last = self._ends(code)
            outward = b.or_(b.and_(first, down), b.and_(last, b.not_(down)))
            return b.and_(b.fcmp_unordered("!=", self.e.magnitude(x), self.absmax), b.not_(outward))
        first, last = self._end_signs(code)
        outward = b.or_(b.and_(first, signs), b.and_(last, b.not_(signs)))
        return b.icmp_signed("<", b.and_(self._smaller(x), b.not_(outward)), none)

    def _upper_words(self, halves: list[Any]) -> Any:
        """Return the words of float64 numbers that hold their signs, int32."""
        words = [self.b.bitcast(half, I32X) for half in halves]
        return self.find.pick(words[0], words[1], list(range(1, 2 * LANES, 2)))

    def place(self, index: Any, at: Any) -> tuple[Any, ...]:
        """Put the bins and binades of sixteen weights into `places` from `at` on.

        Returns:
            Flags: which bins may be off by one, that is left to `correct`; and of blocks with the same grid before and after
            which weights may flip: as without a flip nothing survives, only those are left to `survive`.
        """
        b, e = self.b, self.e
        (x, raw), (y, _) = (self._read(weights, index) for weights in self.given.pair)
        code = self._code(at)
        bins, recheck = self._bins(self._rough_ratio(x, 0), code, b.fcmp_unordered("!=", x, y))
        if raw is not None and self.known.takes_census:
            bins = b.or_(bins, self._binades(raw))
        e.store(bins, self.places, at)
        return (recheck, b.not_(self._surely_has(self._rough_ratio(y, 0), code))) if self.same_grid else (recheck,)

    def correct(self, index: Any, at: Any) -> None:
        """Put the bins that float64 says in the place of those that `place` found."""
        b, e = self.b, self.e
        x, _ = self._read(self.given.pair.before, index)
        code = self._code(at)
        exact = b.trunc(self._exact_bins(self._ratio64(x, 0), code), I16X)
        old = e.load(self.places, I16X, at)
        own = b.and_(old, e.every(I16X, (1 << BIN_BITS) - 1))
        ends = b.or_(*self._ends(code))
        inner = b.and_(b.icmp_unsigned("<", own, e.every(I16X, STAYED)), b.not_(ends))
        new = b.or_(b.and_(old, e.every(I16X, -1 << BIN_BITS)), exact)
        e.store(b.select(inner, new, old), self.places, at)

    def survive(self, index: Any, at: Any) -> None:
        """Add up flips, changes and the sums of D, of sixteen weights."""
        b, e = self.b, self.e
        (x, _), (y, _) = (self._read(weights, index) for weights in self.given.pair)
        delta = [b.fsub(new, old) for old, new in zip(e.float64s(x), e.float64s(y), strict=True)]
        code = self._code(at)
        value = self._decoded(code, 0)
        value64 = e.float64s(value)
        fixed = b.icmp_signed(">=", self._smaller(x), e.every(I32X, 0))
        for s in range(self.grids):
            code_new = self._search(self._ratio(y, s))
            value_new, flipped = self._decoded(code_new, s), self._differ(code, code_new)
            self._count(s, FLIPS, flipped)
            self._count(s, CHANGES, b.fcmp_unordered("!=", value, value_new))
            self._count(s, PINNED, b.and_(flipped, fixed))
            for old, new, d in zip(value64, e.float64s(value_new), delta, strict=True):
                surviving = b.fsub(new, old)
                self._add(s, SURVIVING, surviving, surviving)
                self._add(s, DOT, surviving, d)

    def tally(self, at: Any) -> None:
        """Count sixteen bins of the last tile, which costs nothing beside the vectors of this one."""
        b = self.b
        for lane in range(LANES):
            place = self.number(self.last_places, b.add(at, self.at(lane)))
            slot = b.gep(self.given.scratch.tallies, [b.zext(place, I64)])
            b.store(b.add(b.load(slot), ir.Constant(I32, 1)), slot)

    def _expect(self, s: int, shift: list[Any], slopes: list[Any]) -> None:
        """Add up the probabilities of T6: the shift over the width of the cell, at most 1."""
        b, e = self.b, self.e
        for d, slope in zip(shift, slopes, strict=True):
            magnitude = e.call("llvm.fabs.v8f64", F64X, d)
            p = e.smaller(b.fmul(magnitude, slope), e.every(F64X, 1.0))
            self._add(s, EXPECTED, p)
            self._add(s, SQUARES, p, p)

    def _bins(self, ratio: Any, code: Any, moved: Any) -> tuple[Any, Any]:
        """Return the bin of each weight, int16, and flags: it may be off by one."""
        b, e = self.b, self.e
        if self.integers:
            above = b.fsub(ratio, b.fsub(code, e.every(F32X, 0.5 + FIRST_BIN / BINS)))
            scaled = b.fmul(above, e.every(F32X, float(BINS << FRACTION)))
            scaled = b.select(b.or_(*self._ends(code)), e.every(F32X, END_PLACE), scaled)
        else:
            inverse, origin = (self.find.table(self.tables[k], code) for k in (INVERSE, ORIGIN))
            scaled = e.call("llvm.fma.v16f32", F32X, ratio, inverse, origin)
        fine = e.least(b.fptosi(scaled, I32X), e.every(I32X, (STAYED << FRACTION) - 1))
        off = b.and_(b.add(fine, self.edge), self.around)
        recheck = b.and_(e.flags(moved), e.is_zero(off))
        if self.given.rule.crowded_below is not None:
            crowded = e.spread(self.number(self.given.rule.crowded_below, self.at(0)), F32X)
            recheck = b.and_(recheck, e.below(e.magnitude(ratio), crowded))
        stayed = ir.Constant(I32X, [STAYED + lane for lane in range(LANES)])
        bins = b.select(moved, b.lshr(fine, e.every(I32X, FRACTION)), stayed)
        return b.trunc(bins, I16X), recheck

    def _exact_bins(self, v: list[Any], code: Any) -> Any:
        """Return the bins by the operations of `scalar._positions`."""
        b, e = self.b, self.e
        if self.integers:  # of width 1
            places = [
                b.fsub(one, b.fsub(level, e.every(F64X, 0.5))) for one, level in zip(v, e.float64s(code), strict=True)
            ]
        else:
            every = e.every(ir.VectorType(ir.IntType(1), LANES), 1)
            lower, width, inverse = (
                self.find.table64(table, code, every) for table in (self.lower, self.width, self.inverse)
            )
            places = [
                self._quotient(b.fsub(one, low), *parts)
                for one, low, *parts in zip(v, lower, width, inverse, strict=True)
            ]
        whole = []
        for place in places:
            scaled = e.larger(b.fmul(place, e.every(F64X, float(BINS))), e.every(F64X, 0.0))
            last = e.smaller(scaled, e.every(F64X, BINS - 1.0))
            whole.append(b.fptosi(last, ir.VectorType(I32, 8)))
        bins = b.shuffle_vector(*whole, ir.Constant(ir.VectorType(I32, 16), list(range(16))))
        return b.add(bins, e.every(I32X, FIRST_BIN))

    def _quotient(self, x: Any, y: Any, inverse: Any) -> Any:
        """Return the float64 quotient: corrected once it is one of the two floats beside it, twice the nearest one."""
        found = self.b.fmul(x, inverse)
        for _ in range(2):
            rest = self.e.fma(self.b.fneg(found), y, x)
            found = self.e.fma(rest, inverse, found)
        return found
