"""The passes of the audit's kernel over a tile, compiled for a machine that need not be this one.

Numba compiles for its own processor only. Here the same instructions are emitted into a function of plain pointers, and
LLVM makes assembly of it for any processor that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.np import numpy_support

from unforgotten.audit.kernel.entries import entries_of_blocks
from unforgotten.audit.kernel.lanes import F32, F64, I16, I32, I64
from unforgotten.audit.kernel.rules import Extremes, fit_grids
from unforgotten.audit.kernel.structures import Given, Known, Pair, Tile, new_scratch, no_sums
from unforgotten.audit.kernel.tile import emit_tile
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
SIZES = np.array([1.3, 0.7], np.float32)
"""Largest magnitudes of two blocks, whose scales are powers of two in formats that have none else."""


def tile_assembly(fmt: Format, weights: types.Type, simd: str, triple: str, cpu: str) -> str:
    """Return the assembly of the passes in a format that `is_in_registers`, with the census.

    Args:
        fmt: the format.
        weights: one of WEIGHTS.
        simd: one of `simd.VECTOR_PATHS`.
        triple: name of the machine in LLVM's terms.
        cpu: name of its processor, which has the instructions of the path: LLVM ends the process where it has not.
    """
    given = _given(fmt, weights)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(_types(given))), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    known = Known(simd, is_bfloat16=weights == types.uint16, takes_census=True, unrolled=0)
    emit_tile(builder, _declared(given, iter(function.args)), known)
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    return str(machine.emit_assembly(llvm.parse_assembly(str(module))))


def _given(fmt: Format, weights: types.Type) -> Given:
    """Return what the kernel is given for a pair of two blocks, as the audit makes it."""
    stored = np.zeros(1, np.dtype(str(weights)))
    extremes = Extremes(-SIZES, SIZES, np.zeros(len(SIZES), bool))
    grids = fit_grids(extremes, fmt, tensor_absmax=float(SIZES.max()), partial=False)
    entries = entries_of_blocks(grids, grids, SIZES)
    scratch = new_scratch(np.zeros(1, np.uint32))
    return Given(Pair(stored, stored), vector_rule(fmt), entries, no_sums(), scratch, Tile(0, 0, 0, 0, 0, 0))


def _types(value: Any) -> Iterator[Any]:
    """Yield LLVM's types of the arrays and numbers in nested structures, in their order."""
    if isinstance(value, tuple):
        for part in value:
            yield from _types(part)
    elif isinstance(value, np.ndarray):
        yield LLVM_TYPES[numpy_support.from_dtype(value.dtype)].as_pointer()
    elif value is not None:
        yield I64


def _declared(value: Any, arguments: Iterator[Any]) -> Any:
    """Return nested structures with the next argument in the place of each array and number."""
    if isinstance(value, tuple):
        parts = [_declared(part, arguments) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return None if value is None else next(arguments)
