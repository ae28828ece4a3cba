"""Findings of an audit against numbers that are counted another way, or that follow from how a pair was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.stats import binom

from unforgotten.audit import AuditResult, audit_pair, open_pair
from unforgotten.audit.findings.gain import level_bins
from unforgotten.audit.findings.probe import RUNS, TENSOR_WEIGHTS, look
from unforgotten.audit.findings.probe_cells import cells_of
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.row import FindingRow, ratio_of_sums, share_interval, share_of_sums
from unforgotten.audit.findings.spread import layer_of, participation
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.laws.update import survival

Tensors = dict[str, NDArray[Any]]
STD, LR, STEPS = 0.02, 1e-5, 40
EPS64 = float(np.finfo(np.float64).eps)
TAIL_ROUNDINGS = 64  # of a binomial tail and of the root at which it is asked for, for each trial
SUM_SLACK = 1e-10  # of a sum of at most 2^17 positive float64 terms, each good to some EPS64, relative


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def audited(
    root: Path, before: Tensors, after: Tensors, formats: Sequence[str], recipe: Recipe | None = None
) -> AuditResult:
    for name, tensors in (("t", before), ("u", after)):
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors")
    return audit_pair(root / "t", root / "u", list(formats), recipe=recipe)


def of(result: AuditResult, id: str) -> list[FindingRow]:
    return [row for row in result["findings"] if row["id"] == id]


def layer(i: int) -> str:
    return f"model.layers.{i}.mlp.up_proj.weight"


def gaussian(*key: int, shape: tuple[int, int] = (64, 128)) -> NDArray[np.float32]:
    return rng_of(*key).normal(0, STD, shape).astype(np.float32)


def adamw(seed: int, dtype: Any, shape: tuple[int, int] = (64, 128)) -> tuple[Tensors, Tensors]:
    """Real AdamW on noisy gradients of a fixed mean; the parameters are rounded to `dtype` after every step."""
    rng = rng_of(seed, 7)
    w = rng.normal(0, STD, shape).astype(ml_dtypes.bfloat16).astype(np.float32)
    start, mean = w, rng.normal(0, 1, shape)
    m: NDArray[Any] = np.zeros(shape)
    v: NDArray[Any] = np.zeros(shape)
    for t in range(1, STEPS + 1):
        gradient = mean + 0.5 * rng.normal(0, 1, shape)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = (w - step).astype(dtype).astype(np.float32)
    return {layer(0): start}, {layer(0): w}


def trained(dtype: Literal["bf16", "fp32"]) -> Recipe:
    return Recipe(lr=LR, steps=STEPS, optimizer="adamw", trained_in=dtype, source="test")


def audited_again(root: Path, recipe: Recipe) -> AuditResult:
    return audit_pair(root / "t", root / "u", ["int8-row"], recipe=recipe)


@pytest.mark.parametrize("seed", range(20))
def test_dead_zone_is_found_where_bf16_was_trained_and_only_there(seed: int, tmp_path: Path) -> None:
    found: dict[str, AuditResult] = {}
    kinds: tuple[tuple[Literal["bf16", "fp32"], Any], ...] = (("bf16", ml_dtypes.bfloat16), ("fp32", np.float32))
    for name, dtype in kinds:
        (tmp_path / name).mkdir()
        found[name] = audited(tmp_path / name, *adamw(seed, dtype), ["int8-row"])
        found[f"{name} told"] = audited_again(tmp_path / name, trained(name))
    assert found["bf16"]["storage"]["dead_zone"]["detected"] is True
    assert found["fp32"]["storage"]["dead_zone"]["detected"] is False
    (row,) = of(found["bf16"], "dead-zone")
    assert of(found["fp32"], "dead-zone") == []
    assert row["severity"] == "note"
    assert "trained in bf16, or saved in bf16 after fp32: the files cannot tell" in row["sentence"]
    assert row["sentence"] not in found["bf16"]["verdict"]["reasons"]
    (told,) = of(found["bf16 told"], "dead-zone")
    assert told["severity"] == "warning"
    assert "parameters kept in bfloat16 round away steps" in told["sentence"]
    estimate = found["bf16"]["storage"]["dead_zone"]["lr_estimate"]
    assert estimate is not None
    assert estimate[0] <= LR <= estimate[1]


def test_dead_zone_counts_what_stood_still(tmp_path: Path) -> None:
    before, after = adamw(0, ml_dtypes.bfloat16)
    result = audited(tmp_path, before, after, ["int8-row"])
    (row,) = of(result, "dead-zone")
    edge = result["storage"]["dead_zone"]["threshold"]
    assert edge is not None
    beyond = np.abs(before[layer(0)]) >= edge
    still = int((before[layer(0)] == after[layer(0)])[beyond].sum())
    assert row["effect"] == still / int(beyond.sum())  # one quotient of the same counts
    assert row["interval"] == share_interval(still, int(beyond.sum()))
    assert f"{int(beyond.sum()):,} weights" in row["sentence"]


def test_zero_bin_holds_the_share_of_the_square_that_is_counted_by_hand(tmp_path: Path) -> None:
    """int4-row: the zero bin is |w| < absmax / 14. The update moves what is smaller than a fifth of that, and one row."""
    w = gaussian(1)
    scale = np.abs(w).max(axis=1, keepdims=True) / 7
    delta = np.where(np.abs(w) < 0.1 * scale, np.float32(0.05) * scale, 0).astype(np.float32)
    delta[0] = 0.02 * scale[0]
    moved = (w + delta).astype(np.float32)
    result = audited(tmp_path, {layer(0): w}, {layer(0): moved}, ["int4-row"])
    (row,) = of(result, "zero-bin")
    square = (moved.astype(np.float64) - w) ** 2
    expected = square[np.abs(w) < 0.5 * scale].sum() / square.sum()
    assert row["format"] == "int4-row"
    assert row["effect"] == pytest.approx(expected, rel=SUM_SLACK)
    assert row["interval"] is not None
    assert row["interval"][0] <= expected <= row["interval"][1]
    assert result["verdict"]["legs"]["weights"] in ("swallowed", "partly swallowed")
    assert row["sentence"] in result["verdict"]["reasons"]


def test_an_even_update_is_in_no_bin(tmp_path: Path) -> None:
    w = gaussian(2)
    moved = (w + rng_of(3).normal(0, STD / 20, w.shape)).astype(np.float32)
    result = audited(tmp_path, {layer(0): w}, {layer(0): moved}, ["int4-row", "nf4-b64"])
    assert {row["id"] for row in result["findings"]} <= {"storage"}


@pytest.mark.parametrize("name", ["int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row"])
def test_weights_on_the_grid_are_found_in_their_own_format(name: str, tmp_path: Path) -> None:
    """T11a: a dequantized target; its update is a hundredth of a standard deviation."""
    w = round_trip(gaussian(4), format_named(name))
    moved = (w + rng_of(5).normal(0, STD / 100, w.shape)).astype(np.float32)
    result = audited(tmp_path, {layer(0): w}, {layer(0): moved}, [name])
    (row,) = of(result, "on-grid")
    assert row["format"] == name
    assert row["effect"] == 1.0
    assert row["p"] is not None
    assert row["p"] < 1e-99
    if not name.startswith("int8"):
        assert result["verdict"]["legs"]["weights"] in ("swallowed", "partly swallowed")


@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "int8-row"])
def test_a_4bit_grid_that_was_stored_in_bf16_is_found_and_no_other(name: str, tmp_path: Path) -> None:
    w = round_trip(gaussian(6), format_named("int4-g64")).astype(ml_dtypes.bfloat16)
    moved = (w.astype(np.float32) + rng_of(7).normal(0, STD / 100, w.shape)).astype(np.float32)
    found = of(audited(tmp_path, {layer(0): w.astype(np.float32)}, {layer(0): moved}, [name]), "on-grid")
    assert [row["format"] for row in found] == (["int4-g64"] if name == "int4-g64" else [])


@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "fp4-b64", "int8-row", "fp8-row"])
def test_bins_hold_every_inner_level(name: str) -> None:
    """By hand: where the level lies between the midpoints to its neighbours, in 256 bins."""
    fmt = format_named(name)
    levels, near = np.asarray(fmt.levels, np.float64), level_bins(fmt)
    for below, level, above in zip(levels, levels[1:], levels[2:], strict=False):
        width = (above - below) / 2
        if width > 0:
            assert near[min(255, int(256 * (level - below) / 2 / width))]  # FP4's -0 is at an end
    assert near.mean() < 0.4  # or nothing could stand out


def test_concentration_by_tensor_is_the_participation_ratio(tmp_path: Path) -> None:
    before = {layer(i): gaussian(8, i) for i in range(4)}
    after = {n: w + (0.004 if n == layer(2) else 0.0001) for n, w in before.items()}
    result = audited(tmp_path, before, {n: w.astype(np.float32) for n, w in after.items()}, ["int8-row"])
    (row,) = of(result, "concentration")
    squares = [
        float(((result_w - w) ** 2).sum())
        for w, result_w in (
            (before[n].astype(np.float64), after[n].astype(np.float32).astype(np.float64)) for n in before
        )
    ]
    expected = sum(squares) ** 2 / (4 * sum(s * s for s in squares))
    assert row["effect"] == pytest.approx(expected, rel=SUM_SLACK)
    assert row["tensor"] == layer(2)
    assert "1 of 4 tensors (25.0 % of the weights)" in row["sentence"]
    (one,) = of(result, "layers")
    assert "1 of 4 layers (2)" in one["sentence"]


def test_concentration_by_row_is_the_share_of_rows(tmp_path: Path) -> None:
    """One row in eight moves, each by the same: participation 1/8. An update on all of them is no finding."""
    w = gaussian(9)
    for name, rows in (("few", np.arange(64) % 8 == 0), ("all", np.ones(64, bool))):
        (tmp_path / name).mkdir()
        start = np.round(w * 2**20) / 2**20  # so that the sum is exact
        moved = (start + rows[:, None] * 2.0**-10).astype(np.float32)
        found = of(
            audited(tmp_path / name, {layer(0): start.astype(np.float32)}, {layer(0): moved}, ["int8-row"]),
            "concentration",
        )
        if name == "all":
            assert found == []
            continue
        (row,) = found
        assert row["effect"] == pytest.approx(1 / 8, rel=SUM_SLACK)


def test_participation_is_one_for_an_even_update_and_the_share_for_one_part() -> None:
    assert participation([3.0, 1.0], [3, 1]) == 1.0
    assert participation([1.0, 0.0, 0.0], [1, 2, 1]) == 0.25


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.12.mlp.up_proj.weight", "12"),
        ("blk.3.attn_q.weight", "3"),
        ("3.weight", "3"),
        ("encoder.weight", "encoder.weight"),
        ("conv1d.weight", "conv1d.weight"),
    ],
)
def test_layer_is_the_first_whole_number(name: str, expected: str) -> None:
    assert layer_of(name) == expected


def test_no_update_says_so_and_nothing_else(tmp_path: Path) -> None:
    w = {layer(0): gaussian(10)}
    result = audited(tmp_path, w, w, ["int4-row"])
    assert [row["id"] for row in result["findings"]] == ["no-update"]
    assert result["prediction"][0]["note"] == "nothing was updated"


def test_advice_names_what_passes_and_a_learning_rate_beyond_the_dead_zone(tmp_path: Path) -> None:
    """A column of large weights makes int4-row's zero bin ±0.01, far beyond the edge of the dead zone, 0.004."""
    before, after = adamw(1, ml_dtypes.bfloat16)
    before[layer(0)][:, 0] = after[layer(0)][:, 0] = 0.14
    result = audited(tmp_path, before, after, ["int4-row", "int8-row"], trained("bf16"))
    (row,) = of(result, "advice")
    zone = result["storage"]["dead_zone"]["lr_estimate"]
    assert zone is not None
    assert row["effect"] is not None
    assert row["effect"] >= zone[1]
    assert "float32 while unlearning" in row["sentence"]
    assert "deploy in a format that passes it: int8-row" in row["sentence"]
    assert row["sentence"] in result["verdict"]["reasons"]


