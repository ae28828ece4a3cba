"""T1-T3 on many blocks at once: every format, every kind of weights and update, the bound asserted row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, decode, encode, fit_grid
from unforgotten.theory.geometry.drift import (
    certified_codes,
    keeps_code,
    scale_drift_upper_bound,
    unflipped_update_upper_bound,
    value_rounding_upper_bound,
)
from unforgotten.theory.geometry.preimages import block_box, weight_cells
from unforgotten.theory.geometry.sandwich import displacement_norm_upper_bound, displacement_sandwich
from unforgotten.verification.domains.bulk import batches, by_rows, chunks, largest_ratio
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES
from unforgotten.verification.oracles import ETA32, U32, U64
from unforgotten.verification.recording.tallies import record

FORMATS = [by_rows(format_named(name)) for name in ALL_FORMAT_NAMES]
LARGEST = np.float32(np.finfo(np.float32).max)
NORM_ROWS = 20  # of a batch: the norm is computed tensor by tensor

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
linear = pytest.mark.parametrize(
    "fmt",
    [
        f
        for f in FORMATS
        if f.statistic in ("absmax", "range") and f.scale_rule == "quotient" and f.storage == "float32"
    ],
    ids=lambda f: f.name,
)
certifiable = pytest.mark.parametrize(
    "fmt",
    [
        f
        for f in FORMATS
        if f.storage == "float32" and f.zero not in ("float", "minimum") and not (f.zero_point and f.zero_first)
    ],
    ids=lambda f: f.name,
)


def wide(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x, np.float64)


def values(w: NDArray[Any], grid: Grid, fmt: Format) -> NDArray[Any]:
    return wide(decode(encode(w, grid, fmt), grid, fmt))


@every_format
def test_displacement_sandwich__holds_in_bulk(fmt: Format) -> None:
    """Each difference is rounded once in float64, by u of itself: the bounds allow for their own sums."""
    for w, w_new in batches("sandwich", fmt):
        q, q_new = (values(x, fit_grid(x, fmt), fmt) for x in (w, w_new))
        delta, d = wide(w_new) - wide(w), np.abs(q_new - q)
        errors = q - wide(w), q_new - wide(w_new)
        bounds = displacement_sandwich(delta, *errors)
        slack = U64 * (np.abs(delta) + np.abs(errors[0]) + np.abs(errors[1]) + d)
        record("displacement_sandwich", fmt, rows=(w, w_new), ratio=largest_ratio(d, bounds.upper + slack))
        assert (d <= bounds.upper + slack).all()
        assert (d >= bounds.lower - slack).all()


@every_format
def test_displacement_norm_upper_bound__holds_in_bulk(fmt: Format) -> None:
    for w, w_new in batches("sandwich", fmt):
        q, q_new = (values(x, fit_grid(x, fmt), fmt) for x in (w, w_new))
        parts = wide(w_new) - wide(w), q - wide(w), q_new - wide(w_new)
        for i in range(min(NORM_ROWS, len(w))):
            bound = displacement_norm_upper_bound(*(x[i] for x in parts))
            length = float(np.linalg.norm(q_new[i] - q[i]))
            # the differences are rounded once each, by u of their size, so a norm by u of itself; and the norm of D
            slack = U64 * (w.shape[1] + 8) * (bound + length)
            ratio = length / (bound + slack) if bound > 0 else 0.0
            record("displacement_norm_upper_bound", fmt, w[i], w_new[i], ratio=ratio)
            assert length <= bound + slack


@every_format
def test_weight_cells__are_sound_and_maximal_in_bulk(fmt: Format) -> None:
    """Ends are codes of the cell, and one float32 outside is another code: no margin."""
    down, up = np.float32(-np.inf), np.float32(np.inf)
    for w, _ in batches("cells", fmt):
        grid = fit_grid(w, fmt)
        codes = encode(w, grid, fmt).astype(np.int64)
        cell = weight_cells(codes, grid, fmt)
        record("weight_cells", fmt, rows=(w,))
        assert ((cell.lower <= w) & (w <= cell.upper)).all()
        for end, side, last in ((cell.lower, down, -LARGEST), (cell.upper, up, LARGEST)):
            assert (encode(end, grid, fmt) == codes).all()
            with np.errstate(over="ignore"):
                outside = np.clip(np.nextafter(end, side), -LARGEST, LARGEST)
            assert ((encode(outside, grid, fmt) != codes) | (end == last)).all()


@every_format
def test_block_box__is_sound_in_bulk(fmt: Format) -> None:
    """Any mixture of ends and of points between, a block at a time, has the parameters and the codes."""
    for (w, _), (rng, _) in zip(batches("box", fmt), chunks("shares", fmt.name), strict=True):
        box = block_box(w, fmt)
        share = rng.choice([0.0, 1.0, 0.5], w.shape)
        between = wide(box.lower) * (1 - share) + wide(box.upper) * share
        moved = np.clip(between.astype(np.float32), box.lower, box.upper)
        if fmt.tensor_range:  # the scale of the tensor is part of every block's
            sets_it = np.abs(w).max(axis=1) == np.abs(w).max()
            moved[sets_it] = w[sets_it]
        record("block_box", fmt, rows=(w, moved))
        grids = [fit_grid(x, fmt) for x in (w, moved)]
        before, after = (g.encoder or g for g in grids)
        assert np.array_equal(before.scale, after.scale)
        assert np.array_equal(before.zero, after.zero)
        assert np.array_equal(encode(w, grids[0], fmt), encode(moved, grids[1], fmt))


@linear
def test_scale_drift_upper_bound__holds_in_bulk(fmt: Format) -> None:
    """A stored scale is rounded once where a kernel divides, and once where it subtracts for a range; eta near 0.

    Blocks of zeros are left out where their scale is a constant that no statistic set.
    """
    for w, w_new in batches("drift", fmt):
        s, s_new = (wide(fit_grid(x, fmt).scale[:, 0]) for x in (w, w_new))
        delta_max = np.abs(wide(w_new) - wide(w)).max(axis=1) * (1 + U64)
        rounded = U32 * (1 if fmt.statistic.endswith("absmax") else 2 + U32) * (s + s_new)
        bound = scale_drift_upper_bound(delta_max, fmt) + rounded + ETA32
        set_by_weights = (s != fmt.empty_scale) & (s_new != fmt.empty_scale) | (fmt.empty_scale == 0)
        drift = np.abs(s_new - s)[set_by_weights]
        record("scale_drift_upper_bound", fmt, rows=(w, w_new), ratio=largest_ratio(drift, bound[set_by_weights]))
        assert (drift <= bound[set_by_weights]).all()


@certifiable
def test_certified_codes__hold_in_bulk(fmt: Format) -> None:
    for w, w_new in batches("certified", fmt):
        certified = certified_codes(w, w_new, fmt)
        record("keeps_code", fmt, rows=(w, w_new))
        same = encode(w, fit_grid(w, fmt), fmt) == encode(w_new, fit_grid(w_new, fmt), fmt)
        assert same[certified].all()


def test_keeps_code__holds_in_bulk_on_any_grid() -> None:
    """Grids of no format: random thresholds and scales. float64's own roundings are inside the condition."""
    for rng, rows in chunks("keeps"):
        t = np.sort(rng.normal(0, 3, rng.integers(1, 9)))
        w = rng.normal(0, 3, (rows, 4))
        delta = w * 2.0 ** rng.uniform(-30, 2, (rows, 1)) * rng.choice([-1, 1], w.shape)
        s = 2.0 ** rng.uniform(-3, 3, (rows, 1))
        s_new = s * (1 + rng.choice([0, 1], s.shape) * rng.uniform(-0.5, 0.5, s.shape))
        kept = keeps_code(w, delta, (s, s_new), t)
        record("keeps_code", t, rows=(w, delta, s, s_new))
        assert kept.any()
        before, after = (np.searchsorted(t, x) for x in (w / s, (w + delta) / s_new))
        assert (before == after)[kept].all()


