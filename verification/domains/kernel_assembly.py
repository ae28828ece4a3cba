"""The passes of the audit's kernel over a tile, compiled for a machine that need not be this one.

Numba compiles for its own processor only. Here the same instructions are emitted into a function of plain pointers, and
LLVM makes assembly of it for any processor that it knows.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types

from unforgotten.audit.kernel.lanes import F32, F64, I16, I32, I64
from unforgotten.audit.kernel.tile import NAMES, WHOLE, emit_tile
from unforgotten.audit.kernel.vector_rules import vector_rule
from unforgotten.theory.formats.names import Format

WEIGHTS = (types.uint16, types.float32)
"""What the kernel reads: the bits of bfloat16, or float32."""
LLVM_TYPES = {
    types.uint16: I16,
    types.uint32: I32,
    types.int32: I32,
    types.int64: I64,
    types.float32: F32,
    types.float64: F64,
}
ELEMENTS = {
    "narrow": types.float32,
    "wide": types.float64,
    "two": types.float32,
    "dense": types.float32,
    "constants": types.float32,
    "factor": types.float32,
    "gain": types.float32,
    "scale": types.float32,
    "reciprocal": types.float64,
    "before": types.uint32,
    "after": types.uint32,
    "setter": types.float32,
    "blocks": types.uint32,
    "nears": types.float32,
    "wides": types.float64,
    "kept": types.float64,
    "moved": types.float64,
    "kept_counts": types.int64,
    "moved_counts": types.int64,
    "codes": types.int32,
    "bins": types.uint16,
    "close": types.int64,
    "flipped": types.int64,
    "last_bins": types.uint16,
    "tallies": types.uint32,
    "census": types.int64,
}


def tile_assembly(fmt: Format, weights: types.Type, simd: str, triple: str, cpu: str) -> str:
    """Return the assembly of the passes in a format that `fits_registers`, with the census.

    Args:
        fmt: the format.
        weights: one of WEIGHTS.
        simd: one of `simd.VECTOR_PATHS`.
        triple: as LLVM names the machine.
        cpu: name of its processor, which has the instructions of the path: LLVM ends the process where it has not.
    """
    rule = vector_rule(fmt)
    absent = {name for name in ("narrow", "two", "dense") if getattr(rule, name) is None}
    if fmt.arithmetic != "divide":
        absent.add("reciprocal")
    elements = ELEMENTS | {"x": weights, "y": weights}
    kinds = {n: types.Array(k, 1, "C") for n, k in elements.items() if n not in absent}
    module = ir.Module()
    module.triple = triple
    names = [n for n in NAMES if n in kinds or n in WHOLE]
    arguments = [LLVM_TYPES[elements[n]].as_pointer() if n in kinds else I64 for n in names]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    given: dict[str, Any] = dict(zip(names, function.args, strict=True))
    pointers = {n: value for n, value in given.items() if n in kinds}
    emit_tile(builder, {n: given.get(n) for n in NAMES}, kinds, pointers, simd, 0)
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    return str(machine.emit_assembly(llvm.parse_assembly(str(module))))
