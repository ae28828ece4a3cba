"""One tensor of a pair, measured in every format piece by piece: by the kernel where it can, else by `theory.laws.update`.

In: a `TensorTask`, and a `Piece` of its tensor. Out: `PieceMeasured`, and of those, in any order, `TensorMeasured`:

    task = tensor_task(target, unlearned, name, formats, available_paths()[0])
    measured = add_pieces(task, [measure_piece(task, piece) for piece in pieces(task.shape)])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel import bits as kernel_bits
from unforgotten.audit.kernel import scalar
from unforgotten.audit.kernel.entries import BlockEntries, entries_of_blocks, entries_of_magnitudes
from unforgotten.audit.kernel.rules import (
    BlockGrids,
    Extremes,
    fit_grids,
    grids_agree,
    may_overflow,
    pinned_weights,
    rule_of,
)
from unforgotten.audit.kernel.slots import (
    ADAPTIVE,
    BINS,
    CHANGES,
    COUNTS,
    DOT,
    EXPECTED,
    FIXED,
    FLIPS,
    GRIDS,
    OVERFLOWS,
    SUMS,
    SURVIVING,
    VARIANCE,
)
from unforgotten.audit.kernel.stored_weights import Weights, own_memory
from unforgotten.audit.kernel.super_blocks import search_grids, sub_block_ends
from unforgotten.audit.kernel.vector import measure_registers
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, BlockLayout, Piece, layout_of
from unforgotten.audit.weights.piece_blocks import PieceBlocks, span_of
from unforgotten.audit.weights.sums import Setting, TensorMeasured
from unforgotten.audit.weights.task import NotFiniteError, TensorTask, refusing
from unforgotten.audit.weights.tiles import TileBlocks
from unforgotten.audit.weights.ways import Way
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.dead_zone import BINADES, BinadeCounts
from unforgotten.theory.laws.update import GRID_MODES, GridMode, Survival, survival

Array = NDArray[Any]
Blocks = PieceBlocks | TileBlocks


class Census(NamedTuple):
    """What a piece shows without a format: counts, and which narrow dtypes hold it."""

    weights: Array
    moved: Array
    in_bfloat16: bool
    in_float16: bool


class FormatSums(NamedTuple):
    """One format over the blocks that begin in one piece; arrays as `kernel.scalar.measure` fills them.

    `delta_sq` is the squared length of delta over the same weights, nan where nobody added it up on the way.
    """

    counts: Array
    sums: Array
    bins: Array
    delta_sq: float


@dataclass(frozen=True)
class PieceMeasured:
    """All that one piece adds to the sums of its tensor, but of formats that are measured whole."""

    census: Census
    delta_sq: float
    parts: Mapping[str, FormatSums]


def measure_piece(task: TensorTask, piece: Piece) -> PieceMeasured:
    """Measure the blocks that begin in one piece, in every format.

    Raises:
        RefusedError: a format cannot take the weights.
        NotFiniteError: a weight is nan or inf.
        CheckpointError: a file changed since it was opened.
    """
    spans = {fmt.name: span_of(layout_of(fmt, task.shape), piece) for fmt in task.formats}
    stop = max(piece.stop, *(s.stop for s in spans.values()))
    x, y = _read(task, Piece(piece.start, stop))
    by_layout: dict[tuple[BlockLayout, Piece], PieceBlocks] = {}
    blocks_of: dict[str, PieceBlocks] = {}
    for fmt in task.formats:
        key = layout_of(fmt, task.shape), spans[fmt.name]
        blocks_of[fmt.name] = by_layout.setdefault(key, PieceBlocks(task, *key, (x, y), piece))
    parts, census = _look_up(task, blocks_of)
    if census is None or stop > piece.stop:
        tops = _largest(piece, stop, x, y, by_layout.values())
        if not np.isfinite(tops).all():
            raise NotFiniteError  # the kernel makes a code of anything, and an address of a code
        census = census or take_census(x, y, piece.stop - piece.start, tops[0])
    for fmt in task.formats:
        if fmt.name in parts or task.ways[fmt.name] == "whole":
            continue  # `add_pieces` measures the tensor whole
        with refusing(fmt):
            parts[fmt.name] = MEASURE[task.ways[fmt.name]](task, fmt, blocks_of[fmt.name])
    added = (p.delta_sq for name, p in parts.items() if spans[name] == piece)
    delta_sq = next((square for square in added if not math.isnan(square)), math.nan)
    if math.isnan(delta_sq):
        size = piece.stop - piece.start
        delta_sq = float(scalar.squared_length(x.stored[:size], y.stored[:size]))
    return PieceMeasured(census, delta_sq, parts)


def _look_up(task: TensorTask, blocks_of: Mapping[str, PieceBlocks]) -> tuple[dict[str, FormatSums], Census | None]:
    """Measure by magnitudes, which needs no look at the weights before.

    The first format takes the census on the way, where its blocks are the piece. Left out is what the tables are not
    good for: that is measured like the others.
    """
    parts: dict[str, FormatSums] = {}
    census: Census | None = None
    for fmt in task.formats:
        blocks = blocks_of[fmt.name]
        if task.ways[fmt.name] != "magnitudes" or not blocks.is_whole:
            continue
        tops, size = _tensor_tops(task, fmt), blocks.layout.size
        entries = entries_of_magnitudes(fmt, tops, blocks.entries, size, blocks.whole_groups)
        counts_all = census is None and blocks.is_piece
        found = entries and measure_registers(blocks.stored, size, fmt, entries, task.simd, census=counts_all)
        if entries and found:
            parts[fmt.name] = FormatSums(found.counts, found.sums, found.bins, found.delta_sq)
            blocks.entries = entries
            if counts_all:
                census = Census(found.weights, found.moved, True, False)
    return parts, census


def _read(task: TensorTask, piece: Piece) -> tuple[Weights, Weights]:
    """Return the weights before and after; as bits only if both are bfloat16."""
    infos = [c.tensors[task.name] for c in task.checkpoints]
    alike = infos[0].dtype == infos[1].dtype
    size = piece.stop - piece.start
    before, after = (
        Weights(c.read_flat(task.name, *piece, own_memory(k, size * info.dtype.itemsize)), bits=alike)
        for k, (c, info) in enumerate(zip(task.checkpoints, infos, strict=True))
    )
    return before, after


def _largest(
    piece: Piece, stop: int, x: Weights, y: Weights, by_layout: Iterable[PieceBlocks]
) -> tuple[np.float32, np.float32]:
    """Return the largest magnitudes, from extremes that are found anyway where those are of the whole piece."""
    for blocks in by_layout:
        if blocks.span == piece and stop == piece.stop and blocks.layout.size <= PIECE_WEIGHTS:
            before, after = (np.maximum(-e.low, e.high).max() for e in blocks.extremes)
            return before, after
    return x.largest, y.largest


def _by_vectors(task: TensorTask, fmt: Format, blocks: PieceBlocks) -> FormatSums:
    return _measure_compiled(task, fmt, blocks, blocks.whole_groups)


def _one_by_one(task: TensorTask, fmt: Format, blocks: PieceBlocks) -> FormatSums:
    return _measure_compiled(task, fmt, blocks, 0)


def _by_tiles(task: TensorTask, fmt: Format, blocks: PieceBlocks) -> FormatSums:
    assert fmt.tile is not None
    return _measure_compiled(task, fmt, TileBlocks(blocks.float32, blocks.span, task.shape, fmt.tile), 0)


def _by_search(task: TensorTask, fmt: Format, blocks: PieceBlocks) -> FormatSums:
    """Measure the sub-blocks of super-blocks one weight after another; no weight sets a scale by itself."""
    part = _no_sums()
    x, y = blocks.float32
    if not len(x):
        return part
    before, after = (search_grids(w, fmt) for w in (x, y))
    nothing = np.full(len(before.scale), np.nan, np.float32)
    check = any(may_overflow(grids, fmt) for grids in (before, after))
    scalar.measure(
        *(x, y, sub_block_ends(len(x), fmt), before, after, grids_agree(before, after, fmt), nothing, nothing),
        *(rule_of(fmt), check, *part[:3]),
    )
    return _checked(part, fmt)


MEASURE: Mapping[Way, Callable[[TensorTask, Format, PieceBlocks], FormatSums]] = {
    "magnitudes": _by_vectors,  # what `_look_up` left out
    "vectors": _by_vectors,
    "scalar": _one_by_one,
    "tiles": _by_tiles,
    "searched": _by_search,
}
"""What measures a piece, but for "whole"."""


def _measure_compiled(task: TensorTask, fmt: Format, blocks: Blocks, first: int) -> FormatSums:
    """Measure the first blocks sixteen weights at a time, and the others one by one."""
    part = _no_sums()
    if not len(blocks.ends):
        return part
    entries = _entries_of_whole(task, fmt, blocks, first) if first else None
    size = blocks.layout.size
    x, y = (w[: first * size] for w in blocks.stored)
    found = entries and measure_registers((x, y), size, fmt, entries, task.simd)
    if not found:
        first = 0
    else:
        delta_sq = found.delta_sq if first == len(blocks.ends) else math.nan
        part = FormatSums(found.counts, found.sums, found.bins, delta_sq)
    if first < len(blocks.ends):
        _measure_rest(task, fmt, blocks, first, part)
    return _checked(part, fmt)


def _no_sums() -> FormatSums:
    return FormatSums(
        np.zeros((len(GRIDS), COUNTS), np.int64), np.zeros((len(GRIDS), SUMS)), np.zeros(BINS, np.int64), math.nan
    )


def _checked(part: FormatSums, fmt: Format) -> FormatSums:
    if part.counts[:, OVERFLOWS].any():
        raise ValueError(f"the values of {fmt.name} must be finite, got an overflow of float32")
    return part


def _entries_of_whole(task: TensorTask, fmt: Format, blocks: Blocks, first: int) -> BlockEntries | None:
    """Return the parameters of the first blocks, which are whole; None where a value may overflow."""
    before, after = _grids_of(task, fmt, blocks)
    if may_overflow(before, fmt) or may_overflow(after, fmt):
        return None
    ends = blocks.extremes[0]
    before, after = (BlockGrids(*(p[:first] for p in grids)) for grids in (before, after))
    return entries_of_blocks(before, after, np.maximum(-ends.low[:first], ends.high[:first]))


def _measure_rest(task: TensorTask, fmt: Format, blocks: Blocks, first: int, part: FormatSums) -> None:
    """Add the blocks from `first` on to the part."""
    skip = first * blocks.layout.size
    both = _grids_of(task, fmt, blocks)
    check = any(may_overflow(grids, fmt) for grids in both)
    before, after = (BlockGrids(*(p[first:] for p in grids)) for grids in both)
    scalar.measure(
        *(w[skip:] for w in blocks.float32),
        blocks.ends[first:] - skip,
        before,
        after,
        grids_agree(before, after, fmt),
        *(s[first:] for s in pinned_weights(blocks.extremes[0], fmt)),
        rule_of(fmt),
        check,
        *part[:3],
    )


def _tensor_tops(task: TensorTask, fmt: Format) -> tuple[float, float] | None:
    """Return the largest magnitudes of both tensors, where the format needs them."""
    if not fmt.tensor_range:
        return None
    total = math.prod(task.shape)
    before, after = (
        float(max(-whole.low[0], whole.high[0])) for whole in task.tensor_extremes[BlockLayout(total, total)]
    )
    return before, after


def _grids_of(task: TensorTask, fmt: Format, blocks: Blocks) -> tuple[BlockGrids, BlockGrids]:
    """Return the parameters before and after, in one go where nothing but a block's own extremes decides them."""
    total = math.prod(task.shape)
    last = blocks.layout.index_of(blocks.span.stop - 1) == blocks.layout.index_of(total - 1)
    partial = fmt.block == "flat" and last and total % (fmt.block_size or 1) != 0
    if partial or fmt.tensor_range:
        tops = _tensor_tops(task, fmt) or (math.nan, math.nan)
        before, after = (
            fit_grids(e, fmt, tensor_absmax=top, partial=partial) for e, top in zip(blocks.extremes, tops, strict=True)
        )
        return before, after
    of_before, of_after = blocks.extremes
    both = Extremes(
        np.concatenate([of_before.low, of_after.low]),
        np.concatenate([of_before.high, of_after.high]),
        np.concatenate([of_before.low_first, of_after.low_first]),
    )
    grids, count = fit_grids(both, fmt, tensor_absmax=math.nan, partial=False), len(of_before.low)
    return BlockGrids(*(p[:count] for p in grids)), BlockGrids(*(p[count:] for p in grids))


