"""A tensor that is read by pieces as float32 is the tensor that is read whole and converted."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, read_float32

SHAPES = [(), (0, 3), (5,), (3, PIECE_WEIGHTS // 2 + 1), (2, PIECE_WEIGHTS + 3), (2, 3, 4)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_are_the_whole(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    values: NDArray[Any] = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    save_file({"w": np.asarray(values)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    found = read_float32(checkpoint, "w")
    assert found.dtype == np.float32
    assert found.shape == shape
    assert np.array_equal(found, np.asarray(values).astype(np.float32))
    assert found.flags.writeable


def test_beside_the_tensor_no_more_than_a_piece_is_in_memory(tmp_path: Path) -> None:
    values = np.zeros((8, PIECE_WEIGHTS // 2), np.float32)
    save_file({"w": values}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    tracemalloc.start()
    try:
        read_float32(checkpoint, "w")
        assert tracemalloc.get_traced_memory()[1] < values.nbytes + 2 * 4 * PIECE_WEIGHTS  # a piece, and what is small
    finally:
        tracemalloc.stop()
