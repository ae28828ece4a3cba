"""T6-T8 against simulated weights: six formats, three densities, five sizes of update, both grids.

The kernels of `theory.formats.reference` make the codes, the laws know nothing of them. A mean of n independent blocks may
differ from the law by Z standard errors and by the law's own stated error; Z is the normal quantile of FALSE_ALARM.
That the mean of n >= 1,500 block means is normal is an approximation, the one in this file. It fails where nearly every
code flips: what varies then is a rare block of a large absmax, which a sample may hold none of (seen under two of 31
seeds); there flips are bounded by `bernstein_radius`, which needs no such assumption. The last test shows what the sample
can see.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import decode, encode, fit_grid
from unforgotten.theory.laws.absmax import absmax_law
from unforgotten.theory.laws.block_law import Expected, adaptive_error, block_law
from unforgotten.theory.laws.densities import DENSITIES, STUDENT_FREEDOM, density_named
from unforgotten.theory.laws.update import GRID_MODES, GridMode
from unforgotten.verification.chance import FALSE_ALARM, bernstein_radius, rng_for

Z = float(-special.ndtri(FALSE_ALARM / 2))
NAMES = ("int4-g64", "int4-row", "int8-row", "int3-g128", "nf4-b64", "fp4-b64")
SCALES = (0.003, 0.01, 0.03, 0.1, 0.3)  # |delta| over the standard deviation
ROW = 64
SATURATED = 0.9  # share of flips from which blocks that flip less are rare
WEIGHTS = 200_000
POWER_WEIGHTS = 2_000_000  # enough to see one weight in 64
NIGHTLY_WEIGHTS = 10_000_000
CHUNK = 400_000
MISPLACED = 2.0**-16  # weights across a threshold by float32: one rounding of up to 127 code units
VALUE = 2.0**-21  # float32 error of a value: 8 roundings of a weight of size 1
SPACINGS: Mapping[GridMode, float] = {"fixed": 2.0**-5, "adaptive": 2.0**-3}  # the pin's jumps
QUANTITIES = ("flips", "levels", "gain", "energy")


SAMPLERS: Mapping[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]] = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(scale=0.5**0.5, size=shape),
    "student-t": lambda rng, shape: rng.standard_t(STUDENT_FREEDOM, shape) * (1 - 2 / STUDENT_FREEDOM) ** 0.5,
}


class Measured(NamedTuple):
    """Means over blocks, their standard errors, by quantity, (4,) each, and the number of blocks."""

    mean: NDArray[Any]
    stderr: NDArray[Any]
    blocks: int


def size_of(fmt: Format) -> int:
    return fmt.block_size or ROW


def block_means(fmt: Format, density: str, scale: float, mode: GridMode, weights: int, part: int) -> NDArray[Any]:
    """(n_blocks, 4): flips, levels moved, D delta / delta^2 and D^2 / delta^2, per weight."""
    size = size_of(fmt)
    rng = rng_for(fmt.name, density, scale, mode, part)
    shape = (max(1, weights // size), size)
    w = SAMPLERS[density](rng, shape).astype(np.float32)
    moved = w + np.float32(scale) * rng.choice(np.array([-1, 1], np.float32), size=shape)
    delta = moved.astype(np.float64) - w
    grid = fit_grid(w, fmt)
    grid_new = fit_grid(moved, fmt) if mode == "adaptive" else grid
    before, after = encode(w, grid, fmt), encode(moved, grid_new, fmt)
    surviving = decode(after, grid_new, fmt).astype(np.float64) - decode(before, grid, fmt)
    parts = (before != after, np.abs(after.astype(int) - before), surviving * delta / scale**2, surviving**2 / scale**2)
    return np.stack([p.mean(axis=1) for p in parts], axis=1)


def measure(fmt: Format, density: str, scale: float, mode: GridMode, weights: int) -> Measured:
    parts = [block_means(fmt, density, scale, mode, min(CHUNK, weights), i) for i in range(-(-weights // CHUNK))]
    x = np.concatenate(parts)
    return Measured(x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x)), len(x))


def quantities(e: Expected) -> NDArray[Any]:
    return np.array([e.flips, e.levels, e.gain, e.surviving_sq / e.delta_sq])


@cache  # of no sample: `seeds` fills it once for all seeds
def law_of(fmt: Format, density: str, scale: float, mode: GridMode) -> tuple[Expected, float]:
    """The law and its stated error: 0 on a fixed grid."""
    f = density_named(density, 1.0)
    absmax = absmax_law(f, size_of(fmt), spacing=SPACINGS[mode])
    error = adaptive_error(f, absmax, scale) if mode == "adaptive" else 0.0
    return block_law(fmt, f, absmax, scale, mode), error


def deviations(
    fmt: Format, density: str, scale: float, mode: GridMode, weights: int
) -> tuple[NDArray[Any], NDArray[Any], Measured]:
    """|measured - law|, and what is allowed, by quantity."""
    expected, error = law_of(fmt, density, scale, mode)
    seen, law = measure(fmt, density, scale, mode, weights), quantities(expected)
    steps = law[3] / law[2]  # effective step over |delta|: what one misplaced weight adds to D / delta
    float32 = np.array([1, 1, steps, steps**2]) * MISPLACED + np.array([0, 0, 1, steps]) * VALUE / scale
    chance = Z * seen.stderr
    if expected.flips > SATURATED:
        chance[0] = bernstein_radius(float(seen.stderr[0] ** 2 * seen.blocks), seen.blocks)
    allowed = chance + error * np.maximum(law, 1.0) + float32
    return np.abs(seen.mean - law), allowed, seen


@pytest.mark.parametrize("mode", GRID_MODES)
@pytest.mark.parametrize("density", sorted(DENSITIES))
@pytest.mark.parametrize("name", NAMES)
def test_block_law__holds_on_simulated_weights(name: str, density: str, mode: GridMode) -> None:
    for scale in SCALES[1::2]:
        gap, allowed, _ = deviations(format_named(name), density, scale, mode, WEIGHTS)
        assert (gap <= allowed).all(), f"{name} {density} {scale} {mode}: {gap} of {allowed}"


def test_block_law__simulation_sees_wrong_laws() -> None:
    """Each of three mistakes is refuted: blocks of half the size, no entry pinned, another density."""
    fmt, f = format_named("int4-g64"), density_named("gaussian", 1.0)
    seen = measure(fmt, "gaussian", 0.1, "fixed", POWER_WEIGHTS)
    right = block_law(fmt, f, absmax_law(f, 64), 0.1, "fixed")
    half = block_law(fmt, f, absmax_law(f, 32), 0.1, "fixed")
    free = block_law(fmt, f, absmax_law(f, 64)._replace(size=10**9), 0.1, "fixed")
    laplace = density_named("laplace", 1.0)
    other = block_law(fmt, laplace, absmax_law(laplace, 64), 0.1, "fixed")
    gaps = [np.abs(seen.mean - quantities(e)) / seen.stderr for e in (right, half, free, other)]
    assert gaps[0].max() < Z
    assert all(gap.max() > Z for gap in gaps[1:])


@pytest.mark.nightly
@pytest.mark.parametrize("mode", GRID_MODES)
@pytest.mark.parametrize("name", NAMES)
def test_block_law__holds_on_ten_million_weights(name: str, mode: GridMode) -> None:
    """Adds its rows to the file $UNFORGOTTEN_LAW_ROWS, where that is set; reports/flip_laws.py reads them."""
    rows: list[dict[str, Any]] = []
    for density, scale in itertools.product(sorted(DENSITIES), SCALES):
        found = deviations(format_named(name), density, scale, mode, NIGHTLY_WEIGHTS)
        case = {"grid": mode, "format": name, "density": density, "delta_over_std": scale}
        rows += rows_of(case, *found)
    if path := os.environ.get("UNFORGOTTEN_LAW_ROWS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    assert not [row for row in rows if row["gap"] > row["allowed"]]


def rows_of(case: dict[str, Any], gap: NDArray[Any], allowed: NDArray[Any], seen: Measured) -> list[dict[str, Any]]:
    """One row a quantity."""
    columns = zip(QUANTITIES, seen.mean, seen.stderr, gap, allowed, strict=True)
    return [
        {
            **case,
            "weights": NIGHTLY_WEIGHTS,
            "quantity": quantity,
            "measured": float(mean),
            "stderr": float(error),
            "gap": float(distance),
            "allowed": float(most),
        }
        for quantity, mean, error, distance, most in columns
    ]


def test_block_law__rows_name_their_quantity() -> None:
    seen = Measured(np.arange(4.0), np.full(4, 0.5), 1)
    rows = rows_of({"grid": "fixed"}, np.ones(4), 4 * np.ones(4), seen)
    assert [(r["quantity"], r["measured"]) for r in rows] == list(zip(QUANTITIES, range(4), strict=True))
    assert all((r["stderr"], r["gap"], r["allowed"]) == (0.5, 1, 4) for r in rows)
