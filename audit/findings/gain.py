"""Findings about the gain: what swallows the update (T11b), and weights that lie on a grid already (T11a)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import binom

from unforgotten.audit.findings.probe import Sample, fits
from unforgotten.audit.findings.probe_cells import CellView, cells_of
from unforgotten.audit.findings.row import FindingRow, Ratio, finding, share_interval, share_of_sums
from unforgotten.audit.findings.sentences import STDERRS, Judged, gain_sentence, share
from unforgotten.audit.mixes.mix import is_mix
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.geometry.cells import cells, position
from unforgotten.theory.laws.update import POSITION_BINS

ZERO_BIN_SHARE = 0.5  # of the squared update, at least, in one cell beside zero
NEAR_LEVELS = 2  # cells looked at, by the distance of their level from 0: FP4's second is its widest
ON_GRID_SHARE = 0.5  # of the moved weights, at least, beyond what chance would put there
ON_GRID_BINS = 2  # of POSITION_BINS, on each side of a level: what rounding to bfloat16 moves a 4-bit level


def gain_findings(judged: Sequence[Judged], samples: Sequence[Sample]) -> list[FindingRow]:
    """Return what each format does to the update, as deployment quantizes, and why."""
    found: list[FindingRow] = []
    for j in judged:
        if j.finding == "no update":
            continue
        if j.finding in ("swallowed", "partly swallowed"):
            found += [_swallowed(j), *([] if is_mix(j.format) else _zero_bin(j, samples))]
        found += [] if is_mix(j.format) else _on_grid(j)
    return found


def _swallowed(j: Judged) -> FindingRow:
    margin = STDERRS * j.stderr
    return finding(
        "swallowed",
        "error" if j.finding == "swallowed" else "warning",
        gain_sentence(j),
        measure="gain",
        effect=j.total.gain,
        interval=(j.total.gain - margin, j.total.gain + margin),
        format=j.format,
    )


def _zero_bin(j: Judged, samples: Sequence[Sample]) -> list[FindingRow]:
    """Report the cell at or next to zero that holds most of the squared update, if it holds ZERO_BIN_SHARE (T11b)."""
    fmt = format_named(j.format)
    views = list(_views(samples, fmt))
    if not views:
        return []
    places = sorted({float(x) for view in views for x in np.unique(view.near)})[:NEAR_LEVELS]
    inside = {at: [_square(v, v.near == at) for v in views] for at in places}
    whole = [_square(v, np.ones(v.w.shape, bool)) for v in views]
    at = max(places, key=lambda place: math.fsum(inside[place]))
    part: Ratio = share_of_sums(inside[at], whole)
    if not part.value >= ZERO_BIN_SHARE:
        return []
    held = math.fsum(_square(v, (v.near == at) & (v.codes == v.codes_new)) for v in views)
    chance = math.fsum(float((v.delta**2 * v.stay)[v.near == at].sum()) for v in views)
    there = math.fsum(inside[at])
    weights = sum(int((v.near == at).sum()) for v in views) / sum(v.w.size for v in views)
    which = "the zero bin" if at == 0 else "the cells next to zero"
    sentence = (
        f"{j.format}: {share(part.value)} of the squared update lies in {which}, where {share(weights)} of the weights "
        f"are; {share(held / there)} of it stays inside, where weights at random places would leave {share(chance / there)} "
        f"(sample of {sum(v.w.size for v in views):,} weights)."
    )
    row = finding(
        "zero-bin",
        "warning",
        sentence,
        measure="share of the squared update in one cell beside zero",
        effect=part.value,
        interval=(part.low, part.high),
        format=j.format,
    )
    return [row]


def _views(samples: Sequence[Sample], fmt: Format) -> Iterator[CellView]:
    for sample in samples:
        for run in sample.runs:
            if fits(fmt, run) and (run.w != run.w_new).any():
                yield cells_of(run, fmt)


def _square(view: CellView, where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    return float(np.square(view.delta[where]).sum())


def level_bins(fmt: Format) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return the bins of the position histogram within ON_GRID_BINS of where a level lies in its inner cell."""
    levels, codes = np.asarray(fmt.levels, np.float64), np.arange(len(fmt.levels))
    width = cells(fmt).width
    inner = (codes > 0) & (codes < len(levels) - 1) & (width > 0)
    at = position(levels[inner], codes[inner], fmt) * POSITION_BINS
    middles = np.arange(POSITION_BINS) + 0.5
    return np.asarray((np.abs(middles[:, None] - at) <= ON_GRID_BINS).any(axis=1))


def _on_grid(j: Judged) -> list[FindingRow]:
    """Report moved weights on their levels (T11a). Under U a bin has 1 / POSITION_BINS of them: a binomial tail."""
    near = level_bins(format_named(j.format))
    chance = float(near.mean())
    count = sum(j.total.positions)
    hits = int(np.asarray(j.total.positions)[near].sum())
    if not count or chance >= 1 or (hits / count - chance) / (1 - chance) < ON_GRID_SHARE:
        return []
    sentence = (
        f"{j.format}: {share(hits / count)} of the moved weights lie on a level of this format before the update, where "
        f"chance would put {share(chance)}: the target was quantized in it, or on a grid like it, and a change of less "
        "than half a step is lost."
    )
    row = finding(
        "on-grid",
        "warning",
        sentence,
        measure="share of moved weights on a level",
        effect=hits / count,
        interval=share_interval(hits, count),
        p=float(binom.sf(hits - 1, count, chance)),
        format=j.format,
    )
    return [row]
