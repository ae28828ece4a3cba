"""FP8 tiles of transformers, whose way to a code is not that of compressed-tensors: how far the two are apart.

Not installed by default, see `test_compressed_tensors`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U32

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="transformers runs on torch")
fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8", reason="quantizes models to float8 by tiles")

NAME, TILE = "fp8-b128x128", (128, 128)
ROUNDINGS = 5
"""Of float32: 448 / absmax and the product there, absmax / 448 and the quotient here; one to spare for their products."""


def stored(w: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers and scales as transformers stores them, float32."""
    settings = SimpleNamespace(weight_block_size=TILE, scale_fmt="float32")
    found = fp8.Fp8Quantize(SimpleNamespace(quantization_config=settings))._quantize_one(
        "a.weight", torch.from_numpy(w)
    )
    return found["a.weight"].float().numpy(), found["a.weight_scale_inv"].numpy()


def test_codes_differ_next_to_a_threshold_alone() -> None:
    fmt, rng = format_named(NAME), rng_for("transformers fp8")
    w = rng.normal(0, 0.02, (256, 384)).astype(np.float32)
    absmax = np.abs(w.reshape(2, 128, 3, 128)).max(axis=(1, 3))
    steps = np.kron(absmax / np.float32(448), np.ones(TILE, np.float32))
    chosen = (rng.random(w.shape) < 0.5) & (np.abs(w) < 0.05)
    w = np.where(chosen, rng.choice(fmt.thresholds[100:150], w.shape) * steps, w).astype(np.float32)
    codes, grid = quantize(w, fmt)
    numbers, scales = stored(w)
    ours = np.asarray(fmt.levels, np.float32)[codes]
    assert (np.abs(scales.ravel() / grid.scale[:, 0].astype(np.float64) - 1) <= ROUNDINGS * U32).all()
    v = w / np.kron(grid.scale.reshape(2, 3).astype(np.float64), np.ones(TILE))
    thresholds = fmt.thresholds.astype(np.float64)
    distance = np.abs(v[..., None] - thresholds).min(axis=-1)
    differ = numbers != ours
    assert differ.any()
    assert (distance[differ] <= ROUNDINGS * U32 * np.abs(v[differ])).all()
