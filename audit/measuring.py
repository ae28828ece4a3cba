"""One tensor of a pair, measured in every format piece by piece: by the kernel where it can, else by `theory.update`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit import kernel
from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.errors import CheckpointError
from unforgotten.audit.kernel_plan import (
    Blocks,
    Extremes,
    ends_overflow,
    fit_blocks,
    fits_kernel,
    rule_of,
    setters,
)
from unforgotten.audit.measured import Setting, TensorMeasured
from unforgotten.audit.pieces import PIECE_WEIGHTS, Layout, Piece, layout_of, pieces, read_flat
from unforgotten.theory.dead_zone import BINADES, BinadeCounts
from unforgotten.theory.formats import Format
from unforgotten.theory.quantize import padding
from unforgotten.theory.update import GRID_MODES, GridMode, Survival, add, survival

Array = NDArray[Any]
WHOLE = "hqq-proximal"
"""The statistic whose search stops by a mean over the whole tensor, which is therefore read at once."""


class RefusedError(ValueError):
    """A format cannot take a tensor; `format` is its name."""

    def __init__(self, fmt: str, reason: str) -> None:
        super().__init__(reason)
        self.format = fmt


class NotFiniteError(ValueError):
    """A weight is nan or inf; `check_finite` says which."""


@contextmanager
def _refusing(fmt: Format) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise RefusedError(fmt.name, str(error)) from error


class Census(NamedTuple):
    """What a piece shows without a format: counts, the squared length of delta, and which narrow dtypes hold it."""

    unchanged: int
    delta_sq: float
    weights: Array
    moved: Array
    finite: bool
    in_bfloat16: bool
    in_float16: bool


class Part(NamedTuple):
    """One format over the blocks that begin in one piece; arrays as `kernel.measure` fills them."""

    counts: Array
    sums: Array
    bins: Array


@dataclass(frozen=True)
class PieceMeasured:
    """All that one piece adds to the sums of its tensor; formats without the kernel have a `Survival` a grid."""

    census: Census
    parts: Mapping[str, Part]
    searched: Mapping[Setting, Survival]


@dataclass(frozen=True)
class TensorTask:
    """One tensor of a pair and the formats to measure it in, ready to be measured in any order of its pieces.

    Attributes:
        checkpoints: target and unlearned.
        name: of the tensor in both.
        formats: to measure it in.
        wide: of blocks that are wider than a piece, and of the tensor where a format needs that, the extremes before
            and after.
    """

    checkpoints: tuple[Checkpoint, Checkpoint]
    name: str
    formats: tuple[Format, ...]
    wide: Mapping[Layout, tuple[Extremes, Extremes]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.checkpoints[0].tensors[self.name].shape


def tensor_task(
    target: Checkpoint, unlearned: Checkpoint, name: str, formats: Sequence[Format]
) -> TensorTask:
    """Prepare a tensor: one more pass over it where a block is wider than a piece.

    Raises:
        RefusedError: the tensor is empty, or a format takes whole blocks only and a row has others.
    """
    shape = target.tensors[name].shape
    if math.prod(shape) == 0:
        reason = f"a tensor to quantize must not be empty, got shape={shape}"
        raise RefusedError(formats[0].name, reason)
    for fmt in formats:
        with _refusing(fmt):
            padding(shape[-1], fmt)
    wide = {
        layout: (_wide_extremes(target, name, layout), _wide_extremes(unlearned, name, layout))
        for layout in _wide_layouts(formats, shape)
    }
    return TensorTask((target, unlearned), name, tuple(formats), wide)


def _wide_layouts(formats: Sequence[Format], shape: tuple[int, ...]) -> set[Layout]:
    own = [layout_of(fmt, shape) for fmt in formats if fits_kernel(fmt)]
    wide = {layout for layout in own if layout.size > PIECE_WEIGHTS}
    total = math.prod(shape)
    return wide | {Layout(total, total) for fmt in formats if fmt.tensor_range}


def _wide_extremes(checkpoint: Checkpoint, name: str, layout: Layout) -> Extremes:
    """The extremes of all blocks of a tensor, none of which need fit a piece."""
    shape = checkpoint.tensors[name].shape
    count = layout.index_of(math.prod(shape) - 1) + 1
    low, high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
    low_first = np.zeros(count, bool)
    for piece in pieces(shape):
        part = extremes(widened(read_flat(checkpoint, name, *piece)), layout.ends(*piece))
        at = slice(layout.index_of(piece.start), layout.index_of(piece.stop - 1) + 1)
        larger = np.maximum(-part.low, part.high) > np.maximum(-low[at], high[at])
        low_first[at] = np.where(larger, part.low_first, low_first[at])
        low[at], high[at] = np.minimum(low[at], part.low), np.maximum(high[at], part.high)
    return Extremes(low, high, low_first)


def extremes(x: Array, ends: Array) -> Extremes:
    """Those of the blocks of `x`, see `kernel.find_extremes`."""
    found = Extremes(
        np.empty(len(ends), np.float32), np.empty(len(ends), np.float32), np.empty(len(ends), bool)
    )
    kernel.find_extremes(x, ends, found.low, found.high, found.low_first)
    return found


def widened(raw: Array) -> Array:
    """Any stored float as float32; bfloat16 by a shift of its bits."""
    if raw.dtype.name == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling nan warns before it is found
        return np.ascontiguousarray(raw, np.float32)


def measure_piece(task: TensorTask, piece: Piece) -> PieceMeasured:
    """Measure the blocks that begin in one piece, in every format.

    Raises:
        RefusedError: a format cannot take the weights.
        NotFiniteError: a weight is nan or inf.
        CheckpointError: a file changed since it was opened.
    """
    spans = {fmt.name: _span(layout_of(fmt, task.shape), piece) for fmt in task.formats}
    stop = max(piece.stop, *(s.stop for s in spans.values()))
    x, y = (widened(read_flat(c, task.name, piece.start, stop)) for c in task.checkpoints)
    size = piece.stop - piece.start
    census = take_census(x[:size], y[:size])
    if not (census.finite and np.isfinite(x[size:]).all() and np.isfinite(y[size:]).all()):
        raise NotFiniteError  # the kernel makes a code of anything, and an address of a code
    parts: dict[str, Part] = {}
    searched: dict[Setting, Survival] = {}
    known: dict[tuple[Layout, Piece], _Cut] = {}
    for fmt in task.formats:
        layout, span = layout_of(fmt, task.shape), spans[fmt.name]
        at = slice(span.start - piece.start, span.stop - piece.start)
        with _refusing(fmt):
            if fits_kernel(fmt):
                if (layout, span) not in known:
                    known[layout, span] = _cut(task, layout, span, x[at], y[at])
                parts[fmt.name] = _measure(task, fmt, known[layout, span], span, (x[at], y[at]))
            elif fmt.statistic != WHOLE:
                w, w_new = (z[at].reshape(-1, layout.size) for z in (x, y))
                for grid in GRID_MODES:
                    searched[Setting(fmt.name, grid)] = survival(w, w_new, fmt, grid)
    return PieceMeasured(census, parts, searched)


def _span(layout: Layout, piece: Piece) -> Piece:
    """The blocks that begin in a piece, whole; where blocks are wider than any piece, the piece."""
    if layout.size > PIECE_WEIGHTS:
        return piece
    return Piece(layout.first_from(piece.start), layout.first_from(piece.stop))


class _Cut(NamedTuple):
    """Blocks of one layout in a piece: where they end, and their extremes before and after."""

    ends: Array
    before: Extremes
    after: Extremes


def _cut(task: TensorTask, layout: Layout, span: Piece, x: Array, y: Array) -> _Cut:
    if span.start >= span.stop:
        none = np.empty(0, np.float32)
        nothing = Extremes(none, none, np.empty(0, bool))
        return _Cut(np.empty(0, np.int64), nothing, nothing)
    ends = layout.ends(*span)
    if layout.size <= PIECE_WEIGHTS:
        return _Cut(ends, extremes(x, ends), extremes(y, ends))
    at = slice(layout.index_of(span.start), layout.index_of(span.stop - 1) + 1)
    before, after = (Extremes(e.low[at], e.high[at], e.low_first[at]) for e in task.wide[layout])
    return _Cut(ends, before, after)


def _measure(
    task: TensorTask, fmt: Format, cut: _Cut, span: Piece, pair: tuple[Array, Array]
) -> Part:
    part = Part(np.zeros((2, 3), np.int64), np.zeros((2, 4)), np.zeros(kernel.BINS, np.int64))
    if not len(cut.ends):
        return part
    before, after = (_fit(task, fmt, cut, span, which) for which in (0, 1))
    same = np.logical_and.reduce([p == q for p, q in zip(before, after, strict=True)])
    check = ends_overflow(before, fmt) or ends_overflow(after, fmt)
    kernel.measure(
        *pair, cut.ends, before, after, same, *setters(cut.before, fmt), rule_of(fmt), check, *part
    )
    if part.counts[:, kernel.OVERFLOWS].any():
        raise ValueError(f"the values of {fmt.name} must be finite, got an overflow of float32")
    return part


def _fit(task: TensorTask, fmt: Format, cut: _Cut, span: Piece, which: int) -> Blocks:
    total = math.prod(task.shape)
    largest = math.nan
    if fmt.tensor_range:
        whole = task.wide[Layout(total, total)][which]
        largest = float(max(-whole.low[0], whole.high[0]))
    layout = layout_of(fmt, task.shape)
    cut_last = fmt.block == "flat" and span.stop == total and total % layout.size != 0
    return fit_blocks((cut.before, cut.after)[which], fmt, tensor_absmax=largest, partial=cut_last)


def take_census(x: Array, y: Array) -> Census:
    """Count what needs no format; see `theory.dead_zone.count_binades` for the binades."""
    counts, delta_sq = np.zeros(4, np.int64), np.zeros(1)
    weights, moved = np.zeros(len(BINADES), np.int64), np.zeros(len(BINADES), np.int64)
    kernel.take_census(x, y, BINADES[0], BINADES[-1], counts, delta_sq, weights, moved)
    unchanged, infinite, beyond_bfloat16, beyond_float16 = (int(n) for n in counts)
    return Census(
        unchanged, float(delta_sq[0]), weights, moved, not infinite, not beyond_bfloat16, not beyond_float16
    )  # fmt: skip


def add_pieces(task: TensorTask, measured: Iterable[PieceMeasured]) -> TensorMeasured:
    """The sums of a tensor from its pieces, in whatever order they come: counts are exact, sums correctly rounded."""
    rows = list(measured)
    census = [row.census for row in rows]
    found: dict[Setting, Survival] = {}
    for fmt in task.formats:
        for grid in GRID_MODES:
            setting = Setting(fmt.name, grid)
            if fmt.name in rows[0].parts:
                found[setting] = _survival(census, [row.parts[fmt.name] for row in rows], grid)
            elif fmt.statistic == WHOLE:
                with _refusing(fmt):
                    pair = (np.asarray(c.read(task.name), np.float32) for c in task.checkpoints)
                    found[setting] = survival(*pair, fmt, grid)
            else:
                found[setting] = add(row.searched[setting] for row in rows)
    binades = BinadeCounts(
        tuple(np.sum([c.weights for c in census], axis=0).tolist()),
        tuple(np.sum([c.moved for c in census], axis=0).tolist()),
    )
    return TensorMeasured(
        binades, all(c.in_bfloat16 for c in census), all(c.in_float16 for c in census), found
    )  # fmt: skip


def _survival(census: Sequence[Census], parts: Sequence[Part], grid: GridMode) -> Survival:
    row = kernel.ADAPTIVE if grid == "adaptive" else kernel.FIXED
    counts = np.sum([part.counts[row] for part in parts], axis=0)
    expected, variance, surviving, dot = (
        math.fsum(part.sums[row, k] for part in parts) for k in range(4)
    )
    return Survival(
        weights=sum(int(c.weights.sum()) for c in census),
        unchanged=sum(c.unchanged for c in census),
        code_flips=int(counts[kernel.FLIPS]),
        value_changes=int(counts[kernel.CHANGES]),
        expected_flips=expected,
        flips_variance=variance,
        delta_sq=math.fsum(c.delta_sq for c in census),
        surviving_sq=surviving,
        dot=dot,
        positions=tuple(np.sum([part.bins for part in parts], axis=0).tolist()),
    )
