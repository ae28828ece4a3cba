"""The passes of `passes` over the blocks of a tile, for compiled code to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from unforgotten.audit.kernel.lanes import I64, LANES
from unforgotten.audit.kernel.passes import Passes
from unforgotten.audit.kernel.slots import MOST_BLOCKS
from unforgotten.audit.kernel.structures import Given, Known


def emit_tile(builder: Any, given: Given, known: Known) -> None:
    """Emit the passes over the blocks of a tile: those that have the same grid before and after, and then the others.

    Args:
        builder: builder of the function.
        given: structures of what stands for their fields, see `structures`.
        known: what is known at compile time.
    """
    for same_grid in (True, False):
        count = given.tile.same_grid if same_grid else given.tile.new_grid
        with builder.if_then(builder.icmp_signed(">", count, ir.Constant(I64, 0))):
            _emit(Passes(builder, given, known, same_grid=same_grid), count, known.unrolled)


def _emit(passes: Passes, count: Any, unrolled: int) -> None:
    """Emit the passes over `count` blocks, short ones, so that many groups are on their way at a time.

    `unrolled` is the number of groups of a block where it is known, else 0.
    """
    b, tile, scratch = passes.b, passes.given.tile, passes.given.scratch
    last = passes.at(MOST_BLOCKS - 1)

    def at_group(do: Callable[..., None], k: Any, group: Any) -> None:
        index = b.add(passes.start, b.mul(group, passes.at(LANES)))
        do(index, b.sub(index, tile.begin), b.or_(b.shl(k, passes.at(32)), group))

    def at_all(do: Callable[..., None]) -> None:
        with cgutils.for_range(b, count, intp=I64) as each:
            k = each.index if passes.same_grid else b.sub(last, each.index)
            passes.load_block(k)
            for group in range(unrolled):
                at_group(do, k, passes.at(group))
            if not unrolled:
                with cgutils.for_range(b, tile.groups, intp=I64) as loop:
                    at_group(do, k, loop.index)

    def at_listed(do: Callable[..., None], groups: Any, listed: Any) -> None:
        with cgutils.for_range(b, b.load(listed), intp=I64) as each:
            where = passes.number(groups, each.index)
            k = b.lshr(where, passes.at(32))
            passes.load_block(k)
            at_group(do, k, b.and_(where, passes.at(2**32 - 1)))

    def encode(index: Any, at: Any, _: Any) -> None:
        passes.encode(index, at)

    def expect(index: Any, at: Any, _: Any) -> None:
        passes.expect(index, at)
        passes.tally(at)

    def place(index: Any, at: Any, where: Any) -> None:
        for mask, (groups, listed) in zip(passes.place(index, at), lists, strict=False):
            n = b.load(listed)
            b.store(where, b.gep(groups, [n]))
            b.store(b.add(n, b.zext(passes.e.some(mask), I64)), listed)

    def correct(index: Any, at: Any, _: Any) -> None:
        passes.correct(index, at)

    def survive(index: Any, at: Any, _: Any) -> None:
        passes.survive(index, at)

    recheck, may_flip = lists = [
        (groups, cgutils.alloca_once_value(b, passes.at(0))) for groups in (scratch.recheck, scratch.may_flip)
    ]
    for _, listed in lists:
        b.store(passes.at(0), listed)
    at_all(encode)
    at_all(expect)
    at_all(place)
    at_listed(correct, *recheck)
    if passes.same_grid:
        at_listed(survive, *may_flip)
    else:
        at_all(survive)
    passes.store_sums()


@intrinsic(prefer_literal=True)
def measure_tile(
    typing: Any,
    pair: Any,
    rule: Any,
    entries: Any,
    sums: Any,
    scratch: Any,
    tile: Any,
    census: Any,
    unrolled: Any,
    simd: Any,
) -> Any:
    """Measure the blocks of a tile.

    Args:
        typing: Numba's own.
        pair: `structures.Pair`.
        rule: `vector_rules.VectorRule`.
        entries: `entries.BlockEntries`, of every block of the pair.
        sums: `structures.Sums`, added to.
        scratch: `structures.Scratch`.
        tile: `structures.Tile`.
        census: None where it is not counted.
        unrolled: tuple of one element for each group of sixteen that a block has; None where a loop goes over them.
        simd: one of `simd.VECTOR_PATHS`, a literal.
    """
    structures = pair, rule, entries, sums, scratch, tile
    known = Known(
        simd.literal_value,
        is_bfloat16=pair.types[0].dtype == types.uint16,
        takes_census=census != types.none,
        unrolled=unrolled.count if isinstance(unrolled, types.UniTuple) else 0,
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = zip(structures, args, strict=False)
        emit_tile(builder, Given(*(_emitted(context, builder, kind, value) for kind, value in values)), known)
        return context.get_dummy_value()

    return types.void(*structures, census, unrolled, simd), codegen


def _emitted(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return what stands for a value of one of Numba's types where instructions are emitted, see `structures`."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value=value).data
    if isinstance(kind, types.NamedTuple | types.NamedUniTuple):
        parts = ((part, builder.extract_value(value, k)) for k, part in enumerate(kind.types))
        return kind.instance_class(*(_emitted(context, builder, *part) for part in parts))
    if isinstance(kind, types.Integer):
        return context.cast(builder, value, kind, types.int64)
    return None if kind == types.none else value
