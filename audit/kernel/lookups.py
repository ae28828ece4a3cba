"""Tables in registers, looked up by sixteen codes at once: the one thing that every instruction set does its own way.

All else that the kernel of sixteen weights does is plain vector code, which LLVM lowers for any processor.

In: a builder of LLVM's instructions, tables as vectors, codes as int32 lanes. Out: vectors of what stands in the tables
at those codes, and instructions behind those of the builder. The levels of sixteen codes, by AVX2:

    levels = LOOKUPS["avx2"](builder).table(table, codes)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llvmlite import ir
from numba.core import cgutils

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()


class Lookups(Protocol):
    """Emits table lookups into the function that a builder builds; all vectors have sixteen lanes, of float64 eight.

    Attributes:
        lanes: number of lanes of 32 bits in a register.
        has_masks: whether the processor has registers for masks, and looks up `long_table` as fast as `table`.
    """

    lanes: int
    has_masks: bool

    def __init__(self, builder: Any) -> None: ...

    def pick(self, one: Any, other: Any, lanes: list[int]) -> Any:
        """Pick lanes of two vectors, those of the second counted from the length of the first."""
        ...

    def joined(self, vectors: list[Any]) -> Any:
        """Join vectors into one, in their order; their number is a power of two."""
        ...

    def table(self, entries: Any, index: Any) -> Any:
        """Look up sixteen entries of 32 bits by int32 lanes of 0 … 15."""
        ...

    def short_table(self, entries: Any, index: Any) -> Any:
        """Look up eight entries of 32 bits by int32 lanes of 0 … 7."""
        ...

    def long_table(self, entries: list[Any], index: Any) -> Any:
        """Look up thirty-two entries of 32 bits, in two vectors, by the last five bits of int32 lanes."""
        ...

    def table64(self, entries: list[Any], index: Any, mask: Any) -> list[Any]:
        """Look up sixteen float64 entries, in two vectors; 0 where the mask is not set."""
        ...


class _Emitter:
    """What the lowerings share."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def call(self, name: str, result: Any, *args: Any) -> Any:
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def pick(self, one: Any, other: Any, lanes: list[int]) -> Any:
        """Pick lanes of two vectors, those of the second counted from the length of the first."""
        return self.b.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def parts(self, vector: Any, count: int) -> list[Any]:
        """Return a vector as several ones of `count` lanes."""
        starts = range(0, vector.type.count, count)
        return [self.pick(vector, vector, list(range(k, k + count))) for k in starts]

    def joined(self, vectors: list[Any]) -> Any:
        """Join vectors into one, in their order; their number is a power of two."""
        while len(vectors) > 1:
            lanes = list(range(2 * vectors[0].type.count))
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.pick(one, other, lanes) for one, other in pairs]
        return vectors[0]

    def every(self, kind: Any, number: int) -> Any:
        return ir.Constant(kind, [number] * kind.count)


class Avx512(_Emitter):
    """One permutation of one or two registers."""

    lanes, has_masks = 16, True

    def table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        return self.call("llvm.x86.avx512.permvar.sf.512", entries.type, entries, index)

    def long_table(self, entries: list[Any], index: Any) -> Any:
        """See `Lookups`."""
        letter = {F32: "ps", I32: "d"}[entries[0].type.element]
        name = f"llvm.x86.avx512.vpermi2var.{letter}.512"
        return self.call(name, entries[0].type, entries[0], index, entries[1])

    def short_table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        return self.table(self.joined([entries, entries]), index)

    def table64(self, entries: list[Any], index: Any, mask: Any) -> list[Any]:
        """See `Lookups`."""
        name, kind = "llvm.x86.avx512.vpermi2var.pd.512", entries[0].type
        none = self.every(kind, 0)
        found = []
        for half, own in zip(self.parts(index, 8), self.parts(mask, 8), strict=True):
            lanes = self.b.zext(half, ir.VectorType(I64, 8))
            entry = self.call(name, kind, entries[0], lanes, entries[1])
            found.append(self.b.select(own, entry, none))
        return found


