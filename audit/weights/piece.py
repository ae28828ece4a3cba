"""One tensor of a pair, measured in every format piece by piece: by the kernel where it can, else by `theory.laws.update`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel import bits as kernel_bits
from unforgotten.audit.kernel import scalar
from unforgotten.audit.kernel.entries import FINITE, Fit, fit_of_blocks, fit_of_magnitudes
from unforgotten.audit.kernel.rules import (
    Blocks,
    Extremes,
    fit_blocks,
    fits_kernel,
    grids_agree,
    may_overflow,
    rule_of,
    setters,
)
from unforgotten.audit.kernel.simd import VECTOR_PATHS
from unforgotten.audit.kernel.stored_weights import Weights, own_memory
from unforgotten.audit.kernel.vector import measure_registers
from unforgotten.audit.kernel.vector_rules import fits_registers
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, Layout, Piece, layout_of, read_flat
from unforgotten.audit.weights.piece_blocks import Cut, span_of
from unforgotten.audit.weights.sums import Setting, TensorMeasured
from unforgotten.audit.weights.task import NotFiniteError, TensorTask, refusing
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.dead_zone import BINADES, BinadeCounts
from unforgotten.theory.laws.update import GRID_MODES, GridMode, Survival, add, survival

Array = NDArray[Any]
WHOLE = "hqq-proximal"
"""The statistic whose search stops by a mean over the whole tensor, which is therefore read at once."""


class Census(NamedTuple):
    """What a piece shows without a format: counts, and which narrow dtypes hold it."""

    weights: Array
    moved: Array
    in_bfloat16: bool
    in_float16: bool


class Part(NamedTuple):
    """One format over the blocks that begin in one piece; arrays as `kernel.scalar.measure` fills them.

    `delta_sq` is the squared length of delta over the same weights, nan where nobody added it up on the way.
    """

    counts: Array
    sums: Array
    bins: Array
    delta_sq: float


@dataclass(frozen=True)
class PieceMeasured:
    """All that one piece adds to the sums of its tensor; formats without the kernel have a `Survival` a grid."""

    census: Census
    delta_sq: float
    parts: Mapping[str, Part]
    searched: Mapping[Setting, Survival]


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
    cuts: dict[tuple[Layout, Piece], Cut] = {}
    cut_of: dict[str, Cut] = {}
    for fmt in task.formats:
        key = layout_of(fmt, task.shape), spans[fmt.name]
        cut_of[fmt.name] = cuts.setdefault(key, Cut(task, *key, (x, y), piece))
    parts, census = _by_magnitudes(task, cut_of)
    if census is None or stop > piece.stop:
        tops = _largest(piece, stop, x, y, cuts.values())
        if not np.isfinite(tops).all():
            raise NotFiniteError  # the kernel makes a code of anything, and an address of a code
        census = census or take_census(x, y, piece.stop - piece.start, tops[0])
    searched: dict[Setting, Survival] = {}
    for fmt in task.formats:
        if fmt.name in parts:
            continue
        cut = cut_of[fmt.name]
        with refusing(fmt):
            if fits_kernel(fmt):
                parts[fmt.name] = _measure(task, fmt, cut)
            elif fmt.statistic != WHOLE:
                w, w_new = (z.reshape(-1, cut.layout.size) for z in cut.float32)
                for grid in GRID_MODES:
                    searched[Setting(fmt.name, grid)] = survival(w, w_new, fmt, grid)
    added = (p.delta_sq for name, p in parts.items() if spans[name] == piece)
    delta_sq = next((square for square in added if not math.isnan(square)), math.nan)
    if math.isnan(delta_sq):
        size = piece.stop - piece.start
        delta_sq = float(scalar.squared_length(x.stored[:size], y.stored[:size]))
    return PieceMeasured(census, delta_sq, parts, searched)


def _by_magnitudes(task: TensorTask, cut_of: Mapping[str, Cut]) -> tuple[dict[str, Part], Census | None]:
    """What needs no look at the weights before: formats whose scales follow from the bits of largest magnitudes.

    The first of them takes the census on the way, where its blocks are the piece.
    """
    parts: dict[str, Part] = {}
    census: Census | None = None
    for fmt in task.formats:
        cut = cut_of[fmt.name]
        if not (fmt.statistic == "absmax" and _by_vectors(task, fmt) and cut.is_whole):
            continue
        if not (cut.is_bfloat16 and _has_many_blocks(task, fmt)):
            continue
        tops, size = _tensor_tops(task, fmt), cut.layout.size
        fit = fit_of_magnitudes(fmt, tops, cut.fit, size, cut.whole_groups)
        counts_all = census is None and cut.is_piece
        found = fit and measure_registers(cut.stored, size, fmt, fit, task.simd, census=counts_all)
        if fit and found:
            parts[fmt.name] = Part(found.counts, found.sums, found.bins, found.delta_sq)
            cut.fit = fit
            if counts_all:
                census = Census(found.weights, found.moved, True, False)
    return parts, census


def _by_vectors(task: TensorTask, fmt: Format) -> bool:
    return task.simd in VECTOR_PATHS and fits_registers(fmt)


def _read(task: TensorTask, piece: Piece) -> tuple[Weights, Weights]:
    """The weights before and after; as bits only if both are bfloat16."""
    infos = [c.tensors[task.name] for c in task.checkpoints]
    alike = infos[0].dtype == infos[1].dtype
    size = piece.stop - piece.start
    before, after = (
        Weights(read_flat(c, task.name, *piece, own_memory(k, size * info.dtype.itemsize)), bits=alike)
        for k, (c, info) in enumerate(zip(task.checkpoints, infos, strict=True))
    )
    return before, after


def _largest(piece: Piece, stop: int, x: Weights, y: Weights, cuts: Iterable[Cut]) -> tuple[np.float32, np.float32]:
    """The largest magnitude before and after, from extremes that are found anyway where those are of the whole piece."""
    for cut in cuts:
        if cut.span == piece and stop == piece.stop and cut.layout.size <= PIECE_WEIGHTS:
            before, after = (np.maximum(-e.low, e.high).max() for e in cut.extremes)
            return before, after
    return x.largest, y.largest


def _measure(task: TensorTask, fmt: Format, cut: Cut) -> Part:
    part = Part(np.zeros((2, 3), np.int64), np.zeros((2, 4)), np.zeros(scalar.BINS, np.int64), math.nan)
    if not len(cut.ends):
        return part
    first = cut.whole_groups if _by_vectors(task, fmt) else 0
    fit = _fit_whole(task, fmt, cut, first) if first else None
    size = cut.layout.size
    x, y = (w[: first * size] for w in cut.stored)
    found = fit and measure_registers((x, y), size, fmt, fit, task.simd)
    if not found:
        first = 0
    else:
        delta_sq = found.delta_sq if first == len(cut.ends) else math.nan
        part = Part(found.counts, found.sums, found.bins, delta_sq)
    if first < len(cut.ends):
        _measure_rest(task, fmt, cut, first, part)
    if part.counts[:, scalar.OVERFLOWS].any():
        raise ValueError(f"the values of {fmt.name} must be finite, got an overflow of float32")
    return part


def _fit_whole(task: TensorTask, fmt: Format, cut: Cut, first: int) -> Fit | None:
    """The parameters of the first blocks, which are whole; None where a value may overflow."""
    before, after = _fit_both(task, fmt, cut)
    if may_overflow(before, fmt) or may_overflow(after, fmt):
        return None
    ends = cut.extremes[0]
    one, two = (Blocks(*(p[:first] for p in blocks)) for blocks in (before, after))
    return fit_of_blocks(one, two, np.maximum(-ends.low[:first], ends.high[:first]))


def _has_many_blocks(task: TensorTask, fmt: Format) -> bool:
    """Whether a table of all magnitudes is worth its while: one for each tensor is not for a small one."""
    return not fmt.tensor_range or math.prod(task.shape) // (fmt.block_size or 1) > FINITE


def _measure_rest(task: TensorTask, fmt: Format, cut: Cut, first: int, part: Part) -> None:
    """The blocks from `first` on, added to the part."""
    skip = first * cut.layout.size
    fitted = _fit_both(task, fmt, cut)
    check = any(may_overflow(blocks, fmt) for blocks in fitted)
    before, after = (Blocks(*(p[first:] for p in blocks)) for blocks in fitted)
    scalar.measure(
        *(w[skip:] for w in cut.float32),
        cut.ends[first:] - skip,
        before,
        after,
        grids_agree(before, after, fmt),
        *(s[first:] for s in setters(cut.extremes[0], fmt)),
        rule_of(fmt),
        check,
        *part[:3],
    )


def _tensor_tops(task: TensorTask, fmt: Format) -> tuple[float, float] | None:
    """The largest magnitudes of both tensors, where the format needs them."""
    if not fmt.tensor_range:
        return None
    total = math.prod(task.shape)
    before, after = (float(max(-whole.low[0], whole.high[0])) for whole in task.wide[Layout(total, total)])
    return before, after


def _fit_both(task: TensorTask, fmt: Format, cut: Cut) -> tuple[Blocks, Blocks]:
    """The parameters before and after, in one go where nothing but a block's own extremes decides them."""
    total = math.prod(task.shape)
    last = cut.layout.index_of(cut.span.stop - 1) == cut.layout.index_of(total - 1)
    partial = fmt.block == "flat" and last and total % (fmt.block_size or 1) != 0
    if partial or fmt.tensor_range:
        tops = _tensor_tops(task, fmt) or (math.nan, math.nan)
        before, after = (
            fit_blocks(e, fmt, tensor_absmax=top, partial=partial) for e, top in zip(cut.extremes, tops, strict=True)
        )
        return before, after
    one, two = cut.extremes
    both = Extremes(
        np.concatenate([one.low, two.low]),
        np.concatenate([one.high, two.high]),
        np.concatenate([one.low_first, two.low_first]),
    )
    fitted, count = fit_blocks(both, fmt, tensor_absmax=math.nan, partial=False), len(one.low)
    return Blocks(*(p[:count] for p in fitted)), Blocks(*(p[count:] for p in fitted))


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
    """The sums of a tensor from its pieces, in whatever order they come: counts are exact, sums correctly rounded."""
    rows = list(measured)
    census = [row.census for row in rows]
    found: dict[Setting, Survival] = {}
    for fmt in task.formats:
        for grid in GRID_MODES:
            setting = Setting(fmt.name, grid)
            if fmt.name in rows[0].parts:
                found[setting] = _survival(rows, [row.parts[fmt.name] for row in rows], grid)
            elif fmt.statistic == WHOLE:
                with refusing(fmt):
                    w, w_new = (np.asarray(c.read(task.name), np.float32) for c in task.checkpoints)
                    found[setting] = survival(w, w_new, fmt, grid)
            else:
                found[setting] = add(row.searched[setting] for row in rows)
    binades = BinadeCounts(
        tuple(np.sum([c.weights for c in census], axis=0).tolist()),
        tuple(np.sum([c.moved for c in census], axis=0).tolist()),
    )
    return TensorMeasured(binades, all(c.in_bfloat16 for c in census), all(c.in_float16 for c in census), found)


def _survival(rows: Sequence[PieceMeasured], parts: Sequence[Part], grid: GridMode) -> Survival:
    census = [piece.census for piece in rows]
    row = scalar.ADAPTIVE if grid == "adaptive" else scalar.FIXED
    counts = np.sum([part.counts[row] for part in parts], axis=0)
    expected, variance, surviving, dot = (math.fsum(part.sums[row, k] for part in parts) for k in range(4))
    return Survival(
        weights=sum(int(c.weights.sum()) for c in census),
        unchanged=sum(int((c.weights - c.moved).sum()) for c in census),
        code_flips=int(counts[scalar.FLIPS]),
        value_changes=int(counts[scalar.CHANGES]),
        expected_flips=expected,
        flips_variance=variance,
        delta_sq=math.fsum(piece.delta_sq for piece in rows),
        surviving_sq=surviving,
        dot=dot,
        positions=tuple(np.sum([part.bins for part in parts], axis=0).tolist()),
    )
