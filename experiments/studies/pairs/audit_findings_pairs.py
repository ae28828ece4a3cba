"""Pairs of known origin for the audit's findings: honest updates, and updates placed inside or across a format's cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import code_units, encode, fit_grid, from_blocks, to_blocks
from unforgotten.theory.geometry.cells import cells

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")
SHAPE = (256, 256)
STD = 0.02  # of the weights of a 7B Llama
SIZES = (1e-3, 0.3)  # of an honest update, in standard deviations of the weights
DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
Array = NDArray[Any]


def gaussian(w: Array, size: float, rng: np.random.Generator) -> Array:
    """Move each weight by a normal change, independent of the others."""
    return w + rng.normal(0, size, w.shape)


def signed(w: Array, size: float, rng: np.random.Generator) -> Array:
    """Move each weight by `size`, up or down at random."""
    return w + size * rng.choice([-1.0, 1.0], w.shape)


def washed(w: Array, size: float, rng: np.random.Generator, name: str = "nf4-b64") -> Array:
    """Move each weight by a normal change, clamped so that no code of the format changes on the grid of `w`."""
    moved = gaussian(w, size, rng).astype(np.float32)
    return _kept(w, np.clip(moved, *_ends(w, format_named(name))).astype(np.float32), name)


def aimed(w: Array, size: float, rng: np.random.Generator, name: str = "nf4-b64") -> Array:
    """Move each weight toward the nearer end of its cell, so that more codes flip than chance would let."""
    low, high = _ends(w, format_named(name))
    toward = np.where(high - w < w - low, 1.0, -1.0)
    largest = np.abs(to_blocks(w, format_named(name))).max(axis=1, keepdims=True)
    setter = from_blocks(np.abs(to_blocks(w, format_named(name))) == largest, w.shape, format_named(name))
    return np.where(setter, w, w + size * toward * rng.uniform(0.5, 1.0, w.shape))


def _ends(w: Array, fmt: Format) -> tuple[Array, Array]:
    """Return the ends of each weight's cell, in the units of the weights, a little inside."""
    blocks = to_blocks(w, fmt)
    grid = fit_grid(blocks, fmt)
    codes, v = encode(blocks, grid, fmt), code_units(blocks, grid, fmt).astype(np.float64)
    step = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float64) / fmt.divisor
    edges = cells(fmt)
    inside = 1e-4 * edges.width[codes]
    ends = (edges.lower[codes] + inside, edges.upper[codes] - inside)
    low, high = (from_blocks(blocks + (end - v) * step, w.shape, fmt) for end in ends)
    return np.minimum(low, w), np.maximum(high, w)


def _kept(w: Array, moved: Array, name: str) -> Array:
    """Return `moved`, but `w` where the code would change on the grid of `w`, and where the weight sets a scale."""
    fmt = format_named(name)
    before, after = to_blocks(w, fmt), to_blocks(moved, fmt)
    grid = fit_grid(before, fmt)
    largest = np.abs(before).max(axis=1, keepdims=True)
    free = (encode(before, grid, fmt) == encode(after, grid, fmt)) & (np.abs(before) < largest)
    return from_blocks(np.where(free, after, before), w.shape, fmt)


UPDATES: Mapping[str, Callable[[Array, float, np.random.Generator], Array]] = {
    "gaussian": gaussian,
    "sign": signed,
    "washed": washed,
    "aimed": aimed,
}


def save_pair(folder: Path, kind: str, seed: int, dtype: str, size: float) -> tuple[Path, Path]:
    """Write a pair of two matrices of Gaussian weights, both rounded to the dtype, and return the two directories.

    Args:
        folder: folder that the two directories go to.
        kind: key of UPDATES.
        seed: seed of weights and update.
        dtype: key of DTYPES.
        size: size of the update, in standard deviations of the weights.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    before = {name: rng.normal(0, STD, SHAPE).astype(DTYPES[dtype]) for name in NAMES}
    after = {
        name: UPDATES[kind](w.astype(np.float32), size * STD, rng).astype(DTYPES[dtype]) for name, w in before.items()
    }
    for name, tensors in (("before", before), ("after", after)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name / "model.safetensors")
    return folder / "before", folder / "after"