class Avx2(_Emitter):
    """Permutations of eight entries each, by the last three bits of an index, and choices by the bits above."""

    lanes, has_masks = 8, False

    def table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        halves = self.parts(entries, 8)
        return self.joined([self._found(halves, lanes) for lanes in self.parts(index, 8)])

    def long_table(self, entries: list[Any], index: Any) -> Any:
        """See `Lookups`."""
        eights = [half for vector in entries for half in self.parts(vector, 8)]
        return self.joined([self._found(eights, lanes) for lanes in self.parts(index, 8)])

    def short_table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        return self.joined([self._found([entries], lanes) for lanes in self.parts(index, 8)])

    def table64(self, entries: list[Any], index: Any, mask: Any) -> list[Any]:
        """See `Lookups`."""
        b = self.b
        first, second = (b.bitcast(e, ir.VectorType(I32, 16)) for e in entries)
        own = b.sext(mask, index.type)
        low, high = (b.and_(self.table(self.pick(first, second, list(range(k, 32, 2))), index), own) for k in (0, 1))
        both = [list(zip(range(k, k + 8), range(16 + k, 24 + k), strict=True)) for k in (0, 8)]
        lanes = ([lane for pair in half for lane in pair] for half in both)
        return [b.bitcast(self.pick(low, high, part), ir.VectorType(F64, 8)) for part in lanes]

    def _found(self, eights: list[Any], index: Any) -> Any:
        """Return the entries at eight indices, in one, two or four vectors of eight entries."""
        b, bit = self.b, 3
        name = {F32: "ps", I32: "d"}[eights[0].type.element]
        found = [self.call(f"llvm.x86.avx2.perm{name}", e.type, e, index) for e in eights]
        while len(found) > 1:
            sign = b.shl(index, self.every(index.type, 31 - bit))
            upper = b.icmp_signed("<", sign, self.every(index.type, 0))
            pairs = zip(found[::2], found[1::2], strict=True)
            found = [b.select(upper, high, low) for low, high in pairs]
            bit += 1
        return found[0]


class Neon(_Emitter):
    """Lookups of bytes in four registers, whose 64 bytes are sixteen entries of 32 bits or eight of 64."""

    lanes, has_masks = 4, False
    BYTES = ir.VectorType(I8, 16)

    def table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        return self._by_words([entries], index)

    def long_table(self, entries: list[Any], index: Any) -> Any:
        """See `Lookups`."""
        return self._by_words(entries, self.b.and_(index, self.every(index.type, 31)))

    def _by_words(self, entries: list[Any], index: Any) -> Any:
        b = self.b
        step, first = 0x04040404, 0x03020100  # the bytes of entry k are 4 k … 4 k + 3
        places = b.add(b.mul(index, self.every(index.type, step)), self.every(index.type, first))
        found = [self._bytes(entries, b.bitcast(p, self.BYTES)) for p in self.parts(places, 4)]
        word = ir.VectorType(entries[0].type.element, 4)
        return self.joined([b.bitcast(f, word) for f in found])

    def short_table(self, entries: Any, index: Any) -> Any:
        """See `Lookups`."""
        return self._by_words([entries], index)

    def table64(self, entries: list[Any], index: Any, mask: Any) -> list[Any]:
        """See `Lookups`."""
        b = self.b
        first = ir.Constant(self.BYTES, [byte for _ in range(2) for byte in range(8)])
        # no byte is at a place from 128 on, and what is not found is 0
        own = b.or_(b.shl(index, self.every(index.type, 3)), b.sext(b.not_(mask), index.type))
        found = []
        for pair in self.parts(own, 2):
            lanes = b.bitcast(pair, ir.VectorType(I8, 8))
            places = self.pick(lanes, lanes, [0] * 8 + [4] * 8)
            found.append(b.bitcast(self._bytes(entries, b.or_(places, first)), ir.VectorType(F64, 2)))
        return [self.joined(found[:4]), self.joined(found[4:])]

    def _bytes(self, entries: list[Any], places: Any) -> Any:
        """Look up sixteen bytes in one or two vectors of 32 or 64 bytes, at places from 0 on."""
        b = self.b
        fours = [self.parts(b.bitcast(e, ir.VectorType(I8, _bytes_of(e))), 16) for e in entries]
        name = f"llvm.aarch64.neon.tbl{len(fours[0])}.v16i8"
        found = self.call(name, self.BYTES, *fours[0], places)
        for four in fours[1:]:  # a place outside of the table leaves what was found before
            rest = b.sub(places, self.every(self.BYTES, 64))
            found = self.call("llvm.aarch64.neon.tbx4.v16i8", self.BYTES, found, *four, rest)
        return found


def _bytes_of(vector: Any) -> int:
    return int(vector.type.count) * {F32: 4, I32: 4, F64: 8}[vector.type.element]


LOOKUPS: Mapping[str, type[Lookups]] = {"avx512": Avx512, "avx2": Avx2, "neon": Neon}
