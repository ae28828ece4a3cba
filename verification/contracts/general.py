"""Contracts that need no grid: order, zeros, signs, blocks, memory; and equality with a format of ours.

Takes a described quantizer and weights (rows, columns); gives a `Counterexample`, or None where the contract holds.

>>> from unforgotten.verification.contracts.libraries import reference
>>> mirrors(reference("int4-g32"), np.ones((1, 32), np.float32)) is None
True
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.verification.contracts.base import (
    Contract,
    Counterexample,
    blocks,
    coded,
    number,
    place,
    quantized,
    unequal,
)
from unforgotten.verification.contracts.described import Quantizer

Array = NDArray[Any]
POWERS = (10, -10)


def answers(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that values are finite numbers in the shape of the weights."""
    got = quantized(q, w)
    if got.shape != w.shape:
        return Counterexample(w, None, f"values must have the shape {w.shape}, got {got.shape}")
    wrong = np.flatnonzero(~np.isfinite(got.astype(np.float64)))
    if not wrong.size:
        return None
    weight, value = number(w.ravel()[wrong[0]]), number(got.ravel()[wrong[0]])
    words = f"weight {weight} must become a finite number, got {value}"
    return Counterexample(w, place(w, wrong[0]), words)


def leaves_its_input(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that a quantizer leaves the array that it was given unchanged."""
    given = w.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q.quantize(given)
    wrong = np.flatnonzero(given.ravel() != w.ravel())
    if not wrong.size:
        return None
    before, after = number(w.ravel()[wrong[0]]), number(given.ravel()[wrong[0]])
    words = f"weight {before} must be left as it was, it was overwritten by {after}"
    return Counterexample(w, place(w, wrong[0]), words)


def repeats(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that quantizing others in between changes nothing. The first call washes out what earlier tests left."""
    quantized(q, w)
    before = quantized(q, w)
    quantized(q, 3 * np.clip(w[::-1], -q.largest / 3, q.largest / 3) + np.float32(1))
    return unequal(w, quantized(q, w), before, " as it did before other weights were quantized")


def keeps_zero_blocks(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that a block of zeros becomes zeros; where no block is claimed, a tensor of zeros."""
    zeroed = w.copy()
    first = blocks(q, w.shape)[0] if q.block else np.arange(w.size)
    zeroed.ravel()[first] = 0
    got = quantized(q, zeroed)
    expected = got.copy()
    expected.ravel()[first] = 0
    return unequal(zeroed, got, expected, ", in a block of zeros")


def keeps_zero(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that a weight of 0 becomes 0."""
    got = quantized(q, w)
    return unequal(w, got, np.where(w == 0, np.zeros_like(got), got))


def blocks_are_independent(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that a block has the values that it has alone: blocks may be permuted, and tensors concatenated."""
    together = quantized(q, w)
    alone = together.copy()
    for block in blocks(q, w.shape):
        alone.ravel()[block] = quantized(q, w.ravel()[block].reshape(1, -1)).ravel()
    return unequal(w, together, alone, ", as it does when its block is quantized alone")


def values_keep_the_order(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that in a block a larger weight has no smaller value."""
    return _disordered(q, w, quantized(q, w), "value")


def codes_keep_the_order(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that in a block a larger weight has no smaller code."""
    return _disordered(q, w, coded(q, w), "code")


def _disordered(q: Quantizer, w: Array, got: Array, what: str) -> Counterexample | None:
    for block in blocks(q, w.shape):
        order = block[np.argsort(w.ravel()[block], kind="stable")]
        for low, high in _pairs(np.flatnonzero(np.diff(got.ravel()[order]) < 0), order):
            a, b, qa, qb = (number(x.ravel()[i]) for x in (w, got) for i in (low, high))
            words = f"weight {b} must have no smaller {what} than {a} has, got {qb} and {qa}"
            return Counterexample(w, place(w, high), words)
    return None


def _pairs(falls: Array, order: Array) -> Iterator[tuple[int, int]]:
    return ((int(order[i]), int(order[i + 1])) for i in falls)


def one_value_a_code(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that in a block equal codes have equal values."""
    got, codes = quantized(q, w), coded(q, w)
    expected = got.copy()
    for block in blocks(q, w.shape):
        _, first, which = np.unique(codes.ravel()[block], return_index=True, return_inverse=True)
        expected.ravel()[block] = got.ravel()[block][first[which]]
    return unequal(w, got, expected, ", as another weight of its code does")


def mirrors(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that Q(-w) = -Q(w)."""
    return unequal(-w, quantized(q, -w), -quantized(q, w), ", minus the value of its mirror image")


def scales_with_powers_of_two(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that Q(2^k w) = 2^k Q(w), exactly."""
    got = quantized(q, w)
    for power in POWERS:
        factor = np.float32(2.0**power)
        why = f", 2^{power} times what {{}} becomes"
        found = unequal(w * factor, quantized(q, w * factor), got * factor, why)
        if found and found.at:
            return Counterexample(found.weights, found.at, found.words.format(number(w[found.at])))
    return None


def equals_its_format(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that every value is, bit for bit, that of our format."""
    assert q.format is not None
    expected = round_trip(w, format_named(q.format))
    return unequal(w, quantized(q, w), expected, f", as in {q.format}")


BASIC: Mapping[str, Contract] = {
    "finite values of the same shape": Contract("every weight becomes a finite number", answers),
    "same weights, same values": Contract("nothing is remembered from call to call", repeats),
    "the weights are left alone": Contract("the input is not written to", leaves_its_input),
}
GENERAL: Mapping[str, Contract] = {
    "a block of zeros stays zero": Contract("zeros become zeros, not nan", keeps_zero_blocks),
    "zero stays zero": Contract("a weight of 0 becomes 0", keeps_zero, lambda q: q.exact_zero, "exact_zero"),
    "blocks are independent": Contract(
        "a block has the values that it has alone: it may be moved, and tensors concatenated",
        blocks_are_independent,
        lambda q: q.independent and q.block not in (None, "tensor"),
        "independent, and a block that is not the tensor",
        whole_blocks=True,
    ),
    "values keep the order": Contract(
        "in a block a larger weight has no smaller value", values_keep_the_order, lambda q: q.block is not None, "block"
    ),
    "codes keep the order": Contract(
        "in a block a larger weight has no smaller code",
        codes_keep_the_order,
        lambda q: q.block is not None and q.codes is not None and q.statistic != "signed-absmax",
        "block and codes",
    ),
    "one value a code": Contract(
        "in a block equal codes have equal values",
        one_value_a_code,
        lambda q: q.block is not None and q.codes is not None,
        "block and codes",
    ),
    "signs mirror": Contract("Q(-w) = -Q(w)", mirrors, lambda q: q.symmetric, "symmetric"),
    "powers of two scale": Contract(
        "Q(2^k w) = 2^k Q(w)", scales_with_powers_of_two, lambda q: q.scales, "scales", weights="normal"
    ),
}
FORMAT: Mapping[str, Contract] = {
    "bits equal the named format": Contract(
        "every value is that of our format, bit for bit", equals_its_format, lambda q: q.format is not None, "format"
    )
}
