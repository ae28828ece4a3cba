"""The passes of `passes` over the blocks of a tile, for compiled code to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from unforgotten.audit.kernel.lanes import I64, LANES
from unforgotten.audit.kernel.passes import Part
from unforgotten.audit.kernel.slots import MOST

WHOLE = ("begin", "groups", "size", "keeps", "moves")
NAMES = (
    "x",
    "y",
    "begin",
    "groups",
    "size",
    "narrow",
    "wide",
    "two",
    "dense",
    "constants",
    "factor",
    "gain",
    "scale",
    "reciprocal",
    "before",
    "after",
    "setter",
    "blocks",
    "nears",
    "wides",
    "keeps",
    "moves",
    "kept",
    "moved",
    "kept_counts",
    "moved_counts",
    "codes",
    "bins",
    "close",
    "flipped",
    "last_bins",
    "tallies",
    "census",
    "simd",
)


def _emit(part: Part, unrolled: int) -> None:
    """Emit the passes over the blocks of a part, short ones, so that many groups are on their way at a time.

    `unrolled` is the number of groups of a block where it is known, else 0.
    """
    b, arg, pointers = part.b, part.arg, part.pointers
    begin, last = arg["begin"], part.at(MOST - 1)

    def at_group(do: Callable[..., None], k: Any, group: Any) -> None:
        index = b.add(part.start, b.mul(group, part.at(LANES)))
        do(index, b.sub(index, begin), b.or_(b.shl(k, part.at(32)), group))

    def at_all(do: Callable[..., None]) -> None:
        with cgutils.for_range(b, arg["keeps" if part.same else "moves"], intp=I64) as each:
            k = each.index if part.same else b.sub(last, each.index)
            part.load_block(k)
            for group in range(unrolled):
                at_group(do, k, part.at(group))
            if not unrolled:
                with cgutils.for_range(b, arg["groups"], intp=I64) as loop:
                    at_group(do, k, loop.index)

    def at_listed(do: Callable[..., None], name: str) -> None:
        with cgutils.for_range(b, b.load(lists[name]), intp=I64) as each:
            where = part.number(name, each.index)
            k = b.lshr(where, part.at(32))
            part.load_block(k)
            at_group(do, k, b.and_(where, part.at(2**32 - 1)))

    def encode(index: Any, at: Any, _: Any) -> None:
        part.encode(index, at)

    def expect(index: Any, at: Any, _: Any) -> None:
        part.expect(index, at)
        part.tally(at)

    def place(index: Any, at: Any, where: Any) -> None:
        for mask, (name, count) in zip(part.place(index, at), lists.items(), strict=False):
            n = b.load(count)
            b.store(where, b.gep(pointers[name], [n]))
            b.store(b.add(n, b.zext(part.e.some(mask), I64)), count)

    def correct(index: Any, at: Any, _: Any) -> None:
        part.correct(index, at)

    def survive(index: Any, at: Any, _: Any) -> None:
        part.survive(index, at)

    lists = {name: cgutils.alloca_once_value(b, part.at(0)) for name in ("close", "flipped")}
    for count in lists.values():
        b.store(part.at(0), count)
    at_all(encode)
    at_all(expect)
    at_all(place)
    at_listed(correct, "close")
    if part.same:
        at_listed(survive, "flipped")
    else:
        at_all(survive)
    part.store_sums()


def emit_tile(
    builder: Any,
    arg: Mapping[str, Any],
    kinds: Mapping[str, Any],
    pointers: Mapping[str, Any],
    simd: str,
    unrolled: int,
) -> None:
    """Emit the passes over the blocks of a tile, those that keep their grid and then those that do not.

    Args:
        builder: builder of the function.
        arg: values of NAMES; None for what is left out.
        kinds: Numba's types of NAMES, of which that of `x` is asked for.
        pointers: pointers to the data of the arrays among NAMES that are not left out.
        simd: path, one of `simd.VECTOR_PATHS`.
        unrolled: number of groups in a block where that is known, else 0.
    """
    for same in (True, False):
        some = builder.icmp_signed(">", arg["keeps" if same else "moves"], ir.Constant(I64, 0))
        with builder.if_then(some):
            _emit(Part(builder, arg, kinds, pointers, simd=simd, same=same), unrolled)


@intrinsic(prefer_literal=True)
def measure_tile(
    typing: Any,
    x: Any,
    y: Any,
    begin: Any,
    groups: Any,
    size: Any,
    narrow: Any,
    wide: Any,
    two: Any,
    dense: Any,
    constants: Any,
    factor: Any,
    gain: Any,
    scale: Any,
    reciprocal: Any,
    before: Any,
    after: Any,
    setter: Any,
    blocks: Any,
    nears: Any,
    wides: Any,
    keeps: Any,
    moves: Any,
    kept: Any,
    moved: Any,
    kept_counts: Any,
    moved_counts: Any,
    codes: Any,
    bins: Any,
    close: Any,
    flipped: Any,
    last_bins: Any,
    tallies: Any,
    census: Any,
    simd: Any,
) -> Any:
    """Measure the blocks of a tile. What is None says at compile time which instructions there are.

    x, y: uint16 (bfloat16) or float32. begin: where the tile begins.
    groups: of sixteen weights that each block has in the tile; a tuple has one element for each. size: of a block.
    narrow, wide, two, dense, constants: of the format, see `vector_rules.VectorRule`.
    factor, gain, scale, reciprocal: by entry, see `entries.Table`.
    before, after, setter: entries, and absmax before, of every block of the piece.
    blocks, nears, wides: of each block of the tile its number, and the gain and the reciprocal before; the first `keeps`
    keep their grid, the last `moves` of MOST do not.
    kept (1, ALL_SUMS, 8), moved (2, ALL_SUMS, 8), kept_counts, moved_counts: by grid and slot, added to, see `slots`.
    codes, close, flipped: scratch memory for a number for each weight, group, group.
    bins: uint16, where to write `binade << BIN_BITS | bin` of each weight; without the binade where `census` is None.
    last_bins, tallies: those of the tile before, which are counted.
    simd: one of `simd.VECTOR_PATHS`.
    """
    kinds = (
        x,
        y,
        begin,
        groups,
        size,
        narrow,
        wide,
        two,
        dense,
        constants,
        factor,
        gain,
        scale,
        reciprocal,
        before,
        after,
        setter,
        blocks,
        nears,
        wides,
        keeps,
        moves,
        kept,
        moved,
        kept_counts,
        moved_counts,
        codes,
        bins,
        close,
        flipped,
        last_bins,
        tallies,
        census,
        simd,
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        own: dict[str, Any] = dict(zip(NAMES, signature.args, strict=True))
        arg: dict[str, Any] = {
            name: None if own[name] == types.none else value for name, value in zip(NAMES, args, strict=True)
        }
        pointers: dict[str, Any] = {
            name: context.make_array(kind)(context, builder, value=arg[name]).data
            for name, kind in own.items()
            if isinstance(kind, types.Array)
        }
        unrolled = own["groups"].count if isinstance(own["groups"], types.UniTuple) else 0
        emit_tile(builder, arg, own, pointers, own["simd"].literal_value, unrolled)
        return context.get_dummy_value()

    whole = [
        types.int64 if name in WHOLE and not isinstance(kind, types.UniTuple) else kind
        for name, kind in zip(NAMES, kinds, strict=True)
    ]
    return types.void(*whole), codegen