@pytest.mark.parametrize("stored", [True, False])
def test_advice_on_a_target_that_lies_on_the_grid_says_nothing_of_its_training(stored: bool, tmp_path: Path) -> None:
    """T11a: masters and rates do not move a weight out of the middle of its cell; what swallows bf16 steps is another case."""
    before, after = adamw(1, ml_dtypes.bfloat16)
    before[layer(0)][:, 0] = after[layer(0)][:, 0] = 0.14
    if stored:
        w = round_trip(gaussian(6), format_named("int4-row"))
        moved = (w + rng_of(7).normal(0, STD / 100, w.shape)).astype(np.float32)
        before, after = {layer(0): w}, {layer(0): moved}
    result = audited(tmp_path, before, after, ["int4-row", "int8-row"], trained("bf16"))
    (row,) = of(result, "advice")
    assert ("on whose grid the target lies" in row["sentence"]) is stored
    assert ("while unlearning" in row["sentence"]) is not stored
    assert ("unlearn the target as it was before it was quantized" in row["sentence"]) is stored
    assert (row["effect"] is None) is stored
    assert "deploy in a format that passes it: int8-row" in row["sentence"]
    assert row["sentence"] in result["verdict"]["reasons"]


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (1, 10), (37, 1000), (0, 0)])
def test_share_interval_is_that_of_clopper_and_pearson(hits: int, count: int) -> None:
    """Its ends are where the binomial tails are 0.025, as near as the quantile function finds them.

    An end is a root in float64: a relative error of a few EPS64 in it moves a binomial tail by at most `count` times
    that, and the tails themselves are sums of as many rounded terms.
    """
    tail = pytest.approx(0.025, rel=TAIL_ROUNDINGS * (count + 1) * EPS64)
    low, high = share_interval(hits, count)
    if hits == 0:
        assert low == 0
    else:
        assert binom.sf(hits - 1, count, low) == tail
    if hits == count:
        assert high == 1
    else:
        assert binom.cdf(hits, count, high) == tail


