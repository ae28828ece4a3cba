from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import code_units, encode, fit_grid
from unforgotten.theory.geometry.adamw import adamw_ratio_upper_bound
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.bulk import CHUNK_ROWS, by_rows, chunks, rows_of_profile
from unforgotten.verification.domains.histories import GRADIENTS, MOST_STEPS, History, adam_steps, histories
from unforgotten.verification.domains.sampled_updates import UPDATES, mixed_updates, sampled_update
from unforgotten.verification.domains.sampled_weights import WEIGHTS, largest, mixed, normal, sampled, to_bfloat16
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES

ROWS = 60
FMT = format_named("int4-g8")


def weights(kind: str, name: str = "int4-g8") -> NDArray[Any]:
    return sampled(kind, rng_for("sampled", kind, name), format_named(name), (ROWS, 8))


def delta(kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    w = normal(rng_for("before", kind), FMT, (ROWS, 8))
    return w, sampled_update(kind, rng_for("update", kind), FMT, w).astype(np.float64) - w


@pytest.mark.parametrize("name", ALL_FORMAT_NAMES)
def test_mixed__can_be_quantized_and_repeats(name: str) -> None:
    """Finite float32 that no format refuses, before and after; the same again from the same parameters."""
    fmt = by_rows(format_named(name))
    size = fmt.block_size or 8
    w, again = (mixed(rng_for("mixed", name), fmt, 500, size) for _ in range(2))
    assert np.array_equal(w, again)
    moved = mixed_updates(rng_for("moved", name), fmt, w)
    for x in (w, moved):
        assert x.dtype == np.float32
        assert np.abs(x).max() <= largest(fmt)
        assert np.isfinite(fit_grid(x, fmt).scale).all()
    assert len(np.unique(w, axis=0)) > 450
    assert (moved != w).any(axis=1).mean() > 0.8


def test_weights__are_what_their_names_say() -> None:
    top = np.abs(weights("outliers"))
    assert (np.sort(top, axis=1)[:, -1] > 4 * np.median(top, axis=1)).mean() > 0.9
    assert (weights("all equal").std(axis=1) == 0).all()
    assert (weights("zero blocks") == 0).all(axis=1).any()
    assert (weights("zero blocks") != 0).any()
    small = weights("subnormals")
    assert ((small != 0) & (np.abs(small) < 2.0**-126)).any()
    lattice = weights("bfloat16")
    assert np.array_equal(to_bfloat16(lattice), lattice)
    half = weights("float16")
    assert np.array_equal(half.astype(np.float16).astype(np.float32), half)
    wide = np.abs(weights("huge range")).astype(np.float64)
    assert wide.max() / wide[wide > 0].min() > 2.0**150
    many = (20 * ROWS, 8)  # the median is 3.9 with a spread of 0.1 over seeds, and 2.5 for normal weights
    heavy = np.abs(sampled("heavy-tailed", rng_for("heavy"), format_named("int4-g8"), many))
    assert np.median(heavy.max(axis=1) / np.median(heavy, axis=1)) > 3


@pytest.mark.parametrize("name", ["nf4-b8", "mxfp4-b8", "q8_0", "int4-row"])
def test_weights__already_quantized_have_their_own_values(name: str) -> None:
    w = sampled("already quantized", rng_for(name), format_named(name), (ROWS, 32))
    used = np.array([len(np.unique(row)) for row in w.reshape(-1, format_named(name).block_size or 32)])
    assert (used <= len(format_named(name).levels)).all()


@pytest.mark.parametrize("name", ALL_FORMAT_NAMES)
def test_weights__ties_lie_on_thresholds(name: str) -> None:
    fmt = by_rows(format_named(name))
    w = sampled("ties", rng_for("ties", name), fmt, (200, fmt.block_size or 8))
    if fmt.tensor_range:
        w = w / np.abs(w).max(axis=1, keepdims=True)  # one tensor: the blocks share a scale of scales
    v = code_units(w, fit_grid(w, fmt), fmt)
    assert np.isin(v, fmt.thresholds).any() or fmt.tensor_range


def test_updates__are_what_their_names_say() -> None:
    w, d = delta("sign")
    assert np.allclose(np.abs(d), np.abs(d)[:, :1], rtol=0, atol=2.0**-22 * np.abs(w).max())
    assert ((d := delta("sparse")[1]) != 0).mean() < 0.3
    assert d.any()
    assert np.linalg.matrix_rank(delta("low rank")[1], tol=1e-4) == 2
    w, d = delta("setter")
    assert ((d != 0).sum(axis=1) <= 1).all()
    assert np.array_equal(np.abs(d).argmax(axis=1)[d.any(axis=1)], np.abs(w).argmax(axis=1)[d.any(axis=1)])
    w, d = delta("dead zone")
    frozen = np.abs(w) >= np.quantile(np.abs(w), 0.9, axis=1, keepdims=True)
    assert (d[frozen] != 0).mean() < (d[~frozen] != 0).mean()
    w, d = delta("to zero")
    assert set(np.unique((w + d)[d != 0])) <= {0.0}


def flips(kind: str) -> float:
    w = normal(rng_for("flips", kind), FMT, (500, 8))
    moved, grid = sampled_update(kind, rng_for("flip update", kind), FMT, w), fit_grid(w, FMT)
    return float((encode(w, grid, FMT) != encode(moved, grid, FMT)).mean())


def test_updates__washed_never_flip_and_aimed_nearly_always() -> None:
    """An entry that sets the scale lies on the last level: its threshold is half a step away, as any other's."""
    assert flips("washed") == 0
    assert flips("aimed") > 0.95
    assert 0 < flips("gaussian") < 0.9


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("weights_kind", WEIGHTS)
def test_updates__of_any_weights_are_finite(kind: str, weights_kind: str) -> None:
    w = weights(weights_kind)
    moved = sampled_update(kind, rng_for(kind, weights_kind), FMT, w)
    assert moved.shape == w.shape
    assert np.isfinite(moved).all()


@given(histories())
def test_histories__are_trainings(h: History) -> None:
    weights_, steps = h.gradients.shape
    assert (weights_, len(h.rates)) == (3, steps)
    assert steps <= MOST_STEPS
    assert np.isfinite(h.gradients).all()
    assert (h.rates >= 0).all()
    assert (h.rates * h.weight_decay <= 1).all()


@given(histories())
def test_adam_steps__stay_below_the_bound(h: History) -> None:
    """T5 on drawn histories; the simulation rounds 5 times a step and cancels in 1 - b^t: see test_bulk_steps."""
    seen = np.abs(adam_steps(h.gradients, h.beta1, h.beta2)).max(axis=0)
    for t, size in enumerate(seen, start=1):
        cancelled = 2 / (1 - h.beta1**t) + 2 / (1 - h.beta2**t)
        slack = 1 + (5 * t + 8 + cancelled) * 2.0**-53
        assert size <= adamw_ratio_upper_bound(t, h.beta1, h.beta2) * slack


def test_gradients__extremal_break_the_folk_bound() -> None:
    """ "A step of Adam is at most lr" is false."""
    g = GRADIENTS["extremal"](rng_for("extremal"), 20, MOST_STEPS, 0.9, 0.999)
    assert np.abs(adam_steps(g, 0.9, 0.999)).max() > 1.2


def test_chunks__add_up_to_the_profile() -> None:
    sizes = [rows for _, rows in chunks("test")]
    assert sum(sizes) == rows_of_profile()
    assert max(sizes) <= CHUNK_ROWS
