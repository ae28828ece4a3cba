"""What a pair of checkpoints says of the steps that led from one to the other, from its movement by binade alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from unforgotten.theory.geometry.dead_zone import MIN_WEIGHTS
from unforgotten.theory.geometry.motion import StepLaw, check_training, free_radius, step_law

SNR_RANGE = (1e-3, 1e3)
MOVE_NODES = 16
FINE_BINADES = 14


def step_ratio(w: NDArray[Any], delta: NDArray[Any], *, lr: float, steps: int, dtype: str) -> float:
    """Return the rms of delta over lr * steps, among the weights whose spacing is too fine to round their steps.

    One number, of the magnitude of the motion; it knows nothing of any format.

    Args:
        w: weights before, (n,).
        delta: their change, (n,).
        lr: learning rate > 0.
        steps: number of steps T >= 1.
        dtype: dtype of the stored weights.

    Raises:
        ValueError: an argument is out of its domain, or fewer than MIN_WEIGHTS weights move freely.
    """
    check_training(lr, steps, dtype)
    free = np.abs(np.asarray(w)) < free_radius(lr, dtype)
    if free.sum() < MIN_WEIGHTS or steps == 0:
        raise ValueError(
            f"at least {MIN_WEIGHTS} weights must move freely for one step or more, got {int(free.sum())} weights"
            f" and steps={steps}"
        )
    moved = np.asarray(delta, np.float64)[free]
    return float(np.sqrt(np.mean(moved**2))) / (lr * steps)


def stationary_fit(ratio: float) -> StepLaw:
    """Return AdamW's stationary law whose drifts have this root mean square; the nominal law from 1 on."""
    if ratio >= step_law("adamw", SNR_RANGE[1]).ratio:
        return step_law("adamw")
    snr = scipy.optimize.brentq(lambda x: step_law("adamw", x).ratio - ratio, *SNR_RANGE)
    return step_law("adamw", float(snr))  # pyright: ignore[reportArgumentType]


class Moves(NamedTuple):
    """Weights in [low, high) move by `delta`, (m,) each; `share` of the weights there do."""

    low: NDArray[Any]
    high: NDArray[Any]
    delta: NDArray[Any]
    share: NDArray[Any]


def observed_moves(w: NDArray[Any], delta: NDArray[Any]) -> Moves:
    """Return a pair's own motion by quarter binade of |w| and by sign: means of MOVE_NODES sorted equal groups.

    Takes the motion as known, so that a prediction from it tests T6 and the law of absmax alone. Weights below
    2^-FINE_BINADES of the largest are one piece. Quarters, because motion inside a binade depends on the distance
    to its frozen neighbour.

    Args:
        w: weights before, any shape, not all 0.
        delta: their change, same shape.
    """
    w, delta = (np.asarray(x, np.float64).ravel() for x in (w, delta))
    top = math.frexp(float(np.abs(w).max()))[1]
    quarters = 1 + np.arange(4) / 4
    inner = np.outer(np.ldexp(1.0, np.arange(top - FINE_BINADES, top)), quarters).ravel()
    ends = np.concatenate([[0.0], inner, [math.ldexp(1.0, top)]])
    rows = []
    for sign in (-1.0, 1.0):
        for low, high in pairwise(ends):
            inside = np.sort(delta[(sign * w >= low) & (sign * w < high)])
            groups = np.array_split(inside, min(MOVE_NODES, len(inside)) or 1)
            rows += [(*sorted((sign * low, sign * high)), g.mean(), len(g) / len(inside)) for g in groups if g.any()]
    return Moves(*np.array(rows, np.float64).reshape(-1, 4).T)