def take_census(x: Weights, y: Weights, size: int, largest: np.float32) -> Census:
    """Count what needs no format, of the first `size` weights, which are finite.

    See `theory.geometry.dead_zone.count_binades` for the binades. `largest` is at least their largest magnitude before.
    """
    weights, moved = np.zeros(len(BINADES), np.int64), np.zeros(len(BINADES), np.int64)
    before, after = x.stored[:size], y.stored[:size]
    ends = BINADES[0], BINADES[-1]
    if x.stored.itemsize == 2:
        top = int(largest.view(np.uint32)) >> 23
        kernel_bits.count_bfloat16(before, after, top, *ends, weights, moved)
        return Census(weights, moved, True, False)
    beyond = np.zeros(2, np.int64)
    scalar.take_census(before, after, *ends, beyond, weights, moved)
    return Census(weights, moved, not beyond[0], not beyond[1])


def add_pieces(task: TensorTask, measured: Iterable[PieceMeasured]) -> TensorMeasured:
    """Return the sums of a tensor from its pieces in any order: counts are exact, sums correctly rounded."""
    rows = list(measured)
    census = [row.census for row in rows]
    found: dict[Setting, Survival] = {}
    for fmt in task.formats:
        for grid in GRID_MODES:
            setting = Setting(fmt.name, grid)
            if fmt.name in rows[0].parts:
                found[setting] = _survival(rows, [row.parts[fmt.name] for row in rows], grid)
            else:
                with refusing(fmt):
                    w, w_new = (np.asarray(c.read(task.name), np.float32) for c in task.checkpoints)
                    found[setting] = survival(w, w_new, fmt, grid)
    binades = BinadeCounts(
        tuple(np.sum([c.weights for c in census], axis=0).tolist()),
        tuple(np.sum([c.moved for c in census], axis=0).tolist()),
    )
    return TensorMeasured(binades, all(c.in_bfloat16 for c in census), all(c.in_float16 for c in census), found)


def _survival(rows: Sequence[PieceMeasured], parts: Sequence[FormatSums], grid: GridMode) -> Survival:
    census = [piece.census for piece in rows]
    row = ADAPTIVE if grid == "adaptive" else FIXED
    counts = np.sum([part.counts[row] for part in parts], axis=0)
    sums = [math.fsum(part.sums[row, k] for part in parts) for k in range(SUMS)]
    return Survival(
        weights=sum(int(c.weights.sum()) for c in census),
        unchanged=sum(int((c.weights - c.moved).sum()) for c in census),
        code_flips=int(counts[FLIPS]),
        value_changes=int(counts[CHANGES]),
        expected_flips=sums[EXPECTED],
        flips_variance=sums[VARIANCE],
        delta_sq=math.fsum(piece.delta_sq for piece in rows),
        surviving_sq=sums[SURVIVING],
        dot=sums[DOT],
        positions=tuple(np.sum([part.bins for part in parts], axis=0).tolist()),
    )
