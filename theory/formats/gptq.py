"""GPTQ: columns rounded one after the other, each error pushed onto the columns to come (arXiv 2210.17323).

With H^-1 = U'U, U upper triangular, column i rounds `v_i` and then every later column j loses
`(v_i - q_i) / U_ii * U_ij`. That is Babai's nearest plane in the lattice of H (`lattice.py`).

The dtype of the weights is the dtype of the arithmetic. Corrections are subtracted one column at a time, one rounding
an operation; libraries do so within a block of 128 and use a matrix product beyond, which a BLAS sums in its own order.

Takes weights (rows, columns), a Hessian (columns, columns) and a rule of `GPTQ_RULES`; gives codes, values, grids, and
what each column rounded.

>>> w = np.array([[0.3, -0.7]], np.float32)
>>> h = calibration_hessian(np.array([[1, 0.5], [0, 1]], np.float32))
>>> found = gptq(w, h, GptqRule(group_size=None))
>>> found.codes.tolist()
[[11, 1]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from unforgotten.theory.formats.group_grids import GRID_RULES, GroupGrid, decode_group, encode_group

Order = Literal["natural", "activation", "group-aware"]


@dataclass(frozen=True)
class GptqRule:
    """One variant of GPTQ.

    Attributes:
        bits: bits of a code.
        group_size: columns that share a grid; None: the row.
        symmetric: whether the zero point is fixed at half the codes.
        static: whether all grids are fitted before the first column moves; else each group is fitted when
            its first column comes, to weights that hold the corrections of earlier blocks only.
        order: order of the columns: as they are; by falling diagonal of H; or by falling diagonal within a group,
            groups by their largest (arXiv 2505.14638). Groups of a static grid are those of the natural order.
        damping: share of the mean diagonal that is added to the diagonal.
        block: columns between two refreshes of the weights that groups are fitted to.
        grid: key of `GRID_RULES`.
        fit_dead: whether static grids are fitted before dead columns are set to zero.
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    static: bool = False
    order: Order = "natural"
    damping: float = 0.05
    block: int = 128
    grid: str = "gptq"
    fit_dead: bool = False


GPTQ_RULES: Mapping[str, GptqRule] = {
    "gptqmodel": GptqRule(order="group-aware"),
    "auto-gptq": GptqRule(damping=0.01),
    "llmcompressor": GptqRule(static=True, order="activation", damping=0.01, grid="compressed-tensors", fit_dead=True),
}


class GptqResult(NamedTuple):
    """What GPTQ makes of a matrix; all but `order` in the columns' own order.

    Attributes:
        codes: codes of the weights, int16 (rows, columns).
        values: the dequantized weights, same shape.
        scale: step of every weight, same shape.
        zero: zero point of every weight, same shape.
        compensated: `v`, what each column rounded: the weight with the errors of earlier columns pushed onto it.
        order: columns in the order of their rounding, (columns,).
        factor: U of the permuted H, (columns, columns) upper triangular.
        dead: columns whose inputs are all zero; their weights are set to zero.
    """

    codes: NDArray[Any]
    values: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any]
    compensated: NDArray[Any]
    order: NDArray[Any]
    factor: NDArray[Any]
    dead: NDArray[Any]


def calibration_hessian(x: NDArray[Any]) -> NDArray[Any]:
    """Return H = 2/n X'X, the second derivative of the mean squared output error. Its scale changes no code.

    Args:
        x: inputs of the layer, (tokens, columns).
    """
    return 2.0 / len(x) * (x.T @ x)


def inverse_factor(h: NDArray[Any]) -> NDArray[Any]:
    """Return U, upper triangular with H^-1 = U'U, by Cholesky, inversion and Cholesky, as the libraries do.

    Args:
        h: matrix H, symmetric (n, n).

    Raises:
        ValueError: H is not positive definite.
    """
    try:
        inverse_root = scipy.linalg.solve_triangular(np.linalg.cholesky(h), np.eye(len(h), dtype=h.dtype), lower=True)
        return np.ascontiguousarray(np.linalg.cholesky(inverse_root.T @ inverse_root).T)
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(h)[0])
        raise ValueError(
            f"hessian must be positive definite after damping, got smallest eigenvalue={smallest!r}"
        ) from None


