"""What a run says of how near its model is to the one that it stands in for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.experiments.stand_in import ASSUMED_STD, MODEL, assumed_rows, stand_in_rows
from unforgotten.records.store import Measurement
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip

FORMATS = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")
LR = 1e-5
EDGE = 2.0**-8
SHARE_ROUNDING = 2.0**-40
"""Of a share of blocks in float64: two quotients of whole numbers."""


def values(rows: Mapping[str, Sequence[Measurement]], name: str) -> dict[str, float]:
    return {m.metric: m.value for m in rows[name]}


CLEAR = 5.0
"""Standard errors of a sample that chance never takes."""
MEDIAN_OF_MAXIMA = 1.25 * 0.1
"""Relative error of the median of n maxima, times sqrt(n): 1.25 spreads, each a tenth of the maximum or less."""


def gaussian(std: float, rows: int, columns: int) -> NDArray[np.float32]:
    return (std * np.random.default_rng(0).standard_normal((rows, columns))).astype(np.float32)


def test_gaussian_weights_of_llama_s_std_are_what_is_assumed_of_it() -> None:
    """Each number within five standard errors of a sample of so many weights or blocks."""
    w = gaussian(ASSUMED_STD, 2048, 4096)
    found = stand_in_rows(lambda: iter([w[:1000], w[1000:]]), lr=LR, formats=FORMATS, layers=32, tied=0.0)
    assumed = assumed_rows(lr=LR, formats=FORMATS)
    assert found.keys() == assumed.keys()
    model, wanted = values(found, MODEL), values(assumed, MODEL)
    assert model["bf16_edge"] == wanted["bf16_edge"] == EDGE
    assert model["weight_std"] == pytest.approx(wanted["weight_std"], rel=CLEAR / math.sqrt(2 * w.size))
    share = wanted["below_edge"]
    assert abs(model["below_edge"] - share) < CLEAR * math.sqrt(share * (1 - share) / w.size)
    for name in FORMATS:
        mine, theirs = values(found, name), values(assumed, name)
        blocks = w.size // (format_named(name).block_size or 4096)
        p = theirs["swallowing_blocks"]
        assert abs(mine["swallowing_blocks"] - p) <= CLEAR * math.sqrt(p * (1 - p) / blocks) + 1 / blocks
        errs = CLEAR * MEDIAN_OF_MAXIMA / math.sqrt(blocks)
        assert mine["edge_over_threshold"] == pytest.approx(theirs["edge_over_threshold"], rel=errs)


@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "int4-row"])
def test_no_code_below_the_edge_flips_in_a_swallowing_block(name: str) -> None:
    """T11b, as the rows count it: weights below the edge cross no threshold in just those blocks that are counted."""
    w = gaussian(0.02, 64, 512)
    fmt = format_named(name)
    size = fmt.block_size or 512
    share = values(stand_in_rows(lambda: iter([w]), lr=LR, formats=[name], layers=1, tied=0.0), name)
    small = np.abs(w) < EDGE
    moved = np.where(small, np.sign(w) * np.float32(0.999 * EDGE), w)  # as far out as a weight below the edge can go
    back = np.where(small, np.float32(0), w)
    (far, grid), (near, _) = quantize(moved, fmt), quantize(back, fmt)
    assert grid is not None
    flips = (far != near).reshape(-1, size).any(-1)
    counted = np.abs(w).reshape(-1, size).max(-1) >= share["edge_over_threshold"] * np.median(
        np.abs(w).reshape(-1, size).max(-1)
    )
    assert counted.mean() == pytest.approx(share["swallowing_blocks"], abs=SHARE_ROUNDING)
    assert not (flips & counted).any()
    assert (flips & ~counted).any() or counted.all()
    assert (round_trip(moved, fmt) == round_trip(back, fmt)).reshape(-1, size)[counted].all()


def test_formats_of_another_kind_have_no_rows_and_zeros_count_in_no_block() -> None:
    w = np.zeros((4, 128), np.float32)
    w[0, 0] = 0.01
    rows = stand_in_rows(lambda: iter([w]), lr=LR, formats=["int4-g64", "q4_1", "gptq:int4-g64"], layers=2, tied=0.5)
    assert set(rows) == {MODEL, "int4-g64"}
    assert rows["int4-g64"][0].n == 1
    assert values(rows, MODEL)["tied_share"] == 0.5
    assert values(rows, MODEL)["layers"] == 2
    assert values(rows, MODEL)["weight_std"] == pytest.approx(0.01 * math.sqrt(511) / 512)
