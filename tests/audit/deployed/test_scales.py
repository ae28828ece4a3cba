"""Scales of channels, planted: what is undone is near to what was scaled, by the right way, and nothing is where none was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit.deployed.scales import share_of_scaling, without_scales
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip

Array = NDArray[Any]
ROWS, COLUMNS = 128, 256
FORMATS = ["int4-g64", "int4-row", "int3-g32-asym", "int2-g64", "nf4-b64", "fp8-row"]
FINE = [name for name in FORMATS if name != "int2-g64"]
ROUNDED = 2 * 2.0**-23
"""Of a sum of squares whose terms were rounded to float32: twice the relative error of one, with room."""
DEVIATIONS = 4 * 3**0.5
"""Four standard deviations, of errors that grow with the weight, as those of fp8 do: E[w^4] = 3 E[w^2]^2."""


def weights(seed: int = 0, rows: int = ROWS) -> Array:
    """Rows of unequal sizes and outliers."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (rows, COLUMNS)) * np.exp(rng.normal(0, 0.5, (rows, 1)))).astype(np.float32)


def even_weights() -> Array:
    return np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def scales(count: int, seed: int, spread: float = 0.5) -> Array:
    return np.exp(np.random.default_rng(seed).normal(0, spread, count))


def rounded(w: Array, name: str) -> Array:
    return round_trip(np.ascontiguousarray(w, np.float32), format_named(name)).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_not_scaled_comes_back_as_it_was(name: str) -> None:
    w = weights()
    q = rounded(w, name)
    norms = {"other": scales(COLUMNS, 9)}
    undone = without_scales(w, q, norms)
    assert undone.by == ""
    assert undone.values is q
    assert (undone.rows == 1).all()
    assert (undone.columns == 1).all()


@pytest.mark.parametrize("name", FINE)
def test_the_quotient_of_the_right_norm_is_taken_exactly(name: str) -> None:
    w, s = weights(), scales(COLUMNS, 1)
    q = rounded(w * s, name)
    undone = without_scales(w, q, {"another": scales(COLUMNS, 2), "its own": s, "short": scales(8, 3)})
    assert undone.by == "norm"
    assert np.array_equal(undone.columns, s)
    assert np.array_equal(undone.values, (q / s).astype(np.float32))


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("axis", [0, 1])
def test_factors_of_one_axis_are_fitted(axis: int, name: str) -> None:
    """A factor is off by the relative error of a channel over the root of its length, and by the shrinking of its rounding."""
    w, s = even_weights(), scales((COLUMNS, ROWS)[axis], 1)
    scaled = w * (s if axis == 0 else s[:, None])
    q = rounded(scaled, name)
    undone = without_scales(w, q, {})
    assert undone.by == "fit"
    assert ((undone.rows, undone.columns)[axis] == 1).all()
    found = (undone.columns, undone.rows)[axis]
    errors = np.linalg.norm(q - scaled, axis=axis) / np.linalg.norm(scaled, axis=axis)
    assert (np.abs(found / s - 1) < DEVIATIONS * errors / np.sqrt((ROWS, COLUMNS)[axis]) + errors**2).all()


def test_factors_of_both_axes_are_fitted_and_beside_a_norm_those_of_rows() -> None:
    """As values are, in whose place the norm before and the output projection after were scaled."""
    w, columns, rows = even_weights(), scales(COLUMNS, 1), scales(ROWS, 2)
    scaled = w * columns * rows[:, None]
    q = rounded(scaled, "int4-g64")
    by_fit, by_norm = without_scales(w, q, {}), without_scales(w, q, {"its own": columns})
    assert by_fit.by == by_norm.by == "fit"
    assert np.array_equal(by_norm.columns, columns)
    truth = (q / rows[:, None] / columns).astype(np.float32)
    for undone in (by_fit, by_norm):  # a fitted factor is off by the error of its channel over the root of its length
        off = np.linalg.norm(undone.values - truth) / np.linalg.norm(truth - w)
        assert off < 2 * np.sqrt(1 / ROWS + 1 / COLUMNS)


def test_an_update_that_was_swallowed_has_no_gain_but_that_of_scales() -> None:
    """Both files hold the same codes; the fit may only add the part of the update that is a scaling, which it says."""
    w = weights()
    w_new = (w + 1e-3 * np.random.default_rng(5).normal(size=w.shape)).astype(np.float32)
    q = rounded(w * scales(COLUMNS, 1), "int4-g64")
    delta = (w_new - w).astype(np.float64)
    kept = without_scales(w_new, q, {}).values.astype(np.float64) - without_scales(w, q, {}).values
    share = share_of_scaling(w, w_new - w) / np.square(delta).sum()
    gain = (kept * delta).sum() / np.square(delta).sum()
    assert share < 2 * (1 / ROWS + 1 / COLUMNS)
    assert abs(gain) <= share


def test_the_share_of_scaling_is_that_of_a_planted_one() -> None:
    w = weights()
    scaling = w * np.random.default_rng(6).normal(size=COLUMNS)
    total = float(np.square(scaling.astype(np.float64)).sum())
    assert share_of_scaling(w, scaling.astype(np.float32)) == pytest.approx(total, rel=ROUNDED)
    noise = np.random.default_rng(7).normal(size=w.shape).astype(np.float32)
    chance = (ROWS + COLUMNS) / (ROWS * COLUMNS)
    share = share_of_scaling(w, noise) / float(np.square(noise.astype(np.float64)).sum())
    assert 0.5 * chance < share < 1.5 * chance


@pytest.mark.parametrize("factor", [1 / 3, 3.0])
@pytest.mark.parametrize("name", FORMATS)
def test_a_norm_that_was_multiplied_by_one_number_scales_no_matrix(name: str, factor: float) -> None:
    """Factors of rows would undo it, and fit a little of any rounding error besides."""
    w = even_weights()
    q = rounded(w, name)
    undone = without_scales(w, q, {"norm": np.full(COLUMNS, factor)})
    assert undone.by == ""
    assert np.array_equal(undone.values, q)
