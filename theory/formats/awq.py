"""AWQ: scale the columns of a matrix up by s before rounding, its inputs down by s (arXiv 2306.00978), s by a search.

A column with large inputs gets a finer effective step, `scale / s_j`; the values that the model computes with are
`Q(w s) / s`. The candidates are one family with one parameter, the ratio r: `s = x_mean^r / w_mean^(1-r)`.

The dtype of the weights is the dtype of the arithmetic.

Takes weights (rows, columns), inputs (tokens, columns) and a rule of `AWQ_RULES`; gives the scaling and the values
that the model computes with.

>>> w, x = np.eye(8, 128, dtype=np.float32), np.ones((4, 128), np.float32)
>>> found = search_scales(w, x, AWQ_RULES["autoawq"])
>>> found.values.shape, found.scales.shape
((8, 128), (128,))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.group_grids import GRID_RULES, decode_group, encode_group


class Candidate(NamedTuple):
    """One scaling: the exponent of the inputs, and whether the weights take part ("duo scaling")."""

    ratio: float
    duo: bool


@dataclass(frozen=True)
class AwqRule:
    """One variant of AWQ's search.

    Attributes:
        candidates: exponents and forms, in the order they are tried; the first of equals wins.
        grid: key of `GRID_RULES`.
        bits: bits of a code.
        group_size: columns that share a grid; divides the columns.
        symmetric: whether the zero point is fixed at half the codes.
        clip_steps: shrinkings of 5 % that the clip search tries, 1 for none.
        clip_tokens: number of inputs that the clip search looks at, about.
    """

    candidates: tuple[Candidate, ...]
    grid: str
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    clip_steps: int = 1
    clip_tokens: int = 512


AWQ_RULES: Mapping[str, AwqRule] = {
    "autoawq": AwqRule(tuple(Candidate(i / 20, True) for i in range(20)), "autoawq", clip_steps=10),
    "llmcompressor": AwqRule(
        (Candidate(0.0, False), *(Candidate(i / 18, True) for i in range(19))), "compressed-tensors"
    ),
}


class AwqSearch(NamedTuple):
    """The winner.

    Attributes:
        scales: s, (columns,).
        candidate: candidate that gave them.
        losses: mean squared output error of every candidate, (candidates,).
        values: Q(w s) / s, (rows, columns).
    """

    scales: NDArray[Any]
    candidate: Candidate
    losses: NDArray[Any]
    values: NDArray[Any]


def round_groups(w: NDArray[Any], rule: AwqRule) -> NDArray[Any]:
    """Return Q(w), every group rounded to its own grid, shape of `w`.

    Raises:
        ValueError: the group size does not divide the columns.
    """
    if w.ndim != 2 or w.shape[1] % rule.group_size:
        raise ValueError(f"group_size must divide the columns of w, got group_size={rule.group_size}, shape={w.shape}")
    groups = w.reshape(-1, rule.group_size)
    chosen = GRID_RULES[rule.grid]
    grid = chosen.fit(groups, rule.bits, rule.symmetric)
    codes = encode_group(groups, grid, rule.bits, zero_first=chosen.zero_first)
    return decode_group(codes, grid).reshape(w.shape)


def input_means(x: NDArray[Any]) -> NDArray[Any]:
    """Return the mean |x| of each column, (columns,), of inputs (tokens, columns)."""
    return np.abs(x).mean(axis=0)


def weight_means(w: NDArray[Any], group_size: int) -> NDArray[Any]:
    """Return the mean over rows of |w| / (max|w| of the group + 1e-6), (columns,)."""
    groups = np.abs(w).reshape(-1, group_size)
    relative = groups / (groups.max(axis=1, keepdims=True) + w.dtype.type(1e-6))
    return relative.reshape(w.shape).mean(axis=0)


def candidate_scales(x_mean: NDArray[Any], w_mean: NDArray[Any], candidate: Candidate) -> NDArray[Any]:
    """Return the scaling s = max(x_mean^r / (w_mean^(1-r) + 1e-4), 1e-4), divided by sqrt(max s min s).

    Without duo, s = max(x_mean^r, 1e-4), divided by the root above. An infinite scale becomes 1.

    Args:
        x_mean: `input_means`, (columns,).
        w_mean: `weight_means`, (columns,).
        candidate: r and duo.
    """
    dtype = x_mean.dtype.type
    s = x_mean ** dtype(candidate.ratio)
    if candidate.duo:
        s = s / (w_mean ** dtype(1 - candidate.ratio) + dtype(1e-4))
    s = np.maximum(s, dtype(1e-4))
    with np.errstate(over="ignore"):
        s = s / np.sqrt(s.max() * s.min())
    return np.where(np.isfinite(s), s, dtype(1))


def search_scales(w: NDArray[Any], x: NDArray[Any], rule: AwqRule) -> AwqSearch:
    """Return the candidate of least mean |x (Q(w s) / s)' - x w'|^2, and of equals the first.

    The block that the error is measured after is the layer itself; libraries may measure it after attention or the MLP.
    AutoAWQ 0.2.9 does this on a GPU only: on a CPU its backup of the weights, `v.cpu()`, is an alias that the first
    candidate scales in place, and every later candidate is judged on weights that are off by that scale.

    Args:
        w: weights, (rows, columns).
        x: inputs, (tokens, columns), in the dtype of `w`.
        rule: the variant.

    Raises:
        ValueError: the group size does not divide the columns, or no candidate has a finite loss.
    """
    x_mean, w_mean = input_means(x), weight_means(w, rule.group_size)
    scales = [candidate_scales(x_mean, w_mean, c) for c in rule.candidates]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        values = [round_groups(w * s, rule) / s for s in scales]
        losses = np.array([np.square(x @ (q - w).T).mean() for q in values])
    best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
    if not np.isfinite(losses[best]):
        raise ValueError(f"a candidate's loss must be finite, got losses={losses!r}")
    return AwqSearch(scales[best], rule.candidates[best], losses, values[best])


def search_clip(w: NDArray[Any], x: NDArray[Any], rule: AwqRule) -> NDArray[Any]:
    """Return each group's m = (1 - i/20) max|w| of least mean_t (x_t (Q(clip(w, ±m)) - w))^2, of equals the largest.

    Args:
        w: weights, already multiplied by s, (rows, columns).
        x: inputs, already divided by s, (tokens, columns).
        rule: the variant.

    Returns:
        The bound of every weight, shape of `w`.
    """
    x = x[:: max(1, len(x) // rule.clip_tokens)]
    shape = (len(w), -1, rule.group_size)
    absmax = np.abs(w).reshape(shape).max(axis=2, keepdims=True)
    bound, least = absmax.copy(), np.full_like(absmax, np.inf)
    for i in range(rule.clip_steps):
        trial = absmax * w.dtype.type(1 - i / 20)
        clipped = np.clip(w.reshape(shape), -trial, trial).reshape(w.shape)
        lost = (round_groups(clipped, rule) - w).reshape(shape)
        output = np.einsum("tgk,rgk->rgt", x.reshape(len(x), *shape[1:]), lost)
        error = np.square(output).mean(axis=2, keepdims=True)
        better = error < least
        least, bound = np.where(better, error, least), np.where(better, trial, bound)
    return np.repeat(bound, rule.group_size, axis=2).reshape(w.shape)