def test_ratio_of_sums_by_hand() -> None:
    """R = 4/8; residuals 1, -1; sqrt(2 · 2) / 8 = 1/4, twice."""
    assert ratio_of_sums([3.0, 1.0], [4.0, 4.0]) == (0.5, 0.0, 1.0)
    assert ratio_of_sums([3.0], [4.0]) == (0.75, 0.0, 1.0)
    assert all(math.isnan(x) for x in ratio_of_sums([0.0], [0.0]))
    value, low, high = share_of_sums([4.0, 0.0], [4.0, 4.0])
    assert (value, low, high) == (0.5, 0.0, 1.0)


SHAPES = [(16, 96), (7, 64), (1, 256)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in ["int4-g64", "int4-row-asym", "nf4-b64", "q4_0", "hqq4-g64", "llmint8-row"]
        for shape in SHAPES
        if not (f := format_named(name)).whole_blocks or shape[1] % (f.block_size or 1) == 0
    ],
)
def test_cells_of_a_whole_tensor_are_those_of_the_survival(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    w = gaussian(11, shape=shape)
    moved = (w + rng_of(12).normal(0, STD / 4, shape)).astype(np.float32)
    fmt = format_named(name)
    for side, tensor in (("t", w), ("u", moved)):
        (tmp_path / side).mkdir()
        save_file({layer(0): tensor}, tmp_path / side / "model.safetensors")
    (sample,) = look(*open_pair(tmp_path / "t", tmp_path / "u"), [layer(0)], [name])
    views = [cells_of(run, fmt) for run in sample.runs]
    expected = survival(w, moved, fmt, "fixed")
    assert sum(v.w.size for v in views) == w.size
    assert sum(int((v.codes != v.codes_new).sum()) for v in views) == expected.code_flips
    for v in views:
        # the affine map from weights to code units, read off at the largest weight of a block: four roundings of float32
        slack = 8 * np.finfo(np.float32).eps * np.abs(fmt.levels).max()
        shift = v.delta / v.step
        exact = np.abs(v.codes - v.codes_new) <= np.abs(shift) * 64 + 2
        assert exact.all()
        assert np.isfinite(shift).all()
        assert (np.abs(v.v) <= np.abs(fmt.levels).max() + 1 + slack).all()


@pytest.mark.parametrize("columns", [64, 96, 1000, 4096])
def test_probe_looks_at_whole_blocks_of_a_bounded_part(columns: int, tmp_path: Path) -> None:
    """Runs of nf4-b64 begin and end at a block, lie inside the tensor and do not overlap; twice the same ones."""
    rows = 700
    w = np.zeros((rows, columns), np.float32)
    for side in "tu":
        (tmp_path / side).mkdir()
        save_file({layer(0): w}, tmp_path / side / "model.safetensors")
    pair = open_pair(tmp_path / "t", tmp_path / "u")
    (sample,) = look(*pair, [layer(0)], ["nf4-b64", "int4-row"])
    ends = [(run.start, run.start + len(run.w)) for run in sample.runs]
    assert len(ends) == RUNS
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    assert all(start * columns % 64 == 0 for start, _ in ends)
    assert all(stop * columns % 64 == 0 or stop == rows for _, stop in ends)
    unit = 64 // math.gcd(columns, 64) * columns
    assert sum(run.w.size for run in sample.runs) <= max(TENSOR_WEIGHTS, RUNS * unit)
    (again,) = look(*pair, [layer(0)], ["nf4-b64", "int4-row"])
    assert [(r.start, r.w.shape) for r in again.runs] == [(r.start, r.w.shape) for r in sample.runs]


EXTREMES: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
    "all zero": (np.zeros((4, 64)), np.zeros((4, 64))),
    "zero, then not": (np.zeros((4, 64)), np.ones((4, 64))),
    "all equal": (np.ones((4, 64)), np.full((4, 64), 1.5)),
    "one row": (np.linspace(-1, 1, 64)[None], np.linspace(-1, 1.1, 64)[None]),
    "one column": (np.linspace(-1, 1, 64)[:, None], np.linspace(-1, 1.1, 64)[:, None]),
    "one weight": (np.ones((1, 1)), np.full((1, 1), 2.0)),
    "subnormal": (np.full((4, 64), 1e-45), np.full((4, 64), 3e-45)),
    "tiny": (1e-30 * np.arange(256).reshape(4, 64), 1.1e-30 * np.arange(256).reshape(4, 64)),
    "huge": (1e37 * np.linspace(-1, 1, 256).reshape(4, 64), 1e37 * np.linspace(-1, 1.2, 256).reshape(4, 64)),
    "one moves": (np.linspace(-1, 1, 256).reshape(4, 64), np.linspace(-1, 1, 256).reshape(4, 64) + np.eye(4, 64)),
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_weights_at_the_ends_of_float32_are_audited_without_a_warning(kind: str, tmp_path: Path) -> None:
    before, after = (w.astype(np.float32) for w in EXTREMES[kind])
    formats = [
        "int4-g64",
        "nf4-b64",
        "int4-row-asym",
        "q4_0" if before.shape[1] == 64 and kind != "huge" else "int8-row",
    ]
    result = audited(tmp_path, {layer(0): before}, {layer(0): after}, formats)
    assert result["verdict"]["overall"] == "undecided"
    assert [row["format"] for row in result["prediction"]] == formats
