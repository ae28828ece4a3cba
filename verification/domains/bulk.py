"""Batches of configurations for the vectorized tests: as many rows as the profile of Hypothesis asks for, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import settings
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.sampled_updates import mixed_updates
from unforgotten.verification.domains.sampled_weights import Weights, mixed

ROWS_PER_EXAMPLE = 10
CHUNK_ROWS = 4_000
ROW_SIZE = 8  # of formats whose blocks are rows or tensors


class Batch(NamedTuple):
    """Blocks before and after updates, float32 (rows, size); each row has kinds and sizes of its own."""

    w: Weights
    w_new: Weights


def rows_of_profile() -> int:
    """Return the rows of one vectorized test: 500 in `dev`, 2,000 in `ci`, 10,000 in `nightly`."""
    return ROWS_PER_EXAMPLE * settings().max_examples


def chunks(*parameters: object) -> Iterator[tuple[np.random.Generator, int]]:
    """Yield a generator and a number of rows for each chunk."""
    left = rows_of_profile()
    while left > 0:
        rows = min(left, CHUNK_ROWS)
        yield rng_for("bulk", *parameters, left), rows
        left -= rows


def by_rows(fmt: Format) -> Format:
    """Return the format with a row for its block where that is the tensor or a tile: equal arithmetic, and rows stay apart."""
    return replace(fmt, block="row", block_size=None, tile=None) if fmt.block in ("tensor", "tile") else fmt


def batches(claim: str, fmt: Format) -> Iterator[Batch]:
    """Yield blocks of `fmt` with updates, for the test of a claim."""
    for rng, rows in chunks(claim, fmt.name):
        w = mixed(rng, fmt, rows, fmt.block_size or ROW_SIZE)
        yield Batch(w, mixed_updates(rng, fmt, w))


def largest_ratio(actual: NDArray[Any], bound: NDArray[Any]) -> float:
    """Return the largest actual / bound where the bound is not 0."""
    some = bound > 0
    return float((actual[some] / bound[some]).max()) if some.any() else 0.0
