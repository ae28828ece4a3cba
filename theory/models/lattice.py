"""T17: GPTQ is nearest-plane rounding in the lattice of the calibration Hessian: its cell, its error, its gating law.

With H^-1 = U'U (U upper triangular, columns in the order of their rounding) write `M = diag(U) U^-T`: unit lower
triangular, `|M e|^2` weighted by `1/U_ii^2` is `e'He`. For the error `e = w - q` of a row, `(M e)_i = v_i - q_i`, where
v_i is what column i rounds. H is the damped Hessian 2/n X'X + lambda, so `2/n |X e|^2 <= e'He`, and every upper bound
here holds for the output error too. The grid is fixed; steps `step_i > 0` may differ between columns.

Takes the factor U and the grids of a run of GPTQ; gives its loss as a sum over columns, bounds of it, the cells of its
codes, and how an update passes.

>>> factor = np.array([[1.0, 0.5], [0.0, 2.0]])
>>> skew(factor).tolist()
[[1.0, 0.0], [-0.5, 1.0]]
>>> nearest_plane_loss(np.array([[0.5, -1.0]]), factor).tolist()
[0.5]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.gptq import GptqResult, GptqRule
from unforgotten.theory.formats.group_grids import GRID_RULES, GroupGrid, encode_group

SOURCE = "Babai 1986 (nearest plane); Chen et al. 2025, arXiv 2507.18553 (GPTQ is Babai)"


def skew(factor: NDArray[Any]) -> NDArray[Any]:
    """Return M = diag(U) U^-T, unit lower triangular: how the errors of earlier columns reach a later one.

    Args:
        factor: U, (n, n) upper triangular with a positive diagonal.
    """
    inverse = scipy.linalg.solve_triangular(factor, np.eye(len(factor)), trans=1)
    return np.diag(factor)[:, None] * inverse


@claim("T17", kind="exact", source=SOURCE)
def nearest_plane_loss(residual: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """The loss e'He = sum_i ((v_i - q_i) / U_ii)^2: the output error is the sum of what each column's rounding left.

    True for every code vector, clipped ones too.

    Args:
        residual: `v - q`, columns in the order of rounding, (..., n).
        factor: U, (n, n).

    Returns:
        e'He, (...).
    """  # noqa: D401
    return np.square(residual / np.diag(factor)).sum(axis=-1)


@claim("T17", kind="exact", source=SOURCE)
def error_norm_upper_bound(step: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """sqrt(e'He) <= 1/2 sqrt(sum_i (step_i / U_ii)^2), where no code is clipped.

    Attained at the corners of the cell. Clipping voids it: a clipped column leaves a residual of any size.

    Args:
        step: step of each column in the order of rounding, (..., n).
        factor: U, (n, n).
    """
    return np.sqrt(np.square(step / np.diag(factor)).sum(axis=-1)) / 2


class Interval(NamedTuple):
    """Closed intervals; both ends belong to them. Shape of the weights."""

    lower: NDArray[Any]
    upper: NDArray[Any]


@claim("T17", kind="exact", source="Babai 1986; monotone bisection over the floats of the kernel's dtype")
def sequential_cell(w: NDArray[Any], result: GptqResult, rule: GptqRule) -> Interval:
    """Given the weights before column i, w_i keeps its code exactly on an interval: the plain cell minus what was pushed.

    In the kernel's own floats: rounding, subtraction and division are monotone, so bisection finds the last float with
    the code on each side. Sound and maximal with no margin. The cell of a row is then
    `q + M^-1 (product of the plain cells, centred)`: a parallelepiped of volume `product of the steps`, inner cells.

    Args:
        w: the weights that were quantized, (rows, columns).
        result: result of `gptq(w, ...)`; its grid is kept.
        rule: the rule that was used.

    Returns:
        Ends in the dtype of `w`. A dead column's weight is ignored: its interval is every finite float.
    """
    u = result.factor
    errors = (result.compensated - result.values)[:, result.order] / np.diag(u)
    lower, upper = np.empty_like(w), np.empty_like(w)
    largest = np.full(len(w), np.finfo(w.dtype).max, w.dtype)
    for i, column in enumerate(result.order):
        if result.dead[column]:
            lower[:, column], upper[:, column] = -largest, largest
            continue
        cell = _Column(
            GroupGrid(result.scale[:, column], result.zero[:, column]),
            errors[:, :i] * u[:i, i],
            result.codes[:, column],
            rule,
        )
        lower[:, column] = _last_held(cell, w[:, column], -largest)
        upper[:, column] = _last_held(cell, w[:, column], largest)
    return Interval(lower, upper)


@claim("T17", kind="exact", source="derived here")
def is_swallowed(residual: NDArray[Any], delta: NDArray[Any], step: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """D = 0 iff |v_i - q_i + (M delta)_i| < step_i / 2 for every i: the update is judged after it has been pushed.

    Plain rounding asks |w_i - q_i + delta_i| < step_i / 2. An update that it swallows passes GPTQ as soon as
    `(M delta)_i`, the sum of `delta_i` and the swallowed updates before it, leaves the cell of one column.
    Inner cells, ties excluded.

    Args:
        residual: `v - q` before the update, columns in the order of rounding, (..., n).
        delta: the update, same order, (..., n).
        step: step of each column, same shape or (n,).
        factor: U, (n, n).

    Returns:
        Booleans, (...).
    """
    return np.asarray((np.abs(residual + delta @ skew(factor).T) < step / 2).all(axis=-1))


@claim("T17", kind="exact", source="derived here")
def lost_update_upper_bound(step: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """|delta - D|_H <= sqrt(sum_i (step_i / U_ii)^2), |x|_H^2 = x'Hx, whatever delta, where no code is clipped.

    So an update with a larger |delta|_H cannot be swallowed, however small each of its entries is, and its gain in this
    norm, <D, delta>_H / |delta|_H^2, is within bound / |delta|_H of 1. Twice the error bound: two roundings. Both
    models are rounded with one H, and with one bound of the steps. Two calibrations of two models have two:
    `lost_update_of_two_upper_bound`.

    Args:
        step: step of each column in the order of rounding, (..., n).
        factor: U, (n, n).
    """
    return 2 * error_norm_upper_bound(step, factor)


class Rounding(NamedTuple):
    """What bounds one run of GPTQ: `step` (n,) and `factor` U (n, n) in the order of rounding, and that `order` (n,)."""

    step: NDArray[Any]
    factor: NDArray[Any]
    order: NDArray[Any]


@claim("T17", kind="exact", source="derived here; triangle inequality and the largest generalized eigenvalue")
def lost_update_of_two_upper_bound(before: Rounding, after: Rounding) -> float:
    """|delta - D|_H <= b(H) + sqrt(lambda_max(H H'^-1)) b(H'), b of `error_norm_upper_bound`: each model has its Hessian.

    delta - D = e' - e, the errors of the two roundings, |e|_H <= b(H), and |e'|_H is at most the root times |e'|_H'.
    Both grids may be fitted anew; no code is clipped. H is of the model before, whose outputs are asked about. With
    H^-1 = A'A and H'^-1 = B'B in one order of columns the root is the spectral norm of B A^-1. Equal runs give
    `lost_update_upper_bound`. Plain rounding and AWQ have diagonal factors: U_ii = 1 and 1 over the scale of a column.

    Args:
        before: rounding of w.
        after: rounding of w'.

    Raises:
        ValueError: the runs differ in their number of columns, or an order is no permutation.
    """
    n = len(before.factor)
    if after.factor.shape != before.factor.shape:
        raise ValueError(f"factors must have one shape, got {before.factor.shape} and {after.factor.shape}")
    for run in (before, after):
        if not np.array_equal(np.sort(run.order), np.arange(n)):
            raise ValueError(f"order must be a permutation of {n} columns, got order={run.order!r}")
    a, b = (run.factor[:, np.argsort(run.order)] for run in (before, after))
    stretch = float(np.linalg.norm(np.linalg.solve(a.T, b.T), 2))
    first, second = (float(error_norm_upper_bound(run.step, run.factor)) for run in (before, after))
    return first + stretch * second


def pushed_shift(delta: NDArray[Any], survived: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """Return s_i = delta_i + sum_{j<i} M_ij (delta_j - D_j), the shift of column i once the columns before are rounded.

    Args:
        delta: the update, columns in the order of rounding, (..., n).
        survived: D, same shape.
        factor: U, (n, n).
    """
    strict = np.tril(skew(factor), -1)
    return delta + (delta - survived) @ strict.T


@claim("T17", kind="law", source="derived here; T6 and T7 column by column")
def sequential_flip_probability(shift: NDArray[Any], step: NDArray[Any]) -> NDArray[Any]:
    """P[D_i != 0 | columns before i] = min(|s_i| / step_i, 1), E[D_i | …] = s_i; hence E[D | delta] = delta.

    Assumption U of the lattice: the residuals v_i - q_i are uniform on their cells, independent of one another and of
    delta (w uniform on a period of the lattice gives just that). No code is clipped.

    Args:
        shift: s_i of `pushed_shift`, any shape.
        step: step of each column, same shape, > 0.
    """
    return np.minimum(np.abs(shift) / step, 1.0)


@claim("T17", kind="law", source="derived here; T7 column by column")
def sequential_loss_variance(shift: NDArray[Any], step: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """E|delta - D|_H^2 = E sum_i step_i^2 phi_i (1 - phi_i) / U_ii^2, phi_i = frac(|s_i| / step_i).

    At most the square of `error_norm_upper_bound`, for every update. Assumption U of the lattice, as in
    `sequential_flip_probability`. The mean over the random s_i of this function is
    E|delta - D|_H^2: the lost parts `(M (delta - D))_i = s_i - D_i` are martingale differences.

    Args:
        shift: s_i, columns in the order of rounding, (..., n).
        step: step of each column, same shape or (n,).
        factor: U, (n, n).
    """
    phi = np.mod(np.abs(shift) / step, 1.0)
    return (np.square(step / np.diag(factor)) * phi * (1 - phi)).sum(axis=-1)


@claim("T17", kind="exact", source="derived here")
def one_feature_shift(x: NDArray[Any], delta: NDArray[Any], damping: float) -> NDArray[Any]:
    """(M delta)_i = delta_i + x_i sum_{j<i} x_j delta_j / (damping + sum_{k>=i} x_k^2) for H = xx' + damping.

    One input direction. In the last column it tends to `x.delta / x_n` as the damping goes to 0: from the middle of the
    cells GPTQ passes an update as soon as its output |x.delta| exceeds half a step of the last column, while plain
    rounding waits until one entry exceeds half its own step (T11b).

    Args:
        x: the input, (n,).
        delta: the update, columns in the order of rounding, (..., n).
        damping: number added to the diagonal of H, > 0, in the units of x^2.

    Raises:
        ValueError: the damping is not positive.
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, got damping={damping!r}")
    before = np.cumsum(x * delta, axis=-1) - x * delta
    remaining = np.cumsum((x * x)[::-1])[::-1]
    return delta + x * before / (damping + remaining)


@dataclass(frozen=True)
class _Column:
    """One column given those before it: its grid, what they pushed onto it (rows, earlier columns), its codes."""

    grid: GroupGrid
    pushed: NDArray[Any]
    codes: NDArray[Any]
    rule: GptqRule

    def holds(self, x: NDArray[Any]) -> NDArray[Any]:
        """Tell whether weights `x` (rows,) have the codes, in the kernel's order of operations."""
        with np.errstate(over="ignore"):
            for k in range(self.pushed.shape[1]):
                x = x - self.pushed[:, k]
        first = GRID_RULES[self.rule.grid].zero_first
        return encode_group(x, self.grid, self.rule.bits, zero_first=first) == self.codes


def _last_held(cell: _Column, start: NDArray[Any], end: NDArray[Any]) -> NDArray[Any]:
    """Return the float farthest from `start` towards `end` that the cell holds; it holds `start`."""
    held, out = _ordinal(start), _ordinal(end)
    held = np.where(cell.holds(end), out, held)
    while True:
        middle = (held >> 1) + (out >> 1) + (held & out & 1)  # their sum can overflow
        if ((middle == held) | (middle == out)).all():
            return _from_ordinal(held, start.dtype)
        inside = cell.holds(_from_ordinal(middle, start.dtype))
        held, out = np.where(inside, middle, held), np.where(inside, out, middle)


def _ordinal(x: NDArray[Any]) -> NDArray[Any]:
    """Count the floats between 0 and x, with the sign of x: int64, ascending with x."""
    magnitude = np.abs(x).view(f"i{x.dtype.itemsize}").astype(np.int64)
    return np.where(x < 0, -magnitude, magnitude)


def _from_ordinal(n: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.copysign(np.abs(n).astype(f"i{dtype.itemsize}").view(dtype), n).astype(dtype)
