"""Sixteen weights at a time: the vector operations that the kernel is written in, as LLVM's types.

LLVM lowers them for whatever processor it compiles for. Only lookups in tables are written out for each instruction
set, in `lookups`: compilers do not see that sixteen levels fit in registers.

In: a builder of LLVM's instructions, and values that it has built. Out: values, and instructions behind those of the
builder. What makes x the smaller of x and 1, of sixteen float32 numbers behind `pointer`:

    lanes = Lanes(builder)
    x = lanes.load(pointer, F32X, start)
    lanes.store(lanes.smaller(x, lanes.every(F32X, 1.0)), pointer, start)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
F32, F64 = ir.FloatType(), ir.DoubleType()
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32X, F64X = ir.VectorType(F32, 16), ir.VectorType(F64, 8)
I16X, I32X, I64X = ir.VectorType(I16, 16), ir.VectorType(I32, 16), ir.VectorType(I64, 8)
BYTES = {F32: 4, F64: 8, I16: 2, I32: 4, I64: 8}
MAGIC = 1.5 * 2.0**23  # a float32 so large that its last bit counts units: adding it rounds to an integer


class Lanes:
    """Emits operations on vectors into the function that a builder builds."""

    def __init__(self, builder: Any, register_lanes: int = LANES, *, has_masks: bool = True) -> None:
        self.b, self.register_lanes, self.has_masks = builder, register_lanes, has_masks

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call one of LLVM's own functions."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def every(self, kind: Any, number: float) -> Any:
        """Return a vector with one constant in every lane."""
        return ir.Constant(kind, [number] * kind.count)

    def spread(self, scalar: Any, kind: Any) -> Any:
        """Return a vector with a scalar in every lane."""
        none = ir.Constant(kind, ir.Undefined)
        one = self.b.insert_element(none, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, none, self.every(ir.VectorType(I32, kind.count), 0))

    def load(self, pointer: Any, kind: Any, offset: Any) -> Any:
        """Return a vector from `offset` elements behind a pointer."""
        at = self.b.bitcast(self.b.gep(pointer, [offset]), kind.as_pointer())
        return self.b.load(at, align=BYTES[kind.element])

    def store(self, vector: Any, pointer: Any, offset: Any) -> None:
        """Store a vector where `load` finds it."""
        at = self.b.bitcast(self.b.gep(pointer, [offset]), vector.type.as_pointer())
        self.b.store(vector, at, align=BYTES[vector.type.element])

    def prefetch(self, pointer: Any, offset: Any) -> None:
        """Ask for the line that is `offset` elements behind a pointer, which need not be there."""
        at = self.b.bitcast(self.b.gep(pointer, [offset]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [at.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [at, *(ir.Constant(I32, k) for k in (0, 3, 1))])

    def halves(self, vector: Any) -> list[Any]:
        """Return the lower and the upper eight lanes."""
        none, pick = ir.Constant(vector.type, ir.Undefined), ir.VectorType(I32, 8)
        ranges = (range(8), range(8, 16))
        return [self.b.shuffle_vector(vector, none, ir.Constant(pick, list(r))) for r in ranges]

    def float64s(self, vector: Any) -> list[Any]:
        """Widen a vector to float64, in two halves."""
        return [self.b.fpext(half, F64X) for half in self.halves(vector)]

    def float32s(self, halves: list[Any]) -> Any:
        """Round two halves of float64 to float32, and join them."""
        parts = [self.b.fptrunc(half, ir.VectorType(F32, 8)) for half in halves]
        return self.b.shuffle_vector(*parts, ir.Constant(ir.VectorType(I32, 16), list(range(16))))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Return the fused x y + z in float64."""
        return self.call("llvm.fma.v8f64", F64X, x, y, z)

    def larger(self, x: Any, y: Any) -> Any:
        """Return the maximum of numbers."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        """Return the minimum of numbers."""
        return self.b.select(self.b.fcmp_ordered("<", x, y), x, y)

    def least(self, x: Any, y: Any) -> Any:
        """Return the smaller of two int32 numbers, lane by lane."""
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def most(self, x: Any, y: Any) -> Any:
        """Return the larger of two uint16 numbers, lane by lane."""
        return self.b.select(self.b.icmp_unsigned(">", x, y), x, y)

    def across(self, vectors: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
        """Combine all lanes of each of sixteen vectors of sixteen lanes; return a lane a vector."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [combine(*self.deinterleaved(one, two)) for one, two in pairs]
        return vectors[0]

    def deinterleaved(self, x: Any, y: Any) -> list[Any]:
        """Return the lanes of even number of both, and those of odd number."""
        pick = ir.VectorType(I32, x.type.count)
        lanes = (range(k, 2 * x.type.count, 2) for k in (0, 1))
        return [self.b.shuffle_vector(x, y, ir.Constant(pick, list(r))) for r in lanes]

    def magnitude(self, x: Any) -> Any:
        """Return the magnitudes of float32 lanes."""
        return self.call("llvm.fabs.v16f32", F32X, x)

    def count(self, mask: Any) -> Any:
        """Return how many of sixteen lanes are set, int64."""
        return self.b.zext(self.call("llvm.ctpop.i16", I16, self.b.bitcast(mask, I16)), I64)

    def total(self, x: Any) -> Any:
        """Return the sum of sixteen int32 lanes, int64."""
        return self.b.sext(self.call("llvm.vector.reduce.add.v16i32", I32, x), I64)

    def flags(self, mask: Any) -> Any:
        """Return a mask as flags: itself where there are registers for masks, else int32 whose sign bit is the flag.

        Masks of vectors of different widths would be packed and unpacked; signs are combined as they are.
        """
        return mask if self.has_masks else self.b.sext(mask, I32X)

    def below(self, x: Any, y: Any) -> Any:
        """Flag where one float32 is below the other; where the two are the same infinity, none or all."""
        if self.has_masks:
            return self.b.fcmp_ordered("<", x, y)
        return self.b.bitcast(self.b.fsub(x, y), I32X)

    def is_zero(self, n: Any) -> Any:
        """Flag where an int32 that is not negative is 0."""
        if self.has_masks:
            return self.b.icmp_signed("==", n, self.every(I32X, 0))
        return self.b.sub(n, self.every(I32X, 1))

    def some(self, flags: Any) -> Any:
        """Return whether any of sixteen flags is set."""
        n = self.register_lanes
        none = ir.Constant(flags.type, ir.Undefined)
        picks = (ir.Constant(ir.VectorType(I32, n), list(range(k, k + n))) for k in range(0, LANES, n))
        every = reduce(self.b.or_, (self.b.shuffle_vector(flags, none, p) for p in picks))
        if not self.has_masks:
            every = self.b.icmp_signed("<", every, self.every(every.type, 0))
        bits = self.b.bitcast(every, ir.IntType(n))
        return self.b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    def one_more(self, number: Any, mask: Any) -> Any:
        """Add one to int32 numbers where the mask is set."""
        return self.b.select(mask, self.b.add(number, self.every(I32X, 1)), number)
