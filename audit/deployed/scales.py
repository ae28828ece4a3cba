"""Scales that a tool gave to the channels of a matrix, and the matrix without them.

AWQ and SmoothQuant store W diag(s) in place of W and divide by s what feeds it: the weights of a norm, or the rows of the
layer before. The model computes the same, but the decoded matrix is no longer near W. Where a norm of the layer was divided,
s is the quotient of the two norms, exactly. Where a matrix was, s is the one that makes the decoded matrix nearest to the
weights, column by column or row by row.

>>> w = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
>>> s = np.linspace(0.5, 2, 8)
>>> undone = without_scales(w, (w * s).astype(np.float32), {"input_layernorm.weight": s})
>>> undone.by, bool(np.allclose(undone.values, w))
('norm', True)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
By = Literal["", "norm", "fit"]
EXPLAINED = 0.1
"""Share of the error that factors of channels must explain to be scales; without scales some formats, whose clipping depends on
the channel, leave less than 0.05 to them."""
NOISE = 2
"""What is asked above that, in units of one over the length of a channel: as much of any error as factors explain by chance."""
EXACT = 2.0**-40
"""Share of the squared length of a matrix below which an error is the rounding of float32."""
SHORT = 0.05
"""Share of what fitted factors explain that the quotient of two norms may leave, where the matrix was scaled by it."""
SAMPLED = 256
"""Rows, evenly spaced, on which it is decided whether a matrix was scaled at all."""
CHUNK_ROWS = 256
"""Rows whose products are added up in float32; their sums are added in float64."""
ROUNDS = 5
"""Times that factors of rows and of columns are fitted in turn."""


class Undone(NamedTuple):
    """A decoded matrix without the scales of its channels.

    Attributes:
        values: the matrix, float32; as it was given where it was not scaled.
        rows, columns: factors that it was divided by, float64.
        by: how they were found: "norm" where no factor was fitted, "fit" where some were, "" where there are none.
    """

    values: Array
    rows: Array
    columns: Array
    by: By


def without_scales(w: Array, q: Array, norms: Mapping[str, Array]) -> Undone:
    """Return the decoded matrix without the scales of its channels.

    Args:
        w: weights it was made from, float32 (rows, columns).
        q: decoded matrix in the same order.
        norms: by name, the factors that each norm of the layer was divided by, float64 (its width,).
    """
    step = max(1, len(w) // SAMPLED)
    best = _found(w[::step], q[::step], norms)
    if best.by and step > 1:
        best = _found(w, q, norms)
    if not best.by:
        return Undone(q, np.ones(len(w)), np.ones(w.shape[1]), "")
    values = np.empty_like(q)
    for i in range(0, len(q), CHUNK_ROWS):
        part = slice(i, i + CHUNK_ROWS)
        values[part] = q[part] / best.rows[part, None] / best.columns  # in float64, rounded once
    return best._replace(values=values)


def _found(w: Array, q: Array, norms: Mapping[str, Array]) -> Undone:
    """Return the factors that q was scaled by, with q itself."""
    plain = Undone(q, np.ones(len(w)), np.ones(w.shape[1]), "")
    best = _fitted(w, plain)
    least = _error(w, best) + SHORT * (_error(w, plain) - _error(w, best))
    for columns in (norm for norm in norms.values() if len(norm) == w.shape[1] and (norm > 0).all()):
        exact = plain._replace(columns=columns, by="norm")
        found = _simpler(w, exact, exact._replace(rows=factors(w, q, 1, columns), by="fit"))
        if _simpler(w, plain, found).by and _error(w, found) < least:  # rows undo a quotient that is one number
            best, least = found, _error(w, found)
    return best


def _fitted(w: Array, plain: Undone) -> Undone:
    """Return the factors that make q nearest to the scaled weights, of the axes that were scaled."""
    q = plain.values
    by_columns, by_rows = (
        plain._replace(columns=factors(w, q, 0), by="fit"),
        plain._replace(rows=factors(w, q, 1), by="fit"),
    )
    one = _simpler(w, plain, min(by_columns, by_rows, key=partial(_error, w)))
    both = by_columns
    for _ in range(ROUNDS if one.by else 1):
        both = both._replace(rows=factors(w, q, 1, both.columns))
        both = both._replace(columns=factors(w, q, 0, both.rows))
    return _simpler(w, one, both)


def _simpler(w: Array, simple: Undone, other: Undone) -> Undone:
    """Return the second of two where its factors explain enough of the error of the first.

    Rounding itself shrinks a channel by about the square of its relative error, so factors must spread by more than that.
    """
    before, after, length = _error(w, simple), _error(w, other), float(np.square(simple.values, dtype=np.float32).sum())
    enough = (1 - EXPLAINED - NOISE / min(w.shape)) * before
    spread = max(float(np.std(x) / np.mean(x)) for x in (other.rows, other.columns))
    return other if before > EXACT * length and after < enough and spread > after / length else simple


def factors(w: Array, q: Array, axis: int, others: Array | None = None) -> Array:
    """Return <q, v> / <v, v> over an axis, the factor by which a channel of q is nearest to that of v; 1 where it has none.

    Args:
        w: weights (rows, columns).
        q: decoded matrix.
        axis: axis that is summed over: 0 gives a factor for each column, 1 for each row.
        others: factors of the other axis; v is w with them, or w itself.
    """
    square, dot = np.zeros(w.shape[1 - axis]), np.zeros(w.shape[1 - axis])
    for i in range(0, len(w), CHUNK_ROWS):
        part = slice(i, i + CHUNK_ROWS)
        v = w[part]
        if others is not None:
            v = v * (others[part, None] if axis == 0 else others).astype(np.float32)
        at = slice(None) if axis == 0 else part
        square[at] += (v * v).sum(axis)
        dot[at] += (v * q[part]).sum(axis)
    return np.divide(dot, square, out=np.ones_like(dot), where=dot > 0)


def share_of_scaling(w: Array, delta: Array) -> float:
    """Return the squared length of the part of an update that only scales rows and columns, at most that of the update.

    That is what a fit of the factors cannot tell from scales of the tool.
    """
    total = 0.0
    for axis in (0, 1):
        square, dot = (np.einsum(f"ij,ij->{'ji'[axis]}", x, w, dtype=np.float64) for x in (w, delta))
        total += float(np.divide(dot**2, square, out=np.zeros_like(dot), where=square > 0).sum())
    return min(total, float(np.square(delta, dtype=np.float64).sum()))


def _error(w: Array, at: Undone) -> float:
    total, columns = 0.0, at.columns.astype(np.float32)
    for i in range(0, len(w), CHUNK_ROWS):
        part = slice(i, i + CHUNK_ROWS)
        off = at.values[part] - w[part] * at.rows[part, None].astype(np.float32) * columns
        total += float(np.square(off, out=off).sum())
    return total