def column_order(diagonal: NDArray[Any], rule: GptqRule) -> NDArray[Any]:
    """Return the columns in the order of their rounding, (columns,).

    Args:
        diagonal: diagonal of H, before damping, dead columns set to 1.
        rule: its `order`, `group_size`. A last partial group stays last in the group-aware order.
    """
    if rule.order == "natural":
        return np.arange(len(diagonal))
    if rule.order == "activation" or rule.group_size is None:
        return np.argsort(-diagonal, kind="stable")
    whole = len(diagonal) // rule.group_size * rule.group_size
    groups = diagonal[:whole].reshape(-1, rule.group_size)
    within = np.argsort(-groups, axis=1, kind="stable") + np.arange(0, whole, rule.group_size)[:, None]
    by_largest = np.argsort(-groups.max(axis=1), kind="stable") if whole else np.arange(0)
    return np.concatenate([within[by_largest].ravel(), np.arange(whole, len(diagonal))])


def gptq(w: NDArray[Any], hessian: NDArray[Any], rule: GptqRule) -> GptqResult:
    """Quantize a matrix.

    Args:
        w: weights, float32 or float64 (rows, columns).
        hessian: matrix H, symmetric (columns, columns), not damped.
        rule: the variant.

    Raises:
        ValueError: shapes do not fit, or H is not positive definite after damping.
    """
    if w.ndim != 2 or hessian.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"hessian must be (columns, columns) of w, got shapes={w.shape}, {hessian.shape}")
    dead = np.diag(hessian) == 0
    alive = np.where(dead, w.dtype.type(0), w)
    h = hessian.astype(w.dtype) + np.diag(dead).astype(w.dtype)
    order = column_order(np.diag(h), rule)
    h = h[order][:, order]
    factor = inverse_factor(h + np.diag(np.full(len(h), rule.damping * np.diag(h).mean(), h.dtype)))
    static = None
    if rule.static or rule.group_size is None:  # a row is fitted before its dead columns are zeroed
        whole = fit_groups(w if rule.fit_dead or rule.group_size is None else alive, rule)
        static = GroupGrid(whole.scale[:, order], whole.zero[:, order])
    result = round_columns(alive[:, order], factor, rule, static)
    back = np.argsort(order)
    codes, values, scale, zero, compensated = (np.ascontiguousarray(a[:, back]) for a in result)
    codes = codes.astype(np.int16)
    return GptqResult(codes, values, scale, zero, compensated, order, factor, dead)


class Rounded(NamedTuple):
    """The first five fields of `GptqResult`, in the order of rounding; codes as floats."""

    codes: NDArray[Any]
    values: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any]
    compensated: NDArray[Any]


def round_columns(w: NDArray[Any], factor: NDArray[Any], rule: GptqRule, grid: GroupGrid | None) -> Rounded:
    """Round the columns from first to last; `grid` (rows, columns) where it is fixed, else fitted on the way."""
    v = w.copy()
    out = Rounded(*(np.empty_like(w) for _ in range(5)))
    zero_first = GRID_RULES[rule.grid].zero_first
    refreshed, own = w, _fit(w[:, : _group(rule, w)], rule)
    for i in range(w.shape[1]):
        if i % rule.block == 0:
            refreshed = v.copy()
        if grid is not None:
            own = GroupGrid(grid.scale[:, i : i + 1], grid.zero[:, i : i + 1])
        elif i % _group(rule, w) == 0:
            own = _fit(refreshed[:, i : i + _group(rule, w)], rule)
        code = encode_group(v[:, i : i + 1], own, rule.bits, zero_first=zero_first)
        value = decode_group(code, own)
        for column, a in zip(out, (code, value, *own, v[:, i : i + 1]), strict=True):
            column[:, i : i + 1] = a
        v[:, i + 1 :] -= (v[:, i : i + 1] - value) / factor[i, i] * factor[i, i + 1 :]
    return out


def fit_groups(w: NDArray[Any], rule: GptqRule) -> GroupGrid:
    """Return the grid of every weight, (rows, columns), groups in the columns' own order.

    Args:
        w: weights, (rows, columns).
        rule: its `group_size`, `grid`, `bits`, `symmetric`.
    """
    size = _group(rule, w)
    parts = [w[:, i : i + size] for i in range(0, w.shape[1], size)]
    grids = [_fit(part, rule) for part in parts]
    widths = [part.shape[1] for part in parts]
    return GroupGrid(*(np.repeat(np.hstack(a), widths, axis=1) for a in zip(*grids, strict=True)))


def _group(rule: GptqRule, w: NDArray[Any]) -> int:
    return rule.group_size or w.shape[1]


def _fit(w: NDArray[Any], rule: GptqRule) -> GroupGrid:
    return GRID_RULES[rule.grid].fit(w, rule.bits, rule.symmetric)
