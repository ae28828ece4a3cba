"""What a contract is, what breaks one, and how a check reads a quantizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unforgotten.verification.contracts.described import Quantizer

Array = NDArray[Any]


@dataclass(frozen=True)
class Counterexample:
    """One weight that breaks a contract.

    Attributes:
        weights: the tensor that was quantized (rows, columns).
        at: (row, column) of the weight; None where no single one is to blame.
        words: sentence that says what must be and what is.
    """

    weights: Array
    at: tuple[int, int] | None
    words: str


Check = Callable[[Quantizer, Array], Counterexample | None]


@dataclass(frozen=True)
class Contract:
    """One statement about a quantizer.

    Attributes:
        statement: sentence that must hold, in plain words.
        check: whether weights break it.
        applies: whether a quantizer's claims imply it.
        needs: claims that it asks for, in plain words.
        weights: "any", up to the largest claimed; "normal", 0 or far from subnormal; "ties", on and around thresholds.
        whole_blocks: whether the weights must be whole blocks.
    """

    statement: str
    check: Check
    applies: Callable[[Quantizer], bool] = lambda q: True
    needs: str = "nothing"
    weights: Literal["any", "normal", "ties"] = "any"
    whole_blocks: bool = False


def quantized(q: Quantizer, w: Array) -> Array:
    """Return the values of the quantizer, which gets a copy of the weights and may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(q.quantize(w.copy()))


def coded(q: Quantizer, w: Array) -> Array:
    """Return the codes of a quantizer that has them."""
    assert q.codes is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(q.codes(w.copy())).astype(np.int64)


def blocks(q: Quantizer, shape: tuple[int, ...]) -> list[Array]:
    """List which weights share a grid, by index into the flattened tensor. The last block of a row may be shorter."""
    flat: Array = np.arange(shape[0] * shape[1])
    rows: list[Array] = [flat] if q.block in ("tensor", "flat") else list(flat.reshape(shape))
    if not q.block_size:
        return rows
    size = q.block_size
    return [row[i : i + size] for row in rows for i in range(0, len(row), size)]


def place(w: Array, index: int) -> tuple[int, int]:
    """Return (row, column) of an index into the flattened tensor."""
    return int(index) // w.shape[1], int(index) % w.shape[1]


def number(x: object) -> str:
    """Print a number as short as it can be told from its float32 neighbours."""
    return f"{float(x):.9g}"  # type: ignore[arg-type]


def unequal(w: Array, got: Array, expected: Array, why: str = "") -> Counterexample | None:
    """Return the first weight whose value is not the expected one; the two zeros count as one, and so do two nan.

    That a value must be finite is a contract of its own, so that no other speaks of a nan that must become nan.
    """
    alike = (got == expected) | (np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64)))
    wrong = np.flatnonzero(~alike.ravel())
    if not wrong.size:
        return None
    i = wrong[0]
    values = [number(x.ravel()[i]) for x in (w, expected, got)]
    words = f"weight {values[0]} must become {values[1]}{why}, got {values[2]}"
    return Counterexample(w, place(w, i), words)
