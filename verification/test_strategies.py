from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis.strategies import DataObject, data

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import code_units, fit_grid, to_blocks
from unforgotten.verification.domains.sampled_weights import LARGEST
from unforgotten.verification.domains.strategies import (
    ALL_FORMAT_NAMES,
    Pair,
    Sample,
    bfloat16_values,
    formats,
    pairs,
    samples,
    tensors,
    updated,
)

SEARCH = settings(max_examples=2_000, derandomize=True, database=None)


@given(pairs())
def test_pairs__are_finite_float32_of_one_shape(pair: Pair) -> None:
    assert pair.w.dtype == pair.w_new.dtype == np.float32
    assert pair.w.shape == pair.w_new.shape
    assert np.abs(np.stack([pair.w, pair.w_new])).max() <= LARGEST


def has_zero_block(s: Sample) -> bool:
    return bool((to_blocks(s.w, s.fmt) == 0).all(axis=1).any())


def has_partial_block(s: Sample) -> bool:
    return bool(s.fmt.block_size and to_blocks(s.w, s.fmt).size > s.w.size)


def has_tie(s: Sample) -> bool:
    blocks = to_blocks(s.w, s.fmt)
    return bool(np.isin(code_units(blocks, fit_grid(blocks, s.fmt), s.fmt), s.fmt.thresholds).any())


def has_subnormal(s: Sample) -> bool:
    tiny = float(np.finfo(np.float32).tiny)
    return bool(((s.w != 0) & (np.abs(s.w) < tiny)).any())


def has_outlier(s: Sample) -> bool:
    size = np.abs(s.w[s.w != 0]).astype(np.float64)  # 2^40 times a float32 may be beyond float32
    return size.size > 1 and bool(size.max() > 2.0**40 * size.min())


def is_constant(s: Sample) -> bool:
    return s.w.size > 2 and bool((s.w == s.w[0, 0]).all()) and s.w[0, 0] != 0


@pytest.mark.parametrize(
    "feature", [has_zero_block, has_partial_block, has_tie, has_subnormal, has_outlier, is_constant]
)
def test_samples__contain(feature: Callable[[Sample], bool]) -> None:
    assert feature(find(samples(), feature, settings=SEARCH))


@pytest.mark.parametrize("name", ALL_FORMAT_NAMES)
def test_samples__reach_every_threshold_neighbourhood(name: str) -> None:
    fmt = format_named(name)
    found = find(tensors(fmt, kinds=["ties"]), lambda w: has_tie(Sample(fmt, w)), settings=SEARCH)
    assert has_tie(Sample(fmt, found))


@given(data())
def test_updated__can_leave_the_weights_alone(data: DataObject) -> None:
    fmt = data.draw(formats())
    w = data.draw(tensors(fmt))
    assert np.array_equal(data.draw(updated(w, fmt, updates=["none"])), w)


@given(bfloat16_values())
def test_bfloat16_values__have_eight_significant_bits(value: float) -> None:
    assert np.float32(value).view(np.uint32) & np.uint32(0xFFFF) == 0
