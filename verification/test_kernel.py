"""The compiled kernel against the numpy reference: every count equal, every sum to rounding, in every format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from unforgotten.audit.kernel.bits import extremes_of
from unforgotten.audit.kernel.rules import is_compiled, rule_of
from unforgotten.audit.kernel.searches import TOGETHER
from unforgotten.audit.kernel.simd import NUMPY, VARIABLE, available_paths
from unforgotten.audit.kernel.super_blocks import OF_STATISTIC
from unforgotten.audit.sources.flat import BlockLayout, Piece, layout_of, pieces
from unforgotten.audit.sources.safetensors_header import TensorInfo
from unforgotten.audit.weights import piece as measuring
from unforgotten.audit.weights import piece_blocks
from unforgotten.audit.weights import task as tensor_task
from unforgotten.audit.weights.leg import precision_of, value_precision
from unforgotten.audit.weights.piece import add_pieces, measure_piece
from unforgotten.audit.weights.sums import Setting, TensorMeasured
from unforgotten.theory.formats.kquants import OF_Q4_K, OF_Q5_K, search_affine, search_one_by_one, search_symmetric
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.geometry.dead_zone import count_binades
from unforgotten.theory.laws.update import GRID_MODES, GridMode, Survival, survival
from unforgotten.verification.agreement import assert_agree
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains import strategies as domain

Array = NDArray[Any]
DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
WIDE_BLOCKS = (
    "nf4-b16",
    "fp4-b32",
    "nf4-b48",
    "mxfp4-b32",
    "nvfp4",
    "int4-g16",
    "int3-g32",
    "q4_0",
    "int2-g64-paper",
    "int8-g16",
    "int5-g32-paper",
    "int6-g16-ct",
    "int7-g16-ao",
    "int8-g48",
)
"""Formats that are measured sixteen weights at a time, on paths with vectors."""
SEARCHED = {"q3_k": search_one_by_one, "q4_k": search_affine, "q5_k": search_affine, "q6_k": search_symmetric}
"""K-quants, and what finds their scales by numpy."""
BY_NUMPY = ("hqq4-g8-opt",)
NAMED = os.environ.get(VARIABLE, "")
PATHS = (NAMED,) if NAMED else tuple(path for path in available_paths() if path != NUMPY)
"""Every path of the kernel that this machine can run, or the one that is named; each example goes through all of them."""


class InMemory:
    """A checkpoint of one tensor."""

    source, revision = "memory", None

    def __init__(self, w: Array) -> None:
        self.w = w
        self.tensors = {"w": TensorInfo(Path("memory"), w.dtype, w.shape)}

    def read(self, name: str) -> Array:
        return self.w

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        return self.w[start:stop]

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> Array:
        return self.w.reshape(-1)[start:stop]

    def check(self, name: str) -> None:
        pass

    def sha256(self) -> str:
        return ""


def measured(w: Array, w_new: Array, formats: Sequence[Format], path: str = PATHS[0]) -> TensorMeasured:
    task = tensor_task.tensor_task(InMemory(w), InMemory(w_new), "w", formats, path)
    return add_pieces(task, [measure_piece(task, piece) for piece in pieces(task.shape)])


def check(w: Array, w_new: Array, fmt: Format) -> None:
    """On every path the kernel gives what the reference gives, or refuses in the same words."""
    words = ""
    expected: dict[GridMode, Survival] = {}
    try:
        expected = {mode: survival(w, w_new, fmt, mode) for mode in GRID_MODES}
    except ValueError as error:
        words = str(error)
    for path in PATHS:
        if words:
            with pytest.raises(ValueError, match=re.escape(words)):
                measured(w, w_new, [fmt], path)
            continue
        found = measured(w, w_new, [fmt], path)
        for mode, reference in expected.items():
            assert_agree(found.survival[Setting(fmt.name, mode)], reference)
        assert found.binades == count_binades(w, w_new)


@settings(deadline=None)  # the first example loads the compiled code
@given(domain.pairs())
def test_kernel__equals_reference_in_every_format(p: domain.Pair) -> None:
    check(p.w, p.w_new, p.fmt)


@settings(deadline=None)  # the first example loads the compiled code
@given(domain.pairs(names=WIDE_BLOCKS))
def test_kernel__equals_reference_sixteen_at_a_time(p: domain.Pair) -> None:
    check(p.w, p.w_new, p.fmt)


@settings(deadline=None)  # the first example loads the compiled code
@given(
    st.sampled_from(WIDE_BLOCKS),
    st.sampled_from((np.float32, ml_dtypes.bfloat16)),
    st.sampled_from((3, 7, 8, 12)),
    st.integers(0, 2**32 - 1),
)
def test_kernel__equals_reference_where_ratios_are_ties_and_ends_of_bins(
    name: str, dtype: type, most: int, seed: int
) -> None:
    """Few small integers times powers of two: ratios lie on thresholds, and places on the ends of bins."""
    rng = rng_for("few numbers", seed)
    shape = (6, 192)
    scale = np.exp2(rng.integers(-3, 3, (6, 1)))
    w, w_new = ((rng.integers(-most, most + 1, shape) * scale).astype(dtype) for _ in range(2))
    kept = rng.random(shape) < 0.7
    check(w, np.where(kept, w, w_new), format_named(name))


@settings(deadline=None)  # the first example loads the compiled code
@given(
    st.sampled_from(WIDE_BLOCKS),
    st.sampled_from((np.float32, ml_dtypes.bfloat16)),
    st.integers(-126, 126),
    st.integers(0, 2**32 - 1),
)
def test_kernel__equals_reference_where_a_block_is_tiny_or_huge(
    name: str, dtype: type, exponent: int, seed: int
) -> None:
    rng = rng_for("tiny blocks", seed)
    w = rng.standard_normal((6, 192))
    w[rng.integers(6)] *= 2.0**exponent / 8
    w = w.astype(dtype)
    check(w, (1.01 * w.astype(np.float64)).astype(dtype), format_named(name))


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "mxfp4-b32", "nvfp4", "int4-g64", "int8-g64", "q4_0"])
def test_kernel__equals_reference_on_every_bfloat16_of_some_binades(name: str) -> None:
    rng = rng_for("every bfloat16", name)
    sizes = np.arange((127 - 20) << 7, (127 + 2) << 7, dtype=np.uint16)
    both = np.append(sizes, sizes | np.uint16(1 << 15))
    w: Array = rng.permutation(both).view(ml_dtypes.bfloat16).reshape(-1, 64)
    moved = w.astype(np.float32) * (1 + 0.1 * rng.standard_normal(w.shape))
    check(w, moved.astype(w.dtype), format_named(name))


@pytest.mark.parametrize("name", [*SEARCHED, *BY_NUMPY])
def test_kernel__equals_reference_where_scales_are_searched(name: str) -> None:
    rng = rng_for("searched", name)
    w = rng.standard_normal((6, 512)).astype(np.float32)
    check(w, (w + 0.01 * rng.standard_normal(w.shape)).astype(np.float32), format_named(name))


@settings(deadline=None)  # the first example loads the compiled code
@given(
    st.sampled_from(tuple(SEARCHED)),
    st.sampled_from(DTYPES[:3]),
    st.sampled_from((3, 40)),
    st.integers(-60, 30),
    st.integers(0, 2**32 - 1),
)
def test_kernel__equals_reference_in_super_blocks_of_every_kind(
    name: str, dtype: type, most: int, exponent: int, seed: int
) -> None:
    """Of few small integers, whose codes are ties, of noise, of one sign, of zeros, and where scales are tiny or too large."""
    rng = rng_for("super-blocks", seed)
    w = rng.standard_normal((4, 512))
    w[0] = rng.integers(-most, most + 1, 512)
    w[1] = np.abs(w[1])
    w[2, 100:300] = 0
    w[3, :256] *= np.exp2(rng.integers(exponent - 8, exponent + 8, 256))
    moved = np.where(rng.random(w.shape) < 0.7, w, w + 0.1 * rng.standard_normal(w.shape))
    with np.errstate(over="ignore"):
        before: Array = w.astype(dtype)
        after: Array = moved.astype(dtype)
    if np.isfinite(before.astype(np.float32)).all() and np.isfinite(after.astype(np.float32)).all():
        check(before, after, format_named(name))


@pytest.mark.parametrize("name", SEARCHED)
@given(st.integers(1, 3 * TOGETHER), st.integers(-100, 100), st.integers(0, 2**32 - 1))
@settings(deadline=None)  # the first example loads the compiled code
def test_searches__are_those_of_the_reference_bit_for_bit(name: str, count: int, exponent: int, seed: int) -> None:
    """However many sub-blocks there are beside those that are searched together, and however large their weights."""
    rng = rng_for("searches", seed)
    size = OF_STATISTIC[name].size
    w = (np.exp2(exponent) * rng.standard_normal((count, size))).astype(np.float32)
    w[rng.random(w.shape) < 0.1] = 0
    w[::5] = np.round(w[::5] / np.float32(np.exp2(exponent)))
    candidates = {"q4_k": (OF_Q4_K,), "q5_k": (OF_Q5_K,)}.get(name, ())
    expected = SEARCHED[name](w, *candidates)
    scale, low = np.zeros((2, count), np.float32)
    OF_STATISTIC[name].search(w.reshape(-1), scale, low)
    assert np.array_equal(scale, expected.scale, equal_nan=True)
    assert np.array_equal(low, np.asarray(expected.low, np.float32), equal_nan=True)


@settings(deadline=None)  # the first example loads the compiled code
@given(domain.pairs(names=(*domain.FORMAT_NAMES, *WIDE_BLOCKS)), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_kernel__reads_every_dtype(p: domain.Pair, dtype: type, dtype_new: type) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        w: Array = p.w.astype(dtype)
        w_new: Array = p.w_new.astype(dtype_new)
    if np.isfinite(w.astype(np.float32)).all() and np.isfinite(w_new.astype(np.float32)).all():
        check(w, w_new, p.fmt)
    else:
        for path in PATHS:
            with pytest.raises(tensor_task.NotFiniteError):
                measured(w, w_new, [p.fmt], path)


@settings(deadline=None)  # the first example loads the compiled code
@given(st.sampled_from(DTYPES[:3]), st.integers(0, 2**32 - 1), st.sampled_from((1e-5, 1e-3, 1.0)))
def test_kernel__equals_reference_on_tensors_of_a_model(dtype: type, seed: int, size: float) -> None:
    """Many blocks of ordinary weights, of which some are zero and some are not moved."""
    rng = rng_for(seed, size, np.dtype(dtype).name)
    w: Array = (0.02 * rng.standard_normal((24, 192))).astype(dtype)
    w[rng.random(w.shape) < 0.1] = 0
    w_new: Array = (w.astype(np.float32) + size * rng.standard_normal(w.shape)).astype(dtype)
    w_new[::5] = w[::5]
    for name in ("nf4-b64", "fp4-b64", "int4-g64", "int4-row", "int8-row", "fp8-row", "nvfp4", "nf4-b100"):
        check(w, w_new, format_named(name))


@settings(deadline=None)  # the first example loads the compiled code
@given(
    domain.pairs(names=("nf4-b8", "int4-g8", "int8-row", "fp8-tensor", "nvfp4", "q4_0")),
    st.integers(1, 40),
    st.sampled_from(PATHS),
)
def test_pieces__only_cut(p: domain.Pair, most: int, path: str) -> None:
    """Pieces of any size give the same: counts exactly, sums to the rounding of their order."""
    whole = measured(p.w, p.w_new, [p.fmt], path)
    with pytest.MonkeyPatch.context() as patch:
        most = 16 * most if p.fmt.whole_blocks else most
        for module in (piece_blocks, measuring, tensor_task):
            patch.setattr(module, "PIECE_WEIGHTS", most)
        task = tensor_task.tensor_task(InMemory(p.w), InMemory(p.w_new), "w", [p.fmt], path)
        in_pieces = add_pieces(task, [measure_piece(task, piece) for piece in pieces(task.shape, most)])
    for setting, survived in in_pieces.survival.items():
        assert_agree(survived, whole.survival[setting])
    assert in_pieces.binades == whole.binades


@pytest.mark.parametrize("path", PATHS)
def test_order_of_pieces_does_not_matter(path: str) -> None:
    rng = rng_for("order of pieces")
    w = rng.standard_normal((64, 100)).astype(np.float32)
    w_new = (w + 0.01 * rng.standard_normal(w.shape)).astype(np.float32)
    formats = [format_named(name) for name in ("nf4-b64", "int8-row", "int4-tensor")]
    with pytest.MonkeyPatch.context() as patch:
        for module in (piece_blocks, measuring, tensor_task):
            patch.setattr(module, "PIECE_WEIGHTS", 1000)
        task = tensor_task.tensor_task(InMemory(w), InMemory(w_new), "w", formats, path)
        rows = [measure_piece(task, piece) for piece in pieces(task.shape, 1000)]
    assert len(rows) == 7
    assert add_pieces(task, rows) == add_pieces(task, rows[::-1])


@settings(deadline=None)  # the first example loads the compiled code
@given(st.integers(1, 9), st.integers(1, 50), st.integers(1, 60))
def test_pieces__cover_a_tensor_once(rows: int, columns: int, most: int) -> None:
    cuts = list(pieces((rows, columns), most))
    assert [c.start for c in cuts] == [0, *(c.stop for c in cuts[:-1])]
    assert cuts[-1].stop == rows * columns
    assert all(c.stop - c.start <= most for c in cuts)


@settings(deadline=None)  # the first example loads the compiled code
@given(
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(1, 60),
    st.sampled_from(("row", "flat", "group", "tensor")),
    st.data(),
)
def test_layout__is_the_one_of_the_reference(
    rows: int, columns: int, size: int, block: str, data: st.DataObject
) -> None:
    """Blocks that overlap a range end where counting weight by weight says."""
    name = {"row": "int8-row", "tensor": "int8-tensor", "flat": f"nf4-b{size}", "group": f"int4-g{size}"}[block]
    layout = layout_of(format_named(name), (rows, columns))
    line = columns if block in ("row", "group") else rows * columns
    width = size if block in ("flat", "group") else line
    owner = [(i // line, i % line // width) for i in range(rows * columns)]
    start = data.draw(st.integers(0, rows * columns - 1))
    stop = data.draw(st.integers(start + 1, rows * columns))
    ends = [i + 1 - start for i in range(start, stop) if i + 1 == stop or owner[i + 1] != owner[i]]
    assert layout.ends(start, stop).tolist() == ends
    first = next((i for i in range(start, rows * columns) if i == 0 or owner[i] != owner[i - 1]), rows * columns)
    assert layout.first_from(start) == first
    assert layout.index_of(start) == len(dict.fromkeys(owner[: start + 1])) - 1


@settings(deadline=None)  # the first example loads the compiled code
@given(st.sampled_from((np.float32, ml_dtypes.bfloat16)), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_extremes__are_those_of_numpy(dtype: type, size: int, seed: int) -> None:
    rng = rng_for("extremes", size, seed)
    w: Array = rng.standard_normal(size).astype(dtype)
    w[rng.random(size) < 0.3] = rng.choice([0.0, -0.0, 1.0, -1.0])
    ends = np.unique(np.append(rng.integers(1, size + 1, 5), size))
    stored = w.view(np.uint16) if w.itemsize == 2 else w
    low, high = extremes_of(stored, ends)
    parts = np.split(w.astype(np.float32), ends[:-1])
    assert np.array_equal(low, [p.min() for p in parts])
    assert np.array_equal(high, [p.max() for p in parts])


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0**-100],
        [1.0 + 2.0**-10],
        [2.0**-24, 65504.0],
        [2.0**-25],
        [65520.0],
        [1.0 + 2.0**-20],
        [0.0, -0.0],
        [3 * 2.0**-24, 1 + 2.0**-10],
        [1.5 * 2.0**-24],
    ],
)
def test_precision__is_that_of_numpy(values: list[float]) -> None:
    w = np.array([values], np.float32)
    for path in PATHS:
        found = measured(w, w, [format_named("int8-row")], path)
        assert precision_of(found, "float32") == value_precision(w, "float32")


def test_every_plain_format_is_compiled() -> None:
    """All but those of a mean over the tensor; and those of few levels and no zero point are measured in registers on this machine."""
    compiled = {name for name in domain.ALL_FORMAT_NAMES if is_compiled(format_named(name))}
    assert compiled == set(domain.ALL_FORMAT_NAMES) - set(BY_NUMPY)
    for name in compiled:
        rule_of(format_named(name))


def test_layout_of_whole_rows_is_one_line() -> None:
    """So that formats of the same blocks share their extremes."""
    assert layout_of(format_named("int4-g64"), (4, 128)) == layout_of(format_named("nf4-b64"), (4, 128))
    assert layout_of(format_named("int4-row"), (4, 128)) == BlockLayout(128, 512)
    assert list(pieces((4, 128), 256)) == [Piece(0, 256), Piece(256, 512)]