@linear
def test_unflipped_update_upper_bound__holds_in_bulk(fmt: Format) -> None:
    for w, w_new in batches("unflipped", fmt):
        grids = [fit_grid(x, fmt) for x in (w, w_new)]
        codes = [encode(x, g, fmt) for x, g in zip((w, w_new), grids, strict=True)]
        v = [wide(decode(k, g, fmt)) for k, g in zip(codes, grids, strict=True)]
        delta_max = np.abs(wide(w_new) - wide(w)).max(axis=1, keepdims=True) * (1 + U64)
        largest = np.sum([np.abs(x).max(axis=1, keepdims=True) for x in v], axis=0)
        bound = unflipped_update_upper_bound(delta_max, fmt)
        bound = bound + value_rounding_upper_bound(largest, fmt)
        # a scale that no statistic set, of a block of zeros or at torchao's least, has levels of its own
        set_by_weights = np.logical_and.reduce([g.scale > max(fmt.least_scale, fmt.empty_scale) for g in grids]) | (
            fmt.least_scale + fmt.empty_scale == 0
        )
        same = (codes[0] == codes[1]) & (grids[0].zero == grids[1].zero) & set_by_weights
        moved, bound = np.abs(v[1] - v[0])[same], np.broadcast_to(bound, same.shape)[same]
        record("unflipped_update_upper_bound", fmt, rows=(w, w_new), ratio=largest_ratio(moved, bound))
        assert (moved <= bound).all()


def test_value_rounding_upper_bound__counts_a_subnormal_scale_once_a_level() -> None:
    """What refuted 4 (u |Q| + eta): an update of 1 eta moves the scale from 100 to 101 eta, and code 50 by 50 eta."""
    fmt = format_named("int8-row")
    w = np.array([[12763, 5000]], np.float32) * np.float32(ETA32)
    w_new = np.array([[12764, 5001]], np.float32) * np.float32(ETA32)
    grids = [fit_grid(x, fmt) for x in (w, w_new)]
    assert [float(g.scale[0, 0]) / ETA32 for g in grids] == [100, 101]
    codes = [encode(x, g, fmt)[0, 1] for x, g in zip((w, w_new), grids, strict=True)]
    assert codes[0] == codes[1] == 127 + 50
    v = [values(x, g, fmt)[0, 1] for x, g in zip((w, w_new), grids, strict=True)]
    largest = np.array(2 * 12764 * ETA32)
    update = float(unflipped_update_upper_bound(np.array(ETA32), fmt))
    assert v[1] - v[0] == 50 * ETA32 > 8 * (update + 4 * (U32 * float(largest) + ETA32))
    assert 50 * ETA32 <= update + float(value_rounding_upper_bound(largest, fmt))
