from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from numpy.typing import NDArray

from unforgotten.theory.formats.kquants import (
    KBlocks,
    nearest_int,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    search_affine,
    search_one_by_one,
    search_symmetric,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import float32, nearest, round_half_even

QUANTIZERS = {"q3_k": q3_k, "q4_k": q4_k, "q5_k": q5_k, "q6_k": q6_k}
AFFINE = {"q4_k": (15, Fraction(-1), 21), "q5_k": (31, Fraction(-1, 2), 16)}
"""Largest code, and the first and the number of the steps that are tried."""
KINDS = ("normal", "outlier", "positive", "lattice", "sparse", "constant")


def super_blocks(kind: str, n: int = 2) -> NDArray[Any]:
    rng = rng_for("super-blocks", kind)
    w: NDArray[Any] = rng.normal(0, 0.02, (n, 256))
    if kind == "outlier":
        w[:, ::37] *= 50
    if kind == "positive":
        w = 0.05 + np.abs(w)
    if kind == "lattice":
        w = rng.integers(-8, 8, w.shape) * 0.125
    if kind == "sparse":
        w *= rng.random(w.shape) < 0.05
    if kind == "constant":
        w = np.repeat(w[:, :8], 32, axis=1)
    return w.astype(np.float32)


def f32(x: Fraction) -> Fraction:
    rounded = float32(x)
    assert rounded is not None
    return rounded


def root32(x: Fraction) -> Fraction:
    """A square root rounded to float32: rounding it to float64 on the way is harmless (53 >= 2 * 24 + 2)."""
    return f32(Fraction(math.sqrt(float(x))))


def total(terms: list[Fraction]) -> Fraction:
    result = Fraction(0)
    for term in terms:
        result = f32(result + term)
    return result


def clip(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def float16(x: Fraction) -> Fraction:
    return nearest(x, 11, -24)


def exact_affine(x: list[Fraction], kind: str) -> tuple[Fraction, Fraction, list[int]]:
    """Scale, minus the minimum, and codes of one sub-block of Q4_K or Q5_K, one rounding at a time."""
    top, first, count = AFFINE[kind]
    rms = root32(f32(total([f32(v * v) for v in x]) / 32))
    weight = [f32(rms + abs(v)) for v in x]
    sum_w, sum_x = total(weight), total([f32(w * v) for w, v in zip(weight, x, strict=True)])
    low, high = min([*x, Fraction(0)]), max(x)
    if low == high:
        return Fraction(0), -low, [0] * len(x)

    def codes_at(inverse: Fraction) -> list[int]:
        return [clip(round_half_even(f32(inverse * f32(v - low))), 0, top) for v in x]

    def error_of(scale: Fraction, minimum: Fraction, codes: list[int]) -> Fraction:
        gaps = [f32(f32(f32(scale * q) + minimum) - v) for q, v in zip(codes, x, strict=True)]
        return total([f32(w * f32(g * g)) for w, g in zip(weight, gaps, strict=True)])

    inverse = f32(top / f32(high - low))
    scale, codes = f32(1 / inverse), codes_at(inverse)
    best = error_of(scale, low, codes)
    tenth = Fraction(float(np.float32(0.1)))
    for i in range(count):
        factor = f32(f32(first + f32(tenth * i)) + top)
        trial = codes_at(f32(factor / f32(high - low)))
        wl = [f32(w * q) for w, q in zip(weight, trial, strict=True)]
        sum_l = total(wl)
        sum_l2 = total([f32(a * q) for a, q in zip(wl, trial, strict=True)])
        sum_xl = total([f32(a * v) for a, v in zip(wl, x, strict=True)])
        determinant = f32(f32(sum_w * sum_l2) - f32(sum_l * sum_l))
        if determinant <= 0:
            continue
        new_scale = f32(f32(f32(sum_w * sum_xl) - f32(sum_x * sum_l)) / determinant)
        new_low = f32(f32(f32(sum_l2 * sum_x) - f32(sum_l * sum_xl)) / determinant)
        if new_low > 0:
            new_low, new_scale = Fraction(0), f32(sum_xl / sum_l2)
        new_error = error_of(new_scale, new_low, trial)
        if new_error < best:
            best, scale, low, codes = new_error, new_scale, new_low, trial
    return scale, -low, codes


def exact_symmetric(x: list[Fraction]) -> tuple[Fraction, list[int]]:
    """Scale and codes of one sub-block of Q6_K, one rounding at a time."""
    largest = max(x, key=abs)
    if abs(largest) < Fraction(float(np.float32(1e-15))):
        return Fraction(0), [0] * len(x)
    scale, best, codes = Fraction(0), Fraction(0), [0] * len(x)
    for i in [0, *range(-9, 0), *range(1, 10)]:
        inverse = f32(-f32(32 + f32(Fraction(float(np.float32(0.1))) * i)) / largest)
        trial = [clip(round_half_even(f32(inverse * v)), -32, 31) for v in x]
        wx = [f32(v * v) for v in x]
        sum_lx = total([f32(f32(w * v) * q) for w, v, q in zip(wx, x, trial, strict=True)])
        sum_l2 = total([f32(f32(w * q) * q) for w, q in zip(wx, trial, strict=True)])
        if i == 0 or (sum_l2 > 0 and f32(sum_lx * sum_lx) > f32(best * sum_l2)):
            scale = f32(sum_lx / sum_l2) if sum_l2 else Fraction(0)
            best, codes = f32(scale * sum_lx), [q + 32 for q in trial]
    return scale, codes


def exact_one_by_one(x: list[Fraction]) -> tuple[Fraction, list[int]]:
    """Scale and codes of one sub-block of Q3_K, one rounding at a time."""
    largest = max(x, key=abs)
    if abs(largest) < Fraction(float(np.float32(1e-15))):
        return Fraction(0), [0] * len(x)
    inverse = f32(-4 / largest)
    codes = [clip(round_half_even(f32(inverse * v)), -4, 3) for v in x]
    squares = [f32(v * v) for v in x]
    sum_lx = total([f32(f32(w * v) * q) for w, v, q in zip(squares, x, codes, strict=True)])
    sum_l2 = total([f32(f32(w * q) * q) for w, q in zip(squares, codes, strict=True)])
    for _ in range(5):
        before = list(codes)
        for i, (w, v) in enumerate(zip(squares, x, strict=True)):
            rest_lx = f32(sum_lx - f32(f32(w * v) * codes[i]))
            rest_l2 = f32(sum_l2 - f32(f32(w * codes[i]) * codes[i]))
            if rest_lx <= 0:
                continue
            new = clip(round_half_even(f32(f32(v * rest_l2) / rest_lx)), -4, 3)
            new_lx, new_l2 = f32(rest_lx + f32(f32(w * v) * new)), f32(rest_l2 + f32(f32(w * new) * new))
            gains = f32(f32(new_lx * new_lx) * sum_l2) > f32(f32(sum_lx * sum_lx) * new_l2)
            if new != codes[i] and new_l2 > 0 and gains:
                codes[i], sum_lx, sum_l2 = new, new_lx, new_l2
        if codes == before:
            break
    return f32(sum_lx / sum_l2) if sum_l2 > 0 else Fraction(0), [q + 4 for q in codes]


SYMMETRIC: dict[str, tuple[Callable[[list[Fraction]], tuple[Fraction, list[int]]], int, int]] = {
    "q3_k": (exact_one_by_one, 32, 4),
    "q6_k": (exact_symmetric, 128, 32),
}
"""Search, largest magnitude of a sub-scale, and code of the level 0."""


def exact_values(x: list[Fraction], kind: str) -> list[Fraction]:
    """Decoded values of one super-block."""
    if kind in AFFINE:
        parts = [exact_affine(x[i : i + 32], kind) for i in range(0, 256, 32)]
        units, integers = [], []
        for sub in ([p[0] for p in parts], [p[1] for p in parts]):
            top = max([*sub, Fraction(0)])
            inverse = f32(63 / top) if top else Fraction(0)
            integers.append([min(63, round_half_even(f32(inverse * s))) for s in sub])
            units.append(float16(f32(top / 63)))
        steps = [f32(units[0] * n) for n in integers[0]]
        lows = [f32(units[1] * n) for n in integers[1]]
        ends, offset, size, kept = (0, AFFINE[kind][0]), 0, 32, [p[2] for p in parts]
    else:
        search, most, offset = SYMMETRIC[kind]
        fits = [search(x[i : i + 16]) for i in range(0, 256, 16)]
        inverse = f32(-most / max((f[0] for f in fits), key=abs))
        unit = float16(f32(1 / inverse))
        steps = [f32(unit * min(most - 1, round_half_even(f32(inverse * f[0])))) for f in fits]
        lows, ends, size = [Fraction(0)] * 16, (-offset, offset - 1), 16
        kept = [f[1] for f in fits]
    values = []
    for i, v in enumerate(x):
        step, low = steps[i // size], lows[i // size]
        code = kept[i // size][i % size] - offset
        if step:
            code = clip(round_half_even(f32(f32(v + low) / step)), *ends)
        values.append(f32(f32(step * code) - low))
    return values


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_k_quants__are_exact_float32(name: str, kind: str) -> None:
    """Against rational arithmetic with one rounding an operation: no double rounding, no fused operation."""
    w = super_blocks(kind, 1)
    got = QUANTIZERS[name](w).values
    for row, values in zip(w, got, strict=True):
        assert [Fraction(float(v)) for v in values] == exact_values([Fraction(float(v)) for v in row], name)


@given(st.integers(-(2**23), 2**23))
@example(1)
@example(-3)
def test_nearest_int__sends_ties_to_even(twice: int) -> None:
    x = np.array([twice / 2], np.float32)
    value = int(np.float32(x[0]) * 2)  # what float32 made of it
    if abs(value) < 2**23 - 2:
        assert int(nearest_int(x)[0]) == round_half_even(Fraction(value, 2))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", KINDS)
@given(exponent=st.integers(-3, 12))
def test_k_quants__scale_with_powers_of_two(name: str, kind: str, exponent: int) -> None:
    """Codes stay and values scale, where d is a normal float16 before and after."""
    w, factor = super_blocks(kind), np.float32(2.0**exponent)
    plain, scaled = QUANTIZERS[name](w), QUANTIZERS[name](w * factor)
    normal = np.float16(2.0**-14)
    units = np.stack([plain.d, scaled.d, plain.dmin, scaled.dmin])
    clean = ((np.abs(units) >= normal) | (units == 0)).all(axis=0)
    assert np.array_equal(scaled.codes[clean], plain.codes[clean])
    assert np.array_equal(scaled.values[clean], plain.values[clean] * factor)


@pytest.mark.parametrize("kind", KINDS)
def test_search_one_by_one__changes_codes_only_where_the_largest_weight_is_negative(kind: str) -> None:
    """So Q3_K is not odd: ggml goes over the codes of one sign of the largest weight alone, whose first sum is above 0."""
    x = super_blocks(kind, 8).reshape(-1, 16)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    found = search_one_by_one(x)
    with np.errstate(all="ignore"):
        plain = np.clip(nearest_int(np.float32(-4) / largest * x), -4, 3) + 4
    changed = (found.codes != plain).any(axis=1) & (largest[:, 0] != 0)
    assert not changed[largest[:, 0] > 0].any()
    if kind in ("normal", "outlier"):
        assert changed[largest[:, 0] < 0].any()
    if kind == "normal":
        assert not np.array_equal(q3_k(x.reshape(-1, 256)).values, -q3_k(-x.reshape(-1, 256)).values)


@pytest.mark.parametrize("kind", KINDS)
def test_search_one_by_one__fits_no_worse_than_its_first_codes(kind: str) -> None:
    """What rises is (sum x^2 x q)^2 / sum x^2 q^2; of float32 sums, which are kept over five passes."""
    x = -np.abs(super_blocks(kind).reshape(-1, 16)).astype(np.float64)
    with np.errstate(all="ignore"):
        first = np.clip(np.rint(-4 * x / x.min(axis=1, keepdims=True)), -4, 3)
    level = search_one_by_one(x.astype(np.float32)).codes.astype(np.float64) - 4

    def fit(q: NDArray[Any]) -> NDArray[Any]:
        square = (x**2 * q**2).sum(axis=1)
        return np.asarray((x**3 * q).sum(axis=1) ** 2 / np.where(square == 0, 1, square))

    some = x.min(axis=1) < 0
    slack = (
        4 * (16 + 4 + 5 * 16 * 4) * 2.0**-24
    )  # a square and a quotient of sums of 16 terms that are changed 80 times
    assert (fit(level)[some] >= fit(first)[some] * (1 - slack)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_q6_k__is_odd(kind: str) -> None:
    w = super_blocks(kind)
    there, back = q6_k(w), q6_k(-w)
    assert np.array_equal(there.codes, back.codes)
    assert np.array_equal(there.values, -back.values)


def test_q4_k__is_not_odd() -> None:
    """Its minimum is never above 0: positive weights are spread over [0, max], negative ones over [min, max]."""
    w = super_blocks("positive")
    assert (q4_k(w).values >= 0).all()
    assert not np.array_equal(q4_k(w).values, -q4_k(-w).values)
    error, mirrored = q4_k(w).values - w, q4_k(-w).values + w
    assert np.abs(mirrored).max() < np.abs(error).max()


@pytest.mark.parametrize("kind", KINDS)
def test_search_affine__is_no_worse_than_its_first_candidate(kind: str) -> None:
    x = super_blocks(kind).reshape(-1, 32)
    found = search_affine(x)
    weight = np.sqrt((x.astype(float) ** 2).mean(axis=1))[:, None] + np.abs(x)
    low, high = np.minimum(x.min(axis=1), 0.0)[:, None], x.max(axis=1)[:, None]
    step = np.where(high > low, (high - low) / 15, 1)
    plain = low + step * np.clip(np.rint((x - low) / step), 0, 15)
    searched = found.scale[:, None] * found.codes - found.low[:, None].astype(float)
    error = (weight * (searched - x) ** 2).sum(axis=1)
    first = (weight * (plain - x) ** 2).sum(axis=1)
    terms = 40 * 2.0**-24  # 32 terms and 4 roundings in each, every one relative to a sum of squares
    spread = (weight * (np.abs(x) + high - low) ** 2).sum(axis=1)  # bounds what cancels
    assert (error <= first + terms * spread).all()


@pytest.mark.parametrize("kind", KINDS)
def test_search_symmetric__fits_its_own_codes_best(kind: str) -> None:
    """The scale is the weighted least-squares fit to the codes that come with it."""
    x = super_blocks(kind).reshape(-1, 16).astype(np.float64)
    found = search_symmetric(x.astype(np.float32))
    level = found.codes.astype(float) - 32 * (found.scale != 0)[:, None]
    square = (x**2 * level**2).sum(axis=1)
    fit = (x**3 * level).sum(axis=1) / np.where(square == 0, 1, square)
    slack = 2 * (16 + 4) * 2.0**-24  # two sums of 16 terms, 4 roundings a term; all terms >= 0
    assert (np.abs(found.scale - fit) <= slack * np.abs(fit)).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_k_quants__of_zeros_are_zeros(name: str) -> None:
    quantized = QUANTIZERS[name](np.zeros((1, 256), np.float32))
    assert (quantized.values == 0).all()
    assert quantized.d[0] == 0


@pytest.mark.parametrize("name", QUANTIZERS)
def test_k_quants__keep_the_codes_of_the_search_where_the_step_is_zero(name: str) -> None:
    """A sub-block whose scale rounds to 0 decodes to one value, whatever its codes; ggml stores those it searched."""
    w = np.full((1, 256), 1e-4, np.float32)
    w[0, :16] = np.linspace(-1, 1, 16)
    w[0, 40:48] = -1e-5
    quantized = QUANTIZERS[name](w)
    dead = quantized.step[0] == 0
    codes = quantized.codes.reshape(len(dead), -1)[dead]
    assert dead.any()
    assert (codes != codes[:, :1]).any()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_k_blocks__decode_inside_the_ranges_of_their_bits(name: str, kind: str) -> None:
    k: KBlocks = QUANTIZERS[name](super_blocks(kind))
    assert k.codes.max() <= (AFFINE[name][0] if name in AFFINE else 63)
    assert (k.scales.min(), k.scales.max()) >= ((0, 0) if name in AFFINE else (-128, -128))
    assert k.scales.max() <= (63 if name in AFFINE else 127)
    assert ((k.mins >= 0) & (k.mins <= 63)).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_k_quants__refuse_what_they_cannot_hold(name: str) -> None:
    quantize = QUANTIZERS[name]
    with pytest.raises(ValueError, match="shape"):
        quantize(np.zeros((1, 128), np.float32))
    with pytest.raises(ValueError, match="shape"):
        quantize(np.zeros((0, 256), np.float32))
    with pytest.raises(ValueError, match="finite"):
        quantize(np.full((1, 256), np.nan, np.float32))
    with pytest.raises(ValueError, match="float16"):
        quantize(np.linspace(-1e10, 1e10, 256, dtype=np.float32)[None])
